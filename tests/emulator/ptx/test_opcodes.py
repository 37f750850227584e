# SPDX-License-Identifier: Apache-2.0
"""Every opcode that computes does what its reference in exact arithmetic does."""

from __future__ import annotations

import ctypes
import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from emulator import Array
from kernels import ABOVE, BELOW, MIXED
from ptx.opcode_kernels import LOADED, OUT, OpcodeKernels, kernel_text
from ptx.opcodes import OPERATIONS
from ptx.references import FORMATS, REFERENCES, converted, size, wrap

THREADS = 512
APPROXIMATE = ("ex2.approx.ftz.f32", "rcp.approx.ftz.f64")
CARRYING = [name for name in OPERATIONS if name.split(".")[0] in ("addc", "subc") or ".cc." in name]
HALVES = [name for name in OPERATIONS if "f16" in name]
PLAIN = [n for n in OPERATIONS if n not in (*APPROXIMATE, *CARRYING, *HALVES)]
FLOAT_EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 3e9, -3e9, 1e19, 65520)


def register(t: str, number: int) -> str:
    """Where the kernels hold operand `number` of type t."""
    kinds = {"pred": "%p", "f32": "%f", "f64": "%fd"}
    return kinds.get(
        t, {8: "%rs", 16: "%rs", 32: "%r", 64: "%rd"}[size(t) if t not in kinds else 64]
    ) + str(number)


def load(t: str, number: int) -> str:
    """Loads operand `number`."""
    if t == "pred":
        where = f"[{LOADED[number]}]"
        return f"ld.global.u32 %r{number}, {where}; setp.ne.s32 %p{number}, %r{number}, 0;"
    kind = t if t in FORMATS else f"u{max(16, size(t))}"
    return f"ld.global.{kind} {register(t, number)}, [{LOADED[number]}];"


def store(t: str, widened: bool) -> str:
    """Stores the result, which is in register 8 of its kind, or widened in %rd8."""
    if t == "pred":
        return f"selp.u32 %r9, 1, 0, %p6; st.global.u32 [{OUT}], %r9;"
    if widened:
        return f"st.global.u64 [{OUT}], %rd8;"
    return f"st.global.{t if t in FORMATS else f'u{size(t)}'} [{OUT}], {register(t, 8)};"


def operation_text(name: str) -> str:
    operation = OPERATIONS[name]
    operands = [register(t, i) for i, t in enumerate(operation.operands)]
    result = operation.result
    widened = operation.widens and result not in FORMATS
    target = "%rd8" if widened else "%p6" if result == "pred" else register(result, 8)
    lines = [load(t, i) for i, t in enumerate(operation.operands)]
    return kernel_text(
        "\n".join([*lines, f"{name} {', '.join([target, *operands])};", store(result, widened)])
    )


def carrying_text(name: str) -> str:
    """c + d with the carry of a + b; the carry after it goes to the upper half of the output."""
    t = name.rsplit(".", 1)[1]
    base = "add" if name.startswith("add") else "sub"
    r = "%r" if size(t) == 32 else "%rd"
    first = f"{base}.cc.{t} {r}8, {r}0, {r}1;" if not name.startswith(f"{base}.cc") else ""
    last = f"{base}c.{t} {r}10, 0, 0;" if ".cc" in name else f"mov.b{size(t)} {r}10, 0;"
    lines = [load(t, i) for i in range(4)]
    body = [
        *lines,
        first,
        f"{name} {r}9, {r}2, {r}3;",
        last,
        f"st.global.u{size(t)} [{OUT}], {r}9;",
        f"st.global.u{size(t)} [{OUT}+{8 * THREADS}], {r}10;",
    ]
    return kernel_text("\n".join(body))


@functools.cache
def texts() -> dict[str, str]:
    """The kernel of every opcode, by a name that C++ can have."""
    return {
        "op_" + name.replace(".", "_"): (carrying_text if name in CARRYING else operation_text)(
            name
        )
        for name in OPERATIONS
    }


@pytest.fixture(scope="module")
def opcodes() -> OpcodeKernels:
    return OpcodeKernels(texts())


