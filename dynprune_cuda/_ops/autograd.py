# SPDX-License-Identifier: Apache-2.0
"""The autograd formulas of the scoring operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._ops.contract import GradientTime, SavedColumn, StepArguments, StepColumn
from dynprune_cuda._ops.errors import REFUSALS, mark_refusal, marking_refusals
from dynprune_cuda._ops.fakes import in_columns
from dynprune_cuda._ops.library import ops

# Bind the overloads once: calling a packet resolves its overload on every call.
_step = ops.scored_cross_entropy_step_.default
_soft_step = ops.soft_cross_entropy_step_.default
_scale = ops.scale_gradient_.default

# As plain ints: torch.compile traces no index by an enum.
_NEVER, _NOW, _LATER = map(int, GradientTime)
_ROW_WEIGHT = int(StepColumn.ROW_WEIGHT)
_NUM_COLUMNS, _NUM_SAVED = len(StepColumn), len(SavedColumn)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, ctx.ignore_index, ctx.label_smoothing, *mix = inputs
    _, *scores, saved = output
    ctx.mark_non_differentiable(*scores, saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, saved, *mix)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the logits; only the loss is differentiable."""
    if grad_loss is None:
        return (None,) * 7
    logits, target, weight, saved, *mix = ctx.saved_tensors
    options = (ctx.ignore_index, ctx.label_smoothing)
    grad = ops.scored_cross_entropy_backward(
        grad_loss, logits, target, weight, *options, saved, *mix
    )
    return _like_logits(grad, in_columns(logits)), *(None,) * 6


def _like_logits(grad: Tensor, columns: bool) -> Tensor:
    """Returns a gradient that the ops made in the shape of the logits."""
    return grad.transpose(1, 2) if columns else grad


torch.library.register_autograd(
    "dynprune_cuda::scored_cross_entropy", _backward, setup_context=_save_for_backward
)


def _save_soft(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, ctx.label_smoothing = inputs
    _, *scores, saved = output
    ctx.mark_non_differentiable(*scores, saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, saved)


def _soft_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the logits; the probabilities have none."""
    if grad_loss is None:
        return (None,) * 4
    logits, target, weight, saved = ctx.saved_tensors
    grad = ops.soft_cross_entropy_backward(
        grad_loss, logits, target, weight, ctx.label_smoothing, saved
    )
    return grad, None, None, None


torch.library.register_autograd(
    "dynprune_cuda::soft_cross_entropy", _soft_backward, setup_context=_save_soft
)


def _second_backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "scored_cross_entropy cannot be differentiated twice: its gradient has no derivative. Use "
        "torch.nn.functional.cross_entropy for second derivatives."
    )


torch.library.register_autograd("dynprune_cuda::scored_cross_entropy_backward", _second_backward)
torch.library.register_autograd("dynprune_cuda::soft_cross_entropy_backward", _second_backward)


class Formula(NamedTuple):
    """An operator with its formula, as `torch.library.register_autograd` takes it."""

    op: Callable[..., tuple[Tensor, ...]]
    save: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None]
    backward: Callable[..., tuple[Tensor | None, ...]]


CROSS_ENTROPY = Formula(ops.scored_cross_entropy.default, _save_for_backward, _backward)
SOFT_CROSS_ENTROPY = Formula(ops.soft_cross_entropy.default, _save_soft, _soft_backward)


def scored_losses(formula: Formula, logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Calls an operator that returns losses and scores.

    `ScoredLosses` runs the formula of plain tensors without the Python code of torch.library. The
    step "two ops" of bench_scoring measures it.
    """
    if (
        torch.compiler.is_compiling()
        or type(logits) is not Tensor
        or torch._C._are_functorch_transforms_active()
    ):
        return formula.op(logits, *arguments)
    if logits.requires_grad and torch.is_grad_enabled():
        return ScoredLosses.apply(logits, formula, arguments)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return formula.op(logits, *arguments)


class ScoredLosses(torch.autograd.Function):
    """An operator and its formula, which both run below torch's dispatch of gradients."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, formula: Formula, arguments: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        """Calls the operator."""
        with torch._C._AutoDispatchBelowAutograd():
            output = formula.op(logits, *arguments)
        ctx.backward_of = formula.backward
        formula.save(ctx, (logits, *arguments), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
        """The gradient with respect to the logits."""
        if torch.is_grad_enabled():  # the gradient's own operator refuses a second derivative
            return ctx.backward_of(ctx, grad_loss)[0], None, None
        with torch._C._AutoDispatchBelowAutograd():
            return ctx.backward_of(ctx, grad_loss)[0], None, None


def refuse_second_derivative(loss: str, instead: str = "cross_entropy") -> None:
    """Raises an error where the graph of a gradient is wanted that was computed without one."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{loss} cannot be differentiated twice: its gradient has no derivative. Go backward "
            f"without create_graph=True, or use torch.nn.functional.{instead}."
        )


