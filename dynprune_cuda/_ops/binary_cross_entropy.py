# SPDX-License-Identifier: Apache-2.0
"""Binary cross-entropy of several labels: arguments, fake kernels and autograd formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._ops.autograd import (
    Formula,
    OrdinaryStep,
    refuse_second_derivative,
    scaled_gradient,
)
from dynprune_cuda._ops.contract import GradientTime, Reduction, StepColumn
from dynprune_cuda._ops.errors import checking_weights, marking_refusals
from dynprune_cuda._ops.fakes import FAKES
from dynprune_cuda._ops.library import ops

# Bind the overload once: calling a packet resolves its overload on every call.
_step = ops.scored_binary_cross_entropy_step_.default

# As plain ints: torch.compile traces no index by an enum.
_NEVER, _NOW, _LATER = map(int, GradientTime)
_ROW_WEIGHT = int(StepColumn.ROW_WEIGHT)


class BinaryArguments(NamedTuple):
    """The arguments of scored_binary_cross_entropy_step_ between `logits` and `gradient`."""

    target: Tensor  # [B, L]
    sample_ids: Tensor
    mean: Tensor
    variance: Tensor
    count: Tensor  # type: ignore[assignment]  # hides the method of tuple
    non_finite_count: Tensor | None
    last_non_finite: Tensor | None
    last_correct: Tensor | None
    forget_count: Tensor | None
    ticket: Tensor | None
    alpha: float
    published_first_visit: bool
    score: int
    row_reduction: int
    reduction: int
    sample_weight: Tensor | None  # [B]
    divisor: Tensor | None  # of a mean
    weight: Tensor | None  # [L] or [B, L]
    pos_weight: Tensor | None  # [L]
    grad_scale: Tensor | None


# ---- fake kernels, see _ops/fakes.py


def scored_binary_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns empty results."""
    rows, dtype = logits.shape[0], _loss_dtype(logits)
    values = (logits.new_empty((rows,), dtype=dtype) for _ in range(4))
    return *values, logits.new_empty((rows,), dtype=torch.bool)


def scored_binary_cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
) -> Tensor:
    """Returns an empty gradient."""
    return logits.new_empty(logits.shape)


def scored_binary_cross_entropy_step_(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    non_finite_count: Tensor | None,
    last_non_finite: Tensor | None,
    last_correct: Tensor | None,
    forget_count: Tensor | None,
    ticket: Tensor | None,
    alpha: float,
    published_first_visit: bool,
    score: int,
    row_reduction: int,
    reduction: int,
    sample_weight: Tensor | None,
    divisor: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    grad_scale: Tensor | None,
    gradient: int,
) -> tuple[Tensor, ...]:
    """Returns empty results."""
    rows, dtype = logits.shape[0], _loss_dtype(logits)
    loss = logits.new_empty((rows,) if reduction == Reduction.NONE else (), dtype=dtype)
    scores = logits.new_empty((len(StepColumn), rows), dtype=dtype)
    correct = logits.new_empty((rows,), dtype=torch.bool)
    grad_logits = logits.new_empty(logits.shape if gradient == GradientTime.NOW else (0,))
    return loss, scores, correct, grad_logits


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


for _fake in (
    scored_binary_cross_entropy,
    scored_binary_cross_entropy_backward,
    scored_binary_cross_entropy_step_,
):
    FAKES[_fake.__name__] = _fake


# ---- autograd


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the logits; only the loss is differentiable."""
    if grad_loss is None:
        return (None,) * 4
    return ops.scored_binary_cross_entropy_backward(grad_loss, *ctx.saved_tensors), *(None,) * 3


torch.library.register_autograd(
    "dynprune_cuda::scored_binary_cross_entropy", _backward, setup_context=_save_for_backward
)


def _second_backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "scored_binary_cross_entropy cannot be differentiated twice: its gradient has no "
        "derivative. Use torch.nn.functional.binary_cross_entropy_with_logits for second "
        "derivatives."
    )


torch.library.register_autograd(
    "dynprune_cuda::scored_binary_cross_entropy_backward", _second_backward
)

BINARY_CROSS_ENTROPY = Formula(
    ops.scored_binary_cross_entropy.default, _save_for_backward, _backward
)

BINARY_STEP = OrdinaryStep(_step, "scored_binary_cross_entropy", "binary_cross_entropy_with_logits")


class BinaryStepLoss(torch.autograd.Function):
    """scored_binary_cross_entropy_step_ and its gradient; see `StepLoss`.

    Returns loss, scores and correct; with `loss_only` the loss.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, arguments: BinaryArguments, loss_only: bool
    ) -> Tensor | tuple[Tensor, ...]:
        """Calls the operator and keeps the gradient."""
        gradient = _NEVER
        if ctx.needs_input_grad[0]:
            underflows = arguments.grad_scale is None and logits.dtype == torch.float16
            gradient = _LATER if underflows else _NOW
        found = marking_refusals(checking_weights, _step, logits, *arguments, gradient)
        loss, scores, correct, grad = found
        ctx.spent, ctx.columns, ctx.later = False, False, gradient == _LATER
        ctx.set_materialize_grads(False)
        if gradient == _NOW:
            ctx.save_for_backward(grad, arguments.grad_scale)
        elif gradient == _LATER:
            factors = arguments.target, arguments.weight, arguments.pos_weight
            ctx.save_for_backward(logits, *factors, scores)
        if loss_only:
            return loss  # type: ignore[no-any-return]
        ctx.mark_non_differentiable(scores, correct)
        return loss, scores, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
        """The gradient with respect to the logits."""
        if grad_loss is None:
            return None, None, None
        refuse_second_derivative(BINARY_STEP.again, BINARY_STEP.instead)
        if ctx.later:
            *inputs, scores = ctx.saved_tensors
            by_row = grad_loss * scores[_ROW_WEIGHT]
            grad = ops.scored_binary_cross_entropy_backward(by_row, *inputs)
        else:
            grad, grad_scale = ctx.saved_tensors
            grad = scaled_gradient(ctx, grad, grad_loss, grad_scale, BINARY_STEP.again)
        return grad, None, None
