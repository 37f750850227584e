# SPDX-License-Identifier: Apache-2.0
"""Binary cross-entropy of several labels with scores; public through `functional`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynprune_cuda._checks.arguments import (
    FLOATING,
    GRADIENTS,
    TRANSFORMS,
    WAY_OUT,
    as_choice,
    as_float,
    check_dense,
    check_tensor,
    check_vector,
    refuse_transforms,
)
from dynprune_cuda._ops import (
    BINARY_CROSS_ENTROPY,
    BinaryArguments,
    BinaryStepLoss,
    checking_weights,
    scored_losses,
)
from dynprune_cuda._ops.contract import StepColumn
from dynprune_cuda.functional.cross_entropy import (
    LOSS_REDUCTIONS,
    REDUCTIONS,
    SCORES,
    ReductionName,
    ScoredLoss,
    ScoreName,
    compute_dtype,
    refuse_gradient,
)
from dynprune_cuda.functional.row_reductions import (
    MEAN,
    RowReductionName,
    as_row_rule,
    sample_shares,
)
from dynprune_cuda.functional.score_updates import (
    FIRST_VISITS,
    FirstVisit,
    ScoreColumns,
    check_columns,
    check_updatable,
    refuse_shared_memory,
    update_scores_,
)
from dynprune_cuda.functional.step_loss import TableOptions, as_divisor

# torch's function for the same loss.
TORCH_LOSS = "binary_cross_entropy_with_logits"

# As plain ints: torch.compile traces no index by an enum.
_EL2N, _ENTROPY, _MARGIN = map(int, (StepColumn.EL2N, StepColumn.ENTROPY, StepColumn.MARGIN))


class BinaryLabels(NamedTuple):
    """Logits, targets and weights as the operators take them."""

    logits: Tensor  # [B, L]
    target: Tensor  # [B, L]
    weight: Tensor | None  # [L] or [B, L], in the dtype of the loss
    pos_weight: Tensor | None  # [L], likewise


def scored_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: ReductionName = "none",
) -> ScoredLoss:
    """Binary cross-entropy of samples with several labels, and their scores, from one pass.

    The loss of a sample is the mean over its labels. Otherwise it is that of
    `torch.nn.functional.binary_cross_entropy_with_logits`, but for two limits. An infinite logit
    has loss 0 where a target of 0 or 1 agrees with it. A label of weight 0 counts for nothing.
    Arithmetic is in float32 (float64 for float64 logits) whatever the logits' dtype. Differentiable
    once, in reverse mode, with respect to the logits through the loss.

    With p = sigmoid(logits), and for each sample, the scores are:

    - `el2n`: the Euclidean norm of p - target over its labels;
    - `entropy`: the mean over its labels of the entropy of p, in nats;
    - `margin`: the least logit of the labels whose target is above 0.5, or minus the greatest
      logit of the others, whichever is less;
    - `correct`: whether `margin` is above 0: all labels are on their target's side of logit 0.

    `pos_weight`, and weights other than 0, change the loss, not the other scores. A NaN among the
    logits of a sample makes its loss and scores NaN.

    Args:
        logits: [B, L], or [B] for one label; float32, float16, bfloat16 or float64.
        target: In the shape of `logits`: any of these dtypes, or bool. Between 0 and 1; soft
            targets are allowed. A target that is NaN or outside [0, 1] is a ValueError on the CPU.
            On CUDA the loss and scores of its sample are NaN, its gradient is 0, and
            `check_errors` raises. The targets of labels of weight 0 are not looked at.
        weight: Factors of the labels' losses, in a shape that is broadcast to that of `logits`, or
            None. It does not change what "mean" divides by. With 0 for labels that are unknown, a
            sample without any known label has loss and scores 0.
        pos_weight: [L], or of one element: factors of the losses of positive labels, or None.
        reduction: "none": [B], one loss per sample. "mean" and "sum" as torch: over all labels.
            "sample" is the mean over the samples of each one's own mean. Each row is a sample here,
            so that it equals "mean"; `scored_binary_cross_entropy_step_` knows which rows are one.

    Returns:
        A `ScoredLoss` with one value per sample.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong dtype, shape, device or value.
    """
    labels = check_labels(logits, target, weight, pos_weight)
    refuse_transforms("scored_binary_cross_entropy", GRADIENTS, TORCH_LOSS)
    as_choice("reduction", reduction, LOSS_REDUCTIONS)
    scored = ScoredLoss(*checking_weights(scored_losses, BINARY_CROSS_ENTROPY, *labels))
    if reduction in ("mean", "sample"):
        return scored._replace(loss=scored.loss.mean())
    if reduction == "sum":
        return scored._replace(loss=scored.loss.sum() * labels.logits.shape[1])
    return scored


def scored_binary_cross_entropy_step_(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    *,
    alpha: float,
    score: ScoreName = "loss",
    first_visit: FirstVisit = "zero",
    row_reduction: RowReductionName = "mean",
    sample_weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    non_finite_count: Tensor | None = None,
    last_non_finite: Tensor | None = None,
    last_correct: Tensor | None = None,
    forget_count: Tensor | None = None,
    grad_scale: Tensor | None = None,
    ticket: Tensor | None = None,
    num_items: float | Tensor | None = None,
) -> ScoredLoss:
    """A training step's loss, scores, gradient and score update in one go; one launch on CUDA.

    The same as `scored_binary_cross_entropy`, the loss weighted and reduced, and `update_scores_`
    with one of the scores. The gradient is computed with the loss, while the logits are read. See
    `scored_cross_entropy_step_` for the backward pass and for float16. On CUDA, batches of more
    than 512 rows take a few small launches more.

    Args:
        logits: [B, L] or [B], see `scored_binary_cross_entropy`, as for `target`, `weight` and
            `pos_weight`. On CUDA, a target that is NaN or outside [0, 1] makes its row count for
            nothing.
        target: In the shape of `logits`.
        sample_ids: [B] int64; see `update_scores_`, as for `mean`, `variance`, `count`, `alpha`,
            `first_visit`, `row_reduction`, `non_finite_count`, `last_non_finite`, `last_correct`,
            `forget_count`.
        mean: [N].
        variance: [N].
        count: [N].
        alpha: In (0, 1].
        score: The score that is averaged: "loss" (before sample weights), "el2n", "entropy" or
            "margin" (its negative, so that small margins rank high).
        first_visit: "zero" or "published".
        row_reduction: "mean", "sum", "max" or a float in (0, 1], for ids that occur several times.
            A sample without any label of a weight other than 0 keeps its score.
        sample_weight: [B] floating point, or None; factors of the samples' losses, not of their
            scores. Does not change what "mean" divides by.
        reduction: "mean" and "sum" as torch, over all labels; "none": one loss per row; or
            "sample": the mean over the samples of each one's own mean. Equal ids are one sample;
            each -1 is one by itself.
        weight: Broadcast to the shape of `logits`, or None.
        pos_weight: [L], or of one element, or None.
        non_finite_count: [N] int32, or None.
        last_non_finite: [N] bool, or None.
        last_correct: [N] bool, or None.
        forget_count: [N] int32, or None.
        grad_scale: 0-d, or None: the gradient that backward will get, if it is known, such as the
            scale of a torch.amp.GradScaler.
        ticket: int32 [1] of zeros on the device, or None; see `scored_cross_entropy_step_`.
        num_items: What "mean" or "sample" divides by instead of the number of rows or samples of
            this batch: above 0, or a 0-d tensor.

    Returns:
        A `ScoredLoss`; its loss is 0-d but for "none".

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong dtype, shape, device or value.
        IndexError: An id is out of range (CPU; on CUDA `check_errors` raises).
    """
    columns = check_columns(
        mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count
    )
    alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
    as_choice("score", score, SCORES)
    as_choice("first_visit", first_visit, FIRST_VISITS)
    labels = check_labels(logits, target, weight, pos_weight)
    if mean.device != logits.device:
        raise ValueError(f"mean must be on {logits.device}, got {mean.device}")
    refuse_shared_memory(
        columns,
        logits=logits,
        target=target,
        sample_ids=sample_ids,
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ticket=ticket,
    )
    if ticket is not None:
        check_vector("ticket", ticket, (torch.int32,), mean, 1)
        check_updatable("ticket", ticket)
    published, rule = first_visit == "published", as_row_rule(row_reduction)
    loss, scores, correct = binary_step(
        labels,
        sample_ids,
        columns,
        TableOptions(ticket, alpha, published, SCORES.index(score), rule, rows_per_id=1),
        keys=sample_ids,
        reduction=reduction,
        num_items=num_items,
        sample_weight=sample_weight,
        grad_scale=grad_scale,
        loss_only=False,
    )
    by_column = scores.unbind(0)
    return ScoredLoss(loss, by_column[_EL2N], by_column[_ENTROPY], by_column[_MARGIN], correct)


def check_labels(logits: Any, target: Any, weight: Any, pos_weight: Any) -> BinaryLabels:
    """Returns the arguments as the operators take them, if they are what they must be."""
    check_tensor("logits", logits, FLOATING, WAY_OUT)
    if logits.dim() not in (1, 2):
        raise ValueError(
            f"logits must be [batch, labels] or [batch], got shape {tuple(logits.shape)}: flatten "
            f"logits and targets to two dimensions; {WAY_OUT}"
        )
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.dtype != torch.bool and target.dtype not in FLOATING:
        raise ValueError(
            f"target must have dtype float32, float16, bfloat16, float64, bool, got "
            f"{target.dtype}: pass target.to(logits.dtype), or use cross_entropy for class "
            f"indices; {WAY_OUT}"
        )
    check_dense("target", target)
    if target.shape != logits.shape:
        one_label = logits.dim() == 2 and logits.shape[1] == 1 and target.dim() == 1
        hint = ": pass target[:, None], or logits[:, 0]" if one_label else ""
        raise ValueError(
            f"target must have the shape of logits, {tuple(logits.shape)}, got "
            f"{tuple(target.shape)}{hint}; {WAY_OUT}"
        )
    if target.device != logits.device:
        raise ValueError(f"target must be on {logits.device}, got {target.device}")
    refuse_gradient("target", target)
    if not torch.compiler.is_compiling():
        tangent = forward_ad.unpack_dual(logits).tangent  # type: ignore[no-untyped-call]
        if tangent is not None:
            raise NotImplementedError(
                "logits carry a tangent, and this loss has no forward-mode derivative: use "
                f"torch.nn.functional.{TORCH_LOSS} for it"
            )
    shape = logits.shape
    if logits.dim() == 1:
        logits, target = logits[:, None], target[:, None]
    elif shape[1] == 0 and shape[0] > 0:
        raise ValueError(
            f"logits must have at least one label, got shape {tuple(shape)}; {WAY_OUT}"
        )
    if weight is not None:
        weight = _broadcast_weight(weight, logits, shape)
    if pos_weight is not None:
        check_tensor("pos_weight", pos_weight, FLOATING)
        refuse_gradient("pos_weight", pos_weight)
        number = logits.shape[1]
        one = pos_weight.numel() == 1 and pos_weight.dim() <= 1
        if (not one and pos_weight.shape != (number,)) or pos_weight.device != logits.device:
            raise ValueError(
                f"pos_weight must have shape ({number},), one per label, on {logits.device}, got "
                f"shape {tuple(pos_weight.shape)} on {pos_weight.device}; {WAY_OUT}"
            )
        pos_weight = pos_weight.detach().to(compute_dtype(logits)).expand(number)
    return BinaryLabels(logits, target, weight, pos_weight)


def _broadcast_weight(weight: Tensor, logits: Tensor, shape: torch.Size) -> Tensor:
    """Returns the weights of the labels, [L] or [B, L]; shape: that of the logits as given."""
    check_tensor("weight", weight, FLOATING)
    refuse_gradient("weight", weight)
    fits = weight.dim() <= len(shape) and all(
        size in (1, wanted)
        for size, wanted in zip(reversed(weight.shape), reversed(shape), strict=False)
    )
    if not fits or weight.device != logits.device:
        by_sample = weight.shape == shape[:1]
        remedy = "; for a factor of each sample, use sample_weight" if by_sample else ""
        raise ValueError(
            f"weight must be broadcast to shape {tuple(shape)} on {logits.device}, got shape "
            f"{tuple(weight.shape)} on {weight.device}{remedy}"
        )
    weight = weight.detach().to(compute_dtype(logits))
    if len(shape) == 2 and (weight.dim() < 2 or weight.shape[0] == 1):
        return weight.reshape(-1).expand(shape[1])  # of the labels of every row
    return weight.expand(shape).reshape(logits.shape)


def binary_step(
    labels: BinaryLabels,
    sample_ids: Tensor,
    columns: ScoreColumns,
    table: TableOptions,
    *,
    keys: Tensor,
    reduction: str,
    num_items: float | Tensor | None,
    sample_weight: Tensor | None,
    grad_scale: Tensor | None,
    loss_only: bool,
) -> Any:
    """The step with a table that was checked already.

    Args:
        labels: As `check_labels` returns them.
        sample_ids: The rows of the table, int64 [B].
        columns: The table.
        table: How it is updated.
        keys: int64 [B]: equal numbers for rows of one sample, -1 for none; for "sample".
        reduction: One of `LOSS_REDUCTIONS`.
        num_items: What "mean" or "sample" divides by; None: what is in this batch.
        sample_weight: [B], or None.
        grad_scale: 0-d, or None.
        loss_only: Whether only the loss is wanted.

    Returns:
        The loss, 0-d or [B], or without `loss_only` loss, scores [5, B] and correct.
    """
    logits, target, weight, pos_weight = labels
    as_choice("reduction", reduction, LOSS_REDUCTIONS)
    refuse_transforms("the scored step", TRANSFORMS, TORCH_LOSS)
    if logits.device != columns.mean.device:
        device = columns.mean.device
        raise ValueError(f"logits must be on {device}, as the scores are, got {logits.device}")
    check_vector("sample_ids", sample_ids, (torch.int64,), logits)
    compute, divisor = compute_dtype(logits), None
    if sample_weight is not None:
        check_vector("sample_weight", sample_weight, FLOATING, logits)
        remedy = ", or multiply the losses of scored_binary_cross_entropy by it"
        refuse_gradient("sample_weight", sample_weight, remedy)
        sample_weight = sample_weight.detach().to(compute)
    if reduction == "sample":
        shares, divisor = sample_shares(keys, 1, logits.new_ones(len(logits), dtype=compute))
        sample_weight = shares if sample_weight is None else shares * sample_weight
    if num_items is not None:
        if reduction not in ("mean", "sample"):
            raise ValueError(f"num_items needs reduction='mean' or 'sample', got {reduction!r}")
        divisor = as_divisor(num_items, logits.device, compute)
    if grad_scale is not None:
        check_tensor("grad_scale", grad_scale, FLOATING)
        if grad_scale.numel() != 1 or grad_scale.device != logits.device:
            raise ValueError(
                f"grad_scale must be 0-d on {logits.device}, got shape "
                f"{tuple(grad_scale.shape)} on {grad_scale.device}"
            )
        grad_scale = grad_scale.detach().to(compute)
    ticket, alpha, published, score, rule, _ = table
    by_share = isinstance(rule, float)  # the rows that remain are known when all are scored
    arguments = BinaryArguments(
        target,
        torch.full_like(sample_ids, -1) if by_share else sample_ids,
        *columns,
        ticket,
        alpha,
        published,
        score,
        MEAN if by_share else int(rule),
        REDUCTIONS.index("mean" if reduction == "sample" else reduction),
        sample_weight,
        divisor,
        weight,
        pos_weight,
        grad_scale,
    )
    result = BinaryStepLoss.apply(logits, arguments, loss_only and not by_share)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(columns.present())
    if not by_share:
        return result
    loss, scores, correct = result
    values = scores[score]
    update_scores_(
        **columns._asdict(),
        sample_ids=sample_ids.masked_fill(~_rows_that_count(labels), -1),
        values=-values if SCORES[score] == "margin" else values,
        alpha=alpha,
        first_visit="published" if published else "zero",
        correct=correct if columns.last_correct is not None else None,
        row_reduction=rule,
    )
    return loss if loss_only else result


def _rows_that_count(labels: BinaryLabels) -> Tensor:
    """Returns which rows have a label of a weight other than 0 and no wrong target, bool [B]."""
    logits, target, weight, _ = labels
    if target.is_floating_point():
        target = target.to(compute_dtype(logits))  # as the operators look at it
    sound = (target >= 0) & (target <= 1)
    if weight is None:
        return sound.all(1)
    counts = (weight != 0).expand(target.shape)
    return (sound | ~counts).all(1) & counts.any(1)
