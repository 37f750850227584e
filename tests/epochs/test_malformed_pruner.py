# SPDX-License-Identifier: Apache-2.0
"""Malformed arguments of `Pruner` and of policies: refused by name, when they are given."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dynprune_cuda import (
    KeptHistory,
    Pruner,
    ScoreTable,
    data,
    plot_kept,
    policies,
    same_steps,
    track_gradient_norm,
)
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


def selected():
    pruner = Pruner(N, 0.5, "uniform")
    pruner.set_epoch(1)
    return pruner


@pytest.mark.parametrize("source", [None, "x", 3, Pruner, torch.zeros(3)], ids=repr)
def test_samplers_follow_pruners(source):
    for make in (
        lambda: data.EpochSampler(source),
        lambda: data.EpochBatchSampler(source, 4),
        lambda: data.BucketBatchSampler(source, 4, lengths=[1] * N),
        lambda: data.unselected.UnselectedBatchSampler(source, 4),
        lambda: data.FilteredStream(source, range(N)),
    ):
        with pytest.raises(TypeError, match="source must be a pruner"):
            make()
    with pytest.raises(TypeError, match="pruner must be a Pruner"):
        KeptHistory(source)
    with pytest.raises(TypeError, match="history must be a KeptHistory"):
        plot_kept(source)
    with pytest.raises(TypeError, match="table must be a ScoreTable"):
        policies.UCB().select(source, 3, seed=0)
    with pytest.raises(TypeError, match="table must be a ScoreTable"):
        policies.Adaptive.tilt(source)


def test_numbers_that_no_kernel_can_count_are_refused():
    pruner = selected()
    for number in (2**63, 2**64 + 1, 10**30):
        for make in (
            lambda n: pruner.batch_sampler(n),
            lambda n: pruner.batch_sampler(4, lengths=[1] * N, window=n),
            lambda n: pruner.unselected_sampler(n),
            lambda n: pruner.resize(n),
            lambda n: ScoreTable(n),
            lambda n: ForgettingCounter(n),
            lambda n: policies.RePB(batch_size=n),
            lambda n: policies.SeTa(num_groups=n),
            lambda n: policies.Covered("uniform", n),
            lambda n: policies.StaticSubset([1], n),
            lambda n: same_steps(n, 9, 4),
        ):
            with pytest.raises(ValueError, match=r"\w+ must be at most"):
                make(number)
        with pytest.raises(ValueError, match="total_steps must be from"):
            same_steps(100, 9, 4, epochs=number)
    assert list(pruner.batch_sampler(2**63 - 1)) == [pruner.epoch_order().tolist()]


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
    ],
    ids=["sparse", "meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_states_with_tensors_without_values_are_refused(change, sharding):
    pruner = Pruner(N, 0.5, "uniform", sharding=sharding)
    pruner.set_epoch(1)
    state = pruner.state_dict()
    table = {**state["table"], "mean": change(state["table"]["mean"])}
    for changed in ({**state, "times_selected": change(state["times_selected"])},
                    {**state, "table": table}):  # fmt: skip
        with pytest.raises(ValueError, match=r"state_dict\['\w+'\].* must "):
            pruner.load_state_dict(changed)
    with pytest.raises(ValueError, match=r"state_dict\['mean'\] must "):
        ScoreTable(N).load_state_dict(table)


@pytest.mark.parametrize(
    "options",
    [{"weight": "x"}, {"ignore_index": "x"}, {"label_smoothing": 2.0}, {"loader": 3}],
    ids=lambda options: next(iter(options)),
)
def test_a_refused_rescoring_changes_nothing(options):
    pruner, model = selected(), torch.nn.Linear(3, 2)
    ids = pruner.unselected
    batches = {"loader": [(torch.randn(len(ids), 3), ids % 2, ids)], **options}
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        pruner.rescore(model, **batches)
    # Visits outside the subset are still noticed.
    pruner.observe(ids, torch.ones(len(ids)))
    with pytest.warns(RuntimeWarning, match="outside"):
        pruner.set_epoch(2)


def test_what_is_rescaled_is_on_the_device_of_the_factors():
    pruner = Pruner(N, policy="infobatch")
    pruner.set_epoch(0)
    pruner.observe(torch.arange(N), torch.rand(N))
    pruner.set_epoch(1)
    ids = torch.arange(4)
    with pytest.raises(ValueError, match="losses must be on cpu, got meta"):
        pruner.rescale(ids, torch.ones(4, device="meta"))
    with pytest.raises(ValueError, match="values must be a dense tensor"):
        pruner.observe(ids, torch.tensor(1.5).to_sparse())


@pytest.mark.parametrize("keep", [torch.tensor(3, device="meta"), torch.tensor(0.5).to("meta")])
def test_keep_is_not_read_from_a_tensor_without_values(keep):
    with pytest.raises(TypeError, match="keep must be"):
        Pruner(N, keep)


def test_gradient_norms_are_scaled_by_a_readable_number():
    features, ids, table = torch.ones(4, 2, requires_grad=True), torch.arange(4), ScoreTable(N)
    gone = torch.ones(())
    gone.untyped_storage().resize_(0)
    for scale in (gone, torch.ones((), device="meta"), torch.tensor(1j), torch.ones(2)):
        with pytest.raises(ValueError, match="scale must"):
            track_gradient_norm(features, ids, table, scale=scale)
    with pytest.raises(ValueError, match="tensor must be a dense tensor"):
        track_gradient_norm(torch.ones(4).to_sparse(), ids, table)


def test_a_log_names_what_it_cannot_use():
    stats = ScoreTable(N).stats()
    with pytest.raises(TypeError, match="prefix must be a str"):
        stats.scalars(["x"])
    with pytest.raises(TypeError, match="writer must have a method add_scalar"):
        stats.log(print)
    with pytest.raises(TypeError, match="step must be an int"):
        stats.log(SimpleNamespace(add_scalar=print), "x")


def test_transforms_of_a_device_loader_are_a_sequence():
    with pytest.raises(TypeError, match="transforms must be"):
        data.DeviceLoader(torch.ones(N, 2), pruner=selected(), batch_size=4, transforms=1j)


def test_a_score_function_returns_ids_and_values():
    ids = torch.arange(4)
    with pytest.raises(TypeError, match=r"score must return \(ids, values\), got NoneType"):
        selected().rescore(torch.nn.Linear(3, 2), [(torch.ones(4, 3), ids, ids)], lambda *_: None)
