# SPDX-License-Identifier: Apache-2.0
"""The kernels with probabilities as targets on the emulator give what the CPU ops give."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernels import SCALAR_TYPES, Kernels
from steps import (
    TOLERANCES,
    check_step,
    make_columns,
    make_logits,
    make_probabilities,
    step_bytes,
)
from torch import Tensor

from dynprune_cuda import functional as F
from dynprune_cuda._ops.contract import Reduction

DTYPES = list(SCALAR_TYPES)
# The types of logits and of probabilities that there are kernels for.
PAIRS = [(d, d) for d in DTYPES]
PAIRS += [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)]


def check(
    kernels: Kernels,
    logits: Tensor,
    target: Tensor,
    grad_loss: Tensor,
    padding: int = 0,
    **options: object,
) -> None:
    """Forward and backward on the emulator against the CPU."""
    actual = kernels.scored_cross_entropy(
        logits, target, grad_loss=grad_loss, padding=padding, **options
    )
    leaf = logits.clone().requires_grad_()
    scored = F.scored_cross_entropy(leaf, target, **options)
    scored.loss.backward(grad_loss.expand(len(logits)))
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    for a, e in zip(actual, [*(t.detach() for t in scored), leaf.grad], strict=True):
        dtype = logits.dtype if a.dim() == 2 else compute
        torch.testing.assert_close(a, e, **TOLERANCES[dtype], equal_nan=True)


# The pair is one parameter: make test-ptx runs two of a test's parameters in all combinations, and
# each pair has a kernel for few, for some and for many classes.
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(map(str, pair)))
@pytest.mark.parametrize("classes", [1, 2, 10, 31, 33, 1000, 1025, 2500])
def test_soft_cross_entropy_equals_cpu(
    kernels: Kernels, classes: int, pair: tuple[torch.dtype, torch.dtype]
) -> None:
    dtype, probabilities = pair
    rows = 9 if classes <= 1000 else 3
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad_loss = torch.linspace(-1, 2, rows, dtype=compute)
    grad_loss[0] = 0
    target = make_probabilities(rows, classes, probabilities)
    check(kernels, make_logits(rows, classes, dtype), target, grad_loss)


@pytest.mark.parametrize(
    ("weighted", "smoothing"), list(itertools.product([False, True], [0.0, 0.2]))
)
def test_options_and_padded_rows_equal_cpu(
    kernels: Kernels, weighted: bool, smoothing: float
) -> None:
    for rows, classes in [(13, 5), (4, 1200)]:
        weight = torch.linspace(0.1, 3, classes) if weighted else None
        options = {"weight": weight, "label_smoothing": smoothing, "padding": 3}
        logits = make_logits(rows, classes, torch.float32)
        check(kernels, logits, make_probabilities(rows, classes), torch.tensor([0.25]), **options)


@pytest.mark.parametrize("classes", [3, 40, 1500])
def test_special_values_equal_cpu(kernels: Kernels, classes: int) -> None:
    """Of logits and probabilities, at one class, at several, and everywhere."""
    values = [0.0, 3.0, 1e4, math.inf, -math.inf, math.nan]
    few = list(itertools.product(values, repeat=3)) if classes == 3 else [(v,) * 3 for v in values]
    logits = make_logits(2 * len(few), classes, torch.float32)
    logits[:, [0, classes // 2, classes - 1]] = torch.tensor(few * 2)
    logits[-1], logits[-2] = -math.inf, math.nan
    target = make_probabilities(len(logits), classes)
    target[len(few) :, 0] = 0  # an impossible class that does not count
    target[0, 0], target[1, 1], target[2] = math.nan, math.inf, math.nan
    # Of infinite logits the CPU's and the kernels' NaN are the same; gradients of NaN, too.
    check(kernels, logits, target, torch.ones(1))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(("rows", "classes"), [(0, 10), (1, 10), (33, 10), (7, 100), (3, 1030)])
def test_step_equals_cpu(kernels: Kernels, rows: int, classes: int, padding: int) -> None:
    check_step(kernels, rows, classes, torch.float32, padding=padding, probabilities=torch.float32)


@pytest.mark.parametrize(("dtype", "probabilities"), PAIRS, ids=str)
def test_step_with_options_equals_cpu(
    kernels: Kernels, dtype: torch.dtype, probabilities: torch.dtype
) -> None:
    options = itertools.product(["loss", "el2n", "entropy", "margin"], ["mean", "sum", "none"])
    for i, (score, reduction) in enumerate(options):
        check_step(
            kernels,
            12,
            (8, 70, 1100)[i % 3],
            dtype,
            weighted=i % 2 == 1,
            rows_per_id=(1, 3)[i % 4 // 2],
            grad_scale=256.0 if dtype == torch.float16 or i % 5 == 0 else None,
            grad_loss=None,
            probabilities=probabilities,
            score=score,
            reduction=reduction,
            label_smoothing=(0.0, 0.1)[i % 3 % 2],
            divisor=5.0 if reduction == "mean" and i % 2 else None,
        )


@pytest.mark.parametrize("row_reduction", ["mean", "max"])
def test_step_that_adds_rows_within_it(kernels: Kernels, row_reduction: str) -> None:
    check_step(
        *(kernels, 1980, 3, torch.float32),
        rows_per_id=33,
        n=2,
        row_reduction=row_reduction,
        probabilities=torch.float32,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_launches_of_a_step(kernels_in_turn: Kernels, reduction: str) -> None:
    """The divisor of a mean is known: losses, and their sum; three for the table."""
    launches = []
    for rows in (1, 512, 513, 2000):
        kernels_in_turn.emulator.statistics()
        check_step(
            *(kernels_in_turn, rows, 3, torch.float32),
            probabilities=torch.float32,
            reduction=reduction,
        )
        statistics = kernels_in_turn.emulator.statistics()
        launches.append(statistics["launches"] - 1)  # of the backward pass
    more = {"mean": 5, "sum": 5, "none": 3}[reduction]
    assert launches == [1, 1, 1 + more, 1 + more]


def test_rows_that_do_not_fit_are_read_again(kernels_in_turn: Kernels) -> None:
    check_step(kernels_in_turn, 2, 13000, torch.float32, probabilities=torch.float32)


@pytest.mark.parametrize("classes", [10, 1000, 4096])
def test_everything_is_read_once(kernels_in_turn: Kernels, classes: int) -> None:
    """In units of the logits: the probabilities are one more, and so is the gradient."""
    rows = 256 if classes <= 1000 else 16
    slack = 20 * 32 / (4 * classes)  # a row's scores and its share of the table
    for with_gradient in (False, True):
        least = 2 + with_gradient
        memory, requests = step_bytes(
            kernels_in_turn,
            rows,
            classes,
            torch.float32,
            probabilities=torch.float32,
            with_gradient=with_gradient,
        )
        assert least <= memory <= least + slack
        if classes >= 1000:
            assert requests <= 1.15 * least


def test_ids_out_of_range_are_recorded(kernels: Kernels) -> None:
    logits, target = make_logits(4, 6, torch.float32), make_probabilities(4, 6)
    columns = make_columns(5)
    kernels.scored_cross_entropy_step_(
        logits, target, torch.tensor([0, 5, -1, 3]), columns, reduction=Reduction.SUM
    )
    assert kernels.errors[1].tolist() == [1, 5]
    assert columns["count"].tolist() == [1, 0, 0, 1, 0]
