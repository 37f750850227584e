# SPDX-License-Identifier: Apache-2.0
"""What a pruner is made of: a frozen configuration, and a state that is replaced as a whole."""

import copy
import dataclasses
import pickle
import warnings

import pytest
import torch

from dynprune_cuda import Pruner, policies
from dynprune_cuda._epochs.replicated import ReplicatedRun
from dynprune_cuda._epochs.sharded import ShardedRun

N = 40
SHARDINGS = ["replicate", "shard"]
IDS = torch.arange(N)


def snapshot(pruner):
    """All that decides how a run goes on."""
    state = copy.deepcopy(pruner._run.state)
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def assert_unchanged(pruner, before):
    for name, value in snapshot(pruner).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
        elif name == "subset" and value is not None:
            assert torch.equal(value.ids, before[name].ids)
        else:
            assert value == before[name], name


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_configuration_and_the_state_are_frozen(sharding):
    pruner = Pruner(N, 0.3, sharding=sharding)
    kind = ShardedRun if sharding == "shard" else ReplicatedRun
    assert type(pruner) is Pruner and type(pruner._run) is kind
    for name in ("num_samples", "policy", "schedule", "score", "seed", "table", "epoch"):
        with pytest.raises(AttributeError):
            setattr(pruner, name, None)
    for frozen in (pruner._run.config, pruner._run.state):
        for field in dataclasses.fields(frozen):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(frozen, field.name, None)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("policy", ["ucb", "uniform", "full"])
