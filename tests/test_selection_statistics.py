# SPDX-License-Identifier: Apache-2.0
"""Random draws have the distribution that they claim.

Every test has fixed seeds, so it passes always or never; P_VALUE is how unlikely a result under
the claim must be to count against it. There are about 40 such judgements here.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from dynprune_cuda import functional as F

P_VALUE = 1e-4


def chi_square_p(observed, expected):
    """P(a chi-square variable is at least this great)."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    assert expected.min() >= 5  # where the chi-square approximation holds
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = torch.tensor([(observed.size - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def two_sided_p(z):
    return math.erfc(abs(z) / math.sqrt(2))


def assert_uniform(counts):
    counts = np.asarray(counts)
    p = chi_square_p(counts, np.full(counts.shape, counts.sum() / counts.size))
    assert p > P_VALUE, p


def order_counts(draw, seeds):
    """How often each of the 120 orders of five ids came."""
    index = {order: i for i, order in enumerate(itertools.permutations(range(5)))}
    counts = np.zeros(len(index))
    for seed in seeds:
        counts[index[tuple(draw(seed))]] += 1
    return counts


def chosen(ids, n):
    flags = np.zeros(n)
    flags[ids.cpu().numpy()] = 1
    return flags


def test_the_judges_reject_what_they_must():
    rng = np.random.default_rng(1)
    fair = rng.multinomial(24_000, np.full(120, 1 / 120))
    assert_uniform(fair)
    unfair = np.full(120, 1 / 120)
    unfair[0] *= 2
    assert chi_square_p(rng.multinomial(24_000, unfair / unfair.sum()), np.full(120, 200.0)) < 1e-6
    assert chi_square_p([60, 40], [50, 50]) == pytest.approx(0.0455, abs=1e-4)  # z = 2
    assert two_sided_p(1.96) == pytest.approx(0.05, abs=1e-4)


# Seeds one after the other, and seeds that differ in their upper half only.
SEEDS = {"small": range(24_000), "high": range(0, 24_000 << 40, 1 << 40)}


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS.keys())
def test_all_orders_of_five_are_equally_likely(seeds):
    assert_uniform(order_counts(lambda seed: F.permutation(5, seed=seed).tolist(), seeds))


@pytest.mark.parametrize("select", [F.select_top_k, F.select_weighted])
def test_all_orders_of_a_selection_are_equally_likely(select):
    """Also with scores and weights that differ: the order is independent of them."""
    values = torch.tensor([0.1, 1.0, 3.0, 9.0, 100.0])
    assert_uniform(order_counts(lambda seed: select(values, 5, seed=seed).tolist(), range(24_000)))


@pytest.mark.parametrize("n", [3, 4, 6, 7, 8, 9, 13, 16, 17])
def test_the_first_three_of_a_permutation_are_any_three(n):
    """Small domains need the most rounds: a round has few functions to choose from."""
    triples = math.perm(n, 3)
    index = {triple: i for i, triple in enumerate(itertools.permutations(range(n), 3))}
    counts = np.zeros(triples)
    for seed in range(24_000):
        counts[index[tuple(F.select_uniform(n, 3, seed=seed).tolist())]] += 1
    assert_uniform(counts)


def test_permutations_of_100003_have_no_pattern():
    """Lag correlations vanish, and neighbours' differences are as distinct as random ones."""
    n = 100_003
    for seed in (0, 1, 1 << 40):
        ids = F.permutation(n, seed=seed).numpy().astype(np.float64)
        centred = (ids - ids.mean()) / ids.std()
        for lag in (1, 2, 3, 64, 1000):
            z = (centred[lag:] * centred[:-lag]).sum() / math.sqrt(n - lag)
            assert two_sided_p(z) > P_VALUE, (seed, lag, z)
        trend = (centred * (np.arange(n) - n / 2)).sum() / (n * math.sqrt(n / 12))
        assert two_sided_p(trend) > P_VALUE, (seed, trend)
        distinct = len(np.unique(np.diff(ids) % n))
        # n draws hit n (1 - 1/e) values, with variance n (1/e - 2/e^2)
        z = (distinct - n * (1 - math.exp(-1))) / math.sqrt(n * (math.exp(-1) - 2 * math.exp(-2)))
        assert two_sided_p(z) > P_VALUE, (seed, z)


def test_where_one_element_lands_is_uniform_over_seeds():
    n, counts = 50, np.zeros((2, 50))
    for seed in range(20_000):
        ids = F.permutation(n, seed=seed).tolist()
        counts[0, ids[0]] += 1
        counts[1, ids.index(37)] += 1
    for row in counts:
        assert_uniform(row)


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
    p = k / n
    # For independent draws sum (count - mp)^2 / (m p (1 - p)) (n-1)/n is chi-square with n - 1.
    statistic = ((flags.sum(axis=0) - times * p) ** 2).sum() / (times * p * (1 - p)) * (n - 1) / n
    upper = torch.special.gammaincc(
        torch.tensor((n - 1) / 2, dtype=torch.float64),
        torch.tensor(statistic / 2, dtype=torch.float64),
    ).item()
    assert P_VALUE < upper < 1 - P_VALUE, statistic
    together = flags.T @ flags
    pair = times * k * (k - 1) / (n * (n - 1))
    z = (together[np.triu_indices(n, 1)] - pair) / math.sqrt(pair * (1 - pair / times))
    assert np.abs(z).max() < 4.8  # of 190: two-sided 3e-4


def test_what_epsilon_explores_is_uniform_over_the_rest():
    n, greedy, num_random, times = 30, 8, 4, 8000
    scores = torch.arange(n, 0, -1).float()
    counts = np.zeros(n)
    for seed in range(times):
        counts += chosen(F.select_epsilon_greedy(scores, greedy + num_random, 1 / 3, seed=seed), n)
    assert (counts[:greedy] == times).all()
    m, p = n - greedy, num_random / (n - greedy)
    statistic = ((counts[greedy:] - times * p) ** 2).sum() / (times * p * (1 - p)) * (m - 1) / m
    assert abs(statistic - (m - 1)) < 4.5 * math.sqrt(2 * (m - 1))


def exact_pairs(weights):
    """P(set) of two draws one after the other, each proportional to the weights left."""
    total = sum(weights)
    return {
        (i, j): weights[i] / total * weights[j] / (total - weights[i])
        + weights[j] / total * weights[i] / (total - weights[j])
        for i, j in itertools.combinations(range(len(weights)), 2)
    }


@pytest.mark.parametrize(
    "weights", [[1.0, 2.0, 3.0, 4.0, 10.0], [1.0, 1.0, 1.0, 1.0, 0.05], [1e-30] * 4 + [2e-30]]
)
def test_weighted_pairs_have_their_exact_probabilities(weights):
    times, tensor = 20_000, torch.tensor(weights)
    exact = exact_pairs(weights)
    assert sum(exact.values()) == pytest.approx(1)
    counts = dict.fromkeys(exact, 0)
    for seed in range(times):
        counts[tuple(F.select_weighted(tensor, 2, seed=seed, order="ascending").tolist())] += 1
    p = chi_square_p(list(counts.values()), [times * exact[pair] for pair in counts])
    assert p > P_VALUE, counts


def test_a_single_weighted_draw_is_proportional_to_the_weight():
    """Weights over three powers of ten; the four rarest are judged together."""
    weights = torch.logspace(-1.5, 1.5, 12)
    counts = np.zeros(12)
    for seed in range(20_000):
        counts[F.select_weighted(weights, 1, seed=seed << 20).item()] += 1
    expected = (weights.double() / weights.double().sum() * 20_000).numpy()
    merged = [counts[:4].sum(), *counts[4:]], [expected[:4].sum(), *expected[4:]]
    assert chi_square_p(*merged) > P_VALUE


def overlap_z(a, b):
    """How far the overlap of two k-subsets of n is from independence (hypergeometric)."""
    n, k = len(a), a.sum()
    variance = k * (k / n) * (1 - k / n) * (n - k) / (n - 1)
    return ((a * b).sum() - k * k / n) / math.sqrt(variance)


N, K = 4096, 1365
DRAWS = {
    "ties": lambda seed: F.select_top_k(torch.zeros(N), K, seed=seed),
    "exploration": lambda seed: F.select_epsilon_greedy(torch.arange(1.0 * N), K, 1.0, seed=seed),
    "weights": lambda seed: F.select_weighted(torch.ones(N), K, seed=seed),
    "permutation": lambda seed: F.select_uniform(N, K, seed=seed),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_draws_of_different_seeds_are_independent(draw):
    seeds = [0, *range(1, 12), *(1 << bit for bit in range(4, 64, 6)), -1]
    flags = [chosen(draw(seed), N) for seed in seeds]
    z = np.array([overlap_z(a, b) for a, b in itertools.combinations(flags, 2)])
    assert np.abs(z).max() < 4.8  # of 231 pairs
    assert abs((z**2).sum() - len(z)) < 4.5 * math.sqrt(2 * len(z))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_no_seed_s_draw_is_another_s_moved_along_the_ids(draw):
    """The overlap at every cyclic shift and reflection, of some seeds with their neighbours."""
    transforms = {seed: np.fft.rfft(chosen(draw(seed), N)) for seed in (0, 1, 2, 1 << 32, -1)}
    spread = math.sqrt(K * (K / N) * (1 - K / N) * (N - K) / (N - 1))
    for a, b in itertools.combinations(transforms.values(), 2):
        for other in (b, b.conj()):
            overlaps = np.fft.irfft(a * other, N)
            assert np.abs(overlaps - K * K / N).max() < 6 * spread  # of 4096: 8e-6


def test_the_streams_of_one_seed_are_independent():
    for seed in (0, 1, 12345, 1 << 60):
        flags = [chosen(draw(seed), N) for draw in DRAWS.values()]
        for a, b in itertools.combinations(flags, 2):
            assert abs(overlap_z(a, b)) < 4.5
