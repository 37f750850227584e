# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy with scores, alone and as a training step; public through `functional`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynprune_cuda._checks.arguments import (
    FLOATING,
    GRADIENTS,
    TRANSFORMS,
    as_bool,
    as_choice,
    as_float,
    as_int,
    check_tensor,
    check_vector,
    refuse_transforms,
)
from dynprune_cuda._ops import StepLoss, ops
from dynprune_cuda._ops.contract import Reduction, Score, StepArguments, StepColumn
from dynprune_cuda.functional.score_updates import (
    FIRST_VISITS,
    FirstVisit,
    ScoreColumns,
    check_columns,
    check_updatable,
    refuse_shared_memory,
)

ReductionName = Literal["none", "mean", "sum"]
ScoreName = Literal["loss", "el2n", "entropy", "margin"]

# The names by number: tuple.index gives what the ops take.
REDUCTIONS = tuple(reduction.name.lower() for reduction in Reduction)
SCORES = tuple(score.name.lower() for score in Score)

# As plain ints: torch.compile traces no index by an enum.
_EL2N, _ENTROPY, _MARGIN = map(int, (StepColumn.EL2N, StepColumn.ENTROPY, StepColumn.MARGIN))

TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)


class ScoredLoss(NamedTuple):
    """What one read of the logits gives; B rows.

    The scores describe the plain softmax p and the target y, whatever the class weights, the label
    smoothing, the sample weights and the second target. Rows with a target `ignore_index` have loss
    and scores 0 and are not correct.

    Attributes:
        loss: [B] as torch.nn.functional.cross_entropy(reduction="none"), or 0-d reduced;
            differentiable. float32, or float64 for float64 logits, as the other scores.
        el2n: [B] Euclidean norm of p - onehot(y) (Paul, Ganguli & Dziugaite 2021, section 3).
        entropy: [B] of p, in nats.
        margin: [B] logit of the target minus the greatest other logit.
        correct: [B] bool, margin > 0; a tie for the greatest logit is not correct.
    """

    loss: Tensor
    el2n: Tensor
    entropy: Tensor
    margin: Tensor
    correct: Tensor


