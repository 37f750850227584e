# SPDX-License-Identifier: Apache-2.0
"""groups=: a floor for every class, exactly k samples, whatever the policy."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from waiting import no_cuda_waiting, no_waiting

from dynprune_cuda import Balanced, InfoBatch, Pruner, policies
from dynprune_cuda.policies import UCB, EpsilonGreedy, StaticSubset, UniformRandom, Weighted
from dynprune_cuda.scores import ScoreTable

SIZES = {3: 100, -5: 40, 8: 7, 900: 1}  # label: number of samples
N = sum(SIZES.values())
LABELS = torch.cat([torch.full((size,), label) for label, size in SIZES.items()])
LABELS = LABELS[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
SCORED_NAMES = ["ucb", "epsilon_greedy", "weighted"]
INSIDE = [UCB(), EpsilonGreedy(0.2), UniformRandom(), Weighted()]


def table_of(values, device):
    table = ScoreTable(len(values), device=device, alpha=1.0)
    table.update(torch.arange(len(values), device=device), values.to(device))
    return table


def easy_groups(device):
    """Scores by which the small groups would get nothing: the big one's are the largest."""
    noise = torch.rand(N, generator=torch.Generator().manual_seed(1))
    return table_of(noise + 10.0 * (LABELS == 3), device)


def counts(ids):
    return {label: int((LABELS[ids.cpu()] == label).sum()) for label in SIZES}


