# SPDX-License-Identifier: Apache-2.0
"""Kernels of a few opcodes, written by hand, on the emulator.

A kernel has four inputs and an output of 8 bytes a thread; the prologue puts the addresses of the
thread's own into %rd24 to %rd27 and %rd28, and the thread's number in the grid into %r31.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from compiling import (
    BUILD_DIR,
    COMMON_FLAGS,
    CSRC,
    HERE,
    build,
    digest,
    header_digest,
    link,
    make_object,
    replacing,
)
from emulator import Array, Emulator
from ptx.parser import parse_kernel
from ptx.twins import FLAGS
from ptx.writer import write_kernel

PROLOGUE = """
.entry opcode_kernel(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd,
                     .param .u64 pout)
{
.reg .pred %p<8>;
.reg .b16 %rs<16>;
.reg .b32 %r<40>;
.reg .b64 %rd<40>;
.reg .f32 %f<16>;
.reg .f64 %fd<16>;
mov.u32 %r29, %tid.x; mov.u32 %r30, %ctaid.x; mov.u32 %r28, %ntid.x;
mad.lo.s32 %r31, %r30, %r28, %r29;
mul.wide.u32 %rd29, %r31, 8;
ld.param.u64 %rd24, [pa]; add.s64 %rd24, %rd24, %rd29;
ld.param.u64 %rd25, [pb]; add.s64 %rd25, %rd25, %rd29;
ld.param.u64 %rd26, [pc]; add.s64 %rd26, %rd26, %rd29;
ld.param.u64 %rd27, [pd]; add.s64 %rd27, %rd27, %rd29;
ld.param.u64 %rd28, [pout]; add.s64 %rd28, %rd28, %rd29;
"""
LOADED = ("%rd24", "%rd25", "%rd26", "%rd27")
OUT = "%rd28"
SHARED = ".shared .align 16 .b8 tile[4096];\n"


def kernel_text(body: str, head: str = "") -> str:
    """A kernel of these statements."""
    return f"{head}{PROLOGUE}{body}\nret;\n}}\n"


def compile_kernels(texts: Mapping[str, str], emulated: Path) -> Path:
    """A library with a function for each kernel, of the kernel's key as its name."""
    code = ['#include "ptx/simt_ptx.h"\n']
    code += [write_kernel(parse_kernel(text), name, f"{name}.ptx") for name, text in texts.items()]
    source = BUILD_DIR / "ptx" / "opcodes" / f"opcodes-{digest(code)}.cpp"
    if not source.exists():
        with replacing(source) as output:
            Path(output).write_text("".join(code))
    flags = [*COMMON_FLAGS, *FLAGS["check"], f"-I{HERE}", f"-I{CSRC}"]
    made = make_object(source, flags, header_digest((HERE, HERE / "ptx", CSRC / "device")))
    return link("ptx-opcodes", [made], [str(emulated)])


class OpcodeKernels:
    """An emulator, and a library of kernels to run on it."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.emulator = Emulator(build([HERE / "ptx" / "opcodes.cu"], "check", (CSRC,)))
        self.functions = ctypes.CDLL(str(compile_kernels(texts, self.emulator.path)))
        self.emulator.library.opcode_kernel_address.restype = ctypes.c_void_p
        self.address = self.emulator.library.opcode_kernel_address()

    def run(
        self,
        name: str,
        inputs: Sequence[Array] = (),
        *,
        threads: int = 0,
        out_words: int = 0,
        last: int | None = None,
        grid: int = 1,
        cluster: int = 1,
        shared_bytes: int = 0,
        parameter_bytes: int = 8,
        **schedule: int,
    ) -> Array:
        """What the kernel leaves in the output, which is 0 before; EmulatorError for a report.

        Args:
            name: the kernel's.
            inputs: up to four arrays of 8-byte numbers of one length: the grid's threads.
            threads: of the grid; 0: as many as an input has numbers.
            last: what the kernel gets for its fourth input's address.
            out_words: 8-byte numbers in the output; 0: one for each thread.
            grid: blocks.
            cluster: blocks of a cluster; 0 launches cooperatively.
            shared_bytes: of dynamic shared memory.
            parameter_bytes: what a parameter's size is said to be.
            schedule: for Emulator.configure().
        """
        emulator = self.emulator
        emulator.configure(**schedule)
        threads = threads or len(inputs[0])
        sizes = (ctypes.c_size_t * 5)(*[parameter_bytes] * 5)
        function = ctypes.cast(getattr(self.functions, name), ctypes.c_void_p)
        emulator.library.emulator_set_twin(self.address, function, sizes, 5)
        try:
            arrays = [emulator.array(np.asarray(x).view(np.uint64), "input") for x in inputs]
            arrays += [emulator.array(threads, "input", np.uint64) for _ in range(4 - len(arrays))]
            out = emulator.array(out_words or threads, "out", np.uint64)
            addresses = [emulator.pointer(array).value for array in arrays]
            if last is not None:
                addresses[3] = last
            pointers = (ctypes.c_void_p * 4)(*addresses)
            emulator.library.launch_opcode(
                pointers,
                emulator.pointer(out),
                grid,
                cluster,
                threads // grid,
                ctypes.c_size_t(shared_bytes),
            )
            emulator.check()
            return out.copy()
        finally:
            emulator.free_all()


@functools.cache
def opcodes_of(text: str) -> frozenset[str]:
    """The opcodes that a kernel's text names."""
    return frozenset(s.opcode for s in parse_kernel(text).body if hasattr(s, "opcode"))
