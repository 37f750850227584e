# SPDX-License-Identifier: Apache-2.0
"""Scores from the backward pass, for losses that are not a cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dynprune_cuda._checks.arguments import FLOATING, as_float, check_dense
from dynprune_cuda._checks.batches import check_ids
from dynprune_cuda.pruner import Pruner
from dynprune_cuda.scores.table import ScoreTable

__all__ = ["track_gradient_norm"]

Sink = Pruner | ScoreTable | Callable[[Tensor, Tensor], Any]


def track_gradient_norm(
    tensor: Tensor, sample_ids: Tensor, into: Sink, *, scale: float | Tensor = 1.0
) -> RemovableHandle | None:
    """Records, per sample, the L2 norm of the gradient that flows through a tensor.

    This is GraNd (Paul, Ganguli & Dziugaite 2021) restricted to that tensor; of logits under
    cross-entropy it is EL2N. The gradient itself is not changed, and nothing waits for the device.
    The norms are recorded when the backward pass reaches the tensor, once per backward pass.

        features = backbone(images)
        track_gradient_norm(features, ids, pruner, scale=len(ids))
        loss_of(features).mean().backward()

    Args:
        tensor: [B, ...] floating point. If it needs no gradient, as in an evaluation under
            torch.no_grad(), nothing happens.
        sample_ids: [B] any integer dtype, on the CPU or on the device of the scores.
        into: A `Pruner` or a `ScoreTable`, or a function of (sample_ids, norms).
        scale: Factor of the norms, finite: the batch size undoes the 1/B of a mean loss, 1 /
            loss_scale that of a loss scaler. A number, or a 0-d tensor.

    Returns:
        A handle whose remove() takes the hook away again, or None if there is no gradient to track.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A dtype or a shape is wrong, or the lengths differ.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, got {type(tensor).__name__}")
    check_dense("tensor", tensor)
    check_ids(sample_ids)
    if tensor.dtype not in FLOATING:
        raise ValueError(f"tensor must have a floating-point dtype, got {tensor.dtype}")
    if tensor.dim() == 0 or len(tensor) != len(sample_ids):
        raise ValueError(
            f"tensor must have {len(sample_ids)} rows, one per sample id, got shape "
            f"{tuple(tensor.shape)}"
        )
    if not isinstance(scale, Tensor):
        scale = as_float("scale", scale, low=-torch.finfo(torch.float32).max)
    else:
        check_dense("scale", scale)
        if scale.dim() != 0:
            raise ValueError(f"scale must be 0-d, got shape {tuple(scale.shape)}")
        if scale.is_complex() or scale.device not in (tensor.device, torch.device("cpu")):
            raise ValueError(
                f"scale must be real, and on {tensor.device} or the CPU, got {scale.dtype} on "
                f"{scale.device}"
            )
    if isinstance(into, Pruner):
        enter: Callable[[Tensor, Tensor], Any] = into.observe
    elif isinstance(into, ScoreTable):
        enter = into.update
    elif callable(into):
        enter = into
    else:
        raise TypeError(
            f"into must be a Pruner, a ScoreTable or a function, got {type(into).__name__}"
        )
    if not tensor.requires_grad:
        return None

    def record(gradient: Tensor) -> None:
        with torch.no_grad():
            rows = (
                gradient.detach().flatten(1) if gradient.dim() > 1 else gradient.detach()[:, None]
            )
            compute = torch.float64 if rows.dtype == torch.float64 else torch.float32
            enter(sample_ids, torch.linalg.vector_norm(rows, dim=1, dtype=compute) * scale)

    handle: RemovableHandle = tensor.register_hook(record)  # type: ignore[no-untyped-call]
    return handle
