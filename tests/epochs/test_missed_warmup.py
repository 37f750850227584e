# SPDX-License-Identifier: Apache-2.0
"""A run whose first epoch is not 0 runs its warm-up then, if the policy lacks scores."""

import copy
import warnings

import pytest
import torch
from runs import assert_same_state

from dynprune_cuda import Pruner, policies

N, BATCH = 60, 8
SHARDINGS = ["replicate", "shard"]
FULL, PRUNED = 8, 3  # batches


def make(policy="ucb", sharding="replicate", **options):
    keep = None if policy in ("infobatch", "seta") else 0.3
    return Pruner(N, keep, policy, sharding=sharding, **options)


def train(pruner, epochs):
    """Returns what each epoch trains on, and the texts of its warnings."""
    visited, texts = [], []
    for epoch in epochs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pruner.set_epoch(epoch)
        texts.append([str(warning.message) for warning in caught])
        order = pruner.epoch_order()
        assert pruner.steps_per_epoch(BATCH) == len(list(pruner.batch_sampler(BATCH)))
        pruner.observe(order, 0.1 * order + epoch)
        visited.append(order.tolist())
    return visited, texts


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("warmup", [1, 2])
def test_a_run_that_counts_from_1_is_that_from_0_and_is_told_so(sharding, period, warmup):
    options = {"sharding": sharding, "period": period, "warmup_epochs": warmup}
    first, late = make(**options), make(**options)
    expected, silent = train(first, range(7))
    planned = late.total_steps(7, BATCH)
    visited, texts = train(late, range(warmup, warmup + 7))
    assert silent == [[]] * 7 and [len(found) for found in texts] == [1, 0, 0, 0, 0, 0, 0]
    (text,) = texts[0]
    assert f"set_epoch({warmup}) is the first of this pruner" in text
    assert "epochs count from 0, so loop over range(epochs)" in text
    assert "call pruner.load_state_dict(state) before set_epoch" in text
    # As many samples; which they are depends on the number of the epoch.
    assert list(map(len, visited)) == list(map(len, expected))
    assert sum(-(-len(ids) // BATCH) for ids in visited) == planned
    assert late.num_selections == first.num_selections > 0
    # All samples were scored before the first selection, so it is the one by scores.
    assert sorted(visited[warmup]) == list(range(N - 18, N))


@pytest.mark.parametrize("first", [1, 37])
def test_lengths_are_those_of_the_moved_warmup(first):
    pruner = make(epochs=first + 6, anneal_epochs=1, warmup_epochs=1)
    train(pruner, [first])
    lengths = [pruner.steps_per_epoch(BATCH, epoch=epoch) for epoch in range(first + 6)]
    assert lengths == [FULL] * (first + 1) + [PRUNED] * 4 + [FULL]
    for epochs in range(first + 7):
        assert pruner.total_steps(epochs, BATCH) == sum(lengths[:epochs])
    assert pruner.schedule.first_epoch == first and pruner.stats()["phase"] == "warm-up"


def test_a_run_resumed_without_its_state_is_told_to_load_it():
    _, texts = train(make(warmup_epochs=2), range(37, 42))
    assert [len(found) for found in texts] == [1, 0, 0, 0, 0]
    (text,) = texts[0]
    assert "epochs 37 to 38 train on all samples" in text
    assert text.index("load_state_dict") < text.index("epochs count from 0")


@pytest.mark.parametrize("policy", ["infobatch", "seta", "ies", "repb", "weighted", "adaptive"])
def test_every_policy_that_needs_scores_warms_up(policy):
    options = (
        {"policy": policies.RePB(batch_size=BATCH)} if policy == "repb" else {"policy": policy}
    )
    pruner = Pruner(N, None if policy in ("infobatch", "seta", "ies", "repb") else 0.3, **options)
    visited, texts = train(pruner, range(3, 6))
    assert len(visited[0]) == N and len(texts[0]) == 1 and not texts[1]


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("warmup", [1, 2])
@pytest.mark.parametrize("stop", range(1, 6))
def test_it_resumes_bit_for_bit(sharding, warmup, stop):
    options = {"sharding": sharding, "period": 2, "warmup_epochs": warmup}
    whole, first, second = (make(**options) for _ in range(3))
    expected, _ = train(whole, range(5, 11))
    train(first, range(5, 5 + stop))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.schedule == whole.schedule
    visited, texts = train(second, range(5 + stop, 11))
    assert visited == expected[stop:] and not any(texts)
    assert_same_state(second, whole)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_first_epoch_of_a_state_is_sealed(sharding):
    late = make(sharding=sharding)
    train(late, [4, 5])
    state = late.state_dict()
    assert state["version"].endswith(":4")
    for version in (state["version"][:-2], state["version"][:-1] + "5"):
        other = make(sharding=sharding)
        with pytest.raises(ValueError, match="do not match its checksum"):
            other.load_state_dict({**state, "version": version})
        assert other.schedule.first_epoch == 0 and other.epoch == 0
    for version in (state["version"] + "x", state["version"][:-1] + "0", state["version"][:-1]):
        with pytest.raises(ValueError, match="its version is"):
            make(sharding=sharding).load_state_dict({**state, "version": version})
    # A state of a run from its beginning replaces that of a late one.
    late.load_state_dict(make(sharding=sharding).state_dict())
    assert late.schedule.first_epoch == 0


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_where_the_warning_is_an_error_nothing_changes(sharding):
    pruner = make(sharding=sharding)
    before = pruner.state_dict()
    for _ in range(2):
        with pytest.raises(RuntimeWarning, match=r"set_epoch\(1\) is the first"):
            pruner.set_epoch(1)
        assert pruner.state_dict()["version"] == before["version"]
        assert pruner.schedule.first_epoch == 0
    pruner.set_epoch(0)
    assert pruner.schedule.first_epoch == 0


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_warmup_that_is_not_missed_does_not_move(sharding):
    blind = make("uniform", sharding)
    scored = make(sharding=sharding)
    scored.observe(torch.arange(N), torch.rand(N))  # before any epoch, by the user's own pass
    annealed = make(sharding=sharding, epochs=6, anneal_epochs=2)
    for pruner, epoch in ((blind, 1), (scored, 1), (annealed, 4), (make(warmup_epochs=3), 2)):
        assert train(pruner, [epoch])[1] == [[]]
        assert pruner.schedule.first_epoch == 0


def test_without_a_warmup_a_late_start_is_told():
    _, texts = train(make(warmup_epochs=0), range(3, 5))
    assert [len(found) for found in texts] == [1, 0]
    assert "selects at random; to resume a run, call pruner.load_state_dict" in texts[0][0]
    pruner = make()
    pruner.set_epoch(0)
    with pytest.warns(RuntimeWarning, match=r"compute the loss with pruner\.cross_entropy"):
        pruner.set_epoch(1)
