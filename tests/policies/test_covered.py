# SPDX-License-Identifier: Apache-2.0
"""Covered: no sample waits longer than promised, and a selection is still exactly k."""

import copy
import pickle
from types import MappingProxyType

import pytest
import torch
from runs import BATCH, EPOCHS, N, save, train
from smallest_margin import SmallestMargin

from dynprune_cuda import Pruner, policies
from dynprune_cuda.policies import (
    IES,
    UCB,
    Adaptive,
    Balanced,
    Covered,
    EpsilonGreedy,
    InfoBatch,
    OrderDP,
    RandomStatic,
    StaticSubset,
    UniformRandom,
    Weighted,
)
from dynprune_cuda.scores import ScoreTable

WAITS = "selections_since"


def first_ids(table, k, *, seed):
    """The greediest rule: always the same samples."""
    return torch.arange(k, device=table.device)


def simulated(policy, size, k, rounds, device="cpu"):
    """Selects again and again with changing scores; returns what was selected, bool [rounds, n]."""
    table = ScoreTable(size, device=device, alpha=0.7)
    memory = policy.initial_memory(size, device)
    selections = []
    for number in range(rounds):
        ids = policy.select(table.told(None, memory), k, seed=number)
        assert ids.tolist() == sorted(set(ids.tolist())) and len(ids) == k
        assert int(ids[0]) >= 0 and int(ids[-1]) < size
        chosen = torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, ids, True)
        memory = policy.remember(table.told(None, memory), chosen)
        table.update(ids, torch.sin(ids * 7.0 + number // 5) + 2)
        selections.append(chosen.cpu())
    return torch.stack(selections)


def longest_gap(selections):
    """The greatest number of selections between two of a sample, from the beginning to the end."""
    gap = torch.zeros(selections.shape[1], dtype=torch.int64)
    most = 0
    for chosen in selections:
        gap = torch.where(chosen, 0, gap + 1)
        most = max(most, int(gap.max()))
    return most


@pytest.mark.parametrize(
    "policy",
    [
        UCB(),
        EpsilonGreedy(0.1),
        Weighted(0.5),
        Adaptive(),
        UniformRandom(),
        SmallestMargin(),
        first_ids,
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("size", "k", "every"), [(60, 20, 3), (60, 13, 5), (61, 10, 10), (20, 20, 1), (30, 1, 30)]
)
def test_no_sample_waits_longer_than_promised(device, policy, size, k, every):
    selections = simulated(Covered(policy, every), size, k, 4 * every + 7, device)
    assert longest_gap(selections) <= every - 1
    windows = selections.unfold(0, every, 1).any(-1)
    assert windows.all()


def test_without_it_some_samples_wait_for_ever():
    selections = simulated(Covered(UCB(), 100), 60, 20, 30)
    assert longest_gap(selections) > 20


def test_the_policy_selects_alone_while_nothing_is_due(device):
    table = ScoreTable(60, device=device)
    table.update(torch.arange(60), torch.sin(torch.arange(60.0)) + 2)
    for policy in (UCB(), Weighted(), UniformRandom()):
        covered = Covered(policy, 10)
        told = table.told(None, covered.initial_memory(60, device))
        assert torch.equal(covered.select(told, 20, seed=3), policy.select(table, 20, seed=3))


def test_those_that_waited_longest_come_first_and_the_policy_fills_up(device):
    table = ScoreTable(10, device=device)
    table.update(torch.arange(10), torch.arange(10.0))
    covered = Covered(EpsilonGreedy(0.0), 4)

    def select(waits, k):
        memory = {WAITS: torch.tensor(waits, dtype=torch.int32, device=device)}
        return covered.select(table.told(None, memory), k, seed=0).tolist()

    # Sample 0 is due now; the others can wait.
    assert select([3, 0, 0, 0, 0, 0, 0, 0, 0, 1], 3) == [0, 8, 9]
    # Five are due at the next selection, of which 3 fit: two are due now, the rest is by score.
    assert 9 in select([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], 3)
    assert len(set(select([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], 3)) & {0, 1, 2, 3, 4}) == 2
    # More are due than fit, as after a change of k: those that waited longest come first.
    assert select([3, 3, 5, 9, 3, 3, 3, 7, 3, 3], 3) == [2, 3, 7]


def test_a_run_covers_all_and_goes_on_bit_for_bit(device):
    def make(seed):
        return Pruner(N, 20, Covered("ucb", 3), period=1, seed=seed, device=device)

    whole = make(1)
    everything = train(whole, whole.batch_sampler(BATCH))
    by_epoch = [
        {i for of, ids in everything if of == epoch for i in ids} for epoch in range(EPOCHS)
    ]
    for epoch in range(1, EPOCHS - 2):
        assert len(set().union(*by_epoch[epoch : epoch + 3])) == N
        assert len(by_epoch[epoch]) == 20
    for stop in (9, 14):
        first = make(1)
        sampler = first.batch_sampler(BATCH)
        seen = train(first, sampler, stop)
        state, position = save(first, sampler)
        second = make(2)
        second.load_state_dict(state)
        assert torch.equal(second.state_dict()["memory"][WAITS], state["memory"][WAITS].to(device))
        resumed = second.batch_sampler(BATCH)
        resumed.load_state_dict(position)
        assert seen + train(second, resumed) == everything


def test_looking_at_epoch_0_changes_no_wait():
    pruner = Pruner(N, 20, Covered("uniform", 3), warmup_epochs=0)
    before = pruner.selected
    assert not pruner.state_dict()["memory"][WAITS].any()
    pruner.set_epoch(0)
    waits = pruner.state_dict()["memory"][WAITS]
    assert torch.equal(pruner.selected, before) and not waits[before].any()
    assert int(waits.sum()) == N - 20


@pytest.mark.parametrize("keep", [19, 0.3, [0.5, 0.3], (1.0, 18)])
def test_too_few_are_refused_at_construction(keep):
    with pytest.raises(
        ValueError, match=r"every must be at least 4 to cover 60 .* got 3: raise it"
    ):
        Pruner(N, keep, Covered(UCB(), 3))
    Pruner(N, keep, Covered(UCB(), 4))


def test_what_cannot_be_covered_is_refused():
    for policy, why in (
        (InfoBatch(), "decides how many"),
        (IES(), "decides how many"),
        (OrderDP(), "decides how many"),
        (StaticSubset([1]), "decides how many"),
        (RandomStatic(), "selects only once"),
        (Weighted(rescale=True), "rescales the losses"),
        (Balanced(UCB(), torch.arange(9) % 2), "all samples at once"),
        (Covered(UCB(), 3), "all samples at once"),
    ):
        with pytest.raises(ValueError, match=f"policy must be another one for Covered: .*{why}"):
            Covered(policy, 5)
    with pytest.raises(ValueError, match=r"groups do not fit Covered\(.* leave them out"):
        Pruner(N, 20, Covered(UCB(), 3), groups=torch.arange(N) % 2)
    with pytest.raises(ValueError, match=r"sharding must be 'replicate' .* Covered"):
        Pruner(N, 20, Covered(UCB(), 3), sharding="shard")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Covered(UCB(), 0)
    with pytest.raises(TypeError, match=r"every must be an int, got 2\.5"):
        Covered(UCB(), 2.5)
    with pytest.raises(ValueError, match="table must have a memory for Covered"):
        Covered(UCB(), 3).select(ScoreTable(9), 3, seed=0)


def test_it_tells_what_it_covers_and_survives_copies():
    assert Covered("ucb", 3) == Covered(UCB(), 3)
    covered = Covered(SmallestMargin(), 4)
    assert covered.uses_scores and not Covered(UniformRandom(), 4).uses_scores
    assert Covered(UCB(first_visit="published"), 4).first_visit == "published"
    for clone in (copy.deepcopy(covered), pickle.loads(pickle.dumps(covered))):
        assert repr(clone) == repr(covered) and clone.fingerprint == covered.fingerprint
    assert covered.fingerprint != Covered(SmallestMargin(), 5).fingerprint


class Alternating(policies.Policy):
    """A user's policy with a column of its own: what was selected least often."""

    memory = MappingProxyType({"times": torch.int32})
    answer = None

    def select(self, table, k, *, seed):
        return table.memory["times"].argsort(stable=True)[:k]

    def remember(self, table, chosen):
        return self.answer or {"times": table.memory["times"] + chosen.int()}


@pytest.mark.parametrize("cover", [False, True])
def test_a_policy_of_ones_own_may_keep_columns(device, cover):
    own = Alternating()
    pruner = Pruner(N, 20, Covered(own, 5) if cover else own, period=1, device=device)
    for epoch in range(7):
        pruner.set_epoch(epoch)
    times = pruner.state_dict()["memory"]["times"]
    assert times.dtype == torch.int32 and torch.equal(times, pruner.times_selected)
    assert (times == 2).all()
    pickle.loads(pickle.dumps(pruner)).set_epoch(7)
    before = pruner.selected
    for answer in ({"times": times.long()}, {"times": times[1:]}, {"other": times}, {"times": 3}):
        own.answer = answer
        with pytest.raises(ValueError, match="must remember one column per sample"):
            pruner.set_epoch(7)
        assert pruner.epoch == 6 and torch.equal(pruner.selected, before)
