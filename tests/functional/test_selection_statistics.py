# SPDX-License-Identifier: Apache-2.0
"""Which samples a random selection takes: ties, exploration, weights.

Every test has fixed seeds, so it passes always or never. There are about 680 judgements here, each
wrong once in 100,000 times: an implementation that is right, but draws other numbers, would fail
this file with a probability of 0.7 %. test_judges.py shows that the judges can fail.
"""

from __future__ import annotations

import itertools
import math

import judges
import numpy as np
import pytest
import torch
from judges import assert_plausible, chosen, judge_positions

from dynprune_cuda import functional as F

pytestmark = pytest.mark.slow

# Seeds that differ in their lower, upper, and all bits.
SEEDS = (0, 1, 2, 1 << 33, 1 << 63, -1)

N, K = 300_007, 100_003
POSITIONS = {
    "all equal": lambda seed: F.select_top_k(torch.full((N,), 1.5), K, seed=seed),
    "all NaN": lambda seed: F.select_top_k(torch.full((N,), torch.nan), K, seed=seed),
    "bfloat16": lambda seed: F.select_top_k(torch.ones(N, dtype=torch.bfloat16), K, seed=seed),
    "ucb": lambda seed: F.select_ucb(torch.zeros(N), torch.ones(N), K, seed=seed),
    "never visited": lambda seed: F.select_ucb1(
        torch.zeros(N), torch.zeros(N, dtype=torch.int32), K, step=1.0, seed=seed
    ),
    "exploration": lambda seed: F.select_epsilon_greedy(torch.arange(1.0 * N), K, 1.0, seed=seed),
    "weights": lambda seed: F.select_weighted(torch.ones(N), K, seed=seed),
    "uniform": lambda seed: F.select_uniform(N, K, seed=seed),
}


@pytest.mark.parametrize("draw", POSITIONS.values(), ids=POSITIONS.keys())
def test_who_is_taken_does_not_depend_on_the_position(draw):
    """Neither blocks, parity, lanes and tiles of positions nor neighbours are favoured."""
    for seed in (0, 1, 1 << 33):
        assert judge_positions(chosen(draw(seed), N), seed) == 11


def test_ties_at_the_threshold_are_taken_from_everywhere():
    """99 % zeros: all greater scores are taken, and the rest is drawn from the zeros alone."""
    scores = torch.zeros(N)
    scores[::100] = torch.arange(1.0, len(scores[::100]) + 1)
    zeros = (scores == 0).numpy()
    for seed in SEEDS:
        flags = chosen(F.select_top_k(scores, K, seed=seed), N)
        assert flags[~zeros].all()
        judge_positions(flags[zeros], seed)


def test_exploration_is_taken_from_everywhere_in_the_rest():
    """By position, and by score: a sample that just missed the greedy part has no better chance."""
    scores = torch.empty(N)
    scores[F.permutation(N, seed=99)] = torch.arange(1.0 * N)
    num_random = math.floor(0.25 * K + 0.5)
    by_score = np.argsort(-scores.numpy(), kind="stable")
    for seed in SEEDS:
        flags = chosen(F.select_epsilon_greedy(scores, K, 0.25, seed=seed), N)
        greedy, rest = by_score[: K - num_random], by_score[K - num_random :]
        assert flags[greedy].all() and flags[rest].sum() == num_random
        judge_positions(flags[rest], "by score", seed)
        judge_positions(flags[np.sort(rest)], "by position", seed)


EQUAL_CHANCES = {
    "ties": lambda n, k, seed: F.select_top_k(torch.zeros(n), k, seed=seed),
    "ties, high seeds": lambda n, k, seed: F.select_top_k(torch.zeros(n), k, seed=seed << 33),
    "epsilon 1": lambda n, k, seed: F.select_epsilon_greedy(torch.zeros(n), k, 1.0, seed=seed),
    "epsilon 1, by score": lambda n, k, seed: F.select_epsilon_greedy(
        torch.arange(1.0 * n), k, 1.0, seed=seed
    ),
    "weights": lambda n, k, seed: F.select_weighted(torch.ones(n), k, seed=seed),
    "uniform": lambda n, k, seed: F.select_uniform(n, k, seed=seed),
}


