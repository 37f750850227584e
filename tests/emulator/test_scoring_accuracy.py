# SPDX-License-Identifier: Apache-2.0
"""The kernels' scores keep their digits, however wrong the hardware's powers of 2 may be.

Against exact values, for targets of a probability from 1e-30 to 1 - 1e-12.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernels import EXP2_ERRORS, Array, on_schedule
from reference import TOLERANCES
from steps import make_columns, make_logits, make_target
from torch import Tensor

from benchmarks.scoring import accuracy
from dynprune_cuda._ops.contract import StepColumn

each_error = pytest.mark.parametrize("error", EXP2_ERRORS.values(), ids=EXP2_ERRORS.keys())
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)


def assert_accurate(loss: Tensor, el2n: Tensor, logits: Tensor, target: Tensor) -> None:
    exact = accuracy.exact(logits, target)
    for name, got in (("loss", loss), ("el2n", el2n)):
        error = np.abs(got.double().numpy() / exact[name] - 1).max()
        assert error < 1e-5, (name, error)


@each_error
@each_dtype
@pytest.mark.parametrize(("classes", "every"), [(10, 1), (1000, 4), (3001, 16)])
def test_scores_of_easy_samples_keep_their_digits(
    monkeypatch: pytest.MonkeyPatch,
    classes: int,
    every: int,
    dtype: torch.dtype,
    error: dict[str, int],
) -> None:
    monkeypatch.setattr(accuracy, "NUM_CLASSES", classes)
    monkeypatch.setattr(accuracy, "DISTANCES", accuracy.DISTANCES[::every])
    logits, target = accuracy.rows(dtype)
    kernels = on_schedule(**error)
    scored = kernels.scored_cross_entropy(logits, target)
    assert_accurate(scored[0], scored[1], logits, target)


@each_error
@each_dtype
@pytest.mark.parametrize("classes", [3000, 49_999])
def test_the_step_keeps_them_too(
    monkeypatch: pytest.MonkeyPatch, classes: int, dtype: torch.dtype, error: dict[str, int]
) -> None:
    """A block for each row, and blocks that share rows."""
    monkeypatch.setattr(accuracy, "NUM_CLASSES", classes)
    monkeypatch.setattr(
        accuracy, "DISTANCES", accuracy.DISTANCES[:: 16 if classes < 10_000 else 64]
    )
    logits, target = accuracy.rows(dtype)
    rows = len(logits)
    kernels = on_schedule(**error, multiprocessors=16)
    _, scores, _, _ = kernels.scored_cross_entropy_step_(
        logits, target, torch.arange(rows), make_columns(rows)
    )
    assert_accurate(scores[StepColumn.LOSS], scores[StepColumn.EL2N], logits, target)


def exact_gradient(logits: Tensor, target: Tensor) -> Array:
    x = logits.double().numpy()
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), target.numpy()] = -accuracy.exact(logits, target)["miss"]
    return p


@each_error
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_great_logits_cost_the_gradient_no_digits(offset: float, error: dict[str, int]) -> None:
    """The greatest logit comes off before the others are scaled."""
    rows, classes = 3, 2500
    logits, target = make_logits(rows, classes, torch.float32) + offset, make_target(rows, classes)
    kernels = on_schedule(**error)
    gradient = kernels.scored_cross_entropy(logits, target, grad_loss=torch.ones(1))[5]
    rtol, atol = TOLERANCES[torch.float32]["gradient"]
    np.testing.assert_allclose(
        gradient.double().numpy(), exact_gradient(logits, target), rtol=rtol, atol=atol
    )
