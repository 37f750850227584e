# SPDX-License-Identifier: Apache-2.0
"""A training step's loss, gradient, scores and score update; public through `functional`."""

from __future__ import annotations

from torch import Tensor, int32

from dynprune_cuda._checks.arguments import (
    FLOATING,
    WAY_OUT,
    as_choice,
    as_float,
    check_tensor,
    check_vector,
)
from dynprune_cuda._ops.contract import StepColumn
from dynprune_cuda.functional.cross_entropy import (
    LOSS_REDUCTIONS,
    SCORES,
    ReductionName,
    ScoredLoss,
    ScoreName,
    as_rows,
)
from dynprune_cuda.functional.row_reductions import RowReductionName, as_row_rule
from dynprune_cuda.functional.score_updates import (
    FIRST_VISITS,
    FirstVisit,
    check_columns,
    check_updatable,
    refuse_shared_memory,
)
from dynprune_cuda.functional.step_loss import LossOptions, TableOptions, loss_terms, step_loss

# As plain ints: torch.compile traces no index by an enum.
_EL2N, _ENTROPY, _MARGIN = map(int, (StepColumn.EL2N, StepColumn.ENTROPY, StepColumn.MARGIN))


def scored_cross_entropy_step_(
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
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
    non_finite_count: Tensor | None = None,
    last_non_finite: Tensor | None = None,
    last_correct: Tensor | None = None,
    forget_count: Tensor | None = None,
    grad_scale: Tensor | None = None,
    ticket: Tensor | None = None,
    class_dim: int = 1,
    token_weight: Tensor | None = None,
    num_items: float | Tensor | None = None,
) -> ScoredLoss:
    """A training step's loss, scores, gradient and score update in one go; one launch on CUDA.

    The same as `scored_cross_entropy`, the loss weighted and reduced, and `update_scores_` with one
    of the scores; ignored rows leave their samples alone. The gradient is computed with the loss. A
    backward pass only multiplies it, in place, if the incoming gradient is not 1. For gradients
    that differ from row to row, prefer `scored_cross_entropy`.

    The gradients of float16 logits without `grad_scale` would underflow before a loss scaler lifts
    them. They are therefore computed in the backward pass. There is one backward pass per call, and
    no second derivative. On CUDA, batches of more than 512 rows take a few small launches more.

    Args:
        logits: [B, C] or of another shape, see `scored_cross_entropy`, as for `target`, `weight`,
            `ignore_index`, `label_smoothing`, `target_b`, `lam` and `class_dim`. On CUDA a target
            out of range makes the row count for nothing.
        target: One per row, or probabilities in the shape of `logits`.
        sample_ids: [B] int64, or in the shape of `target`; see `update_scores_`, as for `mean`,
            `variance`, `count`, `alpha`, `first_visit`, `row_reduction`, `non_finite_count`,
            `last_non_finite`, `last_correct`, `forget_count`.
        mean: [N].
        variance: [N].
        count: [N].
        alpha: In (0, 1].
        score: The score that is averaged: "loss" (of the row, before sample weights), "el2n",
            "entropy", or "margin" (its negative, so that small margins rank high).
        first_visit: "zero" or "published".
        row_reduction: "mean", "sum", "max" or a float in (0, 1]. Ignored rows count for nothing. A
            sample of which all rows are ignored keeps its score.
        sample_weight: In the shape of `sample_ids`, floating point, or None; factor of the losses
            of a sample's rows, not of its scores. Does not change what "mean" divides by.
        reduction: "mean", "sum", "none", or "sample": the mean over the samples with a row that
            counts of each one's own mean. Equal ids are one sample; each -1 is one by itself.
        weight: [C] or None.
        ignore_index: Target of rows that count for nothing.
        label_smoothing: In [0, 1].
        target_b: [B] or None.
        lam: Float, 0-d or [B].
        non_finite_count: [N] int32, or None.
        last_non_finite: [N] bool, or None.
        last_correct: [N] bool, or None.
        forget_count: [N] int32, or None.
        grad_scale: 0-d, or None: the gradient that backward will get, if it is known, such as the
            scale of a torch.amp.GradScaler. Any other gradient gives the right result too, but for
            float16 logits, where what underflows at this scale is lost.
        ticket: int32 [1] of zeros on the device, or None; left zero. On CUDA it saves the launch
            that clears a new one. Calls that share it must not run at the same time.
        class_dim: 1, or -1 for the last dimension.
        token_weight: One per row, in the shape of class indices, floating point, or None; factor of
            a row's loss beside `sample_weight`.
        num_items: What "mean" or "sample" divides by, instead of what is in this batch: the number
            of rows or samples of all accumulation steps. A number above 0, or a 0-d tensor.

    Returns:
        A `ScoredLoss`; its loss is 0-d but for "none".
    """
    columns = check_columns(
        mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count
    )
    alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
    as_choice("score", score, SCORES)
    as_choice("first_visit", first_visit, FIRST_VISITS)
    check_tensor("logits", logits, FLOATING, WAY_OUT)
    if mean.device != logits.device:
        raise ValueError(f"mean must be on {logits.device}, got {mean.device}")
    given = {"logits": logits, "target": target, "sample_ids": sample_ids}
    refuse_shared_memory(columns, **given, sample_weight=sample_weight, ticket=ticket)
    if ticket is not None:
        check_vector("ticket", ticket, (int32,), mean, 1)
        check_updatable("ticket", ticket)
    as_choice("reduction", reduction, LOSS_REDUCTIONS)
    rows, target_b, lam = as_rows(logits, target, class_dim, target_b, lam)
    rows_per_id = 1
    if rows is not None:
        logits, target = rows.logits, rows.target
        sample_ids, rows_per_id = rows.entries(sample_ids)
        sample_weight = rows.like_entries("sample_weight", sample_weight, rows_per_id)
        if token_weight is not None:
            token_weight = rows.flat("token_weight", token_weight)
    options = LossOptions(weight, ignore_index, label_smoothing, target_b, lam)
    terms = loss_terms(
        logits, target, sample_ids, rows_per_id, reduction, num_items, token_weight, options
    )
    rule = as_row_rule(row_reduction)
    table = TableOptions(
        ticket, alpha, first_visit == "published", SCORES.index(score), rule, rows_per_id
    )
    loss, scores, correct = step_loss(
        logits,
        target,
        sample_ids,
        columns,
        table,
        options,
        terms,
        loss_only=False,
        sample_weight=sample_weight,
        grad_scale=grad_scale,
    )
    by_column = scores.unbind(0)
    scored = ScoredLoss(loss, by_column[_EL2N], by_column[_ENTROPY], by_column[_MARGIN], correct)
    if rows is None:
        return scored
    return ScoredLoss._make(
        x if x is loss and loss.dim() == 0 else x.view(rows.shape) for x in scored
    )
