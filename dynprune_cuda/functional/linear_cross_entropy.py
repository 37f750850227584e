# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a linear layer whose logits are never whole; public through `functional`."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    FLOATING,
    GRADIENTS,
    INTEGER,
    WAY_OUT,
    as_choice,
    as_float,
    as_int,
    check_tensor,
    check_vector,
    refuse_transforms,
)
from dynprune_cuda._ops import LinearArguments, LinearLoss
from dynprune_cuda.functional.cross_entropy import (
    TARGET_DTYPES,
    ignored_rows,
    mean_weights,
    refuse_gradient,
)
from dynprune_cuda.functional.row_reductions import sample_shares
from dynprune_cuda.functional.selection import select_top_k
from dynprune_cuda.functional.shapes import Rows, own_keys
from dynprune_cuda.functional.soft_targets import is_soft
from dynprune_cuda.functional.step_loss import as_divisor

__all__ = ["LinearScoredLoss", "scored_linear_cross_entropy"]

# Bytes of a chunk: its logits, which their gradient replaces, and what lies beside them. On a GPU
# every chunk reads and writes the whole gradient of the weight, so that chunks are larger there.
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 32 << 20, 512 << 20
# Every chunk reads the weight twice, and reads and writes its gradient. With fewer rows the
# products take longer: linear_head compares them with whole ones. Not 1024: logits of a row
# that are 4096 bytes apart share few places in a cache.
ENOUGH_CHUNK_ROWS = 1008
# The whole logits and their gradient are as large each: chunks of more bytes than those above take
# at most 0.105 of both. Beside the buffers of the products, that stays below an eighth.
SHARE_OF_LOGITS = 0.105
# Rows that the vectors of a CPU and the tensor cores of a GPU take at a time.
ROWS_TOGETHER = 16


class LinearScoredLoss(NamedTuple):
    """What `scored_linear_cross_entropy` returns. Only `loss` is differentiable.

    Attributes:
        loss: 0-d, the reduced loss; float32, or float64 for products in float64, as the scores.
        row_loss: Each row's loss before `sample_weight`, in the shape of the targets.
        el2n: Each row's EL2N, in the shape of the targets; see `ScoredLoss`.
        entropy: Each row's entropy, in the shape of the targets; see `ScoredLoss`.
        margin: Each row's margin, in the shape of the targets; see `ScoredLoss`.
        correct: Whether each row is classified correctly, bool, in the shape of the targets.
        kept: int64 [k], the rows that were trained on, ascending, counted in the flat targets; None
            without `keep_tokens`.
    """

    loss: Tensor
    row_loss: Tensor
    el2n: Tensor
    entropy: Tensor
    margin: Tensor
    correct: Tensor
    kept: Tensor | None


