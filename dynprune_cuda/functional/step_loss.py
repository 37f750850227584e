# SPDX-License-Identifier: Apache-2.0
"""The fused step with its arguments in rows: checks, reductions, and the operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynprune_cuda._checks.arguments import (
    FLOATING,
    INTEGER,
    TRANSFORMS,
    are_ordinary,
    as_choice,
    as_float,
    check_tensor,
    check_vector,
    refuse_transforms,
)
from dynprune_cuda._checks.batches import is_readable
from dynprune_cuda._ops import StepLoss
from dynprune_cuda._ops.contract import StepArguments
from dynprune_cuda.functional.cross_entropy import (
    LOSS_REDUCTIONS,
    REDUCTIONS,
    SCORES,
    check_cross_entropy,
    compute_dtype,
    mean_weights,
    refuse_gradient,
)
from dynprune_cuda.functional.row_reductions import MEAN, sample_shares
from dynprune_cuda.functional.score_updates import ScoreColumns, update_scores_
from dynprune_cuda.functional.soft_targets import as_stored, is_soft


class TableOptions(NamedTuple):
    """How a step updates the table, in the order of `StepArguments`."""

    ticket: Tensor | None
    alpha: float
    published_first_visit: bool
    score: int  # a `Score`
    row_rule: int | float  # a `RowReduction`, or a share: see `top_rows`
    rows_per_id: int  # rows of logits, which follow each other


class LossOptions(NamedTuple):
    """Options of the loss, in the order of `StepArguments`; see `scored_cross_entropy`."""

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    target_b: Tensor | None
    lam: float | Tensor | None


class LossTerms(NamedTuple):
    """How the losses of the rows become one, in the order of the operator."""

    reduction: str  # of `REDUCTIONS`
    token_weight: Tensor | None  # [R]
    divisor: Tensor | None  # 0-d, of a mean


# Of an ordinary step, by the reduction.
PLAIN_TERMS = {reduction: LossTerms(reduction, None, None) for reduction in REDUCTIONS}


def loss_terms(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    rows_per_id: int,
    reduction: str,
    num_items: float | Tensor | None,
    token_weight: Tensor | None,
    options: LossOptions,
) -> LossTerms:
    """Returns what a reduction of `LOSS_REDUCTIONS` is for the operator, without waiting.

    Args:
        logits: [R, C], or [B, D, C] for R rows.
        target: [R].
        sample_ids: [R / rows_per_id]; read for "sample" only.
        rows_per_id: Rows of an id, which follow each other.
        reduction: One of `LOSS_REDUCTIONS`.
        num_items: What "mean" or "sample" divides by; None: what is in this batch.
        token_weight: [R], or None.
        options: Options of the loss.
    """
    as_choice("reduction", reduction, LOSS_REDUCTIONS)
    if num_items is None and reduction != "sample":
        return LossTerms(reduction, token_weight, None)
    if reduction not in ("mean", "sample"):
        raise ValueError(f"num_items needs reduction='mean' or 'sample', got {reduction!r}")
    weight, ignore_index, _, target_b, lam = check_cross_entropy(logits, target, *options)
    compute, divisor = compute_dtype(logits), None
    if reduction == "sample":
        check_vector("sample_ids", sample_ids, (torch.int64,), logits, len(target) // rows_per_id)
        weights = mean_weights(target, weight, ignore_index, target_b, lam).to(compute)
        factors, divisor = sample_shares(sample_ids, rows_per_id, weights)
        if token_weight is None:
            token_weight = factors
        else:
            check_vector("token_weight", token_weight, FLOATING, logits, len(target))
            refuse_gradient("token_weight", token_weight)
            token_weight = factors * token_weight.detach().to(compute)
    if num_items is not None:
        divisor = as_divisor(num_items, logits.device, compute)
    return LossTerms("mean", token_weight, divisor)


def as_divisor(num_items: float | Tensor, device: torch.device, compute: torch.dtype) -> Tensor:
    """Returns `num_items` as a 0-d tensor that a mean divides by, checked."""
    if not isinstance(num_items, Tensor):
        number = as_float("num_items", num_items, low=0.0, above_low=True)
        return torch.full((), number, dtype=compute, device=device)
    check_tensor("num_items", num_items, (*FLOATING, *INTEGER))
    if num_items.numel() != 1 or num_items.device != device:
        raise ValueError(
            f"num_items must be 0-d on {device}, got shape {tuple(num_items.shape)} on "
            f"{num_items.device}"
        )
    if is_readable(num_items):
        as_float("num_items", num_items.item(), low=0.0, above_low=True)
    return num_items.detach().reshape(()).to(compute)


def step_loss(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    columns: ScoreColumns,
    table: TableOptions,
    options: LossOptions,
    terms: LossTerms,
    *,
    loss_only: bool,
    sample_weight: Tensor | None,
    grad_scale: Tensor | None,
) -> Any:
    """The step with a table that was checked already.

    Args:
        logits: [R, C], or [B, D, C] for R rows.
        target: [R], or probabilities [R, C].
        sample_ids: [R / table.rows_per_id].
        columns: The table.
        table: How it is updated.
        options: Options of the loss.
        terms: Terms of its reduction.
        loss_only: Whether only the loss is wanted.
        sample_weight: As `sample_ids`, or None.
        grad_scale: 0-d, or None.

    Returns:
        The loss, 0-d or [R], or without `loss_only` loss, scores [5 or more, R] and correct.
    """
    if isinstance(table.row_rule, float):
        return _step_then_update(
            logits,
            target,
            sample_ids,
            columns,
            table,
            options,
            terms,
            loss_only=loss_only,
            sample_weight=sample_weight,
            grad_scale=grad_scale,
        )
    reduction, token_weight, divisor = terms
    weight, ignore_index, label_smoothing, target_b, lam = options
    # _check_step makes a tensor of lam.
    arguments = StepArguments._make(
        (
            target,
            sample_ids,
            *columns,
            *table,
            REDUCTIONS.index(reduction),
            sample_weight,
            token_weight,
            divisor,
            *options,
            grad_scale,
        )
    )
    if (
        are_ordinary((logits, target, sample_ids))
        and sample_weight is None
        and token_weight is None
        and weight is None
        and target_b is None
        and lam is None
        and not target.is_floating_point()
        and grad_scale is None
        and type(ignore_index) is int
        and type(label_smoothing) is float
        and forward_ad._current_level < 0
    ):
        # An ordinary step. The operator checks its arguments before it changes anything, but names
        # less of them: the checks in Python run only after it has refused. Its kernels for meta
        # tensors and subclasses, such as fake tensors, refuse nothing.
        try:
            return _apply_step(logits, arguments, columns, loss_only)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            refusal = error
        try:
            _check_step(logits, arguments)
            raise refusal
        finally:
            del refusal  # which holds this frame, and with it the batch
    return _apply_step(logits, _check_step(logits, arguments), columns, loss_only)


def _step_then_update(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    columns: ScoreColumns,
    table: TableOptions,
    options: LossOptions,
    terms: LossTerms,
    *,
    loss_only: bool,
    **others: Any,
) -> Any:
    """The step for a share of each sample's rows, which all rows together decide."""
    check_vector("sample_ids", sample_ids, (torch.int64,), columns.mean, None)
    loss, scores, correct = step_loss(
        logits,
        target,
        torch.full_like(sample_ids, -1),
        columns,
        table._replace(row_rule=MEAN),
        options,
        terms,
        loss_only=False,
        **others,
    )
    values = scores[table.score]
    if table.rows_per_id > 1:
        sample_ids = sample_ids[:, None].expand(-1, table.rows_per_id).flatten()
    for labels in (target, options.target_b):
        if labels is not None and not is_soft(labels):
            labels = labels.long()  # torch compares uint8 modulo 256
            in_range = (labels >= 0) & (labels < logits.shape[-1])
            counts = in_range & (labels != options.ignore_index)
            sample_ids = sample_ids.masked_fill(~counts, -1)
    tracked = columns.last_correct is not None
    update_scores_(
        **columns._asdict(),
        sample_ids=sample_ids,
        values=-values if SCORES[table.score] == "margin" else values,
        alpha=table.alpha,
        first_visit="published" if table.published_first_visit else "zero",
        correct=correct if tracked else None,
        row_reduction=table.row_rule,
    )
    return loss if loss_only else (loss, scores, correct)