def scored_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: ReductionName = "none",
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
) -> ScoredLoss:
    """Cross-entropy and the scores that data pruning ranks by, from one pass.

    Arithmetic is in float32 (float64 for float64 logits) whatever the logits' dtype, and keeps its
    relative precision where the target's probability is near 1, which is where easy samples are
    ranked. Differentiable once, in reverse mode, with respect to the logits through the loss, with
    any gradient of the losses; rows whose gradient is 0 are not read again. Factors must not
    require a gradient.

    Args:
        logits: [B, C] float32, float16, bfloat16 or float64.
        target: [B] int64, int32 or uint8 class indices. Out of range: IndexError on the CPU; on
            CUDA loss and scores are NaN, the gradient is 0, and `check_errors` raises.
        weight: [C] class weights, or None; they scale the loss, not the scores.
        ignore_index: Target of rows without loss and scores. Their gradient is 0, also where their
            logits are not finite and torch's gradient is NaN.
        label_smoothing: In [0, 1]; as in torch.nn.functional.cross_entropy.
        reduction: "none", "sum", or "mean": the sum divided by the targets' class weights (by the
            number of rows that are not ignored, without class weights).
        target_b: [B] second class indices, as mixup and CutMix make them: the loss is lam * loss of
            target + (1 - lam) * loss of target_b (Zhang et al. 2018, arXiv:1710.09412), and so are
            the class weights in a mean. A row is ignored if either target is `ignore_index`. The
            second loss has float32's absolute, not relative, accuracy near 0.
        lam: Weight of the first target, in [0, 1]; a float, or a 0-d or [B] tensor.

    Returns:
        A `ScoredLoss`.
    """
    weight, *rest = _check_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing, target_b, lam
    )
    refuse_transforms("scored_cross_entropy", GRADIENTS)
    as_choice("reduction", reduction, REDUCTIONS)
    ignore_index, label_smoothing, target_b, mix = rest
    *scored, _saved = ops.scored_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing, target_b, mix
    )
    if reduction != "none":
        total = scored[0].sum()
        if reduction == "mean":
            total = total / mean_weight(target, weight, ignore_index, target_b, mix)
        scored[0] = total
    return ScoredLoss(*scored)


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
) -> ScoredLoss:
    """A training step's loss, scores, gradient and score update in one go; one launch on CUDA.

    The same as `scored_cross_entropy`, the loss weighted and reduced, and `update_scores_` with one
    of the scores; ignored rows leave their samples alone. The gradient is computed with the loss,
    so that a backward pass only multiplies it, in place, if the incoming gradient is not 1: for
    gradients that differ from row to row, prefer `scored_cross_entropy`. float16 logits without
    `grad_scale` are an exception: their gradients would underflow before a loss scaler lifts them,
    and are therefore computed in the backward pass. One backward pass per call; no second
    derivative. On CUDA, batches of more than 8192 rows, and means over many rows, take a few small
    launches more.

    Args:
        logits: [B, C], see `scored_cross_entropy`, as for `target`, `weight`, `ignore_index`,
            `label_smoothing`, `target_b` and `lam`. On CUDA a target out of range makes the row
            count for nothing.
        target: [B].
        sample_ids: [B] int64, see `update_scores_`, as for `mean`, `variance`, `count`, `alpha`,
            `first_visit`, `non_finite_count`, `last_non_finite`, `last_correct`, `forget_count`.
        mean: [N].
        variance: [N].
        count: [N].
        alpha: In (0, 1].
        score: What enters the averages: "loss" (of the row, before sample weights), "el2n",
            "entropy", or "margin" (its negative, so that small margins rank high).
        first_visit: "zero" or "published".
        sample_weight: [B] floating point, or None; factor of a row's loss, not of its scores. Does
            not change what "mean" divides by.
        reduction: "mean", "sum" or "none".
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

    Returns:
        A `ScoredLoss`; for "mean" and "sum" its loss is 0-d.
    """
    columns = check_columns(
        mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count
    )
    alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
    as_choice("score", score, SCORES)
    as_choice("first_visit", first_visit, FIRST_VISITS)
    check_tensor("logits", logits, FLOATING)
    if mean.device != logits.device:
        raise ValueError(f"mean must be on {logits.device}, got {mean.device}")
    given = {"logits": logits, "target": target, "sample_ids": sample_ids}
    refuse_shared_memory(columns, **given, sample_weight=sample_weight, ticket=ticket)
    if ticket is not None:
        check_vector("ticket", ticket, (torch.int32,), mean, 1)
        check_updatable("ticket", ticket)
    loss, scores, correct = step_loss(
        logits,
        target,
        sample_ids,
        columns,
        TableOptions(ticket, alpha, first_visit == "published", SCORES.index(score)),
        loss_only=False,
        sample_weight=sample_weight,
        reduction=reduction,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        target_b=target_b,
        lam=lam,
        grad_scale=grad_scale,
    )
    by_column = scores.unbind(0)
    return ScoredLoss(loss, by_column[_EL2N], by_column[_ENTROPY], by_column[_MARGIN], correct)


class TableOptions(NamedTuple):
    """How a step updates the table, in the order of `StepArguments`."""

    ticket: Tensor | None
    alpha: float
    published_first_visit: bool
    score: int  # a `Score`


