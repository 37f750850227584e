# SPDX-License-Identifier: Apache-2.0
"""The path of a training step on a GPU, traced without one: nothing on it comes back to the host.

Fake tensors say that they are on `cuda` and hold no values: an operation that needs a value on the
host fails, and one that copies from the device to the host is seen by its devices. What they cannot
run is the autograd engine, whose part of a step is one operator, and it is called by itself.
"""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from waiting import WAITING, no_cuda_waiting

from dynprune_cuda import BatchSelector, DeviceLoader, Pruner, distributed, functional, policies
from dynprune_cuda.functional.cross_entropy import SCORES
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.scores import merge, outbox
from dynprune_cuda.sharded.digit_search import find_thresholds
from dynprune_cuda.sharded.ranking import keys_of

N, B, C = 1000, 32, 10


class on_device(TorchDispatchMode):
    """Counts operations that see the device, and raises at the first that would make it wait."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def devices(values):
            return {leaf.device.type for leaf in tree_leaves(values) if torch.is_tensor(leaf)}

        before = devices([args, kwargs])
        result = func(*args, **(kwargs or {}))
        self.operations += "cuda" in before
        name = func.overloadpacket.__name__
        if "cuda" in before and ("cpu" in devices(result) or name in WAITING):
            raise AssertionError(f"{func} brings something from the device to the host")
        if name == "copy_" and "cuda" in before and args[0].device.type == "cpu":
            raise AssertionError(f"{func} copies from the device to the host")
        return result


@pytest.fixture
def fake_device():
    """Inside, tensors are fake and `cuda` is there."""
    with FakeTensorMode():
        yield


def batch():
    """Logits, labels and sample ids."""
    logits = torch.randn(B, C, device="cuda", dtype=torch.bfloat16)
    return logits, torch.arange(B, device="cuda") % C, torch.arange(B, device="cuda")


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("policy", ["ucb", "infobatch", "epsilon_greedy"])
def test_a_step_brings_nothing_to_the_host(fake_device, monkeypatch, policy, score):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # fake ones cannot
    keep = None if policy == "infobatch" else 0.3
    pruner = Pruner(N, keep, policy, score=score, track_forgetting=True, device="cuda")
    logits, labels, ids = batch()
    weight = torch.rand(C, device="cuda")
    with on_device() as trace:
        for options in ({}, {"weight": weight, "label_smoothing": 0.1}, {"reduction": "none"}):
            loss = pruner.cross_entropy(logits, labels, ids, **options)
        assert loss.device.type == "cuda" and loss.shape == (B,)
        pruner.observe(ids, logits[:, 0], correct=labels == 1)
        pruner.observe(ids.int(), functional.scored_cross_entropy(logits, labels))
        pruner.rescale(ids, loss).mean()
        pruner.observe(torch.arange(B), loss)  # ids from a loader go up, and nothing comes down
        *scored, saved = torch.ops.dynprune_cuda.scored_cross_entropy(logits, labels, None, -100, 0)
        torch.ops.dynprune_cuda.scored_cross_entropy_backward(
            scored[0], logits, labels, None, -100, 0.0, saved
        )
        torch.ops.dynprune_cuda.scored_cross_entropy_with_gradient_(
            scored[0], logits.clone(), labels, None, -100, 0.0
        )
        pruner.stats()
    assert trace.operations > 50


@pytest.mark.parametrize("by", ["loss", "margin", "excess"])
@pytest.mark.parametrize("policy", ["top_k", "percentile", "epsilon_greedy", "uniform", "weighted"])
def test_a_selection_in_the_batch_brings_nothing_to_the_host(fake_device, policy, by):
    if (by, policy) == ("margin", "weighted"):
        by = "el2n"
    rescale = policy != "top_k" and by != "excess"
    logits, labels, _ = batch()
    selector = BatchSelector(0.25, by, policy, rescale=rescale, epsilon=0.5, device="cuda")
    reference = (torch.rand(B, device="cuda"),) if by == "excess" else ()
    with on_device() as trace:
        choice = selector(logits, labels, *reference)
    assert choice.rows.shape == (8,) and choice.rows.device.type == "cuda"
    assert (choice.weights is not None) == rescale
    assert trace.operations > 5


@pytest.mark.parametrize(
    "policy",
    [
        policies.UCB(),
        policies.UCB(2.0, bonus="std"),
        policies.EpsilonGreedy(0.1),
        policies.UniformRandom(),
        policies.Weighted(),
        policies.Weighted(0.5, rescale=True),
        policies.Weighted(0.5, trim=0.1),
        policies.Weighted(0.5, rescale=True, trim=0.1),
        policies.Adaptive(),
        policies.Adaptive(trim=0.1),
    ],
    ids=repr,
)
def test_a_selection_brings_nothing_to_the_host(fake_device, policy):
    pruner = Pruner(N, 0.3, policy, device="cuda", warmup_epochs=0)
    with on_device() as trace:
        state, _ = pruner._run._next_state(0)
        pruner._run._begin(state)
        order = pruner.epoch_order()
        pruner.is_selected(order)
        pruner.rescale(order, torch.rand(300, device="cuda"))
    assert state.subset.ids.shape == order.shape == (300,) and order.device.type == "cuda"
    assert trace.operations > 5


@pytest.mark.parametrize(
    "policy", [policies.OrderDP(), policies.SeTa(), policies.IES(), policies.RePB()], ids=repr
)
def test_published_rules_bring_nothing_to_the_host(fake_device, policy):
    pruner = Pruner(N, None, policy, device="cuda", epochs=9)
    run = pruner._run
    run.state = dataclasses.replace(run.state, epoch=0)
    with on_device() as trace:
        table = run._told(1)
        if policy.weighs:
            assert policy.weigh(table, seed=3).shape == (N,)
        else:
            assert policy.select(table, 300, seed=3).shape == (300,)
        run._remembered(1, torch.ones(N, dtype=torch.bool, device="cuda"))
    assert trace.operations > 5


def make_without_asking(monkeypatch):
    """Lets pruners be made without the other processes, which compare their settings then."""
    for name in ("check_device", "check_settings"):
        monkeypatch.setattr(distributed.Ranks, name, lambda *_: None)
    monkeypatch.setattr(distributed.Ranks, "buffer_device", lambda _, wanted: wanted)

    def agree(ranks, what, device, prepare, vote=False):
        prepare()
        return vote

    monkeypatch.setattr(distributed.Ranks, "agree", agree)


def test_several_ranks_bring_nothing_to_the_host(fake_device, monkeypatch):
    """The exchange itself and the mark of the repeated id; comparing where the ranks are waits."""
    reduced = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_: reduced.append(tensor.shape))
    make_without_asking(monkeypatch)
    monkeypatch.setattr(distributed, "resolve", lambda *_: distributed.Ranks(None, 3, 4))
    monkeypatch.setattr(merge, "MERGED_SAMPLES", 600)
    pruner = Pruner(N - 3, 0.3, device="cuda")
    logits, labels, ids = batch()
    with on_device() as trace:
        share = pruner.epoch_order()
        pruner.cross_entropy(logits, labels, ids)
        merge.merge_tables(pruner.table, pruner.ranks)
        distributed.checksum(share, None)
    assert share.shape == (250,)
    assert reduced == [(600,), (5, 600), (397,), (5, 397)]
    assert trace.operations > 30


def test_sharded_scores_bring_nothing_to_the_host(fake_device, monkeypatch):
    """Steps, and the search of a selection; exchanges with other ranks wait."""
    reduced = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # fake ones cannot
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # asks no tensor
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_: reduced.append(tensor.nbytes))
    make_without_asking(monkeypatch)
    monkeypatch.setattr(outbox, "LOOSE_BATCHES", 8)
    ranks = distributed.Ranks(None, 3, 4)
    monkeypatch.setattr(distributed, "resolve", lambda *_: ranks)
    pruner = Pruner(N - 3, 0.3, device="cuda", sharding="shard")
    logits, labels, ids = batch()
    with on_device() as trace:
        assert pruner.epoch_order().shape == (250,)
        for _ in range(25):  # so many that they are put together
            pruner.cross_entropy(logits, labels, ids)
            pruner.observe(ids, logits[:, 0])
        pruner.observe(torch.arange(B), logits[:, 0])
        shard = pruner.table.shard
        keys = keys_of(Ranking.by_score(pruner.table.ranking_mean()), shard, 7)
        found = find_thresholds(keys, 300, 30, shard, 7, ranks)
    assert len(pruner.table.mean) == 247
    assert found.rounds == 9 and sum(reduced) == 81_920 + 40_960
    assert trace.operations > 500


@pytest.mark.needs_cuda
@pytest.mark.parametrize("policy", ["ucb", "infobatch"])
def test_a_training_loop_never_waits(policy):
    """The same on a GPU, with the loader, the backward pass and the optimiser."""
    pruner = Pruner(N, 0.3 if policy == "ucb" else None, policy, device="cuda")
    model = torch.nn.Linear(20, C).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    points, labels = torch.randn(N, 20, device="cuda"), torch.arange(N, device="cuda") % C
    loader = DeviceLoader(points, labels, pruner=pruner, batch_size=B)

    def epoch():
        for x, y, ids in loader:
            pruner.cross_entropy(model(x), y, ids).backward()
            optimizer.step()
            optimizer.zero_grad()

    for number in range(3):
        pruner.set_epoch(number)
        if number == 0:
            epoch()  # first calls set things up
        with no_cuda_waiting():
            epoch()
    assert int(pruner.table.count.min()) >= 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.empty(6).copy_(x),
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 2],
        lambda x: bool((x > 2).any()),
    ],
)
def test_what_waits_is_found(fake_device, wait):
    found = (AssertionError, DataDependentOutputException, RuntimeError)
    x = torch.arange(6.0, device="cuda")
    with pytest.raises(found), on_device():
        wait(x)
