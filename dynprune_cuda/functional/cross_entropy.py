# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy with scores; public through `functional`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynprune_cuda._checks.arguments import (
    FLOATING,
    GRADIENTS,
    WAY_OUT,
    are_ordinary,
    as_bool,
    as_choice,
    as_float,
    as_int,
    check_tensor,
    check_vector,
    refuse_transforms,
)
from dynprune_cuda._checks.batches import is_readable
from dynprune_cuda._ops import CROSS_ENTROPY, SOFT_CROSS_ENTROPY, scored_losses
from dynprune_cuda._ops.contract import Reduction, Score
from dynprune_cuda.functional.row_reductions import sample_shares
from dynprune_cuda.functional.shapes import Rows, rows_of
from dynprune_cuda.functional.soft_targets import as_stored, check_soft, is_soft

ReductionName = Literal["none", "mean", "sum", "sample"]
ScoreName = Literal["loss", "el2n", "entropy", "margin"]

# The names by number: tuple.index gives what the ops take.
REDUCTIONS = tuple(reduction.name.lower() for reduction in Reduction)
SCORES = tuple(score.name.lower() for score in Score)
# What a caller may pass: the ops do the mean over samples as a mean with weights.
LOSS_REDUCTIONS = (*REDUCTIONS, "sample")

TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)


