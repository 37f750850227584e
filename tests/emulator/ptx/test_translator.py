# SPDX-License-Identifier: Apache-2.0
"""What the translator reads, and that it refuses what it does not know, naming the line."""

from __future__ import annotations

import re

import pytest
from compiling import HERE
from ptx.opcode_kernels import PROLOGUE, kernel_text
from ptx.parser import (
    Instruction,
    Label,
    PtxError,
    Registers,
    Scope,
    Variable,
    parse_kernel,
    split_kernels,
    with_host_names,
)
from ptx.session import FILES
from ptx.writer import write_kernel

MODULE = """
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.shared .align 8 .b8 tile[128];
.shared .align 4 .u32 other;
.entry _ZN46_GLOBAL__N__18301011_13_shard_keys_cu_7361dbee5firstEv(
\t.param .align 8 .b8 p_0[24], // a structure
\t.param .u32 p_1
)
.maxntid 256, 1, 1
.minnctapersm 2
{
\t.reg .pred \t%p<3>;
\t.reg .b32 \t%r<4>;
\tld.param.u32 \t%r1, [p_1];
$L__BB7_1:
\t/* two
lines */ @!%p1 bra \t$L__BB7_1;
\t{ .reg .b64 %tmp; mov.b64 %tmp, {%r1,
%r2}; }
\tst.shared.v2.u32 [tile+8], {%r1, %r2};
\tret;
}
.visible .entry second(.param .u64 q) { .shared .align 4 .f32 own; ret; }
"""
FIRST = "_ZN12_GLOBAL__N_15firstEv"


def test_a_module_is_split_into_kernels_that_stand_alone() -> None:
    kernels = split_kernels(MODULE)
    assert list(kernels) == [FIRST, "second"]
    assert kernels[FIRST].splitlines()[0] == ".shared .align 8 .b8 tile[128];"
    assert "other" not in kernels[FIRST] and "dynamic" not in kernels[FIRST]
    assert kernels["second"].startswith(".visible .entry")
    # Neither the path of the file nor the place in the module matters.
    here, there = "_GLOBAL__N__18301011_13_shard_keys_cu_7361dbee", "_GLOBAL__N__ab_3_any_cu_12"
    assert f"{len(here)}{here}" in MODULE
    moved = MODULE.replace(f"{len(here)}{here}", f"{len(there)}{there}").replace("BB7_", "BB12_")
    assert split_kernels(moved) == kernels


def test_a_kernel_is_read_with_its_lines() -> None:
    kernel = parse_kernel(split_kernels(MODULE)[FIRST])
    assert kernel.parameters == [Variable("p_0", 8, 24), Variable("p_1", 4, 4)]
    assert kernel.shared == [Variable("tile", 8, 128)]
    assert kernel.body == [
        Registers(9, "pred", ("%p*",)),
        Registers(10, "b32", ("%r*",)),
        Instruction(11, "", "ld.param.u32", ("%r1", "[p_1]")),
        Label(12, "$L__BB_1"),
        Instruction(14, "!%p1", "bra", ("$L__BB_1",)),
        Scope(15, True),
        Registers(15, "b64", ("%tmp",)),
        Instruction(15, "", "mov.b64", ("%tmp", "{%r1,\n%r2}")),
        Scope(16, False),
        Instruction(17, "", "st.shared.v2.u32", ("[tile+8]", "{%r1, %r2}")),
        Instruction(18, "", "ret", ()),
    ]
    assert parse_kernel(split_kernels(MODULE)["second"]).shared == [Variable("own", 4, 4)]


def test_names_of_anonymous_namespaces_become_the_host_compilers() -> None:
    name = "_ZN4cuda11fillINS0_46_GLOBAL__N__18301011_13_shard_keys_cu_7361dbee5KeyOfE"
    assert with_host_names(name) == "_ZN4cuda11fillINS0_12_GLOBAL__N_15KeyOfE"


