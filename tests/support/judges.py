# SPDX-License-Identifier: Apache-2.0
"""Judges of randomness: how unlikely a result is if the claim about it holds.

Each returns a p-value. A judgement fails below P_VALUE, so n of them fail a right implementation
with probability n * P_VALUE at most, once: seeds are fixed, and the same seeds give the same result
on every machine. The arithmetic is that of Python and numpy, whose random streams are not used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

P_VALUE = 1e-5

Flags = NDArray[np.float64]  # [n], 1 where the sample was selected
Draw = Callable[[int], Any]  # seed -> ids as a tensor


def assert_plausible(p: float, *what: Any) -> None:
    assert p > P_VALUE, (p, *what)


def two_sided(z: float) -> float:
    """Of a standard normal variable."""
    return math.erfc(abs(z) / math.sqrt(2))


def smallest(zs: ArrayLike) -> float:
    """Of the most extreme of several standard normal variables, independent or not (Bonferroni)."""
    zs = np.asarray(zs)
    return min(1.0, zs.size * two_sided(float(np.abs(zs).max())))


def chi_square_tail(statistic: float, degrees: int) -> float:
    """P(chi-square with so many degrees of freedom >= statistic), by its finite sum."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    first = 0.5 if degrees % 2 else 0.0
    powers = (first + i for i in range(degrees // 2))
    terms = [math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers]
    return min(1.0, math.fsum(terms) + (math.erfc(math.sqrt(half)) if degrees % 2 else 0.0))


def chi_square_two_sided(statistic: float, degrees: int) -> float:
    """Too even is as suspicious as too uneven."""
    upper = chi_square_tail(statistic, degrees)
    return 2 * min(upper, 1 - upper)


def poisson_two_sided(count: int, mean: float) -> float:
    at_most = chi_square_tail(2 * mean, 2 * (count + 1))
    below = chi_square_tail(2 * mean, 2 * count) if count else 0.0
    return min(1.0, 2 * min(at_most, 1 - below))


def goodness_of_fit(observed: ArrayLike, expected: ArrayLike) -> float:
    """Counts of independent draws against their expectations (Pearson)."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    assert expected.min() >= 5  # where the chi-square approximation holds
    assert math.isclose(observed.sum(), expected.sum())
    return chi_square_tail(float(((observed - expected) ** 2 / expected).sum()), observed.size - 1)


def uniform(counts: ArrayLike) -> float:
    counts = np.asarray(counts, float)
    return goodness_of_fit(counts, np.full(counts.size, counts.sum() / counts.size))


def order_counts(draw: Callable[[int], Iterable[int]], seeds: Iterable[int]) -> NDArray[Any]:
    """How often each of the 120 orders of five ids came."""
    index = {order: i for i, order in enumerate(itertools.permutations(range(5)))}
    counts = np.zeros(len(index))
    for seed in seeds:
        counts[index[tuple(draw(seed))]] += 1
    return counts


def chosen(ids: Any, n: int) -> Flags:
    flags = np.zeros(n)
    flags[np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)] = 1
    return flags


def equally_often(counts: NDArray[Any], times: int, k: int) -> float:
    """How often each of n samples was among the k, in independent draws without replacement."""
    n = counts.size
    p = k / n
    statistic = ((counts - times * p) ** 2).sum() / (times * p * (1 - p)) * (n - 1) / n
    return chi_square_two_sided(float(statistic), n - 1)


def independent(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Classes a[i] and b[i] of n samples, of which one side was permuted at random.

    Both margins are fixed then, and Pearson's statistic has the mean of its degrees of freedom when
    it is scaled by (n - 1) / n.
    """
    n, rows, columns = a.size, int(a.max()) + 1, int(b.max()) + 1
    cells = a.astype(np.int64) * columns + b.astype(np.int64)
    table = np.bincount(cells, minlength=rows * columns).reshape(rows, columns)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    assert expected.min() >= 5
    statistic = float(((table - expected) ** 2 / expected).sum()) * (n - 1) / n
    return chi_square_two_sided(statistic, (rows - 1) * (columns - 1))


def joins_z(flags: Flags, lag: int) -> float:
    """Pairs (i, i + lag), counted cyclically, of which both are chosen.

    Mean and variance are exact for a uniformly random k-subset; n must exceed 2 * lag.
    """
    n, k = flags.size, int(flags.sum())

    def all_chosen(m: int) -> Fraction:  # P(m given samples are chosen)
        return Fraction(math.perm(k, m), math.perm(n, m))

    mean = n * all_chosen(2)
    variance = mean + 2 * n * all_chosen(3) + n * (n - 3) * all_chosen(4) - mean**2
    return (float((flags * np.roll(flags, lag)).sum()) - float(mean)) / math.sqrt(variance)


def overlap_z(a: Flags, b: Flags) -> float:
    """Samples in two independent subsets of sizes k and l: hypergeometric."""
    n, k, other = a.size, a.sum(), b.sum()
    mean = k * other / n
    variance = mean * (1 - k / n) * (n - other) / (n - 1)
    return float(((a * b).sum() - mean) / math.sqrt(variance))


def serial_z(ids: NDArray[Any], lag: int) -> float:
    """Serial correlation of a random permutation's values, cyclic; its mean is -1 / (n - 1)."""
    n = ids.size
    centred = (ids - ids.mean()) / ids.std()
    return (float((centred * np.roll(centred, lag)).sum()) + n / (n - 1)) / math.sqrt(n)


def rank_correlation_z(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's, of two permutations of the same values; its variance is 1 / (n - 1)."""
    n = a.size
    x, y = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    return float((x * y).mean()) * math.sqrt(n - 1)


def distinct_differences_z(ids: NDArray[Any], lag: int) -> float:
    """How many values modulo n the differences at a lag take: n (1 - 1/e), as n balls in n cells.

    The variance n (1/e - 2/e^2) is that of the balls as well.
    """
    n = ids.size
    differences = (np.roll(ids, -lag) - ids).astype(np.int64) % n
    distinct = int((np.bincount(differences, minlength=n) > 0).sum())
    e = math.e
    return (distinct - n * (1 - 1 / e)) / math.sqrt(n * (1 / e - 2 / e**2))


def classes(n: int) -> dict[str, NDArray[np.int64]]:
    """Ways to divide positions 0 .. n - 1 that a flawed generator might favour."""
    places = np.arange(n)
    return {
        "halves": places * 2 // n,
        "blocks": places * 32 // n,
        "parity": places % 2,
        "mod 3": places % 3,
        "lanes": places % 32,
        "tiles": places // 1024 % 8,
    }


def judge_positions(flags: Flags, *what: Any) -> int:
    """A subset that must have nothing to do with position; returns how many judgements it were."""
    kinds = classes(flags.size)
    for kind, places in kinds.items():
        assert_plausible(independent(places, flags), kind, *what)
    lags = (1, 2, 7, 32, 1024)
    for lag in lags:
        assert_plausible(two_sided(joins_z(flags, lag)), "neighbours", lag, *what)
    return len(kinds) + len(lags)


def judge_permutation(ids: NDArray[Any], lags: Sequence[int], *what: Any) -> int:
    """A permutation of 0 .. n - 1 that must look random; returns how many judgements it were."""
    n = ids.size
    assert (np.bincount(ids, minlength=n) == 1).all()
    for lag in lags:
        assert_plausible(two_sided(serial_z(ids, lag)), "serial", lag, *what)
        assert_plausible(two_sided(distinct_differences_z(ids, lag)), "differences", lag, *what)
        steps = (np.roll(ids, -lag) - ids).astype(np.int64) % n
        assert_plausible(uniform(np.bincount(steps * 64 // n, minlength=64)), "steps", lag, *what)
    places = np.arange(n)
    assert_plausible(two_sided(rank_correlation_z(ids, places)), "trend", *what)
    assert_plausible(independent(places * 32 // n, ids * 32 // n), "blocks", *what)
    assert_plausible(independent(places % 8, ids % 8), "low bits", *what)
    assert_plausible(poisson_two_sided(int((ids == places).sum()), 1.0), "fixed points", *what)
    return 3 * len(lags) + 4
