# SPDX-License-Identifier: Apache-2.0
"""States: wrong, foreign and damaged ones are refused as a whole; positions inside an epoch."""

import pytest
import torch
from runs import BATCH, MAKERS, N, assert_same_state, least_visited, save, train

from dynprune_cuda import Pruner, policies
from dynprune_cuda.scores import COLUMNS

pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")


def damaged(**changes):
    def damage(state):
        for path, change in changes.items():
            place = state
            *above, last = path.split("__")
            for name in above:
                place = place[name]
            if change is None:
                del place[last]
            else:
                place[last] = change(place.get(last)) if callable(change) else change

    return damage


def first_to(number):
    def change(tensor):
        tensor[0] = number
        return tensor

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged(table=None), r"lacks \['table'\]"),
        (damaged(seed=None), r"lacks \['seed'\]"),
        (damaged(table__count=None), r"state_dict\['table'\] is damaged: it lacks \['count'\]"),
        (damaged(extra=1), r"unknown \['extra'\]"),
        (damaged(version=4), "its version is 4, and here it is 3"),
        (damaged(version=2.0), "its version is 2.0, and here it is 3"),
        (damaged(version=3), "its version is 3, and here it is 3 with a checksum"),
        (damaged(version="3:12"), "its version is '3:12', and here it is 3 with a checksum"),
        (damaged(version=f"3:{'0' * 32}"), "its contents do not match its checksum"),
        (damaged(seed=7), "its contents do not match its checksum"),
        (damaged(table__mean=lambda t: t.flip(0)), "its contents do not match its checksum"),
        (damaged(table__mean=first_to(float("inf"))), "a visited sample has no mean"),
        (damaged(turnover=lambda t: t / 2), "its contents do not match its checksum"),
        (damaged(num_samples=61), f"its num_samples is 61, and here it is {N}"),
        (damaged(version=4, extra=1, seed=None), "its version is 4, and here it is 3"),
        (damaged(policy="UCB(c=2.0)"), r"its policy is 'UCB\(c=2.0\)'"),
        (damaged(score="el2n"), "its score is 'el2n'"),
        (damaged(alpha=0.5), "its alpha is 0.5"),
        (damaged(period=3), "its period is 3"),
        (damaged(warmup_epochs=0), "its warmup_epochs is 0"),
        (damaged(seed=2**64), r"\['seed'\] must be at most 18446744073709551615"),
        (damaged(seed=1.5), r"\['seed'\] must be an int"),
        (damaged(epoch=True), r"\['epoch'\] must be an int"),
        (damaged(epoch=-2), r"\['epoch'\] must be at least -1"),
        (damaged(epoch=0.0), r"\['epoch'\] must be an int"),
        (damaged(epoch=5), "epoch 5 is pruned here and trains on the selection of epoch 5, not 3"),
        (damaged(subset_epoch=-1), "contradicts 'subset_epoch'"),
        (damaged(table__count=lambda t: t.float() * float("nan")), r"torch.int32 .*float32"),
        (damaged(table__count=first_to(-1)), "a count is negative"),
        (damaged(table__mean=lambda t: t.double()), r"torch.float32 .*torch.float64"),
        (damaged(table__mean=first_to(float("nan"))), "a visited sample has no mean"),
        (damaged(table__mean=lambda t: t[:-1]), rf"shape \({N},\), got .* shape \({N - 1},\)"),
        (damaged(table__variance=lambda t: t.reshape(-1, 1)), rf"got .* shape \({N}, 1\)"),
        (damaged(table__variance=first_to(-1.0)), "a variance is negative"),
        (damaged(table__non_finite_count=first_to(-3)), "a count is negative"),
        (damaged(table__last_non_finite=first_to(True)), "contradicts the counts"),
        (damaged(table__mean=[1.0]), r"\['mean'\] must be a tensor, got list"),
        (damaged(table=3), r"state_dict\['table'\] must be a mapping, got int"),
        (damaged(subset=lambda t: ~t), "of another run: it kept 36 samples in epoch 3"),
        (damaged(subset=lambda t: t.int()), "torch.bool .*torch.int32"),
        (damaged(times_selected=first_to(9)), "out of range"),
        (damaged(num_selections=-1), r"\['num_selections'\] must be at least 0"),
        (damaged(turnover=lambda t: t + 5), r"outside \[0, 1\]"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(device, damage, message):
    def made():
        pruner = MAKERS["ucb"](device)
        train(pruner, pruner.batch_sampler(BATCH), 17)
        assert pruner.epoch == 3
        return pruner

    other = MAKERS["ucb"](device)
    train(other, other.batch_sampler(BATCH), 16)
    state = other.state_dict()
    other.load_state_dict(state)  # sound before the damage
    damage(state)
    pruner, untouched = made(), made()
    with pytest.raises((TypeError, ValueError), match=message):
        pruner.load_state_dict(state)
    assert_same_state(pruner, untouched)
    rest = train(untouched, untouched.batch_sampler(BATCH))
    assert train(pruner, pruner.batch_sampler(BATCH)) == rest


@pytest.mark.parametrize("state", [None, 3, [], "state"])
def test_no_mapping_is_no_state(state):
    for thing in (MAKERS["ucb"]("cpu"), MAKERS["ucb"]("cpu").table, MAKERS["ucb"]("cpu").sampler()):
        with pytest.raises(TypeError, match="state_dict must be a mapping"):
            thing.load_state_dict(state)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("other", ["ucb", "infobatch", "groups"])
def test_states_of_other_policies_are_refused(device, name, other):
    saved, pruner = MAKERS[name](device), MAKERS[other](device)
    train(saved, saved.batch_sampler(BATCH), 15)
    if name == other:
        pruner.load_state_dict(saved.state_dict())
    else:
        with pytest.raises(ValueError, match=r"state_dict(\['table'\])? is of another run: it"):
            pruner.load_state_dict(saved.state_dict())
        assert pruner.epoch == 0 and not pruner.table.count.any()


def test_policies_are_told_apart_by_what_they_hold():
    def state(policy, **arguments):
        return Pruner(N, policy=policy, **arguments).state_dict()["policy"]

    assert state(policies.StaticSubset([1, 2])) != state(policies.StaticSubset([1, 3]))
    assert state(policies.StaticSubset([2, 1])) == state(policies.StaticSubset([1, 2]))
    labels = torch.arange(N) % 2
    grouped = [state("ucb", keep=9, groups=groups) for groups in (labels, 1 - labels)]
    assert grouped[0] != grouped[1]
    assert state("ucb", keep=9, groups=labels.tolist()) == grouped[0]
    assert state("ucb", keep=9, groups=labels, group_floor=1) != grouped[0]
    assert "0x" not in state(least_visited, keep=9) and "least_visited" in state(
        least_visited, keep=9
    )


def test_the_length_of_the_run_and_later_keeps_may_change(device):
    def make(**changes):
        return Pruner(N, **{"keep": [0.5] * 9, "period": 2, "device": device, **changes})

    first = make()
    sampler = first.batch_sampler(BATCH)
    train(first, sampler, 15)
    longer = make(keep=[0.5, 0.5, 0.5, 0.1], anneal_epochs=1, epochs=4)
    longer.load_state_dict(first.state_dict())
    longer.set_epoch(3)
    assert longer.num_selected == N
    with pytest.raises(ValueError, match="it kept 30 samples in epoch 1, and here keep gives 6"):
        make(keep=0.1).load_state_dict(first.state_dict())


def test_a_fresh_state_is_that_of_a_fresh_pruner(device):
    for name in MAKERS:
        pruner = MAKERS[name](device)
        train(pruner, pruner.batch_sampler(BATCH), 14)
        pruner.load_state_dict(MAKERS[name](device).state_dict())
        assert_same_state(pruner, MAKERS[name](device))
        fresh = MAKERS[name](device)
        assert train(pruner, pruner.batch_sampler(BATCH)) == train(
            fresh, fresh.batch_sampler(BATCH)
        )


def test_the_position_belongs_to_its_epoch(device):
    pruner = MAKERS["ucb"](device)
    sampler = pruner.batch_sampler(BATCH)
    whole = list(sampler)
    iterator = iter(sampler)
    next(iterator)
    next(iterator)
    state = sampler.state_dict()
    assert state == {"epoch": 0, "ids": 16}
    resumed = pruner.batch_sampler(BATCH)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for _ in range(2):  # iterating has no side effect here either
        assert list(resumed) == whole[2:] and len(resumed) == len(whole)
    assert resumed.state_dict() == {"epoch": 0, "ids": N}
    ids = pruner.sampler()
    ids.load_state_dict(state)
    assert list(ids) == [i for batch in whole[2:] for i in batch]
    other_size = pruner.batch_sampler(5)
    other_size.load_state_dict(state)
    assert next(iter(other_size)) == list(ids)[:5]
    pruner.set_epoch(1)
    assert sampler.state_dict() == resumed.state_dict() == {"epoch": 1, "ids": 0}
    assert len(list(resumed)) == pruner.steps_per_epoch(BATCH)
    pruner.set_epoch(0)
    assert list(resumed) == whole


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"epoch": 0}, ValueError, r"must hold 'epoch' and 'ids', got \['epoch'\]"),
        ({"epoch": 0, "ids": 0, "x": 0}, ValueError, "must hold 'epoch' and 'ids'"),
        ({"epoch": 0, "ids": -1}, ValueError, r"\['ids'\] must be at least 0, got -1"),
        ({"epoch": 0, "ids": 1.0}, TypeError, r"\['ids'\] must be an int"),
        ({"epoch": float("nan"), "ids": 1}, TypeError, r"\['epoch'\] must be an int"),
    ],
)
def test_a_bad_position_is_refused_and_changes_nothing(state, error, message):
    sampler = MAKERS["ucb"]("cpu").batch_sampler(BATCH)
    iterator = iter(sampler)
    next(iterator)
    for place in (sampler, iterator):
        with pytest.raises(error, match=message):
            place.load_state_dict(state)
        assert place.state_dict() == {"epoch": 0, "ids": BATCH}
    with pytest.raises(ValueError, match="state is of epoch 3, and the pruner is in epoch 0"):
        iterator.load_state_dict({"epoch": 3, "ids": 0})
    sampler.load_state_dict({"epoch": 0, "ids": N + 1})
    with pytest.raises(ValueError, match=f"ids must be at most {N}, .* epoch 0, got {N + 1}"):
        iter(sampler)


def test_the_table_alone_can_be_saved(device):
    pruner = MAKERS["ucb"](device)
    train(pruner, pruner.batch_sampler(BATCH), 10)
    table = MAKERS["ucb"](device).table
    mean = table.mean
    table.load_state_dict(save(pruner.table)[0])
    assert table.mean is mean  # in place: a captured graph keeps its addresses
    for name in COLUMNS:
        torch.testing.assert_close(
            getattr(table, name), getattr(pruner.table, name), rtol=0, atol=0, equal_nan=True
        )
