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


def _select_fake(k_index: int) -> Any:
    """A fake selection: k int64 ids on the device of the first tensor."""

    def fake(first: Tensor, *arguments: Any) -> Tensor:
        return first.new_empty((arguments[k_index],), dtype=torch.int64)

    return fake


def _take_errors_fake(like: Tensor) -> Tensor:
    return like.new_empty((3, 2), dtype=torch.int64)


def _update_scores_fake(*_arguments: Any) -> None:
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


_FAKES = {
    "select_top_k": _select_fake(0),
    "select_epsilon_greedy": _select_fake(0),
    "select_ucb": _select_fake(1),
    "select_ucb1": _select_fake(1),
    "select_weighted": _select_fake(0),
    "select_uniform": _select_fake(1),
    "scored_cross_entropy": _scored_cross_entropy_fake,
    "scored_cross_entropy_backward": _scored_cross_entropy_backward_fake,
    "update_scores_": _update_scores_fake,
    "take_errors": _take_errors_fake,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"dynprune_cuda::{_name}", _fake)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, ctx.ignore_index, ctx.label_smoothing = inputs
    _, *scores, saved = output
    ctx.mark_non_differentiable(*scores, saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, saved)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the logits; only the loss is differentiable."""
    if grad_loss is None:
        return (None,) * 5
    logits, target, weight, saved = ctx.saved_tensors
    options = (ctx.ignore_index, ctx.label_smoothing)
    grad = ops.scored_cross_entropy_backward(grad_loss, logits, target, weight, *options, saved)
    return grad, None, None, None, None


torch.library.register_autograd(
    "dynprune_cuda::scored_cross_entropy", _backward, setup_context=_save_for_backward
)


def _second_backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "scored_cross_entropy cannot be differentiated twice: its gradient has no derivative. Use "
        "torch.nn.functional.cross_entropy for second derivatives."
    )


torch.library.register_autograd("dynprune_cuda::scored_cross_entropy_backward", _second_backward)