def test_no_property_begins_an_epoch(sharding, policy):
    keep = None if policy == "full" else 0.3
    pruner = Pruner(N, keep, policy, warmup_epochs=0, sharding=sharding)
    before = snapshot(pruner)
    selected = pruner.selected
    assert len(selected) == pruner.num_selected == pruner.share_length() == (keep or 1.0) * N
    assert torch.equal(pruner.selected, selected)
    assert pruner.epoch == 0 and len(pruner.batch_sampler(4)) == -(-len(selected) // 4)
    assert pruner.stats()["num_selections"] == 0
    assert "epoch 0" in repr(pruner)
    if sharding == "replicate":
        assert pruner.is_selected(IDS).sum() == len(selected)
    assert_unchanged(pruner, before)
    # It told what epoch 0 selects.
    pruner.set_epoch(0)
    assert torch.equal(pruner.selected, selected) and pruner.num_selections == 1


def test_a_policy_that_weighs_tells_its_number_without_beginning():
    pruner = Pruner(N, policy="infobatch", warmup_epochs=0)
    pruner.observe(IDS, IDS.float())
    before = snapshot(pruner)
    number = pruner.num_selected
    assert number == len(pruner.selected) < N
    assert pruner.steps_per_epoch(4) == -(-number // 4)
    assert_unchanged(pruner, before)
    # The factors are those of the samples that it tells.
    factors = pruner.rescale(IDS, torch.ones(N))
    assert factors.nonzero().flatten().tolist() == pruner.selected.tolist()
    selected = pruner.selected.tolist()
    assert sorted(pruner.sampler()) == selected and pruner.num_selections == 1
    assert torch.equal(pruner.rescale(IDS, torch.ones(N)), factors)


def test_a_policy_is_asked_once_for_what_epoch_0_selects():
    calls = []

    def own(table, k, *, seed):
        calls.append(k)
        return torch.randperm(N)[:k]  # another answer each time

    pruner = Pruner(N, 0.3, own, warmup_epochs=0)
    selected = pruner.selected
    assert torch.equal(pruner.selected, selected) and pruner.is_selected(selected).all()
    assert sorted(pruner.sampler()) == selected.tolist()
    assert calls == [12]


def test_both_warnings_of_a_selection_are_given():
    options = {"sharding": "shard", "surplus": "local", "process_group": False}
    pruner = Pruner(N, 2, "ucb", warmup_epochs=0, period=2, **options)
    # As one of two processes whose other one holds the whole selection.
    pruner._run._about_lacking = lambda subset: "rank [1] holds none of the selected samples"
    with pytest.warns(RuntimeWarning, match="rank .1. holds none"):
        pruner.set_epoch(0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pruner.set_epoch(2)
    texts = [str(one.message) for one in found]
    assert len(texts) == 2 and texts[0].startswith("no score was observed before epoch 2")


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_an_error_of_a_policy_arrives_as_it_is(sharding):
    class Own(policies.Policy):
        def ranking(self, table):
            raise StopIteration("no more rankings")

    pruner = Pruner(N, 0.3, Own(), warmup_epochs=0, sharding=sharding)
    with pytest.raises(StopIteration, match="no more rankings"):
        pruner.set_epoch(0)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_iterating_begins_the_first_epoch(sharding):
    pruner = Pruner(N, 0.3, warmup_epochs=0, sharding=sharding)
    ids = list(pruner.sampler())
    assert sorted(ids) == pruner.selected.tolist() and pruner.num_selections == 1
    pruner.observe(IDS, IDS.float())
    pruner.set_epoch(0)  # has begun: the scores come too late
    assert list(pruner.sampler()) == ids


class Failing(policies.UniformRandom):
    """Fails from the second selection on."""

    fails = False

    def ranking(self, table):
        if type(self).fails:
            raise KeyError("no ranking")
        return super().ranking(table)


@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_an_error_leaves_the_state_as_it_was(sharding, monkeypatch):
    pruner = Pruner(N, 0.3, Failing(), period=1, sharding=sharding)
    pruner.set_epoch(1)
    order, before = pruner.epoch_order(), snapshot(pruner)
    pruner.observe(IDS, IDS.float())
    monkeypatch.setattr(Failing, "fails", True)
    with pytest.raises(KeyError):
        pruner.set_epoch(2)
    assert_unchanged(pruner, before)
    assert torch.equal(pruner.epoch_order(), order)
    monkeypatch.setattr(Failing, "fails", False)
    pruner.set_epoch(2)
    assert pruner.epoch == 2 and pruner.table.count.tolist() == [1] * N


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_warning_that_is_an_error_changes_nothing(sharding):
    pruner = Pruner(N, 0.3, "ucb", sharding=sharding)
    pruner.set_epoch(0)
    before = snapshot(pruner)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="no score was observed before epoch 1"):
            pruner.set_epoch(1)
    assert_unchanged(pruner, before)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_warnings_name_the_line_of_the_caller(sharding):
    def warned(call):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
        (one,) = found
        return one.filename, one.lineno

    def line(function):
        return function.__code__.co_firstlineno + 1

    pruner = Pruner(N, 0.3, "ucb", sharding=sharding)

    def select():
        pruner.set_epoch(1)

    assert warned(select) == (__file__, line(select))
    fresh = Pruner(N, 0.3, "ucb", sharding=sharding)
    for _ in range(2):
        fresh.observe(IDS, IDS.float())

    def observe():
        fresh.observe(IDS, IDS.float())

    assert warned(observe) == (__file__, line(observe))
    fresh = Pruner(N, 0.3, "ucb", sharding=sharding)
    logits, target = torch.randn(2 * N + 1, 3), torch.zeros(2 * N + 1, dtype=torch.int64)

    def score():
        fresh.cross_entropy(logits, target, torch.arange(2 * N + 1) % N)

    assert warned(score) == (__file__, line(score))


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_copies_go_their_own_way(sharding):
    class Own(Pruner):
        pass

    pruner = Own(N, 0.3, "ucb", sharding=sharding)
    pruner.set_epoch(0)
    pruner.observe(IDS, IDS.float())
    Own.__qualname__ = "Own"
    globals()["Own"] = Own  # where pickle looks for it
    for other in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        assert type(other) is Own
        before = snapshot(pruner)
        other.set_epoch(1)
        assert_unchanged(pruner, before)
        assert other.selected.tolist() == list(range(28, 40))
