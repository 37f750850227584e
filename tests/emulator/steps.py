# SPDX-License-Identifier: Apache-2.0
"""Fused steps on the emulator: made-up batches, the comparison with the CPU, and bytes counted."""

from __future__ import annotations

import math

import torch
from kernels import Kernels
from torch import Tensor

from dynprune_cuda import functional as F
from dynprune_cuda._ops.contract import Reduction, RowReduction, Score, StepColumn

# Sums run in another order than on the CPU; a 16-bit gradient may round to the neighbour.
TOLERANCES = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float64: {"rtol": 1e-13, "atol": 1e-13},
    torch.float16: {"rtol": 2e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-6},
}


def make_logits(rows: int, classes: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(classes)
    return (torch.randn(rows, classes, generator=generator) * 4).to(dtype)


def make_target(rows: int, classes: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return (torch.arange(rows) * 7 % classes).to(dtype)


def make_probabilities(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of two classes, of all, or of one, in turn."""
    generator = torch.Generator().manual_seed(rows)
    target, share = make_target(rows, classes), torch.rand(rows, 1, generator=generator)
    mixed = share * torch.nn.functional.one_hot(target, classes)
    mixed += (1 - share) * torch.nn.functional.one_hot(target.flip(0), classes)
    spread = torch.rand(rows, classes, generator=generator).softmax(1)
    mixed[1::3] = spread[1::3]
    mixed[2::3] = torch.nn.functional.one_hot(target, classes)[2::3].float()
    return mixed.to(dtype)


def make_columns(n: int, count_dtype: torch.dtype = torch.int32) -> dict[str, Tensor]:
    return {
        "mean": torch.full((n,), math.nan),
        "variance": torch.zeros(n),
        "count": torch.zeros(n, dtype=count_dtype),
        "non_finite_count": torch.zeros(n, dtype=torch.int32),
        "last_non_finite": torch.zeros(n, dtype=torch.bool),
    }


def check_step(
    kernels: Kernels,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    padding: int = 0,
    weighted: bool = False,
    rows_per_id: int = 1,
    group_rows: int = 0,
    in_columns: bool = False,
    mixed: bool = False,
    grad_scale: float | None = None,
    grad_loss: Tensor | None = None,
    probabilities: torch.dtype | None = None,
    n: int = 40,
    **options: object,
) -> None:
    """The step on the emulator against the step on the CPU; a target of probabilities with one.

    n: samples of the table, of which the batch has some several times.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits, target = make_logits(rows, classes, dtype), make_target(rows, classes)
    target[1::5] = options.get("ignore_index", 0)
    if probabilities is not None:
        target = make_probabilities(rows, classes, probabilities)
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(-1, n, (rows // rows_per_id,), generator=generator)
    common = {
        "ignore_index": options.get("ignore_index", -100),
        "label_smoothing": options.get("label_smoothing", 0.0),
        "weight": torch.linspace(0.1, 3, classes, dtype=compute) if weighted else None,
        "token_weight": torch.linspace(2, 0.5, rows, dtype=compute) if weighted else None,
        "target_b": target.flip(0) if mixed else None,
        "lam": torch.full((1,), 0.25, dtype=compute) if mixed else None,
        "grad_scale": None if grad_scale is None else torch.tensor([grad_scale], dtype=compute),
    }
    sample_weight = torch.linspace(0, 2, len(ids), dtype=compute) if weighted else None
    divisor = options.get("divisor")
    score, reduction = options.get("score", "loss"), options.get("reduction", "mean")
    row_reduction = options.get("row_reduction", "mean")
    emulated, expected = make_columns(n), make_columns(n)
    for columns in (emulated, expected):
        columns["last_correct"] = torch.arange(n) % 2 == 0
        columns["forget_count"] = torch.zeros(n, dtype=torch.int32)
    one = torch.ones(1, dtype=compute)
    loss, scores, correct, gradient = kernels.scored_cross_entropy_step_(
        logits,
        target,
        ids,
        emulated,
        score=Score[score.upper()],
        row_reduction=RowReduction[row_reduction.upper()],
        reduction=Reduction[reduction.upper()],
        padding=padding,
        group_rows=group_rows,
        in_columns=in_columns,
        sample_weight=sample_weight,
        divisor=None if divisor is None else torch.tensor([divisor], dtype=compute),
        grad_loss=one if grad_loss is None else grad_loss,
        **common,
    )
    leaf = logits.clone().requires_grad_()
    if mixed:
        common["lam"] = common["lam"][0]
    got = F.scored_cross_entropy_step_(
        leaf,
        target,
        ids.repeat_interleave(rows_per_id),
        **expected,
        alpha=0.8,
        score=score,
        row_reduction=row_reduction,
        reduction=reduction,
        sample_weight=None
        if sample_weight is None
        else sample_weight.repeat_interleave(rows_per_id),
        num_items=divisor,
        **common,
    )
    got.loss.backward((one[0] if grad_loss is None else grad_loss).expand_as(got.loss))
    tolerance = TOLERANCES[compute]
    expected_loss = got.loss.detach()
    torch.testing.assert_close(
        loss.view(expected_loss.shape), expected_loss, **tolerance, equal_nan=True
    )
    for column in (StepColumn.EL2N, StepColumn.ENTROPY, StepColumn.MARGIN):
        torch.testing.assert_close(scores[column], getattr(got, column.name.lower()), **tolerance)
    assert torch.equal(correct, got.correct)
    torch.testing.assert_close(gradient, leaf.grad, **TOLERANCES[dtype])
    for name, column in expected.items():
        exact = tolerance if column.is_floating_point() else {}
        torch.testing.assert_close(emulated[name], column, **exact, equal_nan=True, msg=name)
    assert not kernels.errors.any()


def step_bytes(
    kernels: Kernels,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    rows_per_id: int = 1,
    probabilities: torch.dtype | None = None,
    ids: Tensor | None = None,
    **options: object,
) -> tuple[float, float]:
    """What a step moves, in units of the logits' bytes: to and from memory, and in requests.

    ids: by default each row, or each `rows_per_id` rows, of a sample of their own.

    Memory: the 32-byte sectors that a launch touches, each once. Requests: every time a warp asks
    for one; neighbouring rows' scores share sectors, and so do vectors that begin within one.
    """
    logits, target = make_logits(rows, classes, dtype), make_target(rows, classes)
    if probabilities is not None:
        target = make_probabilities(rows, classes, probabilities)
    ids = torch.arange(rows // rows_per_id) if ids is None else ids
    kernels.emulator.traffic()
    kernels.scored_cross_entropy_step_(logits, target, ids, make_columns(rows), **options)
    traffic = kernels.emulator.traffic()
    unit = rows * classes * logits.element_size() / 32
    memory = traffic["unique_sectors_read"] + traffic["unique_sectors_written"]
    return memory / unit, (traffic["sectors_read"] + traffic["sectors_written"]) / unit
