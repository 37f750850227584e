# SPDX-License-Identifier: Apache-2.0
"""Kernels in PTX of opcodes that move data, jump or order threads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from ptx.opcode_kernels import OUT, SHARED, kernel_text
from ptx.parser import TYPE_BYTES
from ptx.references import wrap

SCALARS = [f"{kind}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)] + ["f32", "f64"]
SHAPES = [(n, t) for n, t in itertools.product((1, 2, 4), SCALARS) if n * TYPE_BYTES[t] <= 16]
MEMORY_WORDS = 64
HINTS = ["", ".nc", ".cg", ".cs", ".ca", ".lu"]


def vector(n: int, t: str, prefix: str, hint: str = "") -> str:
    return f"{prefix}{hint}{f'.v{n}' if n > 1 else ''}.{t}"


def registers(n: int, t: str) -> list[str]:
    kind = {"f32": "%f", "f64": "%fd"}.get(t, "%rd")
    return [f"{kind}{i}" for i in range(n)]


def operand(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ", ".join(names) + "}"


def offset(i: int) -> int:
    return i * 16 % (8 * MEMORY_WORDS)


COPY_IN = "\n".join(
    f"ld.global.u64 %rd9, [%rd24+{8 * i}]; st.shared.u64 [tile+{8 * i}], %rd9;"
    for i in range(MEMORY_WORDS)
)
COPY_OUT = "\n".join(
    f"ld.shared.u64 %rd9, [tile+{8 * i}]; st.global.u64 [{OUT}+{8 * i}], %rd9;"
    for i in range(MEMORY_WORDS)
)
TO_SHARED = "mov.u64 %rd11, tile; cvta.shared.u64 %rd12, %rd11; mov.u32 %r12, tile;"
# Prefixes of opcodes with where they find the memory.
LOADS = {"ld.global": "%rd24", "ld": "%rd24", "ld.shared": "%r12", "ld.param": "pd"}
STORES = {"st.global": OUT, "st": OUT, "st.shared": "tile"}


def load_forms(prefix: str) -> list[tuple[int, str, str]]:
    hints = HINTS if prefix == "ld.global" else [""]
    shapes = [s for s in SHAPES if prefix != "ld.param" or s[0] * TYPE_BYTES[s[1]] <= 8]
    return [(n, t, vector(n, t, prefix, hint)) for hint in hints for n, t in shapes]


def loads(prefix: str) -> str:
    lines, word = [COPY_IN, TO_SHARED] if prefix == "ld.shared" else [], 0
    for i, (n, t, name) in enumerate(load_forms(prefix)):
        at = 0 if prefix == "ld.param" else offset(i)
        lines.append(f"{name} {operand(registers(n, t))}, [{LOADS[prefix]}+{at}];")
        for register in registers(n, t):
            kind = t if t.startswith("f") else "u64"
            lines.append(f"st.global.{kind} [{OUT}+{8 * word}], {register};")
            word += 1
    return kernel_text("\n".join(lines), SHARED)


def store_forms(prefix: str) -> list[tuple[int, str, str]]:
    hints = ["", ".cg", ".cs", ".wb", ".wt"] if prefix == "st.global" else [""]
    return [(n, t, vector(n, t, prefix, hint)) for hint in hints for n, t in SHAPES]


def stores(prefix: str) -> str:
    """Each form stores the first numbers of the input to 16 bytes of its own."""
    zero = "\n".join(f"st.shared.u64 [tile+{8 * i}], 0;" for i in range(2 * MEMORY_WORDS))
    lines = [zero] if prefix == "st.shared" else []
    forms = store_forms(prefix)
    for i in range(4):
        lines += [f"ld.global.u64 %rd{i}, [%rd24+{8 * i}]; ld.global.f32 %f{i}, [%rd24+{8 * i}];"]
        lines += [f"ld.global.f64 %fd{i}, [%rd24+{8 * i}];"]
    for i, (n, t, name) in enumerate(forms):
        lines.append(f"{name} [{STORES[prefix]}+{16 * i}], {operand(registers(n, t))};")
    if prefix == "st.shared":
        lines += [
            f"ld.shared.u64 %rd9, [tile+{8 * i}]; st.global.u64 [{OUT}+{8 * i}], %rd9;"
            for i in range(2 * len(forms))
        ]
    return kernel_text("\n".join(lines), SHARED)


ATOMICS = [
    *itertools.product(("add",), ("u32", "s32", "u64", "f32", "f64")),
    *itertools.product(("min", "max"), ("u32", "s32", "u64", "s64")),
    *itertools.product(("and", "or", "xor", "exch", "cas"), ("b32", "b64")),
    *itertools.product(("inc", "dec"), ("u32",)),
]
UPDATES: dict[str, Callable[..., Any]] = {
    "add": lambda old, b, c: old + b,
    "min": lambda old, b, c: min(old, b),
    "max": lambda old, b, c: max(old, b),
    "and": lambda old, b, c: old & b,
    "or": lambda old, b, c: old | b,
    "xor": lambda old, b, c: old ^ b,
    "exch": lambda old, b, c: b,
    "cas": lambda old, b, c: c if old == b else old,
    "inc": lambda old, b, c: 0 if old >= b else old + 1,
    "dec": lambda old, b, c: b if old == 0 or old > b else old - 1,
}
ATOMIC_PREFIXES = ("atom.global", "atom", "atom.shared", "red.global", "red.shared")


def atomic_forms(prefix: str) -> list[tuple[str, str, str]]:
    ops = [a for a in ATOMICS if prefix.startswith("atom") or a[0] not in ("exch", "cas")]
    return [(op, t, f"{prefix}.{op}.{t}") for op, t in ops]


def atomics(prefix: str) -> str:
    """Each thread applies each form to a cell of its own; old and new values are put out."""
    lines = ["mad.lo.s32 %r12, %r31, 8, 0; mov.u32 %r13, tile; add.s32 %r12, %r12, %r13;"]
    for i, (op, t, name) in enumerate(atomic_forms(prefix)):
        size = 8 * TYPE_BYTES[t]
        r = {"f32": "%f", "f64": "%fd"}.get(t, "%rd" if size == 64 else "%r")
        load = t if t.startswith("f") else f"u{size}"
        for k in range(3):
            lines.append(f"ld.global.{load} {r}{k}, [%rd{24 + k}];")
        cell = f"[{OUT}+{8 * 64 * (2 * i + 1)}]"
        lines.append(f"st.global.{load} {cell}, {r}0; mov.{load} {r}3, {r}0;")
        memory = cell
        if ".shared" in prefix:
            memory = "[%r12]"
            lines.append(f"st.shared.{load} {memory}, {r}0;")
        values = f"{r}1, {r}2" if op == "cas" else f"{r}1"
        result = f"{r}3, " if prefix.startswith("atom") else ""
        lines.append(f"{name} {result}{memory}, {values};")
        if ".shared" in prefix:
            lines.append(f"ld.shared.{load} {r}4, {memory}; st.global.{load} {cell}, {r}4;")
        lines.append(f"st.global.{load} [{OUT}+{8 * 64 * 2 * i}], {r}3;")
    return kernel_text("\n".join(lines), SHARED)


SHUFFLES = {mode: f"shfl.sync.{mode}.b32" for mode in ("up", "down", "bfly", "idx")}
REDUCTIONS = {
    "vote.sync.ballot.b32": lambda v: sum((x & 1) << i for i, x in enumerate(v)),
    "vote.sync.any.pred": lambda v: any(x & 1 for x in v),
    "vote.sync.all.pred": lambda v: all(x & 1 for x in v),
    "redux.sync.add.u32": sum,
    "redux.sync.add.s32": sum,
    "redux.sync.min.u32": min,
    "redux.sync.max.u32": max,
    "redux.sync.min.s32": lambda v: min(wrap(x, "s32") for x in v),
    "redux.sync.max.s32": lambda v: max(wrap(x, "s32") for x in v),
    "redux.sync.and.b32": lambda v: functools.reduce(int.__and__, v),
    "redux.sync.or.b32": lambda v: functools.reduce(int.__or__, v),
    "redux.sync.xor.b32": lambda v: functools.reduce(int.__xor__, v),
    "bar.red.popc.u32": lambda v: sum(x & 1 for x in v),
    "bar.red.and.pred": lambda v: all(x & 1 for x in v),
    "bar.red.or.pred": lambda v: any(x & 1 for x in v),
}


def shuffle_text(name: str) -> str:
    return kernel_text(f"""
