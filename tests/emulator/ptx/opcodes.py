# SPDX-License-Identifier: Apache-2.0
"""The table of opcodes that compute: what each is in C++, by its full name.

Modifiers and types are part of the name, so that a modifier which nobody thought of is an unknown
opcode. Opcodes that move data or order threads are in access.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Operation:
    """An expression of operands of the named types, converted to `result`.

    Args:
        result: the type of the result.
        operands: the types of the operands.
        code: C++, with {0}, {1} ... for the operands' values.
        widens: the result's register may be larger than its type, as that of a cvt may be.
    """

    result: str
    operands: tuple[str, ...]
    code: str
    widens: bool = False


OPERATIONS: dict[str, Operation] = {}

WORDS = ("16", "32", "64")
INTEGERS = tuple(f"{sign}{bits}" for sign in "us" for bits in WORDS)
LARGE_INTEGERS = tuple(t for t in INTEGERS if not t.endswith("16"))
BITS = tuple(f"b{bits}" for bits in WORDS)
FLOATS = ("f32", "f64")


def define(
    names: str, types: Iterable[str], operands: str, code: str, result: str | None = None
) -> None:
    """Adds opcodes of one kind: a name for each word of `names` and each type.

    In operands and result, T is the type, U the unsigned one of its size and W one twice as wide.
    """
    for name, t in itertools.product(names.split(), types):
        bits = 0 if t == "pred" else int(t[1:])
        real = {"T": t, "U": f"u{bits}", "W": f"{t[0]}{2 * bits}"}
        kinds = tuple(real.get(word, word) for word in operands.split())
        kind = real.get(result or "T", result or "")
        OPERATIONS[name.replace("T", t)] = Operation(kind, kinds, code.replace("$W", real["W"]))


# ---- integers. Sums and products of unsigned numbers have the same bits, and never overflow.

define("add.T", INTEGERS, "U U", "{0} + {1}")
define("sub.T", INTEGERS, "U U", "{0} - {1}")
define("mul.lo.T", INTEGERS, "U U", "u64{{{0}}} * {1}")
define("mad.lo.T", INTEGERS, "U U U", "u64{{{0}}} * {1} + {2}")
define("mul.hi.T", LARGE_INTEGERS, "T T", "ptx::high_product({0}, {1})")
define("mul.wide.T", ("u16", "s16", "u32", "s32"), "T T", "($W){0} * ($W){1}", "W")
define("mad.wide.T", ("u16", "u32"), "T T W", "($W){0} * ($W){1} + {2}", "W")
define("mad.wide.T", ("s32",), "T T u64", "(u64)((s64){0} * (s64){1}) + {2}", "W")
define("div.T", INTEGERS, "T T", "ptx::divide({0}, {1})")
define("rem.T", INTEGERS, "T T", "ptx::remainder({0}, {1})")
define("min.T", INTEGERS, "T T", "ptx::minimum({0}, {1})")
define("max.T", INTEGERS, "T T", "ptx::maximum({0}, {1})")
define("neg.T", ("s16", "s32", "s64"), "U", "0 - {0}")
define("abs.T", ("s16", "s32", "s64"), "T", "{0} < 0 ? 0 - ptx::Unsigned<decltype({0})>({0}) : {0}")

define("and.T", BITS, "T T", "{0} & {1}")
define("or.T", BITS, "T T", "{0} | {1}")
define("xor.T", BITS, "T T", "{0} ^ {1}")
define("not.T", BITS, "T", "~{0}")
define("and.T", ("pred",), "T T", "{0} && {1}")
define("or.T", ("pred",), "T T", "{0} || {1}")
define("xor.T", ("pred",), "T T", "{0} != {1}")
define("not.T", ("pred",), "T", "!{0}")
define("shl.T", BITS, "T u32", "ptx::shift_left({0}, {1})")
define("shr.T", (*BITS, *INTEGERS), "T u32", "ptx::shift_right({0}, {1})")
define("shf.l.wrap.T", ("b32",), "T T T", "ptx::funnel_left({0}, {1}, {2} & 31)")
define("shf.r.wrap.T", ("b32",), "T T T", "ptx::funnel_right({0}, {1}, {2} & 31)")
define("shf.l.clamp.T", ("b32",), "T T T", "ptx::funnel_left({0}, {1}, {2})")
define("shf.r.clamp.T", ("b32",), "T T T", "ptx::funnel_right({0}, {1}, {2})")
define("clz.T", ("b32", "b64"), "T", "ptx::leading_zeros({0})", "u32")
define("popc.T", ("b32", "b64"), "T", "ptx::population({0})", "u32")
define("brev.T", ("b32", "b64"), "T", "ptx::reversed({0})")
define("bfind.T", ("u32", "u64"), "T", "ptx::highest_bit({0})", "u32")
define("bfind.shiftamt.T", ("u32", "u64"), "T", "ptx::shift_to_highest_bit({0})", "u32")
define("bfe.T", LARGE_INTEGERS, "T u32 u32", "ptx::extract_field({0}, {1}, {2})")
define("bfi.T", ("b32", "b64"), "T T u32 u32", "ptx::insert_field({0}, {1}, {2}, {3})")
define("prmt.T", ("b32",), "T T T", "ptx::permute({0}, {1}, {2})")

# The carry is a register that only these see.
define("add.cc.T", LARGE_INTEGERS, "U U", "(carry = false, ptx::add_with_carry({0}, {1}, carry))")
define("addc.cc.T", LARGE_INTEGERS, "U U", "ptx::add_with_carry({0}, {1}, carry)")
define("addc.T", LARGE_INTEGERS, "U U", "{0} + {1} + (carry ? 1 : 0)")
define(
    "sub.cc.T", LARGE_INTEGERS, "U U", "(carry = false, ptx::subtract_with_borrow({0}, {1}, carry))"
)
define("subc.cc.T", LARGE_INTEGERS, "U U", "ptx::subtract_with_borrow({0}, {1}, carry)")
define("subc.T", LARGE_INTEGERS, "U U", "{0} - {1} - (carry ? 1 : 0)")

# ---- floating point, rounded to nearest unless the name says otherwise

for rounding in ("", ".rn"):
    define(f"add{rounding}.T", FLOATS, "T T", "ptx::canonical({0} + {1})")
    define(f"sub{rounding}.T", FLOATS, "T T", "ptx::canonical({0} - {1})")
    define(f"mul{rounding}.T", FLOATS, "T T", "ptx::canonical({0} * {1})")
define("div.rn.T", FLOATS, "T T", "ptx::canonical({0} / {1})")
define("rcp.rn.T", FLOATS, "T", "ptx::canonical(1 / {0})")
define("fma.rn.T", ("f32",), "T T T", "ptx::canonical(fmaf({0}, {1}, {2}))")
define("fma.rn.T", ("f64",), "T T T", "fma({0}, {1}, {2})")
define("sqrt.rn.T", ("f32",), "T", "ptx::canonical(sqrtf({0}))")
define("sqrt.rn.T", ("f64",), "T", "sqrt({0})")
for rounding, direction in (("rz", "kTowardsZero"), ("rm", "kDown"), ("rp", "kUp")):
    define(
        f"add.{rounding}.T", ("f32",), "T T", f"ptx::directed_sum({{0}}, {{1}}, ptx::{direction})"
    )
    define(
        f"fma.{rounding}.T",
        ("f32",),
        "T T T",
        f"ptx::directed_fma({{0}}, {{1}}, {{2}}, ptx::{direction})",
    )
define("neg.T", ("f32",), "T", "ptx::canonical(-{0})")
define("neg.T", ("f64",), "T", "-{0}")
define("abs.T", ("f32",), "T", "ptx::canonical(fabsf({0}))")
define("abs.T", ("f64",), "T", "fabs({0})")
define("min.T", FLOATS, "T T", "ptx::float_minimum({0}, {1})")
define("max.T", FLOATS, "T T", "ptx::float_maximum({0}, {1})")
define("copysign.T", ("f32",), "T T", "copysignf({1}, {0})")
define("copysign.T", ("f64",), "T T", "copysign({1}, {0})")
# Approximations: as wrong as documented (special_functions.cpp).
define("ex2.approx.ftz.T", ("f32",), "T", "ptx::canonical(emulator_exp2({0}))")
define("rcp.approx.ftz.T", ("f64",), "T", "emulator_reciprocal({0})")

# ---- comparisons and choices

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
for name, sign in COMPARISONS.items():
    equality = name in ("eq", "ne")
    define(
        f"setp.{name}.T",
        (*INTEGERS, *(BITS if equality else ())),
        "T T",
        f"{{0}} {sign} {{1}}",
        "pred",
    )
    ordered = f"!ptx::unordered({{0}}, {{1}}) && {{0}} {sign} {{1}}"
    define(f"setp.{name}.T", FLOATS, "T T", ordered, "pred")
    define(
        f"setp.{name}u.T",
        FLOATS,
        "T T",
        f"ptx::unordered({{0}}, {{1}}) || {{0}} {sign} {{1}}",
        "pred",
    )
for name, same in {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.items():
    define(
        f"setp.{name}.T", ("u16", "u32", "u64"), "T T", f"{{0}} {COMPARISONS[same]} {{1}}", "pred"
    )
define("setp.num.T", FLOATS, "T T", "!ptx::unordered({0}, {1})", "pred")
define("setp.nan.T", FLOATS, "T T", "ptx::unordered({0}, {1})", "pred")
define("selp.T", (*BITS, *INTEGERS, *FLOATS), "T T pred", "{2} ? {0} : {1}")

# ---- conversions


def define_cvt(name: str, result: str, operand: str, code: str) -> None:
    OPERATIONS[f"cvt.{name}{result}.{operand}"] = Operation(result, (operand,), code, widens=True)


CONVERTED = ("u8", "s8", *INTEGERS)
for result, operand in itertools.product(CONVERTED, CONVERTED):
    define_cvt("", result, operand, f"({result}){{0}}")
for integer, real in itertools.product(INTEGERS, FLOATS):
    define_cvt("rn.", real, integer, f"({real}){{0}}")
    for rounding, function in {
        "rzi": "trunc",
        "rni": "rint",
        "rmi": "floor",
        "rpi": "ceil",
    }.items():
        call = f"{function}{'f' if real == 'f32' else ''}({{0}})"
        define_cvt(f"{rounding}.", integer, real, f"ptx::to_integer<{integer}>({call})")
        define_cvt(f"{rounding}.", real, real, f"ptx::canonical({call})")
define_cvt("rn.", "f32", "f64", "ptx::canonical((f32){0})")
define_cvt("", "f64", "f32", "(f64){0}")
define_cvt("sat.", "f32", "f32", "ptx::saturated({0})")
for half in ("f16", "bf16"):
    OPERATIONS[f"cvt.rn.{half}.f32"] = Operation("b16", ("f32",), f"ptx::to_{half}({{0}})")
    OPERATIONS[f"cvt.f32.{half}"] = Operation("f32", ("b16",), f"ptx::from_{half}({{0}})")
    OPERATIONS[f"cvt.rn.{half}x2.f32"] = Operation(
        "b32", ("f32", "f32"), f"u32{{{{ptx::to_{half}({{0}})}}}} << 16 | ptx::to_{half}({{1}})"
    )