@pytest.mark.parametrize("select", EQUAL_CHANCES.values(), ids=EQUAL_CHANCES.keys())
def test_every_sample_and_every_pair_is_equally_likely(select):
    """Inclusion counts of samples and pairs have the variance of draws without replacement."""
    n, k, times = 20, 7, 6000
    flags = np.stack([chosen(select(n, k, seed), n) for seed in range(times)])
    assert (flags.sum(axis=1) == k).all()
    assert_plausible(judges.equally_often(flags.sum(axis=0), times, k))
    together = flags.T @ flags
    pair = times * k * (k - 1) / (n * (n - 1))
    z = (together[np.triu_indices(n, 1)] - pair) / math.sqrt(pair * (1 - pair / times))
    assert_plausible(judges.smallest(z))


def test_what_epsilon_explores_is_uniform_over_the_rest():
    n, greedy, num_random, times = 30, 8, 4, 8000
    scores = torch.arange(n, 0, -1).float()
    counts = np.zeros(n)
    for seed in range(times):
        counts += chosen(F.select_epsilon_greedy(scores, greedy + num_random, 1 / 3, seed=seed), n)
    assert (counts[:greedy] == times).all()
    assert_plausible(judges.equally_often(counts[greedy:], times, num_random))


def exact_probabilities(weights, k):
    """P(set) of k draws one after the other, each proportional to the weights left."""
    total, exact = sum(weights), {}
    for order in itertools.permutations(range(len(weights)), k):
        probability, left = 1.0, total
        for i in order:
            probability *= weights[i] / left
            left -= weights[i]
        key = tuple(sorted(order))
        exact[key] = exact.get(key, 0.0) + probability
    assert sum(exact.values()) == pytest.approx(1)
    return exact


WEIGHTS = {
    "2 of 5": (2, [1.0, 2.0, 3.0, 4.0, 10.0]),
    "2 of 5, one rare": (2, [1.0, 1.0, 1.0, 1.0, 0.05]),
    "2 of 5, tiny": (2, [1e-30] * 4 + [2e-30]),
    "3 of 6": (3, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    "4 of 6, huge": (4, [1e30, 1e30, 2e30, 2e30, 3e30, 5e30]),
    "1 of 3": (1, [1.0, 10.0, 100.0]),
}


@pytest.mark.parametrize(("k", "weights"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weighted_subsets_have_their_exact_probabilities(k, weights):
    times, tensor = 20_000, torch.tensor(weights)
    exact = exact_probabilities(weights, k)
    counts = dict.fromkeys(exact, 0)
    for seed in range(times):
        counts[tuple(F.select_weighted(tensor, k, seed=seed, order="ascending").tolist())] += 1
    expected = [times * probability for probability in exact.values()]
    assert_plausible(judges.goodness_of_fit(list(counts.values()), expected), counts)


def test_a_single_weighted_draw_is_proportional_to_the_weight():
    """Weights over three powers of ten; the four rarest are judged together."""
    weights = [10 ** (-1.5 + 3 * i / 11) for i in range(12)]
    tensor, counts = torch.tensor(weights), np.zeros(12)
    for seed in range(20_000):
        counts[F.select_weighted(tensor, 1, seed=seed << 20).item()] += 1
    expected = np.array(weights) / sum(weights) * 20_000
    merged = [counts[:4].sum(), *counts[4:]], [expected[:4].sum(), *expected[4:]]
    assert_plausible(judges.goodness_of_fit(*merged))


def test_equal_weights_among_many_do_not_depend_on_the_position():
    """Three levels of weight: within each, any sample is as likely as any other."""
    levels = np.arange(N) * 7 % 3
    weights = torch.tensor([1.0, 4.0, 16.0])[torch.from_numpy(levels)]
    for seed in SEEDS:
        flags = chosen(F.select_weighted(weights, K, seed=seed), N)
        shares = [flags[levels == level].mean() for level in range(3)]
        assert shares[0] < shares[1] < shares[2]
        for level in range(3):
            judge_positions(flags[levels == level], level, seed)