def scored_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    sample_ids: Tensor | None = None,
    reduction: Literal["mean", "sum", "sample"] = "mean",
    num_items: float | Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    keep_tokens: float | None = None,
    reference_loss: Tensor | None = None,
    seed: int | Tensor = 0,
    chunk_rows: int | None = None,
) -> LinearScoredLoss:
    """The cross-entropy of `hidden @ weight.T + bias` with scores, without whole logits.

    A chunk of rows goes through the layer, the loss, and its gradient before the next one begins.
    The factors of the rows' losses are known before the forward pass, so the gradients are computed
    there, with three matrix products. A loss per row that is differentiable would take a fourth
    one. Under autocast the products are in its dtype, and the gradients of weight and bias are
    added in float32. Differentiable once, in reverse mode, by one backward pass per call. Nothing
    waits for the device. On the CPU, ignored rows take no products.

    With `keep_tokens`, only the rows with the greatest losses are trained on. With `reference_loss`
    it is those with the greatest excess over it (Lin et al. 2024, "Rho-1", arXiv:2404.07965). A
    first pass scores all rows, and the second takes those that are kept: 1 + 3 * keep_tokens
    products.

    Args:
        hidden: [R, D] or [B, d1, ..., D] for R rows, float32, float16, bfloat16 or float64: the
            layer's inputs.
        weight: [C, D], as of `torch.nn.Linear`.
        target: int64, int32 or uint8 class indices, in the shape of `hidden` without D.
        bias: [C], or None.
        sample_weight: Factor of a row's loss, not of its scores: floating point, in the shape of
            `target`, or [B]. Does not change what "mean" divides by.
        sample_ids: The samples of "sample", any integers: [B], or in the shape of `target`. Rows
            with equal ids are one sample, and each -1 is one by itself. None: each element of the
            first dimension is one.
        reduction: "sum", or "mean": the sum divided by the class weights of the rows that are not
            ignored, or by their number without class weights. Or "sample": the mean over the
            samples of each one's own mean. With `keep_tokens`, of the rows that are kept.
        num_items: What "mean" or "sample" divides by instead, above 0: a number, or a 0-d tensor on
            the device. It may be the number of tokens, or samples, of all batches whose gradients
            are accumulated.
        class_weight: [C] or None; scales the losses, not the other scores.
        ignore_index: Target of rows that count for nothing.
        label_smoothing: In [0, 1].
        softcap: Bound of the logits, above 0, or None: logits are `softcap * tanh(logits /
            softcap)` (Gemma Team 2024, "Gemma 2", arXiv:2408.00118). All scores are of these.
        z_loss: Factor, at least 0. `z_loss * logsumexp(logits)^2` is added to a row's loss, before
            its `sample_weight`, and not to its scores (Chowdhery et al. 2022, "PaLM",
            arXiv:2204.02311). Rows that are ignored have none.
        keep_tokens: Share of the rows that are trained on, in (0, 1]; `max(1, ceil(keep_tokens *
            R))` rows. Ignored rows are kept last, and count for nothing then, too. Ties are broken
            at random by `seed`.
        reference_loss: Losses of a reference model in the shape of `target`, or None; needs
            `keep_tokens`.
        seed: As in the selections; needs `keep_tokens`.
        chunk_rows: Rows of a chunk, or None: as many as have 32 MiB of logits on the CPU, and 512
            MiB on a GPU. For heads of many classes these are few. Then it is the lesser of 1008 and
            0.21 of all rows, in chunks of nearly equal size, but for the last one. `softcap` and
            `z_loss` take memory beside the logits, so that a chunk has fewer rows.

    Returns:
        A `LinearScoredLoss`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong dtype, shape, device or value.
        IndexError: A target is out of range (CPU; on a GPU its scores are NaN, and `check_errors`
            raises).
    """
    refuse_transforms("scored_linear_cross_entropy", GRADIENTS)
    as_choice("reduction", reduction, ("mean", "sum", "sample"))
    rows = linear_rows(hidden, target)
    hidden, target = rows.logits, rows.target
    if sample_weight is not None:
        check_tensor("sample_weight", sample_weight, FLOATING)
        sample_weight = rows.flat("sample_weight", sample_weight, per_sample=True)
    arguments = _check(
        hidden, weight, target, bias, sample_weight, class_weight, ignore_index, label_smoothing
    )
    arguments = arguments._replace(
        softcap=0.0 if softcap is None else as_float("softcap", softcap, low=0.0, above_low=True),
        z_loss=as_float("z_loss", z_loss, low=0.0),
    )
    if chunk_rows is None:
        bytes_each = bytes_of_logit(arguments.dtype, arguments.softcap > 0, arguments.z_loss > 0)
        chunk_rows = default_chunk_rows(hidden, weight, arguments.dtype, bytes_each)
    else:
        chunk_rows = as_int("chunk_rows", chunk_rows, minimum=1)
    arguments = arguments._replace(chunk_rows=chunk_rows)
    keys = _keys(rows, sample_ids, reduction)
    if num_items is not None:
        if reduction == "sum":
            raise ValueError("num_items needs reduction='mean' or 'sample', got 'sum'")
        num_items = as_divisor(num_items, hidden.device, arguments.row_weight.dtype)
    if keep_tokens is None:
        if reference_loss is not None:
            raise ValueError("reference_loss needs keep_tokens, a share in (0, 1], got None")
        arguments, divisor = _reduced(arguments, reduction, keys, num_items)
        return _result(LinearLoss.apply(hidden, weight, bias, arguments, divisor), rows)
    keep_tokens = as_float("keep_tokens", keep_tokens, low=0.0, high=1.0, above_low=True)
    if reference_loss is not None:
        check_tensor("reference_loss", reference_loss, FLOATING)
        reference_loss = rows.flat("reference_loss", reference_loss)
    with torch.no_grad():
        scored = arguments._replace(wants=(False, False, False))
        whole = _result(LinearLoss.apply(hidden, weight, bias, scored, None), rows)
        kept = _kept(whole.row_loss.flatten(), arguments, keep_tokens, reference_loss, seed)
    chosen = arguments._replace(
        target=arguments.target[kept], row_weight=arguments.row_weight[kept]
    )
    keys = None if keys is None else keys[kept]
    chosen, divisor = _reduced(chosen, reduction, keys, num_items)
    loss, _, _ = LinearLoss.apply(hidden.index_select(0, kept), weight, bias, chosen, divisor)
    return whole._replace(loss=loss, kept=kept)