def random_operands(t: str, rng: np.random.Generator, count: int = THREADS) -> Array:
    """Bits of numbers of a type: edges first, then of all magnitudes."""
    raw = rng.integers(0, 1 << 64, count, dtype=np.uint64, endpoint=False)
    if t in ("f32", "f64"):
        kind, bits = (np.float32, np.uint32) if t == "f32" else (np.float64, np.uint64)
        values = raw.astype(bits).view(kind)  # any pattern
        usual = rng.normal(size=count) * 2.0 ** rng.integers(-3, 40, count)
        values = np.where(rng.random(count) < 0.7, usual.astype(kind), values)
        tiny = np.finfo(kind).smallest_subnormal
        edges = [*FLOAT_EDGES, tiny, -tiny, np.finfo(kind).tiny, np.finfo(kind).max]
        chosen = rng.permutation(count)[: 8 * len(edges)]
        values[chosen] = np.resize(np.array(edges, kind), len(chosen))
        return values.astype(kind).view(bits).astype(np.uint64)
    raw >>= rng.integers(0, 64, count, dtype=np.uint64)
    small = rng.integers(0, 70, count, dtype=np.uint64)
    raw = np.where(rng.random(count) < 0.3, small, raw)
    n = size(t)
    edges = [0, 1, (1 << n) - 1, 1 << (n - 1), (1 << (n - 1)) - 1]
    chosen = rng.permutation(count)[: 8 * len(edges)]
    raw[chosen] = np.resize(np.array([e & (2**64 - 1) for e in edges], np.uint64), len(chosen))
    return raw & 1 if t == "pred" else raw


def decoded(bits: Array, t: str) -> list[Any]:
    if t == "pred":
        return [bool(b) for b in bits]
    if t == "f32":
        return list(bits.astype(np.uint32).view(np.float32))
    if t == "f64":
        return list(bits.view(np.float64))
    return [wrap(int(b), t) for b in bits]


def encoded(value: Any, t: str, widened: bool, keeps_nan: bool) -> int:
    if t == "pred":
        return int(bool(value))
    if t in ("f32", "f64"):
        if np.isnan(value) and not keeps_nan:
            return 0x7FFFFFFF if t == "f32" else 0x7FF8000000000000
        kind, bits = (np.float32, np.uint32) if t == "f32" else (np.float64, np.uint64)
        return int(np.array([value], kind).view(bits)[0])
    return wrap(int(value), t) & ((1 << (64 if widened else size(t))) - 1)


@pytest.mark.parametrize("name", PLAIN)
def test_equals_its_reference(opcodes: OpcodeKernels, name: str) -> None:
    operation = OPERATIONS[name]
    rng = np.random.default_rng(len(name))
    inputs = [random_operands(t, rng) for t in operation.operands]
    if len(inputs) > 1:
        same = rng.random(THREADS) < 0.2
        inputs[1] = np.where(same, inputs[0], inputs[1])
    base, t = name.rsplit(".", 1)
    if base.startswith("cvt"):
        modifiers = ".".join(name.split(".")[1:-2])
        reference = converted(modifiers, operation.result, operation.operands[0])
    else:
        function = REFERENCES[base]
        reference = lambda *operands: function(t, *operands)  # noqa: E731
    operands = [decoded(x, kind) for x, kind in zip(inputs, operation.operands, strict=True)]
    keeps_nan = base in ("selp", "copysign")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        expected = [
            encoded(reference(*values), operation.result, operation.widens, keeps_nan)
            for values in zip(*operands, strict=True)
        ]
    got = opcodes.run("op_" + name.replace(".", "_"), inputs)
    if operation.result == "f64" and not keeps_nan:  # of any payload
        got = np.where(np.isnan(got.view(np.float64)), np.uint64(0x7FF8000000000000), got)
    wrong = np.flatnonzero(got != np.array(expected, np.uint64))
    shown = [([x[i] for x in operands], hex(got[i]), hex(expected[i])) for i in wrong[:3]]
    assert wrong.size == 0, f"{wrong.size} of {THREADS}: {shown}"


@pytest.mark.parametrize("name", CARRYING)
def test_carries(opcodes: OpcodeKernels, name: str) -> None:
    t = "u" + name.rsplit(".", 1)[1][1:]
    rng = np.random.default_rng(1)
    inputs = [random_operands(t, rng) for _ in range(4)]
    inputs[3] = np.where(rng.random(THREADS) < 0.3, ~inputs[2], inputs[3])
    sign = 1 if name.startswith("add") else -1
    got = opcodes.run("op_" + name.replace(".", "_"), inputs, out_words=2 * THREADS)
    for i, (a, b, c, d) in enumerate(zip(*(decoded(x, t) for x in inputs), strict=True)):
        carry = 0 if name.split(".")[0] in ("add", "sub") else (a + sign * b) >> size(t) & 1
        total = c + sign * (d + carry)
        last = wrap(sign * (total >> size(t) & 1), t) if ".cc" in name else 0
        assert (got[i], got[i + THREADS]) == (wrap(total, t), last), (a, b, c, d)


