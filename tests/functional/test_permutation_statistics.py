# SPDX-License-Identifier: Apache-2.0
"""In which order samples come: permutations and the random order of a selection.

Fixed seeds. About 330 judgements, each wrong once in 100,000 times: an implementation that is
right, but draws other numbers, would fail this file with a probability of 0.3 %.
"""

from __future__ import annotations

import itertools
import math

import judges
import numpy as np
import pytest
import torch
from judges import assert_plausible, judge_permutation, order_counts

from dynprune_cuda import functional as F

pytestmark = pytest.mark.slow

# Seeds one after the other, and seeds that differ in their upper half only.
SEEDS = {"small": range(24_000), "high": range(0, 24_000 << 40, 1 << 40)}


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS.keys())
def test_all_orders_of_five_are_equally_likely(seeds):
    counts = order_counts(lambda seed: F.permutation(5, seed=seed).tolist(), seeds)
    assert_plausible(judges.uniform(counts))


@pytest.mark.parametrize("select", [F.select_top_k, F.select_weighted])
def test_all_orders_of_a_selection_are_equally_likely(select):
    """Also with scores and weights that differ: the order is independent of them."""
    values = torch.tensor([0.1, 1.0, 3.0, 9.0, 100.0])
    counts = order_counts(lambda seed: select(values, 5, seed=seed).tolist(), range(24_000))
    assert_plausible(judges.uniform(counts))


@pytest.mark.parametrize("n", [3, 4, 6, 7, 8, 9, 13, 16, 17])
def test_the_first_three_of_a_permutation_are_any_three(n):
    """Small domains need the most rounds: a round has few functions to choose from."""
    index = {triple: i for i, triple in enumerate(itertools.permutations(range(n), 3))}
    counts = np.zeros(len(index))
    for seed in range(24_000):
        counts[index[tuple(F.select_uniform(n, 3, seed=seed).tolist())]] += 1
    assert_plausible(judges.uniform(counts))


# Powers of two are walked the least, the number above one the most; 1,000,003 is prime.
@pytest.mark.parametrize("n", [100_003, 1_000_000, 1_000_003, 1 << 20, (1 << 20) + 1])
def test_long_permutations_have_no_pattern(n):
    for seed in (0, 1, 1 << 40):
        ids = F.permutation(n, seed=seed).numpy()
        assert judge_permutation(ids, (1, 2, 7, 64, 1000), seed) == 19


def test_the_order_of_a_selection_has_no_pattern():
    """The ranks of the ids in a random order of k = 300,007 of 10^6."""
    n, k = 1_000_000, 300_007
    for seed in (0, 1 << 40):
        ids = F.select_top_k(torch.zeros(n), k, seed=seed).numpy()
        ranks = np.empty(k, dtype=np.int64)
        ranks[np.argsort(ids)] = np.arange(k)
        judge_permutation(ranks, (1, 2, 7), seed)


def test_the_order_of_a_selection_does_not_tell_the_scores():
    n, k = 200_000, 60_000
    scores = torch.empty(n)
    scores[F.permutation(n, seed=99)] = torch.arange(1.0 * n)
    for select in (F.select_top_k, F.select_weighted):
        got = scores[select(scores, k, seed=3)].double().numpy()
        ranks = np.argsort(np.argsort(got))
        z = judges.rank_correlation_z(ranks, np.arange(k))
        assert_plausible(judges.two_sided(z), select.__name__)


def test_where_one_element_lands_is_uniform_over_seeds():
    n, counts = 50, np.zeros((2, 50))
    for seed in range(20_000):
        ids = F.permutation(n, seed=seed).tolist()
        counts[0, ids[0]] += 1
        counts[1, ids.index(37)] += 1
    for row in counts:
        assert_plausible(judges.uniform(row))


@pytest.mark.parametrize("n", [10, 1000])
def test_fixed_points_are_as_many_as_in_random_permutations(n):
    """One on average. Their number is a Poisson variable but for terms of 1 / n!."""
    places, per_seed = np.arange(n), []
    for seed in range(5000):
        per_seed.append(int((F.permutation(n, seed=seed).numpy() == places).sum()))
    assert_plausible(judges.poisson_two_sided(sum(per_seed), 5000.0))
    counts = np.bincount(np.minimum(per_seed, 5), minlength=6)
    expected = [5000 * math.exp(-1) / math.factorial(i) for i in range(5)]
    assert_plausible(judges.goodness_of_fit(counts, [*expected, 5000 - sum(expected)]))
