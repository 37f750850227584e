# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled operators; their fake kernels and autograd formulas."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

OLDEST_TORCH = (2, 11)


def _load() -> ModuleType:
    """Imports the compiled module, or says what is wrong with this installation."""
    running = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if running < OLDEST_TORCH:
        raise ImportError(
            f"dynprune_cuda needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, and torch "
            f"{torch.__version__} is installed. Install a newer torch, then dynprune_cuda again."
        )
    try:
        return importlib.import_module("dynprune_cuda._C")
    except ModuleNotFoundError as error:
        if error.name != "dynprune_cuda._C":
            raise
        raise ImportError(
            "the compiled module dynprune_cuda._C is missing: the package was not built. Run "
            "`pip install --no-build-isolation .` in the source tree, and import it from outside "
            "that tree (or install with -e)."
        ) from error
    except ImportError as error:
        raise ImportError(
            f"the compiled module dynprune_cuda._C cannot be loaded with torch {torch.__version__} "
            f"(CUDA {torch.version.cuda or 'none'}); it was built for another torch. Build it "
            "again with `pip install --no-build-isolation --force-reinstall --no-deps .`. "
            f"The loader says: {error}"
        ) from error


compiled = _load()
ops = torch.ops.dynprune_cuda

# Of one overload each: calling the packet looks for it every time.
_step = ops.scored_cross_entropy_step_.default
_scale = ops.scale_gradient_.default

# When scored_cross_entropy_step_ computes the gradient.
NEVER, NOW, LATER = 0, 1, 2


def _select_fake(k_index: int) -> Any:
    """A fake selection: k int64 ids on the device of the first tensor."""

    def fake(first: Tensor, *arguments: Any) -> Tensor:
        return first.new_empty((arguments[k_index],), dtype=torch.int64)

    return fake


def _keys_fake(first: Tensor, *_arguments: Any) -> Tensor:
    return first.new_empty((first.shape[0],), dtype=torch.int32)


def _shard_digit_counts_fake(keys: Tensor, *arguments: Any) -> Tensor:
    bits = 10 if arguments[3] % 3 == 2 else 11
    return keys.new_empty((1 << bits,), dtype=torch.int64)


