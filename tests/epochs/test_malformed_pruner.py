# SPDX-License-Identifier: Apache-2.0
"""Malformed arguments of `Pruner` and of policies: refused by name, when they are given."""

import time

import numpy as np
import pytest
import torch

from dynprune_cuda import Pruner, ScoreTable, policies
from dynprune_cuda._schedule.schedule import Schedule
from dynprune_cuda.static_scores import ForgettingCounter

N = 20


@pytest.mark.parametrize(
    "policy",
    [torch.zeros(3), torch.nn.Parameter(torch.zeros(3)), np.zeros(3), 3, None, policies.UCB],
)
def test_a_policy_must_select(policy):
    with pytest.raises(TypeError, match="policy must be"):
        Pruner(N, 0.5, policy)
    with pytest.raises(TypeError, match="policy must be"):
        policies.Balanced(policy, [0, 1] * 10)


class WithoutSeed:
    def select(self, table, k):
        return torch.arange(k)


class WeighsWithoutSeed:
    weighs = True

    def weigh(self, table):
        return torch.ones(table.num_samples)


@pytest.mark.parametrize(
    "policy", [lambda table, k: None, lambda: None, WithoutSeed(), WeighsWithoutSeed()]
)
def test_a_policy_that_takes_other_arguments_is_refused_when_it_is_given(policy):
    keep = None if getattr(policy, "weighs", False) else 0.5
    with pytest.raises(TypeError, match="policy must take the arguments of"):
        Pruner(N, keep, policy)
    with pytest.raises(TypeError, match="policy must take the arguments of"):
        policies.Balanced(policy, [0, 1] * 10)


def test_policies_may_take_more_arguments_than_they_get():
    for policy in (
        lambda table, k, seed: torch.arange(k),
        lambda *args, **options: torch.arange(args[1]),
        lambda table, k, *, seed, more=1: torch.arange(k),
    ):
        pruner = Pruner(N, 0.5, policy, warmup_epochs=0)
        pruner.set_epoch(0)
        assert pruner.num_selected == 10


@pytest.mark.parametrize("keep", [np.True_, np.array(True), torch.tensor(True), True, 1j, "0.5"])
def test_keep_is_no_bool(keep):
    with pytest.raises(TypeError, match="keep must be"):
        Pruner(N, keep)
    with pytest.raises(TypeError, match=r"keep\[1\] must be"):
        Pruner(N, [0.5, keep])


@pytest.mark.parametrize(
    "keep", [np.float32(0.3), np.array(0.3), torch.tensor(0.3), np.int64(6), torch.tensor(6)]
)
def test_keep_may_be_a_number_of_numpy_or_torch(keep):
    assert Pruner(N, keep).schedule.keep == 6


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_drop_last_is_a_bool(sharding):
    pruner = Pruner(N, 0.5, sharding=sharding)
    for value in ("x", 1, 0, None):
        with pytest.raises(TypeError, match="drop_last must be a bool"):
            pruner.share_length(drop_last=value)
        with pytest.raises(TypeError, match="drop_last must be a bool"):
            pruner.steps_per_epoch(4, value)
        with pytest.raises(TypeError, match="drop_last must be a bool"):
            pruner.total_steps(3, 4, value)