def linear_rows(hidden: Any, target: Any) -> Rows:
    """Returns the rows of a layer's inputs and their targets, checked to fit each other."""
    check_tensor("hidden", hidden, FLOATING, WAY_OUT)
    by_logits = "cross_entropy takes probabilities, with whole logits; " if is_soft(target) else ""
    check_tensor("target", target, TARGET_DTYPES, by_logits + WAY_OUT)
    shape = tuple(hidden.shape[:-1])
    if not shape:
        raise ValueError(
            f"hidden must be [rows, features], got shape {tuple(hidden.shape)}; {WAY_OUT}"
        )
    if target.shape != shape:
        raise ValueError(
            f"target must have shape {shape} with hidden of shape {tuple(hidden.shape)}, got "
            f"{tuple(target.shape)}; {WAY_OUT}"
        )
    per_group = math.prod(shape[1:])
    return Rows(hidden.flatten(0, -2), target.flatten(), shape, shape[0], per_group)


def _keys(rows: Rows, sample_ids: Any, reduction: str) -> Tensor | None:
    """Returns for "sample" a number for each row, int64 [R], that the rows of a sample share."""
    if reduction != "sample":
        if sample_ids is not None:
            raise ValueError(f"sample_ids needs reduction='sample', got {reduction!r}")
        return None
    if sample_ids is None:
        ids, per_id = rows.target.new_full((rows.groups,), -1, dtype=torch.int64), rows.per_group
    else:
        check_tensor("sample_ids", sample_ids, INTEGER)
        if sample_ids.device != rows.target.device:
            raise ValueError(f"sample_ids must be on {rows.target.device}, got {sample_ids.device}")
        ids, per_id = rows.entries(sample_ids)
    ids = ids.to(torch.int64)
    return ids if per_id == 1 else own_keys(ids)[:, None].expand(-1, per_id).flatten()


def _result(found: tuple[Tensor, Tensor, Tensor], rows: Rows) -> LinearScoredLoss:
    loss, scores, correct = found
    row_loss, el2n, entropy, margin = scores.view(4, *rows.shape).unbind()
    return LinearScoredLoss(
        loss, row_loss, el2n, entropy, margin, correct.view(rows.shape), kept=None
    )


def _reduced(
    arguments: LinearArguments, reduction: str, keys: Tensor | None, num_items: Tensor | None
) -> tuple[LinearArguments, Tensor | None]:
    """Returns the arguments of a sum, and what it is divided by, 0-d; None: nothing."""
    if reduction == "sum":
        return arguments, None
    weights = mean_weights(
        arguments.target, arguments.class_weight, arguments.ignore_index, None, None
    )
    number = weights.sum()
    if keys is not None:
        factors, number = sample_shares(keys, 1, weights.to(arguments.row_weight.dtype))
        arguments = arguments._replace(row_weight=arguments.row_weight * factors)
    return arguments, number if num_items is None else num_items


