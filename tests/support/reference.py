# SPDX-License-Identifier: Apache-2.0
"""What the operators must compute, slowly and obviously: numpy, float64, Decimal, one id at a time.

Written from the contract and from the comments of csrc/shared, not from the code that is
tested: another language, sorting where that selects by digits, exact integers and Fractions where
that packs exponents into keys, definitions where that rearranges to avoid cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import torch

# What results may differ by from their exact values, given the logits as they are stored:
# |got - exact| <= rtol |exact| + atol. Loss and EL2N rank easy samples, so no absolute error is
# allowed; the smallest exact values that are tested are normal numbers.
#              compute dtype    quantity   (rtol, atol)
TOLERANCES = {
    torch.float32: {
        "loss": (1e-5, 0.0),
        "el2n": (1e-5, 0.0),
        "entropy": (1e-5, 2e-6),
        "margin": (1e-6, 0.0),
        "smoothed_loss": (1e-5, 1e-6),
        "gradient": (1e-5, 1e-7),
        "smoothed_gradient": (1e-5, 3e-7),
        "target_gradient": (1e-5, 0.0),
    },
    torch.float64: {
        "loss": (1e-12, 0.0),
        "el2n": (1e-12, 0.0),
        "entropy": (1e-12, 1e-13),
        "margin": (1e-15, 0.0),
        "smoothed_loss": (1e-12, 1e-14),
        "gradient": (1e-12, 1e-15),
        "smoothed_gradient": (1e-12, 3e-15),
        "target_gradient": (1e-12, 0.0),
    },
}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of loss and scores, for logits of dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(got: torch.Tensor, exact: np.ndarray, quantity: str) -> None:
    """Compares with the table above; infinities and NaN must be equal."""
    rtol, atol = TOLERANCES[got.dtype][quantity]
    exact = np.asarray(exact, dtype=np.float64)
    values = got.detach().cpu().double().numpy()
    np.testing.assert_allclose(values, exact, rtol=rtol, atol=atol, err_msg=quantity)


# --- Randomness: hash.h and permutation.h ---------------------------------------------------------

TIE, EXPLORE, WEIGHT, ORDER, PERMUTATION = 1, 2, 3, 4, 5
NUM_ROUNDS = 12
FEW_ELEMENTS, FEW_ELEMENTS_REPEATS = 64, 4
_WORD = (1 << 64) - 1


def mix64(x: int) -> int:
    """SplitMix64's step on one word (Steele, Lea, Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def mix32(x: np.ndarray) -> np.ndarray:
    """Wellons's lowbias32 on uint64 words that hold 32 bits."""
    low = np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & low
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & low
    return x ^ (x >> np.uint64(16))


def stream_key(seed: int, stream: int) -> int:
    return mix64(mix64(seed & _WORD) ^ mix64(stream))


def id_hash(seed: int, stream: int, num_samples: int) -> np.ndarray:
    """[N] the 32-bit hash of each id, as uint64."""
    return listed_id_hash(seed, stream, np.arange(num_samples))


def listed_id_hash(seed: int, stream: int, ids: np.ndarray) -> np.ndarray:
    """The same of some ids."""
    key = stream_key(seed, stream)
    low = np.uint64(0xFFFFFFFF)
    first = mix32((ids.astype(np.uint64) + np.uint64(key & 0xFFFFFFFF)) & low)
    return mix32((first + np.uint64(key >> 32)) & low)