def _apply_step(
    logits: Tensor, arguments: StepArguments, columns: ScoreColumns, loss_only: bool
) -> Any:
    result = StepLoss.apply(logits, arguments, loss_only)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(columns.present())
    return result


def _check_step(logits: Tensor, arguments: StepArguments) -> StepArguments:
    """The arguments as the operator takes them, if they and the tensors are what they must be."""
    mean, grad_scale = arguments.mean, arguments.grad_scale
    if isinstance(logits, Tensor) and logits.device != mean.device:
        raise ValueError(f"logits must be on {mean.device}, as the scores are, got {logits.device}")
    weight, ignore_index, label_smoothing, second_target, lam = check_cross_entropy(
        logits,
        arguments.target,
        arguments.weight,
        arguments.ignore_index,
        arguments.label_smoothing,
        arguments.second_target,
        arguments.lam,
    )
    refuse_transforms("the scored step", TRANSFORMS)
    target, rows, compute = arguments.target, len(arguments.target), compute_dtype(logits)
    number = rows // arguments.rows_per_id
    check_vector("sample_ids", arguments.sample_ids, (torch.int64,), logits, number)
    weights: list[Tensor | None] = []
    for name, values, length in (
        ("sample_weight", arguments.sample_weight, number),
        ("token_weight", arguments.token_weight, rows),
    ):
        if values is not None:
            check_vector(name, values, FLOATING, logits, length)
            remedy = ", or multiply the losses of scored_cross_entropy by it"
            refuse_gradient(name, values, remedy)
            values = values.detach().to(compute)
        weights.append(values)
    if grad_scale is not None:
        check_tensor("grad_scale", grad_scale, FLOATING)
        if grad_scale.numel() != 1 or grad_scale.device != logits.device:
            raise ValueError(
                f"grad_scale must be 0-d on {logits.device}, got shape "
                f"{tuple(grad_scale.shape)} on {grad_scale.device}"
            )
        grad_scale = grad_scale.detach().to(compute)
    return arguments._replace(
        target=as_stored(target, logits) if is_soft(target) else target,
        sample_weight=weights[0],
        token_weight=weights[1],
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        second_target=second_target,
        lam=lam,
        grad_scale=grad_scale,
    )
