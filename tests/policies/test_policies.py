# SPDX-License-Identifier: Apache-2.0
"""Policies: which samples each rule selects, and what they refuse."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from dynprune_cuda import policies
from dynprune_cuda.policies import (
    IES,
    UCB,
    EpsilonGreedy,
    Full,
    InfoBatch,
    OrderDP,
    RandomStatic,
    RePB,
    SeTa,
    StaticSubset,
    UniformRandom,
    Weighted,
)
from dynprune_cuda.policies.adapter import adapt
from dynprune_cuda.policies.registry import resolve_count
from dynprune_cuda.scores import ScoreTable

SCORED = [
    EpsilonGreedy(),
    EpsilonGreedy(0.0),
    UCB(),
    UCB(c=0.5, bonus="std"),
    Weighted(),
    Weighted(0.5),
]
BLIND = [UniformRandom(), RandomStatic()]
N = 200


def scored_table(device, seed=0, size=N):
    """A table of distinct positive means and variances."""
    generator = torch.Generator().manual_seed(seed)
    table = ScoreTable(size, device=device)
    table.mean.copy_((torch.randperm(size, generator=generator) + 1) / 100)
    table.variance.copy_((torch.randperm(size, generator=generator) + 1) / 50)
    table.count.fill_(2)
    return table


def largest(values, k):
    return sorted(np.argsort(-np.asarray(values, dtype=np.float64))[:k].tolist())


@pytest.mark.parametrize("k", [1, 2, 77, N - 1, N])
@pytest.mark.parametrize("policy", SCORED + BLIND, ids=repr)
def test_a_selection_is_k_distinct_ids_in_ascending_order(device, policy, k):
    for table in (scored_table(device), ScoreTable(N, device=device)):
        ids = policy.select(table, k, seed=3)
        assert ids.dtype == torch.int64 and ids.device == table.device and ids.shape == (k,)
        values = ids.tolist()
        assert values == sorted(set(values)) and values[0] >= 0 and values[-1] < N
        assert torch.equal(ids, policy.select(table, k, seed=3))


@pytest.mark.parametrize("policy", [*SCORED, *BLIND, Full(), StaticSubset(range(N))], ids=repr)
def test_a_selection_changes_no_score(device, policy):
    table = scored_table(device)
    table.last_non_finite[3] = True
    before = copy.deepcopy(table)
    policy.select(table, N, seed=1)
    for name in ("mean", "variance", "count", "non_finite_count", "last_non_finite"):
        assert torch.equal(getattr(table, name), getattr(before, name)), name


@pytest.mark.parametrize("policy", [UCB(c=0.0), EpsilonGreedy(0.0), *BLIND], ids=repr)
def test_what_is_left_to_chance_is_drawn_by_the_seed(device, policy):
    table = ScoreTable(N, device=device)  # nothing is known: every sample ties
    table.mean.fill_(1.0)
    subsets = [policy.select(table, N // 2, seed=seed) for seed in range(200)]
    visits = torch.stack([torch.bincount(ids, minlength=N) for ids in subsets]).sum(0).cpu()
    # Binomial(200, 1/2): standard deviation 7.1, so 6 of them either side.
    assert visits.min() > 57 and visits.max() < 143
    assert len({tuple(ids.tolist()) for ids in subsets}) == 200


@pytest.mark.parametrize("policy", SCORED, ids=repr)
def test_never_visited_and_broken_samples_come_first(device, policy):
    table = scored_table(device)
    first = [5, 50, 150]
    table.mean[[5, 50]] = math.nan  # never visited
    table.last_non_finite[150] = True
    for k in (3, 20):
        greedy = k if not isinstance(policy, EpsilonGreedy) else k - int(policy.epsilon * k + 0.5)
        assert greedy >= 3
        for seed in range(10):
            assert set(first) <= set(policy.select(table, k, seed=seed).tolist())


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("bonus", ["variance", "std"])
def test_ucb_selects_the_largest_bounds(device, c, bonus):
    table = scored_table(device)
    mean, variance = table.mean.cpu().double(), table.variance.cpu().double()
    bound = mean + c * (variance if bonus == "variance" else variance.sqrt())
    for k in (1, 40, 130):
        ids = UCB(c=c, bonus=bonus).select(table, k, seed=0).tolist()
        kth_largest = float(bound.sort(descending=True).values[k - 1])
        assert float(bound[ids].min()) == pytest.approx(kth_largest, rel=1e-6)


def test_the_bonus_changes_what_ucb_selects(device):
    table = scored_table(device)
    by = {
        (c, bonus): tuple(UCB(c=c, bonus=bonus).select(table, 40, seed=0).tolist())
        for c in (0.0, 1.0)
        for bonus in ("variance", "std")
    }
    assert by[0.0, "variance"] == by[0.0, "std"] == tuple(largest(table.mean.cpu(), 40))
    assert len(set(by.values())) == 3


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_epsilon_greedy_is_greedy_up_to_its_random_share(device, epsilon):
    table = scored_table(device)
    k = 50
    random = math.floor(epsilon * k + 0.5)
    best = set(largest(table.mean.cpu(), k - random))
    leftovers = torch.zeros(N)
    for seed in range(100):
        ids = set(EpsilonGreedy(epsilon).select(table, k, seed=seed).tolist())
        assert len(ids) == k and best <= ids
        leftovers[list(ids - best)] += 1
    others = torch.tensor(sorted(set(range(N)) - best))
    expected = 100 * random / len(others)
    assert leftovers.sum() == 100 * random
    assert (leftovers[others] - expected).abs().max() <= 6 * math.sqrt(expected) + 1e-6


def test_weighted_draws_in_proportion_and_zero_weights_last(device):
    table = ScoreTable(5, device=device)
    table.mean.copy_(torch.tensor([0.0, 1.0, 3.0, -2.0, 4.0]))
    draws = torch.stack([Weighted().select(table, 1, seed=seed) for seed in range(4000)]).cpu()
    share = torch.bincount(draws.flatten(), minlength=5) / 4000
    assert share[0] == share[3] == 0
    # Standard deviations below 0.008.
    torch.testing.assert_close(share[[1, 2, 4]], torch.tensor([1, 3, 4]) / 8, atol=0.04, rtol=0)
    fourth = [set(Weighted().select(table, 4, seed=seed).tolist()) for seed in range(50)]
    assert all({1, 2, 4} < ids for ids in fourth)
    assert {tuple(ids - {1, 2, 4}) for ids in fourth} == {(0,), (3,)}


def test_full_is_everything(device):
    table = ScoreTable(9, device=device)
    ids = Full().select(table, 9, seed=0)
    assert ids.tolist() == list(range(9)) and ids.device == table.device
    assert Full().fixed_count(9) == 9
    with pytest.raises(ValueError, match="got 4"):
        Full().select(table, 4, seed=0)


@pytest.mark.parametrize(
    "ids",
    [
        [7, 2, 5],
        (5, 7, 2),
        np.array([2, 7, 5], dtype=np.uint16),
        torch.tensor([7, 5, 2], dtype=torch.int32),
        range(2, 8),
    ],
    ids=["list", "tuple", "numpy", "tensor", "range"],
)
def test_a_static_subset_takes_any_integers_in_any_order(device, ids):
    table = ScoreTable(9, device=device)
    selected = StaticSubset(ids).select(table, len(ids), seed=4)
    assert selected.tolist() == sorted(int(i) for i in ids) and selected.dtype == torch.int64
    assert selected.device == table.device


def test_a_static_subset_keeps_its_own_copy():
    ids = torch.tensor([1, 2, 3])
    subset = StaticSubset(ids)
    ids.fill_(0)
    assert subset.ids.tolist() == [1, 2, 3]
    assert repr(subset) == "StaticSubset(<3 ids>)"


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 4, 1], ValueError, "distinct, got 1 more than once"),
        ([3, -2], ValueError, "negative, got -2"),
        ([], ValueError, "at least one"),
        (torch.empty(0, dtype=torch.int64), ValueError, "at least one"),
        ([[1, 2]], ValueError, r"1-D, got shape \(1, 2\)"),
        (3, ValueError, r"1-D, got shape \(\)"),
        ([1.0, 2.0], ValueError, "integer dtype, got torch.float32"),
        ([True, False], ValueError, "integer dtype, got torch.bool"),
        (["a"], TypeError, "ids must be a 1-D sequence of ints"),
        (None, TypeError, "ids must be a 1-D sequence of ints"),
    ],
)
def test_a_bad_static_subset_is_refused_at_once(ids, error, message):
    with pytest.raises(error, match=message):
        StaticSubset(ids)


def test_a_static_subset_must_fit_the_training_set():
    assert StaticSubset([0, 8]).fixed_count(9) == 2
    with pytest.raises(ValueError, match="below num_samples=8, got 8"):
        StaticSubset([0, 8]).fixed_count(8)
    with pytest.raises(ValueError, match="number of ids, 2, got 1"):
        StaticSubset([0, 8]).select(ScoreTable(9), 1, seed=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EpsilonGreedy(-0.1), ValueError, r"epsilon .* \[0, 1\].* -0.1"),
        (lambda: EpsilonGreedy(1.1), ValueError, "epsilon .* 1.1"),
        (lambda: EpsilonGreedy(math.nan), ValueError, "epsilon .* nan"),
        (lambda: EpsilonGreedy("0.1"), TypeError, "epsilon .* '0.1'"),
        (lambda: EpsilonGreedy(True), TypeError, "epsilon .* True"),
        (lambda: UCB(c=-1.0), ValueError, "c must .* -1.0"),
        (lambda: UCB(c=math.inf), ValueError, "c must .* inf"),
        (lambda: UCB(c=None), TypeError, "c must .* None"),
        (lambda: UCB(bonus="sqrt"), ValueError, "bonus .*'variance', 'std', got 'sqrt'"),
        (lambda: UCB(bonus=1), TypeError, "bonus .* 1"),
        (lambda: UCB(first_visit="x"), ValueError, "first_visit .* 'x'"),
    ],
)
def test_bad_parameters_are_named_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_names_are_the_classes_with_their_defaults():
    assert {name: policies.resolve(name) for name in policies.names() if name != "static"} == {
        "adaptive": policies.Adaptive(),
        "full": Full(),
        "random_static": RandomStatic(),
        "uniform": UniformRandom(),
        "epsilon_greedy": EpsilonGreedy(epsilon=0.1),
        "ucb": UCB(c=1.0, bonus="variance"),
        "infobatch": InfoBatch(prune_ratio=0.5),
        "weighted": Weighted(),
        "orderdp": OrderDP(),
        "seta": SeTa(),
        "ies": IES(),
        "repb": RePB(),
    }
    with pytest.raises(ValueError, match="StaticSubset"):
        policies.resolve("static")
    known = ", ".join(map(repr, policies.names()))
    assert known.startswith("'adaptive', 'full', ") and known.endswith(", 'static'")
    for unknown in ("UCB", "InfoBatch", ""):
        with pytest.raises(ValueError, match=f"policy must be one of {known}, got '{unknown}'"):
            policies.resolve(unknown)
    for wrong in (None, 3, UCB, object()):
        with pytest.raises(TypeError, match="policy must be a name or an object"):
            policies.resolve(wrong)


def test_the_infobatch_baseline_is_the_released_rule():
    assert UCB.infobatch_baseline() == UCB(c=1.0, bonus="variance", first_visit="published")
    assert "InfoBatch" in UCB.infobatch_baseline.__doc__


@pytest.mark.parametrize("policy", [*SCORED, *BLIND, Full(), StaticSubset([1, 2])], ids=repr)
def test_policies_are_frozen_and_survive_copies(device, policy):
    for field in dataclasses.fields(policy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, field.name, 0)
    table = scored_table(device)
    k = resolve_count(policy, None if policy.fixes_count else 9, N)
    for clone in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert repr(clone) == repr(policy)
        assert torch.equal(clone.select(table, k, seed=1), policy.select(table, k, seed=1))


class Chosen:
    """A policy of a user: returns what it is told to."""

    def __init__(self, ids):
        self.ids = ids

    def select(self, table, k, *, seed):
        return self.ids


def test_a_policy_of_ones_own_is_one_method(device):
    table = ScoreTable(5, device=device)
    policy = policies.resolve(Chosen(torch.tensor([4, 0, 2])))
    ids = adapt(policy).select(table, 3, seed=0)
    assert ids.tolist() == [0, 2, 4] and ids.device == table.device


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 1, 2], TypeError, "int64 tensor, got list"),
        (torch.tensor([0.0, 1.0, 2.0]), ValueError, "as int64, got torch.float32"),
        (torch.tensor([0, 1]), ValueError, r"3 sample ids as int64, got .*\(2,\)"),
        (torch.tensor([[0, 1, 2]]), ValueError, r"of shape \(1, 3\)"),
        (torch.tensor([0, 1, 1]), ValueError, "distinct sample ids from 0 to 4"),
        (torch.tensor([0, 1, 5]), ValueError, "out of range"),
        (torch.tensor([-1, 1, 4]), ValueError, "out of range"),
    ],
)
def test_a_policy_of_ones_own_is_checked(device, ids, error, message):
    with pytest.raises(error, match=message):
        adapt(Chosen(ids)).select(ScoreTable(5, device=device), 3, seed=0)


def test_a_plain_function_is_a_policy(device):
    def newest_ids(table, k, *, seed):
        return torch.arange(table.num_samples - k, table.num_samples, device=table.device)

    policy = policies.resolve(newest_ids)
    assert policies.resolve(policy) is policy and "newest_ids" in repr(policy)
    ids = adapt(policy).select(ScoreTable(9, device=device), 3, seed=0)
    assert ids.tolist() == [6, 7, 8]


def test_keep_is_needed_unless_the_policy_knows():
    assert resolve_count(UCB(), 0.5, 10) == 5
    assert resolve_count(Full(), None, 10) == 10
    assert resolve_count(Full(), 1.0, 10) == 10
    assert resolve_count(StaticSubset([3, 4]), None, 10) == 2
    assert resolve_count(StaticSubset([3, 4]), 0.2, 10) == 2
    with pytest.raises(ValueError, match="keep is needed"):
        resolve_count(UCB(), None, 10)
    with pytest.raises(ValueError, match=r"keep must agree with Full\(\).* 10 of 10 .* 0.3"):
        resolve_count(Full(), 0.3, 10)
    with pytest.raises(ValueError, match=r"keep must agree with StaticSubset.* 2 of 10 .* 3"):
        resolve_count(StaticSubset([3, 4]), 3, 10)
