# SPDX-License-Identifier: Apache-2.0
"""The judges of judges.py accept fair generators and reject broken ones.

The generators here draw from Python's random.random(), whose stream is the same in every version,
and from nothing of numpy or torch. About 80 judgements are passed on fair ones: with other seeds
this file would fail once in 1,200 times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import judges
import numpy as np
import pytest
from judges import P_VALUE, chosen, judge_permutation, judge_positions, order_counts

N, K = 20_011, 6_003


def shuffled(n: int, seed: int) -> list[int]:
    """Fisher and Yates."""
    rng, ids = random.Random(seed), list(range(n))
    for i in range(n - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        ids[i], ids[j] = ids[j], ids[i]
    return ids


def naively_shuffled(n: int, seed: int) -> list[int]:
    """The well-known mistake: every swap partner is drawn from all n."""
    rng, ids = random.Random(seed), list(range(n))
    for i in range(n):
        j = int(rng.random() * n)
        ids[i], ids[j] = ids[j], ids[i]
    return ids


def swapped_nearby(n: int, seed: int) -> list[int]:
    """As a shuffle buffer of 64 does it."""
    rng, ids = random.Random(seed), list(range(n))
    for begin in range(0, n, 64):
        part = ids[begin : begin + 64]
        part.sort(key=lambda _: rng.random())
        ids[begin : begin + 64] = part
    return ids


def feistel(n: int, seed: int, rounds: int) -> list[int]:
    """Too few rounds of the construction that the library uses, walked into [0, n)."""
    rng, half = random.Random(seed), 8
    mask = (1 << half) - 1
    keys = [int(rng.random() * 2**32) | 1 for _ in range(rounds)]
    ids = []
    for value in range(1 << 2 * half):
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ ((right * key + key) >> 7 & mask)
        if (left << half | right) < n:
            ids.append(left << half | right)
    return ids


BROKEN_ORDERS: dict[str, Callable[[], list[int]]] = {
    "the identity": lambda: list(range(N)),
    "reversed": lambda: list(range(N))[::-1],
    "affine": lambda: [(7919 * i + 13) % N for i in range(N)],
    "a shuffle buffer": lambda: swapped_nearby(N, 1),
    "odd and even kept apart": lambda: (
        [2 * i for i in shuffled((N + 1) // 2, 1)] + [2 * i + 1 for i in shuffled(N // 2, 2)]
    ),
    "two Feistel rounds": lambda: feistel(N, 1, 2),
    "three Feistel rounds": lambda: feistel(N, 1, 3),
}


@pytest.mark.parametrize("order", BROKEN_ORDERS.values(), ids=BROKEN_ORDERS.keys())
def test_broken_permutations_are_rejected(order: Callable[[], list[int]]) -> None:
    ids = np.array(order())
    with pytest.raises(AssertionError, match=r"serial|differences|steps|trend|blocks|low|fixed"):
        judge_permutation(ids, (1, 2, 7))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fair_permutations_and_subsets_are_accepted(seed: int) -> None:
    ids = np.array(shuffled(N, seed))
    assert judge_permutation(ids, (1, 2, 7)) == 13
    assert judge_positions(chosen(ids[:K], N)) == 11


BROKEN_SUBSETS: dict[str, Callable[[], Any]] = {
    "lowest ids first": lambda: np.arange(K),
    "every third": lambda: np.arange(0, 3 * K, 3),
    "mostly even": lambda: (
        [2 * i for i in shuffled(N // 2, 1)[: K // 2 + 200]]
        + [2 * i + 1 for i in shuffled(N // 2, 2)[: K - K // 2 - 200]]
    ),
    "first half favoured": lambda: [
        *shuffled(N // 2, 1)[: K // 2 + 200],
        *(N // 2 + i for i in shuffled(N // 2, 2)[: K - K // 2 - 200]),
    ],
    "in pairs": lambda: [2 * i + j for i in shuffled(N // 2, 1)[: K // 2] for j in (0, 1)],
    "the same in every tile of 7": lambda: [place for place in range(N) if place % 7 in (0, 3)],
    "stratified": lambda: [
        10 * block + i for block in range(N // 10) for i in shuffled(10, block)[:3]
    ],
}


@pytest.mark.parametrize("subset", BROKEN_SUBSETS.values(), ids=BROKEN_SUBSETS.keys())
def test_broken_subsets_are_rejected(subset: Callable[[], Any]) -> None:
    flags = chosen(subset(), N)
    with pytest.raises(AssertionError, match=r"halves|blocks|parity|mod|lanes|tiles|neighbours"):
        judge_positions(flags)


def test_unfair_orders_of_five_are_rejected() -> None:
    assert judges.uniform(order_counts(lambda s: shuffled(5, s), range(24_000))) > P_VALUE
    assert judges.uniform(order_counts(lambda s: naively_shuffled(5, s), range(24_000))) < P_VALUE
    # One order in 120 twice as often as the others.
    unfair = np.full(120, 200.0)
    unfair[0] = 400
    assert judges.uniform(unfair) < P_VALUE


def drawn_often(draw: Callable[[int], list[int]], n: int, times: int) -> np.ndarray[Any, Any]:
    return sum((chosen(draw(seed), n) for seed in range(times)), np.zeros(n))


def test_samples_that_are_chosen_too_often_are_rejected() -> None:
    def fair(seed: int) -> list[int]:
        return shuffled(20, seed)[:7]

    def favours_one(seed: int) -> list[int]:
        ids = fair(seed)
        return ids if 3 in ids or seed % 10 else [3, *ids[1:]]

    def with_replacement(seed: int) -> list[int]:
        rng = random.Random(seed)
        return [int(rng.random() * 20) for _ in range(7)]

    assert judges.equally_often(drawn_often(fair, 20, 6000), 6000, 7) > P_VALUE
    assert judges.equally_often(drawn_often(favours_one, 20, 6000), 6000, 7) < P_VALUE
    # Distinct ids are fewer then, so all counts are low together.
    assert judges.equally_often(drawn_often(with_replacement, 20, 6000), 6000, 7) < P_VALUE


def test_weights_that_are_not_drawn_in_turn_are_rejected() -> None:
    """u * w instead of the exponential race: greater weights are favoured too little or much."""
    weights = [1.0, 2.0, 3.0, 4.0, 10.0]
    exact = [weight / 20 * 20_000 for weight in weights]

    def counts(key: Callable[[float, float], float]) -> list[int]:
        rng, drawn = random.Random(1), [0] * 5
        for _ in range(20_000):
            keys = [key(weight, 1 - rng.random()) for weight in weights]
            drawn[keys.index(max(keys))] += 1
        return drawn

    assert judges.goodness_of_fit(counts(lambda w, u: -w / math.log(u)), exact) > P_VALUE
    assert judges.goodness_of_fit(counts(lambda w, u: w * u), exact) < P_VALUE


def test_epochs_that_depend_on_each_other_are_rejected() -> None:
    a, b = (np.array(shuffled(N, seed)) for seed in (1, 2))
    flags_a, flags_b = chosen(a[:K], N), chosen(b[:K], N)
    assert judges.two_sided(judges.overlap_z(flags_a, flags_b)) > P_VALUE
    assert judges.two_sided(judges.rank_correlation_z(a, b)) > P_VALUE
    # A tenth of the subset stays; a fifth does not come again; a tenth keeps its place.
    stays = chosen(np.concatenate([a[: K // 10], b[~np.isin(b, a[: K // 10])][: K - K // 10]]), N)
    assert judges.two_sided(judges.overlap_z(flags_a, stays)) < P_VALUE
    avoids = chosen(b[~np.isin(b, a[: K // 5])][:K], N)
    assert judges.two_sided(judges.overlap_z(flags_a, avoids)) < P_VALUE
    rest = a[N // 10 :]
    keeps = np.concatenate([a[: N // 10], rest[shuffled(rest.size, 3)]])
    assert judges.two_sided(judges.rank_correlation_z(a, keeps)) < P_VALUE


def test_tails_are_those_of_the_tables() -> None:
    """Upper points of chi-square and normal, as any handbook prints them."""
    five_percent = {1: 3.841, 2: 5.991, 3: 7.815, 10: 18.307, 29: 42.557, 30: 43.773, 100: 124.342}
    for degrees, point in five_percent.items():
        assert judges.chi_square_tail(point, degrees) == pytest.approx(0.05, abs=2e-5)
    assert judges.chi_square_tail(10.828, 1) == pytest.approx(0.001, rel=1e-3)
    assert judges.chi_square_tail(0.0, 7) == 1.0
    # Wilson and Hilferty 1931, where the degrees of freedom are many.
    cube = (1 - 2 / (9 * 1023) + 3 * math.sqrt(2 / (9 * 1023))) ** 3
    assert judges.chi_square_tail(1023 * cube, 1023) == pytest.approx(1.35e-3, rel=0.01)
    assert judges.two_sided(1.96) == pytest.approx(0.05, abs=1e-4)
    assert judges.goodness_of_fit([60, 40], [50, 50]) == pytest.approx(0.0455, abs=1e-4)  # z = 2
    assert judges.poisson_two_sided(0, 1.0) == pytest.approx(2 * math.exp(-1))
    assert judges.poisson_two_sided(3, 1.0) == pytest.approx(2 * (1 - 2.5 * math.exp(-1)))
    assert judges.smallest([0.1, -1.96, 1.0]) == pytest.approx(0.15, abs=1e-3)


def test_the_moments_of_the_judges_are_those_of_fair_draws() -> None:
    """Over 400 fair permutations every z has variance 1: within 5 standard errors, 0.35."""
    n, k = 211, 70
    judged: dict[str, list[float]] = {}
    for seed in range(400):
        ids, other = np.array(shuffled(n, seed)), np.array(shuffled(n, seed + 1000))
        flags = chosen(ids[:k], n)
        for name, z in {
            "joins 1": judges.joins_z(flags, 1),
            "joins 7": judges.joins_z(flags, 7),
            "overlap": judges.overlap_z(flags, chosen(other[:k], n)),
            "serial": judges.serial_z(ids, 2),
            "ranks": judges.rank_correlation_z(ids, other),
            "differences": judges.distinct_differences_z(ids, 1),
        }.items():
            judged.setdefault(name, []).append(z)
    for name, zs in judged.items():
        assert abs(np.mean(zs)) < 0.25, (name, np.mean(zs))
        assert abs(np.var(zs) - 1) < 0.35, (name, np.var(zs))