def permuted(n: int, k: int, seed: int, stream: int) -> np.ndarray:
    """The first k elements of the keyed permutation of 0 .. n-1: a Feistel network, walked."""
    bits = max(n - 1, 0).bit_length()
    high_bits, low_bits = bits // 2, bits - bits // 2
    keys, key = [], stream_key(seed, stream)
    for _ in range(NUM_ROUNDS // 2):
        key = mix64(key)
        keys += [key & 0xFFFFFFFF, key >> 32]
    repeats = FEW_ELEMENTS_REPEATS if n <= FEW_ELEMENTS else 1
    keys = [(key + repeat * 0x9E3779B9) & 0xFFFFFFFF for repeat in range(repeats) for key in keys]
    word = np.uint64(0xFFFFFFFF)
    high_mask, low_mask = np.uint64((1 << high_bits) - 1), np.uint64((1 << low_bits) - 1)

    def encrypt(x: np.ndarray) -> np.ndarray:
        high, low = x >> np.uint64(low_bits), x & low_mask
        for i in range(0, len(keys), 2):
            high = high ^ (mix32((low + np.uint64(keys[i])) & word) & high_mask)
            low = low ^ (mix32((high + np.uint64(keys[i + 1])) & word) & low_mask)
        return high << np.uint64(low_bits) | low

    x = encrypt(np.arange(k, dtype=np.uint64))
    while (outside := x >= np.uint64(n)).any():
        x[outside] = encrypt(x[outside])
    return x.astype(np.int64)


# --- Selection ------------------------------------------------------------------------------------


def as_float64(t: torch.Tensor) -> np.ndarray:
    """Every dtype that the operators take is exact in float64."""
    return t.detach().cpu().double().numpy()


def ranked(scores: np.ndarray, seed: int) -> np.ndarray:
    """All ids, first of the total order first: NaN, then by score, then by hash."""
    nan = np.isnan(scores)
    hashes = id_hash(seed, TIE, len(scores))
    return np.lexsort((hashes, np.where(nan, 0.0, scores), nan))[::-1]


def arranged(chosen: np.ndarray, seed: int, order: str) -> np.ndarray:
    """A set of ids in the order that is asked for."""
    chosen = np.sort(chosen)
    if order == "ascending":
        return chosen
    return chosen[permuted(len(chosen), len(chosen), seed, ORDER)]


def top_k(scores: np.ndarray, k: int, seed: int, order: str = "random") -> np.ndarray:
    return arranged(ranked(scores, seed)[:k], seed, order)


def epsilon_greedy(
    scores: np.ndarray, k: int, epsilon: float, seed: int, order: str = "random"
) -> np.ndarray:
    num_random = math.floor(epsilon * k + 0.5)
    ranking = ranked(scores, seed)
    greedy, rest = ranking[: k - num_random], ranking[k - num_random :]
    draw = id_hash(seed, EXPLORE, len(scores))[rest]
    return arranged(
        np.concatenate([greedy, rest[np.argsort(draw)[::-1][:num_random]]]), seed, order
    )


def uniform(n: int, k: int, seed: int, order: str = "random") -> np.ndarray:
    ids = permuted(n, k, seed, PERMUTATION)
    return ids if order == "random" else np.sort(ids)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there (from its exact error), and 53
    bits rounded to odd round to 24 as the exact sum would.
    """
    a64, b64, c64 = (np.asarray(v, dtype=np.float32).astype(np.float64) for v in (a, b, c))
    with np.errstate(all="ignore"):
        product = a64 * b64
        total = np.asarray(product + c64)
        part = total - product
        error = (product - (total - part)) + (c64 - part)
        even = (total.view(np.int64) & 1) == 0
        total = np.where(even & (error > 0), np.nextafter(total, np.inf), total)
        total = np.where(even & (error < 0), np.nextafter(total, -np.inf), total)
        return total.astype(np.float32)


def round_to_float32(exact: Fraction) -> np.float32:
    """The nearest float32, ties to even, by trying the neighbours."""
    near = np.float32(float(exact))
    around = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda f: (abs(Fraction(float(f)) - exact), f.view(np.uint32) & 1))


def ucb_bound(mean: torch.Tensor, variance: torch.Tensor, c: float, bonus: str) -> np.ndarray:
    """mean + c * variance, or c * its root, in float32 with one fused multiply-add."""
    spread = variance.detach().cpu().float().numpy()
    with np.errstate(all="ignore"):
        spread = np.sqrt(spread) if bonus == "std" else spread
    return fma32(np.float32(c), spread, mean.detach().cpu().float().numpy()).astype(np.float64)


def ucb1_bound(mean: torch.Tensor, count: torch.Tensor, c: float, step: float) -> np.ndarray:
    """Never visited: NaN, which is what ranks first."""
    visits = count.cpu().numpy()
    with np.errstate(all="ignore"):
        spread = np.sqrt(np.float32(math.log(step)) / visits.astype(np.float32))
    bound = fma32(np.float32(c), spread, mean.cpu().numpy()).astype(np.float64)
    return np.where(visits == 0, np.nan, bound)


LOG_SERIES = (
    *(-0.499999911, 0.333339512, -0.250017554, 0.199620724),
    *(-0.165705085, 0.149179742, -0.143075243, 0.0873484612),
)  # (log(1 + z) - z) / z^2 between the roots of 1/2 and of 2


def exponential(hashes: np.ndarray) -> np.ndarray:
    """E = -log((h + 1/2) / 2^32) in float32, in the steps that hash.h fixes.

    u, or 1 - u where that is smaller, is rounded to float32; u = m * 2^e with m between the roots
    of 1/2 and of 2; log m is a polynomial in m - 1. For u itself in that range, m - 1 is the exact
    1 - u with its sign changed.
    """
    f32 = np.float32
    h = hashes.astype(np.int64)
    near_one = h >= 1 << 31
    distance = fma32(np.where(near_one, (1 << 32) - 1 - h, h).astype(f32), f32(2.0**-32), 2.0**-33)
    u = np.where(near_one, f32(1) - distance, distance)
    mantissa, exponent = np.frexp(u)  # in [1/2, 1)
    low = mantissa < f32(math.sqrt(0.5))
    mantissa, exponent = np.where(low, f32(2) * mantissa, mantissa), exponent - low
    z = np.where(exponent == 0, -distance, mantissa - f32(1))
    series = np.full_like(z, f32(LOG_SERIES[-1]))
    for coefficient in LOG_SERIES[-2::-1]:
        series = fma32(series, z, f32(coefficient))
    log_mantissa = fma32(z * z, series, z)
    return fma32(exponent.astype(f32), f32(-math.log(2)), -log_mantissa)


def weighted_ranking(weights: np.ndarray, seed: int, start: float = 0.0) -> np.ndarray:
    """All ids by w / E, exactly: the float32 quotient m / E times a power of two, as integers.

    Infinite weights first, zero weights last; equal quotients by the tie hash. The random words are
    turned by `start`, a share of 2^32.
    """
    n = len(weights)
    words = (id_hash(seed, WEIGHT, n) + np.uint64(int(start * 2**32))) & np.uint64(0xFFFFFFFF)
    draws = exponential(words)
    mantissas, exponents = np.frexp(weights)  # m in [1/2, 1)
    with np.errstate(all="ignore"):
        quotients = (2 * mantissas).astype(np.float32) / draws
    numerators, powers = np.frexp(quotients.astype(np.float64))
    finite = np.isfinite(weights) & (weights > 0)
    category = np.where(np.isinf(weights), 2, np.where(weights > 0, 1, 0))
    power = np.where(finite, powers.astype(np.int64) + exponents, 0)
    numerator = np.where(finite, numerators, 0.0)
    return np.lexsort((id_hash(seed, TIE, n), numerator, power, category))[::-1]


def weighted(weights: np.ndarray, k: int, seed: int, order: str = "random") -> np.ndarray:
    return arranged(weighted_ranking(weights, seed)[:k], seed, order)


# --- Scoring --------------------------------------------------------------------------------------


def exact_row(logits: Sequence[float], target: int) -> dict[str, float]:
    """Loss and scores of one row of finite logits by their definitions, in 60 decimal digits."""
    with localcontext() as context:
        context.prec = 60
        x = [Decimal(float(v)) for v in logits]
        greatest = max(x)
        powers = [(v - greatest).exp() for v in x]
        total = sum(powers, Decimal(0))
        p = [power / total for power in powers]
        errors = [q - (c == target) for c, q in enumerate(p)]
        others = x[:target] + x[target + 1 :]
        return {
            "loss": float(-p[target].ln()),
            "el2n": float(sum((e * e for e in errors), Decimal(0)).sqrt()),
            "entropy": float(
                total.ln() - sum((q * (v - greatest) for q, v in zip(p, x, strict=True)))
            ),
            "margin": float(x[target] - max(others)) if others else math.inf,
        }


def exact_soft_row(
    logits: Sequence[float],
    probabilities: Sequence[float],
    weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    """The same of a target of probabilities, and the gradient of the loss by each logit."""
    with localcontext() as context:
        context.prec = 60
        x = [Decimal(float(v)) for v in logits]
        t = [Decimal(float(v)) for v in probabilities]
        w = [Decimal(float(v)) for v in weight] if weight is not None else [Decimal(1)] * len(x)
        greatest = max(x)
        powers = [(v - greatest).exp() for v in x]
        total = sum(powers, Decimal(0))
        p = [power / total for power in powers]
        smoothing = Decimal(label_smoothing)
        u = [v * (q * (1 - smoothing) + smoothing / len(x)) for v, q in zip(w, t, strict=True)]
        terms = [v * (total.ln() + greatest - z) for v, z in zip(u, x, strict=True)]
        errors = [q - v for q, v in zip(p, t, strict=True)]
        y = t.index(max(t))
        others = x[:y] + x[y + 1 :]
        entropy = total.ln() - sum((q * (v - greatest) for q, v in zip(p, x, strict=True)))
        mass = sum(u, Decimal(0))
        return {
            "loss": float(sum(terms, Decimal(0))),
            "el2n": float(sum((e * e for e in errors), Decimal(0)).sqrt()),
            "entropy": float(entropy),
            "margin": float(x[y] - max(others)) if others else math.inf,
            "gradient": [float(q * mass - v) for q, v in zip(p, u, strict=True)],
        }


def scores(logits: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Loss and scores of finite rows in float64; 1 - p_y is the sum over the other classes."""
    rows = np.arange(len(target))
    shifted = logits - logits.max(axis=1, keepdims=True)
    power = np.exp(shifted)
    total = power.sum(axis=1)
    p = power / total[:, None]
    other = p.copy()
    other[rows, target] = 0.0
    miss = other.sum(axis=1)
    rest = np.array(logits, copy=True)
    rest[rows, target] = -np.inf
    with np.errstate(divide="ignore"):
        far = np.log(total) - shifted[rows, target]  # precise where p_y is small
        loss = np.where(miss < 0.5, -np.log1p(-np.minimum(miss, 0.5)), far)
    return {
        "loss": loss,
        "el2n": np.sqrt((other**2).sum(axis=1) + miss**2),
        "entropy": np.log(total) - (p * shifted).sum(axis=1),
        "margin": logits[rows, target] - rest.max(axis=1),
    }


# --- Score update ---------------------------------------------------------------------------------


def value_of_rows(values: Sequence[float], row_reduction: str | float) -> float:
    """A sample's value, as exact as rational numbers are: rounded once, to float64."""
    if not all(math.isfinite(v) for v in values):
        return math.nan
    exact = sorted(map(Fraction, values), reverse=True)
    if row_reduction == "max":
        return float(exact[0])
    if row_reduction not in ("mean", "sum"):
        exact = exact[: max(1, math.floor(float(row_reduction) * len(exact) + 0.5))]
    total = sum(exact)
    return float(total if row_reduction == "sum" else total / len(exact))


def update_scores(
    columns: dict[str, np.ndarray],
    sample_ids: Sequence[int],
    values: np.ndarray,
    alpha: float,
    first_visit: str = "zero",
    row_reduction: str | float = "mean",
) -> None:
    """One sample after the other, in float32 step by step."""
    f32 = np.float32
    rows: dict[int, list[float]] = {}
    for i, v in zip(sample_ids, values, strict=True):
        if i != -1:
            rows.setdefault(int(i), []).append(float(f32(v)))
    last = {i: f32(value_of_rows(row_values, row_reduction)) for i, row_values in rows.items()}
    a, b = f32(alpha), f32(1) - f32(alpha)
    mean, variance, count = columns["mean"], columns["variance"], columns["count"]
    for i, value in last.items():
        columns["last_non_finite"][i] = not np.isfinite(value)
        if not np.isfinite(value):
            columns["non_finite_count"][i] += 1
            continue
        if count[i] == 0:
            mean[i] = value
            variance[i] = f32(0) if first_visit == "zero" else a * (value * value)
        else:
            distance = value - mean[i]
            mean[i] = b * mean[i] + a * value
            variance[i] = b * variance[i] + a * (distance * distance)
        count[i] += 1