@pytest.mark.parametrize("k", [1, 4, 30, 74, N - 1, N])
@pytest.mark.parametrize("floor", [0, 1, 3, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("inside", INSIDE, ids=repr)
def test_floors_hold_and_k_is_exact(device, inside, floor, k):
    policy = Balanced(inside, LABELS, floor)
    needed = sum(min(size, floor) for size in SIZES.values()) if isinstance(floor, int) else 0
    if needed > k:
        with pytest.raises(ValueError, match=f"needs {needed} samples, and only {k} are kept"):
            policy.select(easy_groups(device), k, seed=0)
        return
    ids = policy.select(easy_groups(device), k, seed=0)
    values = ids.tolist()
    assert len(values) == k and values == sorted(set(values)) and 0 <= values[0] <= values[-1] < N
    assert ids.dtype == torch.int64 and ids.device.type == torch.device(device).type
    for label, number in counts(ids).items():
        size = SIZES[label]
        at_least = min(size, floor) if isinstance(floor, int) else floor * k * size / N
        assert number >= math.floor(at_least + 1e-9)
    assert torch.equal(ids, policy.select(easy_groups(device), k, seed=0))


def test_the_policy_decides_what_fills_the_floors_and_the_rest(device):
    table = easy_groups(device)
    scores = table.mean.cpu()
    policy = Balanced(UCB(), LABELS, 5)
    ids = policy.select(table, 60, seed=0).cpu()
    best = {
        label: set(
            (label == LABELS)
            .nonzero()
            .flatten()[scores[label == LABELS].argsort(descending=True)[:number]]
            .tolist()
        )
        for label, number in {-5: 5, 8: 5, 900: 1, 3: 49}.items()
    }
    assert set(ids.tolist()) == set().union(*best.values())
    assert counts(UCB().select(table, 60, seed=0)) == {3: 60, -5: 0, 8: 0, 900: 0}


def test_a_share_of_one_keeps_the_proportions(device):
    ids = Balanced(UCB(), LABELS, 1.0).select(easy_groups(device), N // 2, seed=0)
    for label, number in counts(ids).items():
        assert abs(number - SIZES[label] / 2) <= (3 if label == 3 else 1), label


def test_what_is_random_is_random_in_every_group(device):
    table = easy_groups(device)
    policy = Balanced(UniformRandom(), LABELS, 1.0)
    visits = torch.zeros(N)
    for seed in range(300):
        visits[policy.select(table, N // 2, seed=seed).cpu()] += 1
    # Binomial(300, 1/2) or nearly: standard deviation 8.7.
    assert visits.sum() == 300 * (N // 2)
    for label in (3, -5, 8):
        group = visits[label == LABELS]
        assert group.min() > 85 and group.max() < 215


def test_groups_of_equal_size_do_not_draw_alike(device):
    """With one seed for all groups, the same positions would be drawn in each."""
    policy = Balanced(UniformRandom(), torch.arange(200) % 2, 1.0)
    table = ScoreTable(200, device=device)
    alike = 0
    for seed in range(100):
        kept = torch.zeros(200, dtype=torch.bool)
        kept[policy.select(table, 100, seed=seed).cpu()] = True
        alike += int((kept[0::2] == kept[1::2]).sum())
    # Binomial(10000, 1/2), or nearly: standard deviation 50.
    assert abs(alike - 5000) < 300


@pytest.mark.parametrize(
    "policy", ["ucb", "epsilon_greedy", "uniform", "weighted", "random_static"]
)
@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
def test_every_policy_takes_groups_in_a_pruner(device, policy):
    pruner = Pruner(N, 0.2, policy, period=1, groups=LABELS, group_floor=2, device=device)
    for epoch in range(4):
        pruner.set_epoch(epoch)
        assert pruner.num_selected == len(pruner.selected) == (N if epoch == 0 else 30)
        assert min(counts(pruner.selected).values()) >= 1
        assert counts(pruner.selected)[8] >= 2
        ids = torch.arange(N, device=device)
        pruner.observe(ids, easy_groups(device).mean)


def test_infobatch_amplifies_no_imbalance_with_groups(device):
    """GDeR, NeurIPS 2024, figure 1: pruning below one global mean empties the easy classes."""
    table = easy_groups(device)
    alone = InfoBatch(0.9).weigh(table, seed=0)
    assert counts((alone > 0).nonzero().flatten())[-5] <= 6
    weights = Balanced(InfoBatch(0.5), LABELS).weigh(table, seed=0).cpu()
    scores = table.mean.cpu()
    for label, size in SIZES.items():
        group, values = weights[label == LABELS], scores[label == LABELS].double()
        assert (group[values >= values.mean() + 1e-6] == 1).all()
        assert int((group > 0).sum()) >= size // 2
    for seed in range(3):
        pruner = Pruner(N, policy="infobatch", groups=LABELS, seed=seed, device=device)
        pruner.observe(torch.arange(N, device=device), scores.to(device))
        pruner.set_epoch(1)
        assert N // 2 <= pruner.num_selected < N
        factors = pruner.rescale(pruner.selected, torch.ones(pruner.num_selected, device=device))
        assert set(factors.tolist()) == {1.0, 2.0}


def test_keep_may_change_and_floors_must_fit_every_known_keep(device):
    pruner = Pruner(N, [0.5, 0.5, 0.1], "uniform", period=1, groups=LABELS, device=device)
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        assert len(pruner.selected) == (74, 15)[epoch - 1]
    with pytest.raises(ValueError, match=r"group_floor=20 of 4 groups needs 48 .* only 15"):
        Pruner(N, [0.5, 0.5, 0.1], groups=LABELS, group_floor=20)


def test_a_user_policy_sees_the_group_as_a_table(device):
    seen = []

    def last_ids(table, k, *, seed):
        seen.append(table.num_samples)
        assert len(table.sample_ids) == table.num_samples == len(table.ranking_mean())
        return table.sample_ids.argsort(descending=True)[:k]

    pruner = Pruner(N, 30, last_ids, groups=LABELS, group_floor=1, device=device)
    pruner.set_epoch(1)
    last = {int((label == LABELS).nonzero().max()) for label in SIZES}
    assert last <= set(pruner.selected.tolist())
    assert seen == [40, 100, 7, 1, N - 4]  # groups by rising label, then the rest


def test_a_user_policy_is_checked_in_every_group(device):
    pruner = Pruner(N, 30, lambda table, k, *, seed: torch.zeros(k, dtype=torch.int64),
                    groups=LABELS, group_floor=2, device=device)  # fmt: skip
    with pytest.raises(ValueError, match="distinct sample ids from 0 to 39"):
        pruner.set_epoch(1)
    assert pruner.epoch == 0


class Marked(torch.Tensor):
    """A subclass that changes nothing, and that torch cannot copy."""


@pytest.mark.parametrize(
    "groups",
    [LABELS.tolist(), LABELS.numpy().astype(np.int16), LABELS, LABELS.as_subclass(Marked)],
    ids=["list", "array", "tensor", "subclass"],
)
def test_labels_may_be_any_integers(device, groups):
    expected = Balanced(UCB(), LABELS).select(easy_groups(device), 30, seed=0)
    policy = Balanced(UCB(), groups)
    assert torch.equal(policy.select(easy_groups(device), 30, seed=0), expected)
    for clone in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(clone.select(easy_groups(device), 30, seed=0), expected)
        assert repr(clone) == repr(policy) and "4 groups" in repr(policy)
        assert clone.fingerprint == policy.fingerprint


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": LABELS[:-1]}, ValueError, f"one label per sample, {N}, got {N - 1}"),
        ({"groups": LABELS.float()}, ValueError, "groups must have an integer dtype"),
        ({"groups": LABELS > 3}, ValueError, "groups must have an integer dtype"),
        ({"groups": LABELS[None]}, ValueError, r"groups must hold .* \(1, 148\)"),
        ({"groups": ["a"]}, TypeError, "groups must be a 1-D sequence of ints"),
        ({"group_floor": -1}, ValueError, "group_floor must be at least 0, got -1"),
        ({"group_floor": 1.5}, ValueError, r"group_floor must be in \[0, 1\], got 1.5"),
        ({"group_floor": True}, TypeError, "group_floor must be a number, got True"),
        ({"group_floor": "half"}, TypeError, "group_floor must be a number"),
        ({"group_floor": 50}, ValueError, "group_floor=50 of 4 groups needs 98 .* only 74"),
        ({"policy": "full", "keep": None}, ValueError, r"groups do not fit Full\(\)"),
        ({"policy": StaticSubset([1]), "keep": None}, ValueError, "groups do not fit Static"),
        ({"policy": "weighted", "score": "margin"}, ValueError, "score='margin' does not fit"),
    ],
)
def test_bad_groups_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Pruner(**{"num_samples": N, "keep": 0.5, "groups": LABELS, **arguments})


@pytest.mark.parametrize("inside", INSIDE, ids=repr)
@pytest.mark.parametrize("floor", [0, 3, 0.5])
def test_a_selection_waits_for_nothing(device, inside, floor):
    policy, table = Balanced(inside, LABELS, floor), easy_groups(device)
    expected = policy.select(table, 30, seed=1)  # sizes are counted once
    with no_waiting():
        again = policy.select(table, 30, seed=1)
    assert torch.equal(again, expected)


def test_weighing_waits_for_nothing(device):
    for policy in (InfoBatch(), Balanced(InfoBatch(), LABELS)):
        table = easy_groups(device)
        expected = policy.weigh(table, seed=1)
        with no_waiting():
            again = policy.weigh(table, seed=1)
        assert torch.equal(again, expected)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("policy", [Balanced(UCB(), LABELS), InfoBatch()], ids=repr)
def test_selections_on_a_gpu_do_not_wait(policy):
    table = easy_groups("cuda")

    def select(seed):
        if isinstance(policy, InfoBatch):
            return policy.weigh(table, seed=seed)
        return policy.select(table, 30, seed=seed)

    expected = select(1)
    with no_cuda_waiting():
        again = select(1)
    assert torch.equal(again, expected)


def test_names_are_exported():
    assert policies.Balanced is Balanced and policies.InfoBatch is InfoBatch
