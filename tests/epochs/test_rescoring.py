# SPDX-License-Identifier: Apache-2.0
"""Samples that an epoch leaves out: which they are, and a forward-only pass that scores them."""

import itertools
import math
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from waiting import no_waiting

from dynprune_cuda import UCB, IndexedDataset, Pruner, functional
from dynprune_cuda.data.unselected import UnselectedBatchSampler
from dynprune_cuda.rescoring import Rescored
from dynprune_cuda.scores.others import other_ids

N, K, C = 50, 20, 5
IGNORED = 7  # a sample whose target is ignored

generator = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, 6, generator=generator)
TARGETS = torch.randint(C, (N,), generator=generator)
TARGETS[IGNORED] = -100
DATA = IndexedDataset(TensorDataset(INPUTS, TARGETS))


def make_model(device):
    torch.manual_seed(1)
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, C))
    return nn.Sequential(*layers).to(device)


def make_pruner(device, **options):
    """In a pruned epoch, whose selection leaves out the ids from 20 on."""

    def first(table, k, *, seed):
        return torch.arange(k, device=table.device)

    options = {"policy": first, "warmup_epochs": 0, **options}
    return Pruner(N, K, device=device, **options)


def rest_of(pruner, batch_size=8):
    return DataLoader(DATA, batch_sampler=pruner.unselected_sampler(batch_size))


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


# ---- what it takes


def test_the_seconds_are_those_of_the_clock_on_the_wall(device, monkeypatch):
    """From before the first batch is loaded until after the last is scored; added up in stats."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    model, pruner = make_model(device), make_pruner(device)
    assert pruner.stats()["rescore_seconds"] == 0

    def slow(batches, each):
        for batch in batches:
            now[0] += each  # loading
            yield batch

    def score(model, batch):
        now[0] += 0.25  # the forward pass
        return batch[2], torch.ones(len(batch[2]), device=device)

    assert pruner.rescore(model, slow(rest_of(pruner), 2.0), score).seconds == 4 * 2.25
    assert pruner.stats()["rescore_seconds"] == 9.0
    assert pruner.rescore(model, slow(rest_of(pruner), 0.75), score).seconds == 4.0
    assert pruner.stats().scalars()["pruner/rescore_seconds"] == 13.0


# ---- which samples they are


@pytest.mark.parametrize("chosen", [[], [0], [N - 1], [3, 1, 2], list(range(N))], ids=str)
def test_other_ids_are_the_set_difference(device, chosen):
    ids = torch.tensor(chosen, dtype=torch.int64, device=device)
    with no_waiting():
        others = other_ids(ids, N)
    assert others.dtype == torch.int64 and others.device.type == device.type
    assert others.tolist() == sorted(set(range(N)) - set(chosen))


@pytest.mark.parametrize("options", [{}, {"sharding": "shard"}], ids=["replicate", "shard"])
def test_unselected_is_what_selected_is_not(device, options):
    pruner = Pruner(N, K, UCB(), epochs=4, anneal_epochs=1, period=1, device=device, **options)
    pruner.observe(torch.arange(N), torch.rand(N, generator=generator))
    for epoch in range(4):
        pruner.set_epoch(epoch)
        with no_waiting():
            ids = pruner.unselected
        assert ids.tolist() == sorted(set(range(N)) - set(pruner.selected.tolist()))
        assert len(ids) == (N - K if epoch in (1, 2) else 0) and ids.dtype == torch.int64
        assert sorted(flat(pruner.unselected_sampler(7))) == ids.tolist()


def test_the_sampler_follows_the_epoch_in_batches(device):
    pruner = make_pruner(device, warmup_epochs=1)
    sampler = pruner.unselected_sampler(8)
    assert isinstance(sampler, UnselectedBatchSampler)
    assert list(sampler) == [] and len(sampler) == 0
    pruner.set_epoch(1)
    batches = list(sampler)
    assert [len(ids) for ids in batches] == [8, 8, 8, 6] and len(sampler) == 4
    assert flat(batches) == list(range(K, N))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        pruner.unselected_sampler(0)


def test_processes_with_all_scores_divide_them(device):
    found = []
    for rank in range(3):

        class OneOfThree(Pruner):
            ranks = SimpleNamespace(rank=rank, size=3)

        pruner = OneOfThree(N, K, UCB(), warmup_epochs=0, device=device)
        share = pruner.unselected_share().tolist()
        assert share == pruner.unselected.tolist()[rank::3]
        assert flat(pruner.unselected_sampler(4)) == share
        found += share
    assert sorted(found) == pruner.unselected.tolist()


# ---- their scores


def plain(model, ids, score, weight, label_smoothing):
    """The scores by torch's own functions, in float64."""
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        logits = model(INPUTS[ids].to(next(model.parameters()).device)).double().cpu()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    target, p = TARGETS[ids], torch.softmax(logits, 1)
    if score == "loss":
        weight = None if weight is None else weight.double().cpu()
        options = {"weight": weight, "label_smoothing": label_smoothing, "reduction": "none"}
        return F.cross_entropy(logits, target, **options)
    if score == "entropy":
        return -(p * p.log()).sum(1)
    one_hot = F.one_hot(target, C).double()
    if score == "el2n":
        return (p - one_hot).norm(dim=1)
    return (logits - 1e9 * one_hot).amax(1) - (logits * one_hot).sum(1)