@pytest.mark.parametrize("word", [".func f() { ret; }", ".const .b8 c[4];", ".global .u32 g;"])
def test_a_module_with_more_than_kernels_is_refused(word: str) -> None:
    with pytest.raises(PtxError, match=re.escape(word.split()[0])):
        split_kernels(f"{MODULE}\n{word}")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("vadd2.u32 %r1, %r2, %r3;", "unknown opcode"),
        ("add.ftz.f32 %f1, %f2, %f3;", "unknown opcode"),
        ("fma.rn.sat.f32 %f1, %f2, %f3, %f4;", "unknown opcode"),
        ("cvt.rna.tf32.f32 %r1, %f2;", "unknown opcode"),
        ("ld.global.L2::256B.u32 %r1, [%rd1];", "unknown modifier .L2::256B"),
        ("ld.acquire.cta.u32 %r1, [%rd1];", "needs .gpu or .sys"),
        ("ld.const.u32 %r1, [%rd1];", "unknown modifier .const"),
        ("ld.global.v2.u32 %r1, [%rd1];", "1 registers for a vector of 2"),
        ("ld.global.u64 %r1, [%rd1];", "%r1 is a b32, the result a u64"),
        ("st.release.gpu.v2.u32 [%rd1], {%r1, %r2};", "unknown store"),
        ("atom.global.add.noftz.f16x2 %r1, [%rd1], %r2;", "unknown modifier|unknown atomic"),
        ("red.async.u32 [%rd1], %r2;", "unknown modifier|unknown atomic"),
        ("shfl.up.b32 %r1, %r2, %r3, %r4;", "unknown opcode"),
        ("bar.sync 1;", "of barriers, 0 for the whole block is known"),
        ("bar.sync 0, 64;", "of barriers, 0 for the whole block is known"),
        ("barrier.cluster.wait;", "known only next to its arrive"),
        ("call f, (%r1);", "unknown opcode"),
        ("add.s32 %r1, %r2;", "has 2 operands"),
        ("add.s32 %r1, %r2, %q3;", "unknown register %q3"),
        ("add.s32 %r1, %r2, %rd3, %r4;", "has 2 operands"),
        ("add.s64 %rd1, %rd2, %r3;", "%r3 is a b32, too small for u64"),
        ("add.s32 %rd1, %r2, %r3;", "%rd1 is a b64, the result a s32"),
        ("add.f32 %f1, %fd2, %f3;", "%fd2 is a f64, no f32"),
        ("add.f32 %f1, %f2, 0d3FF0000000000000;", "0d3FF0000000000000 is no f32"),
        ("add.f32 %f1, %f2, 1;", "1 is no f32"),
        ("and.pred %p1, %p2, %r3;", "%r3 is a b32, no pred"),
        ("mov.u32 %r1, %clock;", "unknown register %clock"),
        ("mov.u32 %r1, somewhere;", "unknown operand 'somewhere'"),
        ("ld.global.u32 %r1, [somewhere];", "somewhere is no address in global memory"),
        ("ld.global.u32 %r1, [%rd1+%r2];", "unknown address"),
    ],
)
def test_what_is_unknown_is_refused_with_its_line(statement: str, message: str) -> None:
    text = kernel_text(statement)
    line = PROLOGUE.count("\n") + 1
    with pytest.raises(PtxError, match=rf"^kernel\.ptx:{line}: .*({message})"):
        write_kernel(parse_kernel(text), "f", "kernel.ptx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ret;", "no .entry"),
        (".entry k() .cluster_dim 2 { ret; }", r"unknown directive in '.cluster_dim 2'"),
        (".entry k() { ret;", "never closed"),
        (".entry k() { ret }", "line 1: 'ret' has no end"),
        (".entry k()\n{\n.reg .f128 %q<2>;\n}", "line 3: unknown declaration"),
        (".entry k()\n{\n.shared .tex t;\n}", "line 3: unknown declaration"),
        (".entry k()\n{\n12 %r1;\n}", "line 3: no instruction"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        parse_kernel(text)


def test_every_test_of_kernels_runs_on_nvccs_code_too() -> None:
    of_kernels = {
        path.stem
        for path in HERE.glob("test_*.py")
        if re.search(r"^from kernels import", path.read_text(), re.M)
    }
    # These test a part of the emulator, and code of the host.
    assert set(FILES) == of_kernels - {"test_special_functions", "test_driver_calls"}