ld.global.u32 %r0, [%rd24]; ld.global.u32 %r1, [%rd25]; ld.global.u32 %r2, [%rd26];
{name} %r3|%p1, %r0, %r1, %r2, -1;
selp.u32 %r4, 1, 0, %p1;
st.global.v2.u32 [{OUT}], {{%r3, %r4}};""")


def reduction_text(name: str) -> str:
    source = "%p0" if name.startswith(("vote", "bar")) else "%r0"
    target = "%p1" if name.endswith("pred") else "%r3"
    operands = f"0, {source}" if name.startswith("bar") else f"{source}, -1"
    result = "selp.u32 %r3, 1, 0, %p1;" if target == "%p1" else ""
    return kernel_text(f"""
ld.global.u32 %r0, [%rd24]; and.b32 %r1, %r0, 1; setp.ne.s32 %p0, %r1, 0;
{name} {target}, {operands};
{result} st.global.u32 [{OUT}], %r3;""")


def match_text(t: str) -> str:
    r = "%r" if t == "b32" else "%rd"
    return kernel_text(f"""
ld.global.{t} {r}0, [%rd24];
match.any.sync.{t} %r3, {r}0, -1;
st.global.u32 [{OUT}], %r3;""")


MOVES = f"""
ld.global.u64 %rd0, [%rd24]; ld.global.f32 %f0, [%rd24]; ld.global.f64 %fd0, [%rd24];
mov.b64 {{%r0, %r1}}, %rd0; mov.b64 %rd1, {{%r1, %r0}}; st.global.u64 [{OUT}], %rd1;
mov.b32 {{%rs0, %rs1}}, %r0; mov.b32 %r2, {{%rs1, %rs0}}; st.global.u32 [{OUT}+512], %r2;
mov.b32 %r3, %f0; mov.b32 %f1, %r3; mov.f32 %f2, %f1; mov.b64 %rd2, %fd0; mov.f64 %fd1, %fd0;
mov.b64 {{%r4, _}}, %fd1; st.global.u32 [{OUT}+1024], %r4; st.global.f32 [{OUT}+1536], %f2;
mov.u16 %rs3, %rs0; mov.b16 %rs4, %rs3; mov.s32 %r5, -7; mov.u32 %r6, %r5; mov.s64 %rd3, %rd2;
mov.u64 %rd4, %rd3; mov.s16 %rs5, %rs4; mov.pred %p0, -1; mov.pred %p1, %p0;
@!%p1 st.global.u16 [{OUT}+2048], %rs0;
@%p1 st.global.u16 [{OUT}+2048], %rs5;
st.global.u32 [{OUT}+2560], %r6; st.global.u64 [{OUT}+3072], %rd4;
mov.f32 %f3, 0f3FC00000; mov.f64 %fd2, 0dBFF8000000000000; st.global.f32 [{OUT}+3584], %f3;
st.global.f64 [{OUT}+4096], %fd2;
cvta.to.global.u64 %rd5, %rd24; cvta.global.u64 %rd6, %rd5; ld.global.u64 %rd7, [%rd6];
st.global.u64 [{OUT}+4608], %rd7;
mov.u32 %r7, tile; mad.lo.u32 %r7, %r29, 8, %r7; cvt.u64.u32 %rd8, %r7;
cvta.shared.u64 %rd9, %rd8; st.u64 [%rd9], %rd0; ld.shared.u64 %rd10, [%r7];
st.global.u64 [{OUT}+5120], %rd10;
cvta.to.shared.u64 %rd11, %rd9; sub.s64 %rd11, %rd11, %rd8; st.global.u64 [{OUT}+5632], %rd11;
mov.u32 %r8, %laneid; st.global.u32 [{OUT}+6144], %r8; activemask.b32 %r9;
shr.u32 %r9, %r9, %r8; and.b32 %r9, %r9, 1; st.global.u32 [{OUT}+6656], %r9;
"""

# Collatz steps of a number: by a loop that ends in the middle.
STEPS = f"""
ld.global.u64 %rd0, [%rd24]; mov.u64 %rd1, 0;
$again: setp.le.u64 %p0, %rd0, 1; @%p0 bra $done;
add.s64 %rd1, %rd1, 1; and.b64 %rd2, %rd0, 1; setp.eq.s64 %p1, %rd2, 0; @!%p1 bra $odd;
shr.u64 %rd0, %rd0, 1; bra.uni $again;
$odd: mad.lo.s64 %rd0, %rd0, 3, 1; bra $again;
$done: st.global.u64 [{OUT}], %rd1; setp.gt.u64 %p2, %rd1, 10; @%p2 exit;
st.global.u64 [{OUT}], 77;
"""
CARRIED = """
mov.u32 %r12, tile; shl.b32 %r13, %r29, 2; add.s32 %r12, %r12, %r13;
st.shared.u32 [%r12], %r29;
{};
xor.b32 %r14, %r12, {}; ld.shared.u32 %r15, [%r14]; st.global.u32 [%rd28], %r15;
"""
# Block 0 writes a number and then a flag; block 1 waits for the flag.
MESSAGE = """
setp.ne.s32 %p0, %r29, 0; @%p0 bra $done;
ld.param.u64 %rd0, [pa]; ld.param.u64 %rd1, [pb];
setp.ne.s32 %p1, %r30, 0; @%p1 bra $again;
st.global.u32 [%rd0], 41; {}; bra $done;
$again: {}; setp.eq.s32 %p2, %r2, 0; @%p2 nanosleep.u32 20; @%p2 bra $again;
{}; ld.global.u32 %r3, [%rd0]; st.global.u32 [%rd28], %r3;
$done:
"""
NEIGHBOUR = """
st.shared.u32 [tile], %r30;
{};
xor.b32 %r12, %r30, 1; and.b32 %r12, %r12, 1; mov.u64 %rd0, tile; cvta.shared.u64 %rd1, %rd0;
mapa.u64 %rd2, %rd1, %r12; ld.u32 %r13, [%rd2]; st.global.u32 [%rd28], %r13;
barrier.cluster.arrive; barrier.cluster.wait;
"""
# Special registers, by thread, block and lane of a grid of two blocks of 64.
SPECIAL: dict[str, Callable[[int], int]] = {
    "%tid.x": lambda i: i % 64,
    "%ntid.x": lambda i: 64,
    "%ctaid.x": lambda i: i // 64,
    "%nctaid.x": lambda i: 2,
    **dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), lambda i: 0),
    **dict.fromkeys(("%ntid.y", "%ntid.z", "%nctaid.y", "%nctaid.z"), lambda i: 1),
    "%laneid": lambda i: i % 32,
    "%lanemask_eq": lambda i: 1 << i % 32,
    "%lanemask_lt": lambda i: (1 << i % 32) - 1,
    "%lanemask_ge": lambda i: -(1 << i % 32) & 0xFFFFFFFF,
}
CLUSTER = "barrier.cluster.arrive; barrier.cluster.wait"
LONG = "ld.{}.gpu.b64 %rd2, [%rd1]; cvt.u32.u64 %r2, %rd2"
# What orders two accesses, and the same without.
ORDERED = {
    "bar_sync": (CARRIED, ("bar.sync 0", 128), ("mov.u32 %r0, 0", 128)),
    "barrier_sync": (CARRIED, ("barrier.sync 0", 128), ("mov.u32 %r0, 0", 128)),
    "bar_warp_sync": (CARRIED, ("bar.warp.sync -1", 4), ("mov.u32 %r0, 0", 4)),
    "release_acquire": (
        MESSAGE,
        ("st.release.gpu.b32 [%rd1], 1", "ld.acquire.gpu.b32 %r2, [%rd1]", "mov.u32 %r0, 0"),
        ("st.relaxed.gpu.b32 [%rd1], 1", "ld.acquire.gpu.b32 %r2, [%rd1]", "mov.u32 %r0, 0"),
    ),
    "acquire": (
        MESSAGE,
        ("st.release.gpu.u32 [%rd1], 1", "ld.acquire.gpu.u32 %r2, [%rd1]", "mov.u32 %r0, 0"),
        ("st.release.gpu.b32 [%rd1], 1", "ld.relaxed.gpu.b32 %r2, [%rd1]", "mov.u32 %r0, 0"),
    ),
    "atomic_release": (
        MESSAGE,
        (
            "atom.add.release.gpu.u32 %r0, [%rd1], 1",
            "ld.acquire.gpu.u32 %r2, [%rd1]",
            "mov.u32 %r0, 0",
        ),
        (
            "atom.add.relaxed.gpu.u32 %r0, [%rd1], 1",
            "ld.acquire.gpu.u32 %r2, [%rd1]",
            "mov.u32 %r0, 0",
        ),
    ),
    "membar": (
        MESSAGE,
        (
            "membar.gl; atom.global.exch.b32 %r0, [%rd1], 1",
            "ld.volatile.global.u32 %r2, [%rd1]",
            "membar.gl",
        ),
        ("atom.global.exch.b32 %r0, [%rd1], 1", "ld.volatile.global.u32 %r2, [%rd1]", "membar.gl"),
    ),
    "fence": (
        MESSAGE,
        (
            "fence.acq_rel.gpu; st.volatile.global.u32 [%rd1], 1",
            "ld.relaxed.gpu.u32 %r2, [%rd1]",
            "fence.acq_rel.gpu",
        ),
        (
            "fence.acq_rel.cta; st.volatile.global.u32 [%rd1], 1",
            "ld.relaxed.gpu.u32 %r2, [%rd1]",
            "fence.acq_rel.gpu",
        ),
    ),
    "release_acquire_64": (
        MESSAGE,
        ("st.release.gpu.b64 [%rd1], 1", LONG.format("acquire"), "mov.u32 %r0, 0"),
        ("st.relaxed.gpu.b64 [%rd1], 1", LONG.format("acquire"), "mov.u32 %r0, 0"),
    ),
    "relaxed_64": (
        MESSAGE,
        ("membar.gl; st.relaxed.gpu.b64 [%rd1], 1", LONG.format("relaxed"), "membar.gl"),
        ("membar.cta; st.relaxed.gpu.b64 [%rd1], 1", LONG.format("relaxed"), "membar.gl"),
    ),
    "cluster": (NEIGHBOUR, (CLUSTER,), ("mov.u32 %r0, 0",)),
}


@functools.cache
def texts() -> dict[str, str]:
    """Every kernel of this file, by a name that C++ can have."""
    named = {f"loads_{p}": loads(p) for p in LOADS}
    named |= {f"stores_{p}": stores(p) for p in STORES}
    named |= {f"atomics_{p}": atomics(p) for p in ATOMIC_PREFIXES}
    named |= {f"shuffle_{mode}": shuffle_text(name) for mode, name in SHUFFLES.items()}
    named |= {f"reduce_{name}": reduction_text(name) for name in REDUCTIONS}
    named |= {f"match_{t}": match_text(t) for t in ("b32", "b64")}
    named |= {"moves": kernel_text(MOVES, SHARED), "steps": kernel_text(STEPS)}
    specials = [
        f"mov.u32 %r0, {name}; st.global.u32 [{OUT}+{1024 * i}], %r0;"
        for i, name in enumerate(SPECIAL)
    ]
    named["specials"] = kernel_text("\n".join(specials))
    named |= {"trap": kernel_text("setp.eq.s32 %p0, %r31, 5; @%p0 trap;")}
    workspace = (
        "mov.u32 %r0, %envreg1; mov.u32 %r1, %envreg2; st.global.v2.u32 [%rd28], {%r1, %r0};"
    )
    named |= {"workspace": kernel_text(workspace)}
    for name, (form, right, wrong) in ORDERED.items():
        named[f"ordered_{name}"] = kernel_text(form.format(*right), SHARED)
        named[f"unordered_{name}"] = kernel_text(form.format(*wrong), SHARED)
    return {name.replace(".", "_"): text for name, text in named.items()}
