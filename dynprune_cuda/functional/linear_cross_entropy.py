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
    mean_weight,
    refuse_gradient,
)
from dynprune_cuda.functional.selection import select_top_k

__all__ = ["LinearScoredLoss", "scored_linear_cross_entropy"]

# Bytes of a chunk's logits; their gradient takes as much. On a GPU every chunk reads and writes the
# whole gradient of the weight, so that chunks are larger there.
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 16 << 20, 256 << 20


class LinearScoredLoss(NamedTuple):
    """What `scored_linear_cross_entropy` returns; R rows. Only `loss` is differentiable.

    Attributes:
        loss: 0-d, the reduced loss; float32, or float64 for products in float64, as the scores.
        row_loss: [R] each row's loss, before `sample_weight`.
        el2n: [R], as in `ScoredLoss`.
        entropy: [R].
        margin: [R].
        correct: [R] bool.
        kept: int64 [k], the rows that were trained on, ascending; None without `keep_tokens`.
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
    reduction: Literal["mean", "sum"] = "mean",
    num_items: int | Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
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
    waits for the device.

    With `keep_tokens`, only the rows with the greatest losses are trained on. With `reference_loss`
    it is those with the greatest excess over it (Lin et al. 2024, "Rho-1", arXiv:2404.07965). A
    first pass scores all rows, and the second takes those that are kept: 1 + 3 * keep_tokens
    products.

    Args:
        hidden: [R, D] float32, float16, bfloat16 or float64: the layer's inputs.
        weight: [C, D], as of `torch.nn.Linear`.
        target: [R] int64, int32 or uint8 class indices.
        bias: [C], or None.
        sample_weight: [R] floating point, or None; factor of a row's loss, not of its scores. Does
            not change what "mean" divides by.
        reduction: "sum", or "mean": the sum divided by the class weights of the rows that are not
            ignored, or by their number without class weights. Of rows that are kept, see below.
        num_items: What "mean" divides by instead, above 0, or a 0-d tensor on the device. It may be
            the number of tokens of all batches whose gradients are accumulated.
        class_weight: [C] or None; scales the losses, not the other scores.
        ignore_index: Target of rows that count for nothing.
        label_smoothing: In [0, 1].
        keep_tokens: Share of the rows that are trained on, in (0, 1]; `max(1, ceil(keep_tokens *
            R))` rows. Ignored rows are kept last, and count for nothing then, too. Ties are broken
            at random by `seed`.
        reference_loss: [R] losses of a reference model, or None; needs `keep_tokens`.
        seed: As in the selections; needs `keep_tokens`.
        chunk_rows: Rows of a chunk, or None: as many as have 16 MiB of logits on the CPU, and 256
            MiB on a GPU.

    Returns:
        A `LinearScoredLoss`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong dtype, shape, device or value.
        IndexError: A target is out of range (CPU; on a GPU its scores are NaN, and `check_errors`
            raises).
    """
    refuse_transforms("scored_linear_cross_entropy", GRADIENTS)
    as_choice("reduction", reduction, ("mean", "sum"))
    arguments = _check(
        hidden, weight, target, bias, sample_weight, class_weight, ignore_index, label_smoothing
    )
    if chunk_rows is None:
        chunk_rows = _chunk_rows(weight, arguments.dtype)
    arguments = arguments._replace(chunk_rows=as_int("chunk_rows", chunk_rows, minimum=1))
    if num_items is not None:
        num_items = _check_num_items(num_items, reduction, hidden)
    if keep_tokens is None:
        if reference_loss is not None:
            raise ValueError("reference_loss needs keep_tokens, the share of rows to train on")
        divisor = _divisor(arguments, reduction, num_items)
        return _result(LinearLoss.apply(hidden, weight, bias, arguments, divisor), None)
    keep_tokens = as_float("keep_tokens", keep_tokens, low=0.0, high=1.0, above_low=True)
    if reference_loss is not None:
        check_vector("reference_loss", reference_loss, FLOATING, hidden)
    with torch.no_grad():
        scored = arguments._replace(wants=(False, False, False))
        whole = _result(LinearLoss.apply(hidden, weight, bias, scored, None), None)
        kept = _kept(whole.row_loss, arguments, keep_tokens, reference_loss, seed)
    chosen = arguments._replace(
        target=arguments.target[kept], row_weight=arguments.row_weight[kept]
    )
    divisor = _divisor(chosen, reduction, num_items)
    loss, _, _ = LinearLoss.apply(hidden.index_select(0, kept), weight, bias, chosen, divisor)
    return whole._replace(loss=loss, kept=kept)


def _result(found: tuple[Tensor, Tensor, Tensor], kept: Tensor | None) -> LinearScoredLoss:
    loss, scores, correct = found
    row_loss, el2n, entropy, margin = scores.unbind()
    return LinearScoredLoss(loss, row_loss, el2n, entropy, margin, correct, kept)


def _divisor(arguments: LinearArguments, reduction: str, num_items: Tensor | None) -> Tensor | None:
    """Returns what the reduction divides by, 0-d; None: nothing."""
    if reduction == "sum":
        return None
    if num_items is not None:
        return num_items
    return mean_weight(arguments.target, arguments.class_weight, arguments.ignore_index, None, None)


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


def _chunk_rows(weight: Tensor, dtype: torch.dtype) -> int:
    limit = GPU_CHUNK_BYTES if weight.is_cuda else CPU_CHUNK_BYTES
    return max(1, limit // max(1, weight.shape[0] * dtype.itemsize))


def _check_num_items(num_items: int | Tensor, reduction: str, hidden: Tensor) -> Tensor:
    if reduction != "mean":
        raise ValueError(f"num_items needs reduction='mean', got {reduction!r}")
    if not isinstance(num_items, Tensor):
        number = as_int("num_items", num_items, minimum=1)
        return torch.full((), number, dtype=torch.float32, device=hidden.device)
    if num_items.numel() != 1 or num_items.device != hidden.device:
        raise ValueError(
            f"num_items must be 0-d on {hidden.device}, got shape {tuple(num_items.shape)} on "
            f"{num_items.device}"
        )
    return num_items.detach().reshape(())


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
    check_tensor("hidden", hidden, FLOATING)
    check_tensor("weight", weight, FLOATING)
    if hidden.dim() != 2:
        raise ValueError(
            f"hidden must be 2-D [rows, features], got shape {tuple(hidden.shape)}: flatten the "
            "other dimensions, as those of target"
        )
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
            f"{', '.join(given)}"
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
