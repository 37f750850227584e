# SPDX-License-Identifier: Apache-2.0
"""The step of several labels: its loss, its scores and its gradient are those of its parts."""

import math

import pytest
import torch
from binary_labels import (
    EXACT,
    GRADIENT_TOLERANCES,
    N,
    every_dtype,
    make,
    make_columns,
    make_weights,
)

from dynprune_cuda import functional as F
from dynprune_cuda.functional.cross_entropy import SCORES


def assert_step_is_its_parts(device, rows, labels, dtype, grad_loss=None, **options):
    x, target = make(rows, labels, dtype, device, soft=True)
    ids = torch.randint(-1, N, (rows,), generator=torch.Generator().manual_seed(rows)).to(device)
    weight, pos_weight = make_weights(rows, labels, device)
    weight[1:2] = 0
    weights = options.pop("weights", True)
    factors = {"weight": weight, "pos_weight": pos_weight} if weights else {}
    sample_weight = torch.linspace(0, 2, rows, device=device)
    score, reduction = options.get("score", "loss"), options.get("reduction", "mean")
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    columns, wanted_columns = make_columns(device), make_columns(device)
    got = F.scored_binary_cross_entropy_step_(
        leaf, target, ids, **columns, alpha=0.4, sample_weight=sample_weight, **factors, **options
    )
    plain = F.scored_binary_cross_entropy(other, target, **factors)
    counts = (weight != 0).any(1) if weights else torch.ones_like(ids, dtype=torch.bool)
    values = getattr(plain, score).detach()
    F.update_scores_(
        **wanted_columns,
        sample_ids=torch.where(counts, ids, -1),
        values=-values if score == "margin" else values,
        correct=plain.correct,
        alpha=0.4,
        row_reduction=options.get("row_reduction", "mean"),
    )
    loss = plain.loss * sample_weight.to(plain.loss.dtype)
    if reduction == "mean":
        loss = loss.sum() / options.get("num_items", rows)
    elif reduction == "sum":
        loss = loss.sum() * labels
    elif reduction == "sample":
        means = [loss[ids == i].mean() for i in ids.unique() if i >= 0] + [*loss[ids == -1]]
        loss = torch.stack(means).sum() / options.get("num_items", len(means))
    tolerance = EXACT if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(got.loss, loss, **tolerance, equal_nan=True)
    for a, b in zip(got[1:], plain[1:], strict=True):
        assert torch.equal(a, b)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss.to(loss)
    got.loss.backward(grad_loss.expand_as(loss))
    loss.backward(grad_loss.expand_as(loss))
    torch.testing.assert_close(leaf.grad, other.grad, **GRADIENT_TOLERANCES[dtype])
    for name, column in wanted_columns.items():
        assert torch.equal(columns[name], column), name


@every_dtype
@pytest.mark.parametrize("labels", [1, 33, 80, 600])
@pytest.mark.parametrize("rows", [1, 31, 100])
def test_the_step_is_its_parts(device, rows, labels, dtype):
    assert_step_is_its_parts(device, rows, labels, dtype)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
@pytest.mark.parametrize("score", SCORES)
def test_options_of_the_step(device, score, reduction):
    for row_reduction in ("mean", "max", 0.5):
        assert_step_is_its_parts(
            device, 90, 20, torch.float32, torch.tensor(0.3), weights=score != "el2n",
            score=score, reduction=reduction, row_reduction=row_reduction,
        )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sample"])
def test_the_number_of_items_may_be_given(reduction):
    assert_step_is_its_parts("cpu", 50, 9, torch.float64, reduction=reduction, num_items=12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_scale_of_a_loss_scaler(device, dtype):
    # float16 loses what underflows at another scale.
    for given in (None, 1024.0, *([3.0] if dtype == torch.float32 else [])):
        scale = None if given is None else torch.tensor(given, device=device)
        grad_loss = torch.tensor(1024.0, device=device)
        assert_step_is_its_parts(device, 40, 30, dtype, grad_loss, grad_scale=scale)


def test_an_empty_batch(device):
    x, target = torch.zeros(0, 5, device=device, requires_grad=True), torch.zeros(0, 5)
    columns = make_columns(device)
    ids = torch.zeros(0, dtype=torch.int64, device=device)
    step = F.scored_binary_cross_entropy_step_
    scored = step(x, target.to(device), ids, **columns, alpha=0.5)
    assert scored.loss.isnan() and scored.el2n.shape == (0,)
    scored.loss.backward()
    assert x.grad.shape == (0, 5)
    assert step(x, target.to(device), ids, **columns, alpha=0.5, reduction="sum").loss == 0
    assert not columns["count"].any()


def test_a_weight_of_0_leaves_no_gradient_of_a_broken_row(device):
    x, target = make(3, 6, torch.float32, device)
    x[1, 2], x[2, 0], target[2, 0] = math.nan, math.inf, 0.0
    x.requires_grad_()
    columns = make_columns(device)
    sample_weight = torch.tensor([1.0, 0.0, 0.0], device=device)
    scored = F.scored_binary_cross_entropy_step_(
        x, target, torch.arange(3, device=device), **columns, alpha=0.5, sample_weight=sample_weight
    )
    scored.loss.backward()
    assert scored.loss.isfinite() and x.grad[0].any() and not x.grad[1:].any()
    assert columns["non_finite_count"][:3].tolist() == [0, 1, 1]
