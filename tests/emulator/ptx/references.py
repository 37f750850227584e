# SPDX-License-Identifier: Apache-2.0
"""What the opcodes of ptx/opcodes.py compute, in exact arithmetic of Python's own.

A reference takes the type that ends the opcode's name and the operands: integers, booleans, or
numpy floats. It returns a number that is then wrapped to the type of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

# Bits of the significand, least and greatest exponent.
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127)}
FORMATS["f64"] = (53, -1022, 1023)


def size(t: str) -> int:
    return 1 if t == "pred" else int(t.lstrip("busf"))


def wrap(x: int, t: str) -> int:
    """The number that the low bits of x are as a `t`."""
    low = int(x) & ((1 << size(t)) - 1)
    return low - (1 << size(t)) if t.startswith("s") and low >> (size(t) - 1) else low


def rounded(x: Fraction, t: str, mode: str) -> Fraction | float:
    """x in the format: to nearest even (rn), towards zero (rz), down (rm) or up (rp)."""
    digits, least, greatest = FORMATS[t]
    magnitude, negative = abs(x), x < 0
    if magnitude == 0:
        return Fraction(0)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, least) - digits + 1)
    below = magnitude // unit
    rest = magnitude / unit - below
    away = {"rz": False, "rm": negative, "rp": not negative}.get(mode, False) and rest > 0
    if mode == "rn":
        away = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1)
    result = (below + away) * unit
    largest = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** greatest
    if result > largest:
        stays = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        return (-1 if negative else 1) * (largest if stays else math.inf)
    return -result if negative else result


def as_float(x: Fraction | float, t: str, negative_zero: bool = False) -> Any:
    """A number that the format can hold, as numpy's float."""
    kind = np.float32 if t == "f32" else np.float64
    return kind(-0.0) if x == 0 and negative_zero else kind(float(x))


def directed(mode: str) -> Callable[..., Any]:
    """a·b + c, or a + b, rounded once."""

    def reference(t: str, *operands: Any) -> Any:
        *factors, addend = [float(x) for x in operands]
        if not all(map(math.isfinite, factors)):
            return np.prod(factors) + addend
        if not math.isfinite(addend):
            return addend
        total = math.prod(map(Fraction, factors)) + Fraction(addend)
        signs = [math.prod(math.copysign(1, x) for x in factors), math.copysign(1, addend)]
        if total == 0:
            negative = signs == [-1, -1] or (mode == "rm" and signs[0] != signs[1])
            return as_float(total, t, negative)
        return as_float(rounded(total, t, mode), t, total < 0)

    return reference


def quotient(t: str, a: int, b: int) -> int:
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def shift_left(t: str, a: int, n: int) -> int:
    return a << n if n < size(t) else 0