class ScoredLoss(NamedTuple):
    """What one read of the logits gives; one value per row, in the shape of the targets.

    The scores describe the plain softmax p and the target y, whatever the class weights, the label
    smoothing, the sample weights and the second target. Rows with a target `ignore_index` have loss
    and scores 0 and are not correct. Of a target of probabilities t, y is the class of the greatest
    one, the first of several.

    Attributes:
        loss: As torch.nn.functional.cross_entropy(reduction="none"), or 0-d reduced;
            differentiable. float32, or float64 for float64 logits, as the other scores.
        el2n: Euclidean norm of p - onehot(y) (Paul, Ganguli & Dziugaite 2021, section 3); of p - t
            for probabilities t.
        entropy: Entropy of p, in nats.
        margin: Logit of the target minus the greatest other logit.
        correct: bool, margin > 0; a tie for the greatest logit is not correct.
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
    class_dim: int = 1,
) -> ScoredLoss:
    """Cross-entropy and the scores that data pruning ranks by, from one pass.

    Arithmetic is in float32, or in float64 for float64 logits. It keeps its relative precision
    where the target's probability is near 1, so easy samples are ranked correctly.

    The loss is differentiable once, in reverse mode, with respect to the logits. Any gradient of
    the losses may come; rows whose gradient is 0 are not read again. Factors must not require a
    gradient.

    Args:
        logits: [B, C], [C] or [B, C, d1, ...], or [B, d1, ..., C] with class_dim=-1; float32,
            float16, bfloat16 or float64. Strided logits are read where they are.
        target: [B], 0-d or [B, d1, ...], one for each row; int64, int32 or uint8 class indices. Out
            of range: IndexError on the CPU; on CUDA loss and scores are NaN, the gradient is 0, and
            `check_errors` raises. Or class probabilities, floating point in the shape of `logits`,
            as torch takes them: without a gradient, `ignore_index`, `target_b` and `lam`. Their
            values are not checked. A class of probability 0 adds nothing to the loss, even if its
            logit is -inf, where torch's loss is NaN. Other shapes than [B, C] are copied if their
            classes are apart.
        weight: [C] class weights, or None; they scale the loss, not the scores.
        ignore_index: Target of rows without loss and scores. Their gradient is 0, also where their
            logits are not finite and torch's gradient is NaN.
        label_smoothing: In [0, 1]; as in torch.nn.functional.cross_entropy.
        reduction: "none", "sum", "mean" or "sample". "mean" divides the sum by the targets' class
            weights; without class weights, by the number of rows that are not ignored. With
            probabilities, it divides by the number of rows. "sample" is the mean over the elements
            of the batch of each one's own mean.
        target_b: As `target`, second class indices, as mixup and CutMix make them: the loss is lam
            * loss of target + (1 - lam) * loss of target_b (Zhang et al. 2018, arXiv:1710.09412),
            and so are the class weights in a mean. A row is ignored if either target is
            `ignore_index`. The second loss has float32's absolute, not relative, accuracy near 0.
        lam: Weight of the first target, in [0, 1]; a float, or a 0-d or [B] tensor, or one in the
            shape of `target`.
        class_dim: Where the classes are: 1, or -1 for the last dimension.

    Returns:
        A `ScoredLoss`.
    """
    if (
        type(reduction) is str
        and reduction == "none"
        and weight is target_b is lam is None
        and type(class_dim) is type(ignore_index) is int
        and class_dim == 1
        and type(label_smoothing) is float
        and are_ordinary((logits, target))
        and logits.dim() == 2
        and not target.is_floating_point()
        and forward_ad._current_level < 0
    ):
        # The operator checks its arguments, but names less of them than the checks below.
        options = target, None, ignore_index, label_smoothing, None, None
        try:
            return ScoredLoss._make(scored_losses(CROSS_ENTROPY, logits, *options)[:-1])
        except (IndexError, RuntimeError):
            pass
    rows, target_b, lam = as_rows(logits, target, class_dim, target_b, lam)
    if rows is not None:
        logits, target = rows.logits, rows.target
    weight, *rest = check_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing, target_b, lam
    )
    refuse_transforms("scored_cross_entropy", GRADIENTS)
    as_choice("reduction", reduction, LOSS_REDUCTIONS)
    ignore_index, label_smoothing, target_b, mix = rest
    if is_soft(target):
        *scored, _saved = scored_losses(
            SOFT_CROSS_ENTROPY, logits, as_stored(target, logits), weight, label_smoothing
        )
    else:
        *scored, _saved = scored_losses(
            CROSS_ENTROPY, logits, target, weight, ignore_index, label_smoothing, target_b, mix
        )
    total = scored[0]
    if reduction in ("mean", "sample"):
        weights = mean_weights(target, weight, ignore_index, target_b, mix).to(total.dtype)
        divisor = weights.sum()
        if reduction == "sample":
            groups, per_group = (len(target), 1) if rows is None else (rows.groups, rows.per_group)
            own = target.new_full((groups,), -1, dtype=torch.int64)
            factors, divisor = sample_shares(own, per_group, weights)
            total = total * factors
        total = total.sum() / divisor
    elif reduction == "sum":
        total = total.sum()
    if rows is not None:
        scored = [values.view(rows.shape) for values in scored]
    scored[0] = total.view(rows.shape) if rows is not None and reduction == "none" else total
    return ScoredLoss(*scored)


def last_layer_grand(el2n: Tensor, features: Tensor, *, bias: bool = True) -> Tensor:
    """GraNd of a linear last layer, in closed form: no per-sample gradient is formed.

    The gradient of a sample's cross-entropy with respect to weight and bias is `(g h^T, g)`, with
    `g = p - onehot(y)`. Its norm is `|g| sqrt(1 + |h|^2)`. `|g|` is EL2N (Paul, Ganguli & Dziugaite
    2021, restricted to the last layer).

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