def step_loss(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    columns: ScoreColumns,
    options: TableOptions,
    *,
    loss_only: bool,
    sample_weight: Tensor | None,
    reduction: str,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    target_b: Tensor | None,
    lam: float | Tensor | None,
    grad_scale: Tensor | None,
) -> Any:
    """The step with a table that was checked already.

    Returns the loss, or without `loss_only` loss, scores [5 or more, B] and correct.
    """
    # By _make: StepArguments(...) takes three times as long. _check_step makes a tensor of lam.
    arguments = StepArguments._make(
        (
            target,
            sample_ids,
            *columns,
            *options,
            REDUCTIONS.index(as_choice("reduction", reduction, REDUCTIONS)),
            sample_weight,
            weight,
            ignore_index,
            label_smoothing,
            target_b,
            lam,
            grad_scale,
        )
    )
    if (
        not torch.compiler.is_compiling()
        and type(logits) is type(target) is type(sample_ids) is Tensor
        and not (logits.is_meta or target.is_meta or sample_ids.is_meta)
        and sample_weight is None
        and weight is None
        and target_b is None
        and lam is None
        and grad_scale is None
        and type(ignore_index) is int
        and type(label_smoothing) is float
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()  # its tensors have no storage
        and logits.layout is target.layout is sample_ids.layout is torch.strided
        and logits.untyped_storage().nbytes()  # 0 if it was freed, or if there are no rows
        and target.untyped_storage().nbytes()
        and sample_ids.untyped_storage().nbytes()
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


def _apply_step(
    logits: Tensor, arguments: StepArguments, columns: ScoreColumns, loss_only: bool
) -> Any:
    result = StepLoss.apply(logits, arguments, loss_only)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(columns.present())
    return result


def _check_step(logits: Tensor, arguments: StepArguments) -> StepArguments:
    """The arguments as the operator takes them, if they and the tensors are what they must be."""
    mean, sample_weight, grad_scale = (
        arguments.mean,
        arguments.sample_weight,
        arguments.grad_scale,
    )
    if isinstance(logits, Tensor) and logits.device != mean.device:
        raise ValueError(f"logits must be on {mean.device}, as the scores are, got {logits.device}")
    weight, ignore_index, label_smoothing, second_target, lam = _check_cross_entropy(
        logits,
        arguments.target,
        arguments.weight,
        arguments.ignore_index,
        arguments.label_smoothing,
        arguments.second_target,
        arguments.lam,
    )
    refuse_transforms("the scored step", TRANSFORMS)
    check_vector("sample_ids", arguments.sample_ids, (torch.int64,), logits)
    compute = _compute_dtype(logits)
    if sample_weight is not None:
        check_vector("sample_weight", sample_weight, FLOATING, logits)
        refuse_gradient(
            "sample_weight", sample_weight, ", or multiply the losses of scored_cross_entropy by it"
        )
        sample_weight = sample_weight.detach().to(compute)
    if grad_scale is not None:
        check_tensor("grad_scale", grad_scale, FLOATING)
        if grad_scale.numel() != 1 or grad_scale.device != logits.device:
            raise ValueError(
                f"grad_scale must be 0-d on {logits.device}, got shape "
                f"{tuple(grad_scale.shape)} on {grad_scale.device}"
            )
        grad_scale = grad_scale.detach().to(compute)
    return arguments._replace(
        sample_weight=sample_weight,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        second_target=second_target,
        lam=lam,
        grad_scale=grad_scale,
    )


def last_layer_grand(el2n: Tensor, features: Tensor, *, bias: bool = True) -> Tensor:
    """GraNd of a linear last layer, in closed form: no per-sample gradient is formed.

    The gradient of a sample's cross-entropy with respect to weight and bias is (g h^T, g), g = p -
    onehot(y); its norm is |g| sqrt(1 + |h|^2), and |g| is EL2N (Paul, Ganguli & Dziugaite 2021,
    restricted to the last layer).

    Args:
        el2n: [B] from `scored_cross_entropy`, floating point.
        features: [B, D] floating point, the layer's inputs h.
        bias: Whether the layer has one; without, the norm is |g| |h|.

    Returns:
        [B] in the dtype of el2n, detached.
    """
    check_vector("el2n", el2n, FLOATING)
    check_tensor("features", features, FLOATING)
    if features.dim() != 2 or len(features) != len(el2n):
        raise ValueError(
            f"features must be 2-D with {len(el2n)} rows, got shape {tuple(features.shape)}"
        )
    if features.device != el2n.device:
        raise ValueError(f"features must be on {el2n.device}, got {features.device}")
    as_bool("bias", bias)
    compute = torch.promote_types(el2n.dtype, features.dtype)
    norm = torch.linalg.vector_norm(features.detach(), dim=1, dtype=compute)
    factor = torch.hypot(norm, torch.ones_like(norm)) if bias else norm
    return (el2n.detach() * factor).to(el2n.dtype)


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    target_b: Tensor | None,
    lam: float | Tensor | None,
) -> tuple[Any, ...]:
    """weight, ignore_index, label_smoothing, target_b and lam as the ops take them."""
    check_tensor("logits", logits, FLOATING)
    shape = logits.shape
    if len(shape) != 2:
        raise ValueError(f"logits must be 2-D [B, C], got shape {tuple(shape)}")
    rows, classes = shape
    if classes == 0 and rows > 0:
        raise ValueError(f"logits must have at least one class, got shape {tuple(shape)}")
    if not torch.compiler.is_compiling() and _has_tangent(logits):
        raise NotImplementedError(
            "logits carry a tangent, and this loss has no forward-mode derivative: use "
            "torch.nn.functional.cross_entropy for it"
        )
    check_vector("target", target, TARGET_DTYPES, logits)
    if weight is not None:
        check_vector("weight", weight, FLOATING, logits, classes)
        refuse_gradient("weight", weight)
        weight = weight.detach().to(_compute_dtype(logits))
    if not (type(ignore_index) is int and ignore_index == -100):
        low, high = -(1 << 63), (1 << 63) - 1
        ignore_index = as_int("ignore_index", ignore_index, minimum=low, maximum=high)
    if not (type(label_smoothing) is float and label_smoothing == 0.0):
        label_smoothing = as_float("label_smoothing", label_smoothing, low=0.0, high=1.0)
    if target_b is None and lam is None:
        return weight, ignore_index, label_smoothing, None, None
    if target_b is None or lam is None:
        raise ValueError("target_b and lam must be given together")
    check_vector("target_b", target_b, TARGET_DTYPES, logits)
    if isinstance(lam, Tensor):
        check_tensor("lam", lam, FLOATING)
        refuse_gradient("lam", lam)
        if lam.device != logits.device or (lam.dim() != 0 and lam.shape != (rows,)):
            raise ValueError(
                f"lam must be 0-d or of shape ({rows},) on {logits.device}, got shape "
                f"{tuple(lam.shape)} on {lam.device}"
            )
        mix = lam.detach().to(_compute_dtype(logits))
    else:
        lam = as_float("lam", lam, low=0.0, high=1.0)
        mix = torch.full((), lam, dtype=_compute_dtype(logits), device=logits.device)
    return weight, ignore_index, label_smoothing, target_b, mix


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def refuse_gradient(name: str, factor: Tensor, remedy: str = "") -> None:
    """Only the logits have a gradient: a silent zero for a factor would be wrong."""
    if factor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must not require a gradient: this loss has none for it; detach it{remedy}"
        )


def mean_weight(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    target_b: Tensor | None,
    lam: Tensor | None,
) -> Tensor:
    """What a mean divides by: the class weights of the rows that are not ignored."""

    def class_weights(labels: Tensor) -> Tensor | float:
        if weight is None:
            return 1.0
        # Rows whose target is out of range must not read outside the class weights.
        return weight[labels.long().clamp(0, len(weight) - 1)]

    counts = target != ignore_index
    weights = class_weights(target)
    if target_b is not None and lam is not None:
        counts = counts & (target_b != ignore_index)
        weights = lam * weights + (1 - lam) * class_weights(target_b)
    return torch.where(counts, weights, 0.0).sum()