def _shard_bracket_fake(values: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    capacity = arguments[8]
    return (
        values.new_empty(((values.shape[0] + 63) // 64,), dtype=torch.int64),
        values.new_empty((capacity,), dtype=torch.int64),
        values.new_empty((capacity,), dtype=torch.int32),
        values.new_empty((4,), dtype=torch.int64),
    )


def _shard_candidate_counts_fake(words: Tensor, _state: Tensor, _shift: int, bits: int) -> Tensor:
    return words.new_empty((1 << bits,), dtype=torch.int64)


def _take_errors_fake(like: Tensor) -> Tensor:
    return like.new_empty((3, 2), dtype=torch.int64)


def _nothing_fake(*_arguments: Any) -> None:
    return None


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _scored_cross_entropy_fake(logits: Tensor, *_arguments: Any) -> tuple[Tensor, ...]:
    rows, dtype = logits.shape[0], _compute_dtype(logits)
    loss, el2n, entropy, margin = (logits.new_empty((rows,), dtype=dtype) for _ in range(4))
    correct = logits.new_empty((rows,), dtype=torch.bool)
    return loss, el2n, entropy, margin, correct, logits.new_empty((rows, 4), dtype=dtype)


def _scored_cross_entropy_backward_fake(
    _grad_loss: Tensor, logits: Tensor, *_arguments: Any
) -> Tensor:
    return logits.new_empty(logits.shape)


def _scored_cross_entropy_step_fake(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    (rows, classes), dtype = logits.shape, _compute_dtype(logits)
    reduction, gradient = arguments[13], arguments[-1]
    return (
        logits.new_empty((rows,) if reduction == 0 else (), dtype=dtype),
        logits.new_empty((9 if gradient == LATER else 5, rows), dtype=dtype),
        logits.new_empty((rows,), dtype=torch.bool),
        logits.new_empty((rows, classes) if gradient == NOW else (0,)),
    )


_FAKES = {
    "select_ranked": _select_fake(4),
    "select_uniform": _select_fake(1),
    "shard_keys": _keys_fake,
    "shard_digit_counts": _shard_digit_counts_fake,
    "shard_positions": _select_fake(2),
    "shard_sample": _select_fake(5),
    "shard_bracket": _shard_bracket_fake,
    "shard_candidate_counts": _shard_candidate_counts_fake,
    "shard_add_candidates_": _nothing_fake,
    "shard_list": _select_fake(0),
    "permutation_part": _select_fake(3),
    "scored_cross_entropy": _scored_cross_entropy_fake,
    "scored_cross_entropy_backward": _scored_cross_entropy_backward_fake,
    "scored_cross_entropy_step_": _scored_cross_entropy_step_fake,
    "scale_gradient_": _nothing_fake,
    "update_scores_": _nothing_fake,
    "take_errors": _take_errors_fake,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"dynprune_cuda::{_name}", _fake)


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
    return grad, *(None,) * 6


torch.library.register_autograd(
    "dynprune_cuda::scored_cross_entropy", _backward, setup_context=_save_for_backward
)


def _second_backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "scored_cross_entropy cannot be differentiated twice: its gradient has no derivative. Use "
        "torch.nn.functional.cross_entropy for second derivatives."
    )


torch.library.register_autograd("dynprune_cuda::scored_cross_entropy_backward", _second_backward)


class _NoSecondDerivative(torch.autograd.Function):
    """The identity, which refuses to be differentiated."""

    @staticmethod
    def forward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    backward = staticmethod(_second_backward)


class StepLoss(torch.autograd.Function):
    """scored_cross_entropy_step_ and its gradient.

    torch.library has no autograd formulas for operators that change their arguments, hence this
    class. `arguments`: a tuple of the operator's arguments but the first and the last; one object,
    since autograd looks at every argument, forward and backward. Returns loss, scores and correct;
    with `loss_only` the loss, since autograd wraps every result.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, arguments: tuple[Any, ...], loss_only: bool
    ) -> Tensor | tuple[Tensor, ...]:
        """Calls the operator and keeps the gradient."""
        grad_scale = arguments[-1]
        gradient = NEVER
        if ctx.needs_input_grad[0]:
            underflows = grad_scale is None and logits.dtype == torch.float16
            gradient = LATER if underflows else NOW
        loss, scores, correct, grad_logits = _step(logits, *arguments, gradient)
        ctx.options, ctx.spent = None, False
        ctx.set_materialize_grads(False)
        if gradient == NOW:
            ctx.save_for_backward(grad_logits, grad_scale)
        elif gradient == LATER:
            target, weight, second_target, lam = (arguments[i] for i in (0, 15, 18, 19))
            ctx.options = arguments[16:18]  # ignore_index, label_smoothing
            ctx.save_for_backward(logits, target, weight, second_target, lam, scores)
        if loss_only:
            return loss  # type: ignore[no-any-return]
        ctx.mark_non_differentiable(scores, correct)
        return loss, scores, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
        """The gradient with respect to the logits."""
        if grad_loss is None:
            return None, None, None
        if ctx.options is not None:
            logits, target, weight, second_target, lam, scores = ctx.saved_tensors
            saved = scores[5:].view(-1, 4)
            grad = ops.scored_cross_entropy_backward(
                grad_loss * scores[4],
                logits,
                target,
                weight,
                *ctx.options,
                saved,
                second_target,
                lam,
            )
        else:
            grad, grad_scale = ctx.saved_tensors
            grad = _scaled(ctx, grad, grad_loss, grad_scale)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad = _NoSecondDerivative.apply(grad.requires_grad_())
        return grad, None, None


def _scaled(ctx: Any, grad: Tensor, grad_loss: Tensor, grad_scale: Tensor | None) -> Tensor:
    """The kept gradient times the incoming one: in place, so that a factor of 1 costs nothing."""
    if torch.compiler.is_compiling():
        # The compiler fuses this with what follows, and keeps what a graph saved unchanged.
        factor = grad_loss if grad_scale is None else grad_loss / grad_scale
        product = grad.to(factor.dtype) * (factor if factor.dim() == 0 else factor[:, None])
        return product.to(grad.dtype)
    if ctx.spent:
        raise RuntimeError(
            "the step's gradient was already used by a backward pass, which changed it in place. "
            "Use scored_cross_entropy to go backward twice (retain_graph=True)."
        )
    ctx.spent = True
    _scale(grad, grad_loss, grad_scale)
    return grad
