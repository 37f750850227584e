# SPDX-License-Identifier: Apache-2.0
"""OrderDP, SeTa, IES and RePB in runs: resumed, in groups, on two processes, without waiting."""

import copy
import pickle

import published_ranks
import pytest
import ranks
import torch
import torch.distributed as dist
from published_tables import losses_of, table_of
from runs import BATCH, EPOCHS, N, assert_same_state, save, train
from waiting import no_waiting

from dynprune_cuda import Pruner, policies
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.policies import IES, OrderDP, RePB, SeTa
from dynprune_cuda.scores import History, ScoreTable

PUBLISHED = [OrderDP(), SeTa(), IES(), RePB(batch_size=16)]


@pytest.mark.parametrize("policy", PUBLISHED, ids=repr)
def test_a_stopped_run_goes_on_bit_for_bit(device, policy):
    def make(seed):
        return Pruner(N, policy=policy, epochs=EPOCHS, seed=seed, device=device)

    whole = make(3)
    everything = train(whole, whole.batch_sampler(BATCH))
    for stop in (1, 9, 20, len(everything) - 1):
        first = make(3)
        sampler = first.batch_sampler(BATCH)
        seen = train(first, sampler, stop)
        state, position = save(first, sampler)
        second = make(8)
        second.load_state_dict(state)
        assert_same_memory(first, second)
        resumed = second.batch_sampler(BATCH)
        resumed.load_state_dict(position)
        assert seen + train(second, resumed) == everything
        assert_same_state_and_memory(second, whole)


def assert_same_memory(one, other):
    one, other = one.state_dict().get("memory"), other.state_dict().get("memory")
    assert (one is None) == (other is None)
    for name in one or {}:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, equal_nan=True)


def assert_same_state_and_memory(one, other):
    assert_same_memory(one, other)
    states = [{k: v for k, v in p.state_dict().items() if k != "memory"} for p in (one, other)]
    assert_same_state(*[Stated(state) for state in states])


class Stated:
    """Something with a state."""

    def __init__(self, state):
        self.state_dict = lambda: dict(state)


def test_a_damaged_memory_is_refused_as_a_whole():
    pruner = Pruner(N, policy="ies")
    train(pruner, pruner.batch_sampler(BATCH), 12)
    before = pruner.state_dict()
    assert set(before["memory"]) == {*(f"loss_{age}" for age in range(5)), "visits"}
    for damage, message in (
        ({"loss_0": torch.zeros(3)}, r"\['memory'\]\['loss_0'\] is damaged.*\(3,\)"),
        ({"visits": torch.zeros(N)}, r"\['memory'\]\['visits'\] is damaged: it must be torch.int"),
        ({"more": torch.zeros(N)}, r"\['memory'\] is damaged: .*unknown \['more'\]"),
    ):
        state = {**before, "memory": {**before["memory"], **damage}}
        with pytest.raises(ValueError, match=message):
            pruner.load_state_dict(state)
        assert_same_state_and_memory(pruner, Stated(before))
    state = {name: value for name, value in before.items() if name != "memory"}
    with pytest.raises(ValueError, match=r"lacks \['memory'\]"):
        pruner.load_state_dict(state)
    assert "memory" not in Pruner(N, policy="seta").state_dict()


@pytest.mark.parametrize("policy", PUBLISHED, ids=repr)
def test_selecting_waits_for_nothing_and_changes_no_score(policy):
    memory = policy.initial_memory(200, "cpu")
    table = table_of(losses_of(200), "cpu", epochs=9, memory=memory or None)
    before = copy.deepcopy(table)
    chosen = torch.ones(200, dtype=torch.bool)
    with no_waiting():
        if policy.weighs:
            weights = policy.weigh(table, seed=1)
        else:
            weights = policy.select(table, policy.fixed_count(200), seed=1)
        if memory:
            policy.remember(table, chosen)
    for name, column in before.state_dict().items():
        torch.testing.assert_close(getattr(table, name), column, equal_nan=True)
    for name, column in (memory or {}).items():
        torch.testing.assert_close(table.memory[name], column, equal_nan=True)
    clone = pickle.loads(pickle.dumps(policy))
    assert clone == policy
    if policy.weighs:
        assert torch.equal(clone.weigh(table, seed=1), weights)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_select_as_one_does(tmp_path):
    alone = [published_ranks.subsets(policy) for policy in published_ranks.POLICIES]
    for rank in ranks.run_world(2, tmp_path, published_ranks.work):
        for policy, mine, theirs in zip(published_ranks.POLICIES, alone, rank, strict=True):
            assert [ids for ids, _ in mine] == [ids for ids, _ in theirs], policy
            for (_, one), (_, other) in zip(mine, theirs, strict=True):
                assert torch.equal(one, other), policy


@pytest.mark.parametrize("policy", [SeTa(), IES(), RePB()], ids=repr)
def test_a_table_of_ones_own_must_be_told(policy):
    with pytest.raises(ValueError, match=r"table must have a (history|memory) for .* got None"):
        policy.weigh(ScoreTable(9), seed=0)


@pytest.mark.parametrize("name", ["orderdp", "seta", "ies", "repb"])
def test_shards_are_refused(name):
    with pytest.raises(ValueError, match=r"sharding must be 'replicate' .* got 'shard'"):
        Pruner(N, policy=name, sharding="shard")


@pytest.mark.parametrize("policy", [SeTa(), IES(0.6), RePB(batch_size=16)], ids=repr)
def test_groups_get_their_own_part_of_history_and_memory(policy):
    """Each group is weighed as if its samples were alone, with their own places and losses."""
    groups = torch.arange(N) % 3
    pruner = Pruner(N, policy=policy, groups=groups, epochs=EPOCHS)
    train(pruner, pruner.batch_sampler(BATCH))
    assert pruner.num_selected < N
    table = table_of(losses_of(N), "cpu", memory=policy.initial_memory(N, "cpu"))
    ids = (groups == 1).nonzero().flatten()
    part = table.part(ids)
    assert torch.equal(part.history.places, table.history.places[ids])
    assert all(len(column) == len(ids) for column in part.memory.values())
    balanced = policies.Balanced(policy, groups).weigh(table, seed=2)
    alone = policy.weigh(part, seed=derive_seed(2, "group", 1))
    assert torch.equal(balanced[ids], alone)


def test_repb_in_groups_still_means_the_batches_of_the_epoch(device):
    """A group's share of a batch is compared, not pieces of the group."""
    losses = torch.tensor([1.0, 5.0, 2.0, 6.0, 9.0, 7.0, 3.0, 8.0], device=device)
    none = torch.zeros(8, dtype=torch.int32, device=device)
    history = History(1, None, 1, 1, 0, none, 8, torch.arange(8, device=device))
    table = ScoreTable(8, device=device, alpha=1.0)
    table.update(torch.arange(8, device=device), losses)
    part = table.told(history, None).part(torch.tensor([0, 2, 4, 6], device=device))
    policy = RePB(1 - 2**-40, batch_size=4)  # no coin says so
    assert policy.weigh(part, seed=0).tolist() == [0.0, 1.0, 1.0, 0.0]
