# SPDX-License-Identifier: Apache-2.0
"""timm's training losses, one value per row instead of one per batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from torch import Tensor, nn

Losses = Callable[[Tensor, Tensor], Tensor]  # (output, target) -> [rows]


def row_losses(criterion: Any) -> Losses:
    """Returns a function whose mean is what `criterion` returns.

    Args:
        criterion: A loss of timm, `nn.CrossEntropyLoss` or `nn.BCEWithLogitsLoss`.

    Returns:
        A function of the logits [rows, classes] and the target that returns a loss per row [rows];
        of `JsdCrossEntropy`, per sample [rows / splits].

    Raises:
        TypeError: The loss of a row is not known, as of a loss that compares rows.
        ValueError: The criterion is no plain mean over rows.
    """
    kind = type(criterion)  # a subclass may compute something else
    if kind is JsdCrossEntropy:
        return _divergence(criterion, row_losses(criterion.cross_entropy_loss))
    if kind is LabelSmoothingCrossEntropy:
        return _cross_entropy(label_smoothing=criterion.smoothing)
    if kind is SoftTargetCrossEntropy:
        return lambda output, target: -(target * F.log_softmax(output, -1)).sum(-1)
    if kind is nn.CrossEntropyLoss:
        return _plain(criterion)
    is_known = kind.__module__.startswith("timm.loss") or kind is nn.BCEWithLogitsLoss
    if not is_known or not hasattr(criterion, "reduction"):
        raise TypeError(
            f"the task's criterion must be a mean over samples that is known here, got "
            f"{kind.__name__}. Pass prune_task(losses=) a function that takes the logits and the "
            "target and returns one loss per sample"
        )
    is_sum = bool(getattr(criterion, "sum_classes", False)) or criterion.reduction == "batchmean"
    if not is_sum and criterion.reduction != "mean":
        raise _no_mean(criterion)
    return _elements(criterion, is_sum)


def _elements(criterion: Any, is_sum: bool) -> Losses:
    """Of a criterion that can leave its losses unreduced, [rows] or [rows, classes]."""
    unreduced = copy.copy(criterion)
    unreduced.reduction = "none"
    if type(criterion) is BinaryCrossEntropy:
        unreduced.sum_classes = False

    def losses(output: Tensor, target: Tensor) -> Tensor:
        found: Tensor = unreduced(output, target)
        if found.dim() == 1:
            return found
        return found.flatten(1).sum(1) if is_sum else found.flatten(1).mean(1)

    return losses


def _plain(criterion: nn.CrossEntropyLoss) -> Losses:
    # With class weights, or rows that are ignored, the mean divides by what is left.
    if (criterion.weight, criterion.reduction, criterion.ignore_index) != (None, "mean", -100):
        raise _no_mean(criterion)
    return _cross_entropy(label_smoothing=criterion.label_smoothing)


def _cross_entropy(**options: Any) -> Losses:
    def losses(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none", **options)

    return losses


def _divergence(criterion: JsdCrossEntropy, first: Losses) -> Losses:
    """Of AugMix's loss: rows are ordered by split, and the first split is the clean images."""

    def losses(output: Tensor, target: Tensor) -> Tensor:
        splits = output.reshape(criterion.num_splits, -1, output.shape[-1])
        shares = splits.softmax(-1)
        mixture = shares.mean(0).clamp(1e-7, 1).log()
        divergence = F.kl_div(mixture.expand_as(shares), shares, reduction="none").sum(-1).mean(0)
        found: Tensor = first(splits[0], target[: splits.shape[1]]) + criterion.alpha * divergence
        return found

    return losses


def _no_mean(criterion: Any) -> ValueError:
    return ValueError(
        f"the task's criterion must be a mean over samples, got {type(criterion).__name__} with "
        f"reduction={criterion.reduction!r}, or with class weights or an ignore_index. Pass "
        "prune_task(losses=) a function that takes the logits and the target and returns one loss "
        "per sample"
    )