def field(t: str, a: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    if length == 0:
        return 0
    bits = [
        a >> min(i, size(t) - 1) & 1 if t[0] == "s" or i < size(t) else 0
        for i in range(position, position + length)
    ]
    if t[0] == "s":
        bits = [a >> min(i, size(t) - 1) & 1 for i in range(position, position + length)]
        return sum(b << i for i, b in enumerate(bits)) - (bits[-1] << length)
    return sum(b << i for i, b in enumerate(bits))


def inserted(t: str, a: int, b: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    for i in range(min(length, size(t) - position)):
        b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def permuted(t: str, a: int, b: int, selector: int) -> int:
    pool = (a | b << 32).to_bytes(8, "little")
    result = []
    for i in range(4):
        choice = selector >> 4 * i & 15
        byte = pool[choice & 7]
        result.append((255 if byte >> 7 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def funnel(low: int, high: int, n: int, left: bool) -> int:
    both = high << 32 | low
    return both << n >> 32 if left else both >> n


def integer_of(mode: str) -> Callable[..., int]:
    """A float as an integer of type `t`."""

    def reference(t: str, x: Any) -> int:
        bits, signed = size(t), t[0] == "s"
        if np.isnan(x):
            return 1 << (bits - 1) if bits == 64 or x.dtype == np.float64 else 0
        lowest, highest = (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        )
        if np.isinf(x):
            return highest if x > 0 else lowest
        exact = Fraction(float(x))
        functions = {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}
        return min(max(functions[mode](exact), lowest), highest)

    return reference


def extreme(largest: bool) -> Callable[..., Any]:
    def reference(t: str, a: Any, b: Any) -> Any:
        if not t.startswith("f"):
            return max(a, b) if largest else min(a, b)
        if np.isnan(a) or np.isnan(b):
            return b if np.isnan(a) else a
        key = lambda x: (float(x), not np.signbit(x))  # noqa: E731
        return max(a, b, key=key) if largest else min(a, b, key=key)

    return reference


def comparison(name: str) -> Callable[..., bool]:
    tests = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b}
    tests |= {"le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}
    tests |= {"lo": tests["lt"], "ls": tests["le"], "hi": tests["gt"], "hs": tests["ge"]}

    def reference(t: str, a: Any, b: Any) -> bool:
        unordered = t.startswith("f") and bool(np.isnan(a) or np.isnan(b))
        if name in ("num", "nan"):
            return unordered == (name == "nan")
        if unordered:
            return name not in tests
        return bool(tests[name.removesuffix("u") if name not in tests else name](a, b))

    return reference


def is_bits(t: str) -> bool:
    return not t.startswith("f") and t != "pred"


def negated(t: str, a: Any) -> Any:
    return -a


REFERENCES: dict[str, Callable[..., Any]] = {
    "add": lambda t, a, b: a + b,
    "add.rn": lambda t, a, b: a + b,
    "sub": lambda t, a, b: a - b,
    "sub.rn": lambda t, a, b: a - b,
    "mul": lambda t, a, b: a * b,
    "mul.rn": lambda t, a, b: a * b,
    "mul.lo": lambda t, a, b: a * b,
    "mul.wide": lambda t, a, b: a * b,
    "mul.hi": lambda t, a, b: a * b >> size(t),
    "mad.lo": lambda t, a, b, c: a * b + c,
    "mad.wide": lambda t, a, b, c: a * b + c,
    "div": quotient,
    "div.rn": lambda t, a, b: a / b,
    "rem": lambda t, a, b: a if b == 0 else a - b * quotient(t, a, b),
    "rcp.rn": lambda t, a: type(a)(1) / a,
    "sqrt.rn": lambda t, a: np.sqrt(a),
    "neg": negated,
    "abs": lambda t, a: abs(a),
    "min": extreme(False),
    "max": extreme(True),
    "copysign": lambda t, a, b: np.copysign(b, a),
    "and": lambda t, a, b: a & b,
    "or": lambda t, a, b: a | b,
    "xor": lambda t, a, b: a ^ b,
    "not": lambda t, a: not a if t == "pred" else ~a,
    "shl": shift_left,
    "shr": lambda t, a, n: a >> n,
    "shf.l.wrap": lambda t, a, b, n: funnel(a, b, n % 32, True),
    "shf.r.wrap": lambda t, a, b, n: funnel(a, b, n % 32, False),
    "shf.l.clamp": lambda t, a, b, n: funnel(a, b, min(n, 32), True),
    "shf.r.clamp": lambda t, a, b, n: funnel(a, b, min(n, 32), False),
    "clz": lambda t, a: size(t) - a.bit_length(),
    "popc": lambda t, a: bin(a).count("1"),
    "brev": lambda t, a: int(f"{a:0{size(t)}b}"[::-1], 2),
    "bfind": lambda t, a: a.bit_length() - 1,
    "bfind.shiftamt": lambda t, a: size(t) - a.bit_length() if a else -1,
    "bfe": field,
    "bfi": inserted,
    "prmt": permuted,
    "selp": lambda t, a, b, p: a if p else b,
    **{f"setp.{n}": comparison(n) for n in ("eq", "ne", "lt", "le", "gt", "ge", "num", "nan")},
    **{f"setp.{n}u": comparison(n + "u") for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"setp.{n}": comparison(n) for n in ("lo", "ls", "hi", "hs")},
    **{f"fma.{mode}": directed(mode) for mode in ("rn", "rz", "rm", "rp")},
    **{f"add.{mode}": directed(mode) for mode in ("rz", "rm", "rp")},
}


def converted(modifiers: str, result: str, operand: str) -> Callable[..., Any]:
    """The reference of a cvt."""
    if modifiers == "sat":
        return lambda x: x if 0 < x < 1 else type(x)(1 if x >= 1 else 0)
    if result in FORMATS and operand in FORMATS:
        if modifiers.endswith("i"):
            function = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[modifiers]
            return lambda x: function(x)

        def nearest(x: Any) -> Any:
            if not np.isfinite(x) or x == 0:
                return as_float(float(x), result, bool(np.signbit(x)))
            value = rounded(Fraction(float(x)), result, "rn")
            return as_float(value, result, bool(x < 0))

        return nearest
    if result in FORMATS:
        return lambda x: as_float(rounded(Fraction(int(x)), result, "rn"), result)
    if operand in FORMATS:
        return lambda x: integer_of(modifiers)(result, x)
    return lambda x: wrap(x, result)
