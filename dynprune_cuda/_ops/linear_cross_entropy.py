# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a linear layer, in chunks of rows: the logits are never whole in memory.

The operator is made of matrix products, and of the compiled operators on a chunk's logits. To
torch.compile it is one operator.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._ops.autograd import refuse_second_derivative
from dynprune_cuda._ops.library import ops

_scale = ops.scale_gradient_.default


class LinearArguments(NamedTuple):
    """The arguments of the operator after `bias`; R rows, C classes."""

    target: Tensor  # [R]
    row_weight: Tensor  # [R] derivative of the sum by the rows' losses, in the losses' dtype
    class_weight: Tensor | None  # [C], likewise
    ignore_index: int
    label_smoothing: float
    softcap: float  # 0: none
    z_loss: float
    chunk_rows: int
    dtype: torch.dtype  # of the matrix products
    wants: tuple[bool, bool, bool]  # the gradients of hidden, weight and bias


def _loss_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _results(
    hidden: Tensor, weight: Tensor, dtype: torch.dtype, wants: list[bool]
) -> tuple[Tensor, ...]:
    """Allocates what the operator returns."""
    rows, exact = hidden.shape[0], _loss_dtype(dtype)
    # The first products fill the large ones.
    large = hidden.new_empty if rows > 0 else hidden.new_zeros
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    gradients = (
        new(shape if wanted else (0,), dtype=exact)
        for new, shape, wanted in zip((large, large, hidden.new_zeros), shapes, wants, strict=True)
    )
    scores = hidden.new_zeros((5, rows), dtype=exact)
    return scores, hidden.new_empty((rows,), dtype=torch.bool), *gradients


# Matrix products into logits whose rows are neighbours take less time on the CPU, and the scores of
# such logits more time. So the products must be large.
CLASSES_IN_COLUMNS, FEATURES_IN_COLUMNS, ROWS_IN_COLUMNS = 16_384, 768, 16


def fits_columns(buffer: Tensor, rows: int, weight: Tensor) -> bool:
    """Returns whether the logits of so many rows are laid out by class, and not by row."""
    classes, features = weight.shape
    return (
        buffer.device.type == "cpu"
        and buffer.dtype in (torch.float32, torch.float64)
        and classes >= CLASSES_IN_COLUMNS
        and features >= FEATURES_IN_COLUMNS
        and rows >= ROWS_IN_COLUMNS
    )


def chunk_logits(buffer: Tensor, rows: int, classes: int, *, in_columns: bool) -> Tensor:
    """Returns the logits of a chunk of rows, [rows, classes], in a buffer: by class, or by row."""
    part = buffer[: rows * classes]
    return part.view(classes, rows).t() if in_columns else part.view(rows, classes)


def _of_all_rows(message: str, part: int | Tensor) -> str:
    """Returns an error about a target of a chunk with its place among all rows.

    `part` is where the chunk begins, or the places of its rows.
    """

    def place(found: re.Match[str]) -> str:
        row = int(found[0])
        return str(part + row if isinstance(part, int) else int(part[row]))

    return re.sub(r"(?<=target\[)\d+", place, message, count=1)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Adds a @ b to a total in the same dtype, or in a wider one; the first one is the total."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