@pytest.mark.parametrize("score", ["loss", "el2n", "entropy", "margin"])
@pytest.mark.parametrize("has_options", [False, True])
def test_values_are_those_of_a_plain_computation(device, score, has_options):
    weight = torch.linspace(0.5, 2, C, device=device) if has_options else None
    smoothing = 0.1 if has_options else 0.0
    model, pruner = make_model(device), make_pruner(device, score=score)
    result = pruner.rescore(model, rest_of(pruner), weight=weight, label_smoothing=smoothing)
    assert isinstance(result, Rescored)
    assert (result.batches, result.samples) == (4, N - K) and 0 < result.seconds < 60
    ids = torch.arange(K, N)
    expected = plain(model, ids, score, weight, smoothing).float()
    torch.testing.assert_close(pruner.table.mean[K:].cpu(), expected, rtol=1e-4, atol=1e-5)
    assert pruner.table.count.tolist() == [0] * K + [1] * (N - K)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ignored_rows_and_rows_without_a_sample_enter_nothing(device):
    model, pruner = make_model(device), make_pruner(device)
    ids = torch.tensor([IGNORED, 3, -1])
    pruner.rescore(model, [(INPUTS[:3], TARGETS[[IGNORED, 3, 4]], ids)])
    assert pruner.table.count.nonzero().flatten().tolist() == [3]
    other = int(TARGETS[3])
    pruner.rescore(model, [(INPUTS[3:4], TARGETS[3:4], ids[1:2])], ignore_index=other)
    assert int(pruner.table.count.sum()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_several_labels_are_no_probabilities(device, dtype):
    """Their loss is another one."""
    model, pruner = make_model(device), make_pruner(device)
    ids, tags = torch.tensor([3, 4]), torch.zeros(2, model(INPUTS[:2].to(device)).shape[1])
    tags[0, :2] = 1
    with pytest.raises(ValueError, match=r"targets must be .* pass score="):
        pruner.rescore(model, [(INPUTS[:2], tags.to(dtype), ids)])
    assert not pruner.table.count.any()
    pruner.rescore(model, [(INPUTS[:2], tags.add(0.01).softmax(1).to(dtype), ids)])
    assert pruner.table.count.nonzero().flatten().tolist() == [3, 4]


class Drawing(TensorDataset):
    """Augments: draws from every generator."""

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(1)
        return super().__getitem__(index)


def test_modes_buffers_and_generators_stay(device):
    model, pruner = make_model(device), make_pruner(device)
    model.train()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    sampler = pruner.unselected_sampler(8)
    loader = DataLoader(IndexedDataset(Drawing(INPUTS, TARGETS)), batch_sampler=sampler)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    pruner.rescore(model, loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]
    assert [module.training for module in model.modules()] == modes and torch.is_grad_enabled()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    first = pruner.table.mean[K:].clone()
    again = make_pruner(device)
    again.rescore(model, DataLoader(DATA, batch_size=N))  # no dropout, no statistics of the batch
    torch.testing.assert_close(again.table.mean[K:], first)


def test_modes_and_generators_are_restored_after_an_error(device):
    model, pruner = make_model(device), make_pruner(device)
    state = torch.get_rng_state()

    def failing(model, batch):
        torch.rand(3)
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        pruner.rescore(model, [0], failing)
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_other_batches_take_a_function(device):
    model, pruner = make_model(device), make_pruner(device, score="el2n", track_forgetting=True)
    batches = [{"x": INPUTS[ids], "y": TARGETS[ids], "sample_id": ids}
               for ids in torch.arange(K, N).split(9)]  # fmt: skip

    def losses(model, batch):
        logits = model(batch["x"].to(device))
        return batch["sample_id"], F.cross_entropy(logits, batch["y"].to(device), reduction="none")

    def scored(model, batch):
        logits = model(batch["x"].to(device))
        return batch["sample_id"], functional.scored_cross_entropy(logits, batch["y"].to(device))

    assert pruner.rescore(model, batches, losses)[1:] == (4, N - K)
    expected = plain(model, torch.arange(K, N), "loss", None, 0.0).float()
    torch.testing.assert_close(pruner.table.mean[K:].cpu(), expected, rtol=1e-4, atol=1e-5)
    assert not pruner.table.last_correct.any()  # losses do not tell
    pruner.rescore(model, batches, scored)
    model.eval()
    correct = model(INPUTS.to(device)).argmax(1).cpu() == TARGETS
    assert pruner.table.last_correct.cpu().tolist() == [False] * K + correct[K:].tolist()
    assert pruner.stats()["share_correct"] == pytest.approx(float(correct[K:].double().mean()))


def test_autocast_is_the_callers(device):
    model, pruner = make_model(device), make_pruner(device)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast(device.type, torch.bfloat16):
        pruner.rescore(model, rest_of(pruner))
    assert set(seen) == {torch.bfloat16} and bool((pruner.table.count[K:] == 1).all())


def test_sharded_scores_enter_with_the_next_epoch(device):
    model = make_model(device)
    pruner = Pruner(N, K, "ucb", warmup_epochs=0, sharding="shard", device=device)
    pruner.set_epoch(0)
    ids = pruner.unselected.cpu()
    pruner.rescore(model, rest_of(pruner))
    assert not pruner.table.count.any()
    pruner.set_epoch(1)
    kept = ids[ids != IGNORED]
    assert pruner.table.count.nonzero().flatten().tolist() == kept.tolist()
    expected = plain(model, kept, "loss", None, 0.0).float()
    torch.testing.assert_close(pruner.table.mean[kept].cpu(), expected, rtol=1e-4, atol=1e-5)


def test_an_epoch_of_everything_leaves_nothing_to_score(device):
    pruner = make_pruner(device, warmup_epochs=1)
    assert pruner.rescore(make_model(device), rest_of(pruner))[1:] == (0, 0)
    assert math.isnan(pruner.stats()["visits_gini"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": len}, TypeError, "model must be a torch.nn.Module, got builtin"),
        ({"score": 3}, TypeError, r"score must be a function \(model, batch\).*, got 3"),
        ({"score": max, "label_smoothing": 0.1}, ValueError, "left out with score.* 0.1"),
        ({"loader": [{"x": 1}]}, TypeError, "three tensors, got dict: pass score=, a function"),
        ({"loader": [(INPUTS, TARGETS)]}, TypeError, "three tensors, got Tensor, Tensor: pass"),
        ({"loader": [(INPUTS, TARGETS, [1])]}, TypeError, "got Tensor, Tensor, list: pass score="),
        ({"label_smoothing": 2.0}, ValueError, r"label_smoothing must be in \[0, 1\], got 2.0"),
    ],
)
def test_bad_arguments_are_named_and_nothing_changes(arguments, error, message):
    pruner, model = make_pruner("cpu"), make_model("cpu")
    with pytest.raises(error, match=message):
        pruner.rescore(**{"model": model, "loader": rest_of(pruner), **arguments})
    assert not pruner.table.count.any() and model.training