class StepLoss(torch.autograd.Function):
    """scored_cross_entropy_step_ and its gradient; soft_cross_entropy_step_ for probabilities.

    torch.library has no autograd formulas for operators that change their arguments, hence this
    class. The arguments are one object, since autograd looks at every argument, forward and
    backward. Returns loss, scores and correct; with `loss_only` the loss, since autograd wraps
    every result.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, arguments: StepArguments, loss_only: bool
    ) -> Tensor | tuple[Tensor, ...]:
        """Calls the operator and keeps the gradient."""
        gradient = _NEVER
        if ctx.needs_input_grad[0]:
            underflows = arguments.grad_scale is None and logits.dtype == torch.float16
            gradient = _LATER if underflows else _NOW
        ctx.is_soft = arguments.target.is_floating_point()
        if ctx.is_soft:
            found = marking_refusals(_soft_step, logits, *arguments.without_indices(), gradient)
        else:
            found = marking_refusals(_step, logits, *arguments, gradient)
        loss, scores, correct, grad_logits = found
        ctx.options, ctx.spent, ctx.columns = None, False, logits.dim() == 3 and in_columns(logits)
        ctx.set_materialize_grads(False)
        if gradient == _NOW:
            ctx.save_for_backward(grad_logits, arguments.grad_scale)
        elif gradient == _LATER:
            ctx.options = arguments.ignore_index, arguments.label_smoothing
            ctx.save_for_backward(
                logits,
                arguments.target,
                arguments.weight,
                arguments.second_target,
                arguments.lam,
                scores,
            )
        if loss_only:
            return loss  # type: ignore[no-any-return]
        ctx.mark_non_differentiable(scores, correct)
        return loss, scores, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
        """The gradient with respect to the logits."""
        if grad_loss is None:
            return None, None, None
        refuse_second_derivative("scored_cross_entropy")
        if ctx.options is not None:
            logits, target, weight, second_target, lam, scores = ctx.saved_tensors
            saved = scores[_NUM_COLUMNS:].view(-1, _NUM_SAVED)
            by_row = grad_loss * scores[_ROW_WEIGHT]
            if ctx.is_soft:
                grad = ops.soft_cross_entropy_backward(
                    by_row, logits, target, weight, ctx.options[1], saved
                )
            else:
                grad = ops.scored_cross_entropy_backward(
                    by_row, logits, target, weight, *ctx.options, saved, second_target, lam
                )
        else:
            grad, grad_scale = ctx.saved_tensors
            grad = scaled_gradient(ctx, grad, grad_loss, grad_scale)
        if ctx.columns:
            grad = grad.transpose(1, 2)
        return grad, None, None


class OrdinaryStep(NamedTuple):
    """The operator of an ordinary step, and what its errors name."""

    op: Callable[..., tuple[Tensor, ...]]
    again: str  # our loss that can go backward twice
    instead: str  # torch's loss


CROSS_ENTROPY_STEP = OrdinaryStep(_step, "scored_cross_entropy", "cross_entropy")
SOFT_CROSS_ENTROPY_STEP = CROSS_ENTROPY_STEP._replace(op=_soft_step)


class OrdinaryStepLoss(torch.autograd.Function):
    """`StepLoss` with `loss_only`, for what most steps are: its Python code shows in small batches.

    That is logits [B, C] but no float16, no `grad_scale`, outside of compiled code.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, step: OrdinaryStep, arguments: tuple[Any, ...]) -> Tensor:
        """Calls the operator with arguments in its order, and keeps the gradient."""
        gradient = _NOW if ctx.needs_input_grad[0] else _NEVER
        try:
            loss, _, _, grad_logits = step.op(logits, *arguments, gradient)
        except REFUSALS as error:
            mark_refusal(error)
            raise
        ctx.step, ctx.spent, ctx.columns = step, False, False
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_logits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The gradient with respect to the logits."""
        if grad_loss is None:
            return None, None, None
        _, again, instead = ctx.step
        refuse_second_derivative(again, instead)
        return scaled_gradient(ctx, ctx.saved_tensors[0], grad_loss, None, again), None, None


# Without the Python code of Function.apply, which is for tensors of torch.func's transforms.
apply_ordinary_step = super(torch.autograd.Function, OrdinaryStepLoss).apply


def scaled_gradient(
    ctx: Any,
    grad: Tensor,
    grad_loss: Tensor,
    grad_scale: Tensor | None,
    again: str = "scored_cross_entropy",
) -> Tensor:
    """The kept gradient times the incoming one: in place, so that a factor of 1 costs nothing.

    `again` is the function that can go backward twice.
    """
    if torch.compiler.is_compiling():
        # The compiler fuses this with what follows, and keeps what a graph saved unchanged.
        factor = grad_loss if grad_scale is None else grad_loss / grad_scale
        return (grad.to(factor.dtype) * _by_row(factor, grad, ctx.columns)).to(grad.dtype)
    if ctx.spent:
        raise RuntimeError(
            "the step's gradient was already used by a backward pass, which changed it in place. "
            f"Use {again} to go backward twice (retain_graph=True)."
        )
    ctx.spent = True
    if ctx.columns and grad_loss.dim() > 0:
        factor = grad_loss if grad_scale is None else grad_loss / grad_scale
        return grad.mul_(_by_row(factor, grad, columns=True))
    _scale(grad if grad.dim() == 2 else grad.flatten(0, 1), grad_loss, grad_scale)  # a view
    return grad


def _by_row(factor: Tensor, grad: Tensor, columns: bool) -> Tensor:
    """Returns a factor, 0-d or [R], in a shape that multiplies a gradient [R, C] or 3-D."""
    if factor.dim() == 0:
        return factor
    if columns:
        return factor.view(grad.shape[0], 1, grad.shape[2])
    return factor.view(*grad.shape[:-1], 1)
