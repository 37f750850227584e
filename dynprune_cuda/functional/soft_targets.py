# SPDX-License-Identifier: Apache-2.0
"""Class probabilities as targets: when a target is one, and what it must be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import FLOATING, WAY_OUT, as_int, check_tensor


def is_soft(target: Any) -> bool:
    """Returns whether a target holds probabilities, not class indices: by its dtype, as torch."""
    return isinstance(target, Tensor) and target.is_floating_point()


def check_soft_shape(logits: Tensor, target: Tensor) -> None:
    """Refuses probabilities in another shape than that of logits, with a ValueError."""
    if target.shape != logits.shape:
        raise ValueError(
            f"target must be int64, or probabilities in the shape of logits, "
            f"{tuple(logits.shape)}, got {target.dtype} of shape {tuple(target.shape)}; {WAY_OUT}"
        )


def check_soft(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    target_b: Tensor | None,
    lam: float | Tensor | None,
) -> None:
    """Refuses what probabilities [R, C] cannot be, or cannot be used with.

    Args:
        logits: [R, C] floating point.
        target: Floating point.
        ignore_index: As given.
        target_b: As given.
        lam: As given.

    Raises:
        TypeError: `ignore_index` has the wrong type.
        ValueError: Anything else is wrong; names what to use instead.
    """
    check_tensor("target", target, FLOATING, WAY_OUT)
    check_soft_shape(logits, target)
    if logits.shape[-1] >= 1 << 31:
        raise ValueError(
            f"logits must have fewer than 2^31 classes if target holds probabilities, got "
            f"{logits.shape[-1]}"
        )
    if target.device != logits.device:
        raise ValueError(f"target must be on {logits.device}, got {target.device}")
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "target must not require a gradient: this loss has none for it; detach it, or use "
            "torch.nn.functional.cross_entropy and Pruner.observe"
        )
    if as_int("ignore_index", ignore_index) >= 0:
        raise ValueError(
            f"ignore_index must be negative with probabilities as target, got {ignore_index}. Give "
            "rows that do not count weight 0 and id -1, and pass num_items"
        )
    if target_b is not None or lam is not None:
        raise ValueError(
            "target_b and lam need class indices, got a target of probabilities: mix the "
            "probabilities, lam * target + (1 - lam) * target_b"
        )


def as_stored(target: Tensor, logits: Tensor) -> Tensor:
    """Returns probabilities in a dtype that the operators read beside these logits."""
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    target = target.detach()
    return target if target.dtype in (logits.dtype, compute) else target.to(compute)