def test_half_precision_is_read_exactly(opcodes: OpcodeKernels) -> None:
    bits = np.arange(1 << 16, dtype=np.uint64)
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        expected = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(dtype).float().numpy()
        got = opcodes.run(f"op_cvt_f32_{name}", [bits], grid=128).astype(np.uint32)
        np.testing.assert_array_equal(got.view(np.float32), expected)
        assert set(got[np.isnan(expected)]) == {0x7FFFFFFF}


@pytest.mark.parametrize("name", [n for n in HALVES if ".rn." in n])
def test_half_precision_is_rounded_to_nearest_even(opcodes: OpcodeKernels, name: str) -> None:
    rng = np.random.default_rng(0)
    dtype = torch.bfloat16 if "bf16" in name else torch.float16
    count = 1 << 14
    inputs = [random_operands("f32", rng, count) for _ in range(2)]
    halves = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    shift = 16 if "bf16" in name else 13
    if "bf16" in name:
        exact = halves.astype(np.uint32) << 16
    else:
        exact = halves.view(np.float16).astype(np.float32).view(np.uint32)
    # Halfway between neighbours, and next to that.
    near = exact + np.uint32(1 << (shift - 1)) + rng.integers(-1, 2, count).astype(np.uint32)
    inputs[0] = np.where(rng.random(count) < 0.7, near, inputs[0]).astype(np.uint64)
    rounded = []
    for x in inputs:
        values = torch.from_numpy(x.astype(np.uint32).view(np.float32))
        bits = values.to(dtype).view(torch.int16).numpy().view(np.uint16).astype(np.uint64)
        rounded.append(np.where(np.isnan(values.numpy()), np.uint64(0x7FFF), bits))
    expected = rounded[0] << np.uint64(16) | rounded[1] if "x2" in name else rounded[0]
    got = opcodes.run("op_" + name.replace(".", "_"), inputs, grid=32)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "errors", [{}, ABOVE, BELOW, MIXED], ids=["none", "above", "below", "mixed"]
)
def test_powers_of_2_are_the_emulators(opcodes: OpcodeKernels, errors: dict[str, int]) -> None:
    exp2 = opcodes.emulator.library.emulator_exp2
    exp2.restype, exp2.argtypes = ctypes.c_float, (ctypes.c_float,)
    x = random_operands("f32", np.random.default_rng(0))
    got = opcodes.run("op_ex2_approx_ftz_f32", [x], **errors).astype(np.uint32).view(np.float32)
    values = x.astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(got, np.array([exp2(v) for v in values], np.float32))
    assert set(got[np.isnan(values)].view(np.uint32)) == {0x7FFFFFFF}


@pytest.mark.parametrize(
    ("errors", "signs"),
    [({}, (-0.51, 0.51)), (ABOVE, (0.4, 1.6)), (BELOW, (-1.6, -0.4)), (MIXED, (-1.6, 1.6))],
    ids=["none", "above", "below", "mixed"],
)
def test_reciprocals_have_20_bits(
    opcodes: OpcodeKernels, errors: dict[str, int], signs: tuple[float, float]
) -> None:
    x = random_operands("f64", np.random.default_rng(0))
    got = opcodes.run("op_rcp_approx_ftz_f64", [x], **errors)
    assert not (got & np.uint64(0xFFFFFFFF)).any()
    seen = (x & np.uint64(0xFFFFFFFF << 32)).view(np.float64)
    with np.errstate(all="ignore"):
        seen = np.where(np.abs(seen) < 2.0**-1022, np.copysign(0, seen), seen)
        exact = 1 / seen
        exact = np.where(np.abs(exact) < 2.0**-1022, np.copysign(0, exact), exact)
        unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 20)
        off = (np.abs(got.view(np.float64)) - np.abs(exact)) / unit
    ordinary = np.isfinite(exact) & (np.abs(exact) >= 2.0**-1021)
    assert signs[0] <= off[ordinary].min() and off[ordinary].max() <= signs[1]
    rest = ~ordinary & ~np.isnan(exact) & (np.abs(exact) != 2.0**-1022)
    np.testing.assert_array_equal(got.view(np.float64)[rest], exact[rest])
    assert np.isnan(got.view(np.float64)[np.isnan(exact)]).all()


def test_every_opcode_of_the_table_has_a_reference() -> None:
    plain = {name.rsplit(".", 1)[0] for name in PLAIN if not name.startswith("cvt")}
    assert plain == set(REFERENCES)