def compute_dtype(logits: Tensor) -> torch.dtype:
    """Returns the dtype of the loss."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def as_rows(
    logits: Tensor,
    target: Tensor,
    class_dim: int,
    target_b: Tensor | None,
    lam: float | Tensor | None,
) -> tuple[Rows | None, Tensor | None, float | Tensor | None]:
    """Returns the rows of logits that are not [B, C], and `target_b` and `lam` for these rows."""
    if not (type(class_dim) is int and class_dim == 1):
        class_dim = as_int("class_dim", class_dim)
    if class_dim == 1 and (not isinstance(logits, Tensor) or logits.dim() == 2):
        return None, target_b, lam
    rows = rows_of(logits, target, class_dim)
    if logits.dim() == 2:
        return None, target_b, lam
    if isinstance(target_b, Tensor):
        target_b = rows.flat("target_b", target_b)
    if isinstance(lam, Tensor) and lam.dim() > 0:
        lam = rows.flat("lam", lam, per_sample=True)
    return rows, target_b, lam


def check_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    target_b: Tensor | None,
    lam: float | Tensor | None,
) -> tuple[Any, ...]:
    """weight, ignore_index, label_smoothing, target_b and lam as the ops take them."""
    check_tensor("logits", logits, FLOATING, WAY_OUT)
    shape, classes = logits.shape, logits.shape[-1]
    rows = shape[0] if len(shape) == 2 else shape[0] * shape[1]
    if classes == 0 and rows > 0:
        raise ValueError(
            f"logits must have at least one class, got shape {tuple(shape)}; {WAY_OUT}"
        )
    if not torch.compiler.is_compiling() and _has_tangent(logits):
        raise NotImplementedError(
            "logits carry a tangent, and this loss has no forward-mode derivative: use "
            "torch.nn.functional.cross_entropy for it"
        )
    if is_soft(target):
        check_soft(logits, target, ignore_index, target_b, lam)
    else:
        check_vector("target", target, TARGET_DTYPES, logits, rows, remedy=WAY_OUT)
    if weight is not None:
        check_vector("weight", weight, FLOATING, logits, classes)
        refuse_gradient("weight", weight)
        weight = weight.detach().to(compute_dtype(logits))
    if not (type(ignore_index) is int and ignore_index == -100):
        low, high = -(1 << 63), (1 << 63) - 1
        ignore_index = as_int("ignore_index", ignore_index, minimum=low, maximum=high)
    if not (type(label_smoothing) is float and label_smoothing == 0.0):
        label_smoothing = as_float("label_smoothing", label_smoothing, low=0.0, high=1.0)
    if target_b is None and lam is None:
        return weight, ignore_index, label_smoothing, None, None
    if target_b is None or lam is None:
        raise ValueError("target_b and lam must be given together")
    check_vector("target_b", target_b, TARGET_DTYPES, logits, rows)
    if isinstance(lam, Tensor):
        check_tensor("lam", lam, FLOATING)
        refuse_gradient("lam", lam)
        if lam.device != logits.device or (lam.dim() != 0 and lam.shape != (rows,)):
            raise ValueError(
                f"lam must be 0-d or of shape ({rows},) on {logits.device}, got shape "
                f"{tuple(lam.shape)} on {lam.device}"
            )
        if is_readable(lam) and not bool(((lam >= 0) & (lam <= 1)).all()):
            raise ValueError(f"lam must be in [0, 1], got {lam.tolist()}")
        mix = lam.detach().to(compute_dtype(logits))
    else:
        lam = as_float("lam", lam, low=0.0, high=1.0)
        mix = torch.full((), lam, dtype=compute_dtype(logits), device=logits.device)
    return weight, ignore_index, label_smoothing, target_b, mix


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def refuse_gradient(name: str, factor: Tensor, remedy: str = "") -> None:
    """Only the logits have a gradient: a silent zero for a factor would be wrong."""
    if factor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must not require a gradient: this loss has none for it; detach it{remedy}"
        )


def ignored_rows(target: Tensor, ignore_index: int) -> Tensor:
    """Returns which rows are ignored, bool [B]."""
    # As int64: torch would compare uint8 with -100 modulo 256.
    return target.long() == ignore_index


def mean_weights(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    target_b: Tensor | None,
    lam: Tensor | None,
) -> Tensor:
    """Returns the rows' weights in a mean, [R]: class weights, and 0 where a row is ignored.

    Of rows with probabilities, 1.
    """
    if is_soft(target):
        return target.new_ones(len(target), dtype=compute_dtype(target))

    def class_weights(labels: Tensor) -> Tensor | float:
        if weight is None:
            return 1.0
        # Rows whose target is out of range must not read outside the class weights.
        return weight[labels.long().clamp(0, len(weight) - 1)]

    counts = ~ignored_rows(target, ignore_index)
    weights = class_weights(target)
    if target_b is not None and lam is not None:
        counts = counts & ~ignored_rows(target_b, ignore_index)
        weights = lam * weights + (1 - lam) * class_weights(target_b)
    return torch.where(counts, weights, 0.0)
