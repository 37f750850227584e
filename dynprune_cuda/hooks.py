# SPDX-License-Identifier: Apache-2.0
"""Scores from the backward pass, for losses that are not a cross-entropy."""

from __future__ import annotations

import math
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

    The shape of the ids says what has a norm. With ids [B], a tensor [B, T, D] has one norm for
    each sample, over all its T D elements. With ids [B, T], it has one for each row of D elements.
    The rows of a sample are then one visit, and `row_reduction` of the pruner or the table makes
    one score of their norms. The gradient of an ignored token is 0, and counts as a norm of 0: give
    such rows the id -1.

    Args:
        tensor: [B, ...] floating point. If it needs no gradient, as in an evaluation under
            torch.no_grad(), nothing happens.
        sample_ids: [B], or in the shape of the first dimensions of `tensor`; any integer dtype, on
            the CPU or on the device of the scores. The same id may occur several times.
        into: A `Pruner` or a `ScoreTable`, or a function of (sample_ids, norms), both 1-D.
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
    check_ids(sample_ids, any_shape=True)
    if tensor.dtype not in FLOATING:
        raise ValueError(f"tensor must have a floating-point dtype, got {tensor.dtype}")
    rows = sample_ids.shape
    if not rows or tensor.shape[: len(rows)] != rows:
        raise ValueError(
            f"sample_ids must have shape {tuple(tensor.shape[:1])}, or that of more of the first "
            f"dimensions of tensor, {tuple(tensor.shape)}, got {tuple(rows)}"
        )
    if len(rows) > 1:
        sample_ids = sample_ids.flatten()
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
            compute = torch.float64 if gradient.dtype == torch.float64 else torch.float32
            # Without elements, reshape cannot tell how many a row has.
            elements = math.prod(gradient.shape[len(rows) :])
            by_row = gradient.detach().reshape(len(sample_ids), elements)
            enter(sample_ids, torch.linalg.vector_norm(by_row, dim=1, dtype=compute) * scale)

    handle: RemovableHandle = tensor.register_hook(record)  # type: ignore[no-untyped-call]
    return handle