@torch.library.custom_op("dynprune_cuda::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    chunk_rows: int,
    dtype: torch.dtype,
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the scores of the rows, and the gradients of the weighted sum of their losses.

    Args:
        hidden: [R, D].
        weight: [C, D].
        bias: [C] or None.
        target: See `LinearArguments`, as for the arguments that follow.
        row_weight: [R].
        class_weight: [C] or None.
        ignore_index: Target of rows that count for nothing.
        label_smoothing: In [0, 1].
        softcap: Bound of the logits, above 0; 0 for none.
        z_loss: Factor of the squared logarithm of the normaliser, at least 0.
        chunk_rows: At least 1.
        dtype: Dtype of the matrix products.
        wants: Whether the gradients of hidden, weight and bias are wanted.

    Returns:
        scores [5, R]: loss, EL2N, entropy, margin, and what z_loss adds to the loss. Correct, bool
        [R]. The gradients of hidden, weight and bias, [0] where they are not wanted. Floats are
        float32, or float64 for products in float64: the chunks' gradients of weight and bias are
        added in it.
    """
    results = _results(hidden, weight, dtype, wants)
    scores, correct, grad_hidden, grad_weight, grad_bias = results
    counted, rows = None, hidden.shape[0]
    if hidden.device.type == "cpu":  # where counting the rows waits for nothing
        counted = torch.nonzero(target.long() != ignore_index)[:, 0]
        if len(counted) == rows:
            counted = None
        else:
            rows = len(counted)
            correct.zero_()
            grad_hidden.zero_()
            if rows == 0:
                grad_weight.zero_()
    matrix = weight.to(dtype)
    offset = None if bias is None else bias.to(dtype)
    buffer = hidden.new_empty(min(chunk_rows, rows) * len(weight), dtype=dtype)
    others = ignore_index, label_smoothing
    for first in range(0, rows, chunk_rows):
        part: Any = slice(first, first + chunk_rows)
        if counted is not None:
            part = counted[part]
        inputs = hidden[part].to(dtype)
        # The softmax of z_loss would copy logits that are laid out by class.
        in_columns = z_loss == 0 and fits_columns(buffer, len(inputs), weight)
        logits = chunk_logits(buffer, len(inputs), len(weight), in_columns=in_columns)
        if offset is None:
            torch.mm(inputs, matrix.t(), out=logits)
        else:
            torch.addmm(offset, inputs, matrix.t(), out=logits)
        if softcap > 0:
            logits.div_(softcap).tanh_().mul_(softcap)
        factors, options = row_weight[part], (target[part], class_weight, *others)
        if any(wants):
            # What else depends on the logits, before their gradient replaces them.
            if z_loss > 0:
                of_log_z = torch.softmax(logits, 1, dtype=scores.dtype)
            if softcap > 0:  # the derivative of the hyperbolic tangent
                slope = logits.to(scores.dtype, copy=True).div_(softcap).square_().neg_().add_(1)
        try:
            scored = logits[None] if in_columns else logits
            if any(wants):
                found = ops.scored_cross_entropy_with_gradient_(factors, scored, *options)
            else:
                found = ops.scored_cross_entropy(scored, *options)
        except IndexError as error:
            place = first if counted is None else part
            raise IndexError(_of_all_rows(str(error), place)) from None
        *values, correct[part], saved = found
        scores[:4, part] = torch.stack(values)
        if z_loss > 0:
            log_z = saved[:, 0] + saved[:, 1]
            log_z.masked_fill_(target[part].long() == ignore_index, 0)
            scores[4, part] = log_z.square() * z_loss
        if not any(wants):
            continue
        grad = logits
        if z_loss > 0:
            grad += of_log_z.mul_((2 * z_loss * log_z * factors)[:, None])
            del of_log_z
        if softcap > 0:
            grad *= slope
            del slope
        if wants[0] and counted is None and dtype == grad_hidden.dtype:
            torch.mm(grad, matrix, out=grad_hidden[part])
        elif wants[0]:
            grad_hidden[part] = (grad @ matrix).to(grad_hidden.dtype)
        if wants[1]:
            _add_product(grad_weight, grad.t(), inputs, first=first == 0)
        if wants[2]:
            grad_bias += grad.sum(0, dtype=grad_bias.dtype)
    return results  # type: ignore[return-value]


@linear_cross_entropy.register_fake
def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    chunk_rows: int,
    dtype: torch.dtype,
    wants: list[bool],
) -> tuple[Tensor, ...]:
    return _results(hidden, weight, dtype, wants)


class LinearLoss(torch.autograd.Function):
    """linear_cross_entropy and its gradients, which the forward pass computes.

    Returns the weighted sum of the losses, divided by `divisor`; scores [4, R], and correct.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        arguments: LinearArguments,
        divisor: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Calls the operator and keeps the gradients."""
        weights, wants = arguments.row_weight, arguments.wants
        if divisor is not None:
            arguments = arguments._replace(row_weight=weights / divisor)
        scores, correct, *gradients = linear_cross_entropy(
            hidden, weight, bias, *arguments[:-1], list(wants)
        )
        ctx.spent = False
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.save_for_backward(*(g if w else None for g, w in zip(gradients, wants, strict=True)))
        losses = scores[0] + scores[4] if arguments.z_loss > 0 else scores[0]
        scores = scores[:4]
        ctx.mark_non_differentiable(scores, correct)
        ctx.set_materialize_grads(False)
        loss = (losses * weights).sum()
        return loss if divisor is None else loss / divisor, scores, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """The kept gradients times the incoming one."""
        if grad_loss is None:
            return (None,) * 5
        refuse_second_derivative("linear_cross_entropy", "linear and cross_entropy")
        if ctx.spent:
            raise RuntimeError(
                "the gradients of linear_cross_entropy were already used by a backward pass, which "
                "changed them in place: call it again for another one"
            )
        compiling = torch.compiler.is_compiling()
        found: list[Tensor | None] = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            if gradient is None:
                found.append(None)
                continue
            if compiling or gradient.dtype == torch.float64:  # which is for checking gradients
                gradient = gradient * grad_loss
            else:  # in place, so that a factor of 1 costs nothing
                _scale(gradient if gradient.dim() == 2 else gradient[None], grad_loss, None)
                ctx.spent = True
            found.append(gradient.to(dtype))
        return *found, None, None
