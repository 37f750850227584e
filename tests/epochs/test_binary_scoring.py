# SPDX-License-Identifier: Apache-2.0
"""Pruner.binary_cross_entropy enters the scores of its samples, and its loss is torch's."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F

N, BATCH, LABELS = 12, 7, 5


def make_batch(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, LABELS, generator=generator).to(device)
    target = (torch.rand(BATCH, LABELS, generator=generator) < 0.4).float().to(device)
    return logits.requires_grad_(), target, torch.tensor([4, 2, 4, 0, 11, -1, 2], device=device)


def make_pruner(device="cpu", **options):
    pruner = Pruner(N, 0.5, "ucb", warmup_epochs=2, device=device, **options)
    pruner.set_epoch(0)
    return pruner


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("score", ["loss", "el2n", "entropy", "margin"])
@pytest.mark.parametrize("row_reduction", ["mean", "max", 0.4])
def test_rows_of_one_sample_are_one_visit(device, score, row_reduction):
    logits, target, ids = make_batch(device)
    options = {"score": score, "row_reduction": row_reduction, "track_forgetting": True}
    ours, observed = (make_pruner(device, **options) for _ in range(2))
    loss = ours.binary_cross_entropy(logits, target, ids)
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(logits, target))
    loss.backward()
    observed.observe(ids, F.scored_binary_cross_entropy(logits, target))
    for name in ours.table.column_types:
        assert_same(getattr(ours.table, name), getattr(observed.table, name))
    assert ours.table.count.sum() == 4


def test_the_scores_of_shards_are_those_of_one_process():
    logits, target, ids = make_batch()
    whole, shards = make_pruner(), make_pruner(sharding="shard")
    for pruner in (whole, shards):
        pruner.binary_cross_entropy(logits, target, ids)
        pruner.set_epoch(1)
    assert_same(whole.table.mean, shards.table.mean)
    assert_same(whole.table.count, shards.table.count)


def test_the_factors_of_a_policy_that_rescales():
    logits, target, ids = make_batch()
    ids = torch.arange(BATCH)
    pruner = Pruner(N, policy="infobatch", warmup_epochs=1, epochs=8, anneal_epochs=0)
    pruner.set_epoch(0)
    pruner.observe(torch.arange(N), torch.linspace(0, 1, N))
    pruner.set_epoch(1)
    factors = pruner.rescale(ids, torch.ones(BATCH))
    assert factors.unique().numel() > 1
    losses = binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    (expected,) = torch.autograd.grad((losses * factors).mean(), logits)
    loss = pruner.binary_cross_entropy(logits, target, ids)
    torch.testing.assert_close(loss, (losses * factors).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, expected)


def test_a_wrong_call_changes_no_score():
    logits, target, ids = make_batch()
    pruner = make_pruner()
    for changed in ({"target": target + 2}, {"ids": ids + N}, {"weight": torch.ones(3)}):
        arguments = {"logits": logits, "target": target, "ids": ids} | changed
        with pytest.raises((ValueError, IndexError)):
            pruner.binary_cross_entropy(**arguments)
    assert not pruner.table.count.any()