def _kept(
    row_loss: Tensor,
    arguments: LinearArguments,
    keep_tokens: float,
    reference_loss: Tensor | None,
    seed: int | Tensor,
) -> Tensor:
    """Returns the rows with the greatest losses, ascending; ignored rows come last."""
    ranked = row_loss if reference_loss is None else row_loss - reference_loss
    ranked = ranked.masked_fill(ignored_rows(arguments.target, arguments.ignore_index), -math.inf)
    rows = len(ranked)
    k = min(rows, max(1, math.ceil(keep_tokens * rows)))
    return select_top_k(ranked, k, seed=seed, order="ascending")


def bytes_of_logit(dtype: torch.dtype, softcap: bool, z_loss: bool) -> int:
    """Returns the bytes that a logit of a chunk takes, with what lies beside it.

    The derivative of the softcap and the gradient of the z-loss are as exact as the losses. 16-bit
    logits are converted to them and back.
    """
    exact = max(dtype.itemsize, torch.float32.itemsize)
    beside = softcap + z_loss
    if beside and dtype.itemsize < exact:
        beside += 1
    return dtype.itemsize + beside * exact


def default_chunk_rows(
    hidden: Tensor, weight: Tensor, dtype: torch.dtype, bytes_each: int | None = None
) -> int:
    """Returns the rows of a chunk for products in `dtype`, with so many bytes a logit."""
    limit = GPU_CHUNK_BYTES if weight.is_cuda else CPU_CHUNK_BYTES
    bytes_each = bytes_each or dtype.itemsize
    by_bytes = limit // max(1, weight.shape[0] * bytes_each)
    if by_bytes >= ENOUGH_CHUNK_ROWS:
        return by_bytes  # whatever the rows: torch.compile need not trace their number
    rows = hidden.shape[0]
    share = int(2 * SHARE_OF_LOGITS * rows * dtype.itemsize / bytes_each)
    most = max(1, by_bytes, min(ENOUGH_CHUNK_ROWS, share))
    # Of nearly equal size: a matrix library may take other buffers for a small last one. Without a
    # branch, on which torch.compile would compile again.
    chunks = max(1, -(-rows // most))
    even = max(1, -(-rows // chunks))
    return min(most, -(-even // ROWS_TOGETHER) * ROWS_TOGETHER)


def _check(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any,
    sample_weight: Any,
    class_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
) -> LinearArguments:
    """Returns the operator's arguments, with the factors of a sum."""
    check_tensor("weight", weight, FLOATING)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"weight must be [classes, {hidden.shape[1]}] with at least one class, got shape "
            f"{tuple(weight.shape)}"
        )
    if weight.device != hidden.device:
        raise ValueError(f"weight must be on {hidden.device}, got {weight.device}")
    check_vector("target", target, TARGET_DTYPES, hidden)
    classes = len(weight)
    if bias is not None:
        check_vector("bias", bias, FLOATING, hidden, classes)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    elif not weight.dtype == hidden.dtype == (hidden if bias is None else bias).dtype:
        given = [str(x.dtype) for x in (hidden, weight, bias) if x is not None]
        raise ValueError(
            f"hidden, weight and bias must have one dtype outside of autocast, got "
            f"{', '.join(given)}: convert them; {WAY_OUT}"
        )
    else:
        dtype = hidden.dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    if class_weight is not None:
        check_vector("class_weight", class_weight, FLOATING, hidden, classes)
        refuse_gradient("class_weight", class_weight)
        class_weight = class_weight.detach().to(exact)
    if sample_weight is None:
        row_weight = hidden.new_ones(len(hidden), dtype=exact)
    else:
        check_vector("sample_weight", sample_weight, FLOATING, hidden)
        refuse_gradient("sample_weight", sample_weight)
        row_weight = sample_weight.detach().to(exact)
    low, high = -(1 << 63), (1 << 63) - 1
    return LinearArguments(
        target,
        row_weight,
        class_weight,
        as_int("ignore_index", ignore_index, minimum=low, maximum=high),
        as_float("label_smoothing", label_smoothing, low=0.0, high=1.0),
        0.0,
        0.0,
        1,
        dtype,
        _wants(hidden, weight, bias),
    )


def _wants(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[bool, bool, bool]:
    enabled = torch.is_grad_enabled()  # it is not inside of an autograd function
    return (
        enabled and hidden.requires_grad,
        enabled and weight.requires_grad,
        enabled and bias is not None and bias.requires_grad,
    )
