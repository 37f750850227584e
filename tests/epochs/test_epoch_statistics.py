# SPDX-License-Identifier: Apache-2.0
"""Draws with different seeds, purposes and epochs have nothing to do with each other.

Fixed seeds. About 150 judgements, those over many pairs corrected for their number, each wrong
once in 100,000 times: an implementation that is right, but draws other numbers, would fail this
file with a probability of 0.2 %.
"""

from __future__ import annotations

import itertools
import math

import judges
import numpy as np
import pytest
import torch
from judges import assert_plausible, chosen, overlap_z

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F
from dynprune_cuda._schedule.seeds import derive_seed

pytestmark = pytest.mark.slow

N, K = 4096, 1365
DRAWS = {
    "ties": lambda seed: F.select_top_k(torch.zeros(N), K, seed=seed),
    "exploration": lambda seed: F.select_epsilon_greedy(torch.arange(1.0 * N), K, 1.0, seed=seed),
    "weights": lambda seed: F.select_weighted(torch.ones(N), K, seed=seed),
    "permutation": lambda seed: F.select_uniform(N, K, seed=seed),
}
EPOCHS = range(40)
RUNS = (0, 1, 1 << 40, -1)


def judge_overlaps(flags, *what):
    """Every pair of subsets: the greatest overlap, and the overlaps' variance."""
    z = np.array([overlap_z(a, b) for a, b in itertools.combinations(flags, 2)])
    assert_plausible(judges.smallest(z), *what)
    # Pairs of pairs are uncorrelated, so the sum of squares varies as a chi-square variable does.
    spread = ((z**2).sum() - len(z)) / math.sqrt(2 * len(z))
    assert abs(spread) < 5, (spread, *what)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_draws_of_different_seeds_are_independent(draw):
    seeds = [0, *range(1, 12), *(1 << bit for bit in range(4, 64, 6)), -1]
    judge_overlaps([chosen(draw(seed), N) for seed in seeds])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_no_seed_s_draw_is_another_s_moved_along_the_ids(draw):
    """The overlap at every cyclic shift and reflection, of some seeds with their neighbours."""
    transforms = {seed: np.fft.rfft(chosen(draw(seed), N)) for seed in (0, 1, 2, 1 << 32, -1)}
    spread = math.sqrt(K * (K / N) * (1 - K / N) * (N - K) / (N - 1))
    for a, b in itertools.combinations(transforms.values(), 2):
        for other in (b, b.conj()):
            overlaps = np.fft.irfft(a * other, N)
            assert_plausible(judges.smallest((overlaps - K * K / N) / spread))


def test_the_streams_of_one_seed_are_independent():
    for seed in (0, 1, 12345, 1 << 60):
        judge_overlaps([chosen(draw(seed), N) for draw in DRAWS.values()], seed)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_subsets_of_all_epochs_are_independent(draw, run):
    """With the seeds that a `Pruner` derives for its selections."""
    seeds = [derive_seed(run, "select", epoch) for epoch in EPOCHS]
    judge_overlaps([chosen(draw(seed), N) for seed in seeds], run)


@pytest.mark.parametrize("run", RUNS)
def test_orders_of_all_epochs_are_independent(run):
    """Ranks do not correlate, and ids return to their place as often as by chance."""
    seeds = [derive_seed(run, "order", epoch) for epoch in EPOCHS]
    judge_orders([F.permutation(K, seed=seed).numpy() for seed in seeds], run)


def judge_orders(orders, *what):
    pairs = list(itertools.combinations(orders, 2))
    z = np.array([judges.rank_correlation_z(a, b) for a, b in pairs])
    assert_plausible(judges.smallest(z), *what)
    spread = ((z**2).sum() - len(z)) / math.sqrt(2 * len(z))
    assert abs(spread) < 5, (spread, *what)
    same_place = sum(int((a == b).sum()) for a, b in pairs)
    assert_plausible(judges.poisson_two_sided(same_place, float(len(pairs))), *what)
    # An id's successor in one epoch is its successor in another: once in a pair, on average.
    successors = [np.roll(order, -1)[np.argsort(order)] for order in orders]
    same_next = sum(int((a == b).sum()) for a, b in itertools.combinations(successors, 2))
    assert_plausible(judges.poisson_two_sided(same_next, float(len(pairs))), *what)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_pruner_s_epochs_are_independent(seed):
    """Subsets of successive selections, and the orders of the epochs that share a subset."""
    pruner = Pruner(N, keep=K, policy="uniform", period=1, warmup_epochs=0, seed=seed, device="cpu")
    flags = []
    for epoch in EPOCHS:
        pruner.set_epoch(epoch)
        flags.append(chosen(pruner.selected, N))
        assert flags[-1].sum() == K
    judge_overlaps(flags)
    long = Pruner(N, keep=K, policy="uniform", period=40, warmup_epochs=0, seed=seed, device="cpu")
    orders = []
    for epoch in EPOCHS:
        long.set_epoch(epoch)
        ids = long.epoch_order().numpy()
        orders.append(np.searchsorted(np.sort(ids), ids))
    judge_orders(orders)


@pytest.mark.parametrize("run", RUNS)
def test_an_epoch_s_order_is_independent_of_its_subset(run):
    """One purpose's draw does not repeat in the other's: subset, order, and the next epoch's."""
    flags = []
    for epoch in range(10):
        flags.append(chosen(F.select_uniform(N, K, seed=derive_seed(run, "select", epoch)), N))
        order = F.permutation(N, seed=derive_seed(run, "order", epoch))
        flags.append(chosen(order[:K], N))
    judge_overlaps(flags, run)


def test_runs_with_neighbouring_seeds_are_independent():
    """Also where one run's epoch plus its seed is another's."""
    flags = [
        chosen(F.select_top_k(torch.zeros(N), K, seed=derive_seed(run, "select", epoch)), N)
        for run in range(8)
        for epoch in range(8)
    ]
    judge_overlaps(flags)