@pytest.mark.parametrize("epoch", [0, 1])
def test_is_selected_checks_its_ids(epoch):
    pruner = Pruner(N, 0.5, "uniform")
    pruner.set_epoch(epoch)
    for ids, error in (
        (None, TypeError),
        ([1], TypeError),
        (3, TypeError),
        (torch.ones(3), ValueError),
        (torch.ones(3, dtype=torch.bool), ValueError),
        (torch.ones(3, dtype=torch.int64, device="meta"), ValueError),
    ):
        with pytest.raises(error, match="sample_ids"):
            pruner.is_selected(ids)
    expected = torch.zeros(N + 2, dtype=torch.bool)
    expected[pruner.selected + 1] = True
    ids = torch.arange(-1, N + 1)
    for dtype in (torch.int64, torch.int32, torch.int8):
        assert torch.equal(pruner.is_selected(ids.to(dtype)), expected)
    assert pruner.is_selected(torch.zeros(2, 3, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.parametrize("device", ["cud", "xpu", -1, 1.5], ids=repr)
def test_a_device_that_torch_refuses_is_named(device):
    with pytest.raises((TypeError, ValueError), match="device must be") as caught:
        Pruner(N, 0.5, device=device)
    assert repr(device) in str(caught.value)


def test_numbers_beyond_their_columns_are_refused():
    pruner = Pruner(N, 0.5, "uniform")
    pruner.set_epoch(1)
    for name, number in (("num_selections", 2**31), ("num_selections", 2**64), ("epoch", 2**63)):
        with pytest.raises(ValueError, match=f"{name}.* must be at most"):
            Pruner(N, 0.5, "uniform").load_state_dict({**pruner.state_dict(), name: number})
    with pytest.raises(ValueError, match="epoch must be at most"):
        pruner.set_epoch(2**63)
    assert pruner.epoch == 1 and pruner.num_selections == 1


PLANS = {
    "constant": {"keep": 7},
    "one per epoch": {"keep": (7, 5, 3)},
    "function": {"keep": lambda epoch: 0.1 + 0.01 * epoch},
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("warmup_epochs", [0, 1, 5])
@pytest.mark.parametrize(("epochs", "anneal_epochs"), [(None, 0), (8, 0), (8, 3), (8, 8), (8, 4)])
def test_total_steps_is_the_sum_over_the_epochs(plan, warmup_epochs, epochs, anneal_epochs):
    keep = PLANS[plan]["keep"]
    if isinstance(keep, tuple) and epochs is not None:
        keep = (*keep, 4, 2, 2, 6, 1)
    pruner = Pruner(
        N, keep, "uniform", period=2, warmup_epochs=warmup_epochs, epochs=epochs,
        anneal_epochs=anneal_epochs,
    )  # fmt: skip
    for number in range(12):
        expected = sum(pruner.steps_per_epoch(3, epoch=epoch) for epoch in range(number))
        assert pruner.total_steps(number, 3) == expected


@pytest.mark.parametrize("keep", [7, (7, 5)])
def test_total_steps_of_numbers_takes_no_time(keep):
    schedule = Schedule(N, keep, 1, 3, 0, None)
    assert len(list(schedule.spans(2**40))) <= 4
    pruner = Pruner(N, keep, "uniform", period=1)
    start = time.perf_counter()
    steps = pruner.total_steps(2**31, 4)
    assert time.perf_counter() - start < 1
    assert steps == 5 + 2 * (2**31 - 1)


def test_total_steps_of_a_policy_that_decides_itself_names_the_unknown_epoch():
    with pytest.raises(ValueError, match="got 1:"):
        Pruner(N, policy="infobatch").total_steps(2**31, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.5},
        {"policy": "infobatch"},
        {"keep": 0.5, "sharding": "shard"},
        {"keep": 0.5, "track_forgetting": True},
        {"keep": 0.5, "groups": torch.arange(N) % 3},
    ],
    ids=["ucb", "infobatch", "shard", "forgetting", "groups"],
)
def test_a_pruner_made_in_inference_mode_trains(options):
    with torch.inference_mode():
        pruner = Pruner(N, **options)
    for epoch in range(3):
        with torch.inference_mode(epoch == 1):
            pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(4):
            ids = torch.tensor(batch)
            logits = torch.randn(len(ids), 3, requires_grad=True)
            pruner.cross_entropy(logits, ids % 3, ids).backward()
            losses = torch.nn.functional.cross_entropy(logits, ids % 3, reduction="none")
            pruner.rescale(ids, losses).mean().backward()
    with torch.inference_mode():
        pruner.load_state_dict(pruner.state_dict())
    pruner.observe(pruner.selected, torch.rand(pruner.num_selected))
    assert pruner.table.count.sum() > N


def test_tables_made_in_inference_mode_are_updated_outside():
    with torch.inference_mode():
        table, counter = ScoreTable(N), ForgettingCounter(N)
    ids = torch.arange(N)
    table.update(ids, torch.ones(N))
    counter.cross_entropy(torch.randn(N, 3, requires_grad=True), ids % 3, ids).backward()
    assert table.count.sum() == counter.count.sum() == N
