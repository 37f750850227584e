# SPDX-License-Identifier: Apache-2.0
"""Moving averages of the samples' scores; public through `functional`."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    COUNT_DTYPES,
    FLOATING,
    are_ordinary,
    as_choice,
    as_float,
    check_num_samples,
    check_vector,
    refuse_transforms,
)
from dynprune_cuda._ops import ops
from dynprune_cuda.functional.row_reductions import (
    MEAN,
    ROW_REDUCTIONS,
    RowReductionName,
    as_row_rule,
    top_rows,
)

# Bind the overload once: calling a packet resolves its overload on every call.
_update_scores = ops.update_scores_.default

FirstVisit = Literal["zero", "published"]
FIRST_VISITS = ("zero", "published")
FLOAT32, INT32, BOOL = (torch.float32,), (torch.int32,), (torch.bool,)


class ScoreColumns(NamedTuple):
    """The columns of a score table, in the order of the operators; N samples."""

    mean: Tensor  # float32 [N]
    variance: Tensor  # float32 [N]
    count: Tensor  # type: ignore[assignment]  # int32 or int64 [N]; hides the method of tuple
    non_finite_count: Tensor | None = None  # int32 [N]
    last_non_finite: Tensor | None = None  # bool [N]
    last_correct: Tensor | None = None  # bool [N]
    forget_count: Tensor | None = None  # int32 [N]

    def present(self) -> list[Tensor]:
        """Returns the columns that there are."""
        return [column for column in self if column is not None]


def update_scores_(
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    sample_ids: Tensor,
    values: Tensor,
    *,
    alpha: float,
    first_visit: FirstVisit = "zero",
    non_finite_count: Tensor | None = None,
    last_non_finite: Tensor | None = None,
    correct: Tensor | None = None,
    last_correct: Tensor | None = None,
    forget_count: Tensor | None = None,
    row_reduction: RowReductionName = "mean",
) -> None:
    """Updates the moving averages of samples by a batch of values, in place.

    The rule is that of the UCB baseline that the authors of InfoBatch released. With `d = (value -
    mean)^2` by the old mean, it is `mean = (1 - alpha) * mean + alpha * value`, `variance = (1 -
    alpha) * variance + alpha * d`, `count += 1`. At the first visit (count 0), mean = value.

    The rows of an id that occurs several times are one visit with one value (`row_reduction`). The
    order of the rows changes no bit of it. The id -1 marks a row without a sample and is skipped.
    Any other id out of range is an IndexError on the CPU before anything changes; on CUDA it is
    skipped and `check_errors` raises. The tensors must not share memory with each other.

    Args:
        mean: [N] float32, contiguous.
        variance: [N] float32, contiguous.
        count: [N] int32 or int64, contiguous.
        sample_ids: [B] int64.
        values: [B] floating point, read as float32. A value that is not finite changes no average
            and no count; of several rows, one is enough.
        alpha: Weight of the new value, in (0, 1].
        first_visit: Variance after the first visit: "zero", or "published": alpha * value^2.
        non_finite_count: [N] int32, or None; grows by one with each value that is not finite.
        last_non_finite: [N] bool, or None; whether the sample's last value was not finite.
        correct: [B] bool, or None; whether the row was classified correctly. Needs `last_correct`.
            A sample of several rows is correct if all of them are.
        last_correct: [N] bool, or None; `correct` of the sample's last visit, False at first.
        forget_count: [N] int32, or None; forgetting events: grows by one when a sample that was
            correct is not (Toneva et al. 2019, arXiv:1812.05159). Needs `last_correct`.
        row_reduction: What of a sample's rows is its value: "mean", "sum", "max", or a float in
            (0, 1]. The float is a share: the mean of the `max(1, floor(share * n + 0.5))` greatest
            of n values, which takes two sorts. Rows are added exactly. A sum or mean is then
            rounded to float64 and to float32.
    """
    columns = ScoreColumns._make(
        (mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count)
    )
    if (
        type(alpha) is float
        and type(first_visit) is str
        and type(row_reduction) is str
        and 0.0 < alpha <= 1.0
        and first_visit in FIRST_VISITS
        and row_reduction in ROW_REDUCTIONS
        and mean is not None
        and variance is not None
        and count is not None
        and _are_updatable(columns.present(), sample_ids, values, correct)
    ):
        # The operator checks the rest before it changes anything, but names less than the checks
        # below, which run if it refuses.
        rule, published = ROW_REDUCTIONS.index(row_reduction), first_visit == "published"
        try:
            _update(columns, sample_ids, values, correct, alpha, published, rule)
        except (IndexError, RuntimeError, ValueError):
            pass
        else:
            torch.autograd.graph.increment_version(columns.present())
            return
    refuse_transforms("update_scores_", ("Vmap", "Functionalize"))
    columns = check_columns(
        mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count
    )
    check_vector("sample_ids", sample_ids, (torch.int64,), mean, None)
    check_vector("values", values, FLOATING, mean, sample_ids.numel(), like_name="sample_ids")
    if (correct is None) != (last_correct is None):
        raise ValueError("correct and last_correct must be given together")
    if correct is not None:
        check_vector(
            "correct", correct, (torch.bool,), mean, sample_ids.numel(), like_name="sample_ids"
        )
    refuse_shared_memory(columns, sample_ids=sample_ids, values=values, correct=correct)
    alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
    published = as_choice("first_visit", first_visit, FIRST_VISITS) == "published"
    share, values = as_row_rule(row_reduction), values.detach().to(torch.float32)
    if isinstance(share, float):
        sample_ids, correct = top_rows(sample_ids, values, correct, share)
        share = MEAN
    _update(columns, sample_ids, values, correct, alpha, published, share)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(columns.present())


def _update(
    columns: ScoreColumns,
    sample_ids: Tensor,
    values: Tensor,
    correct: Tensor | None,
    alpha: float,
    published: bool,
    rule: int,
) -> None:
    mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count = columns
    _update_scores(
        mean,
        variance,
        count,
        sample_ids,
        values,
        alpha,
        published,
        non_finite_count,
        last_non_finite,
        correct,
        last_correct,
        forget_count,
        rule,
    )


def _are_updatable(
    columns: list[Tensor], sample_ids: Tensor, values: Tensor, correct: Tensor | None
) -> bool:
    """Returns whether plain tensors lie apart, and nothing but the operator must check them."""
    tensors = [*columns, sample_ids, values]
    if correct is not None:
        tensors.append(correct)
    if not are_ordinary(tensors) or values.dtype is not torch.float32 or values.requires_grad:
        return False
    ranges = sorted(map(_addresses, tensors))
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))


def check_updatable(name: str, tensor: Tensor) -> None:
    """Checks that an operator can update a tensor in place."""
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} is updated in place and must be contiguous, got strides {tensor.stride()}"
        )
    if not torch.compiler.is_compiling() and tensor.is_neg():
        raise ValueError(
            f"{name} is updated in place and must own its values, got a view that negates "
            f"them; pass {name}.resolve_neg()"
        )


def refuse_shared_memory(columns: ScoreColumns, **inputs: Tensor | None) -> None:
    """Checks that no column lies in the memory of another one, or of what is read beside it.

    Only plain tensors are looked at; others need not have an address.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    # A column is contiguous and has one range of addresses; so has, at most, what is read.
    ranges = sorted(
        (*_addresses(column), name)
        for name, column in zip(columns._fields, columns, strict=True)
        if _has_memory(column)
    )
    for (_, end, name), (start, _, other) in itertools.pairwise(ranges):
        if start < end:
            raise ValueError(f"{other} must not share memory with {name}, got overlapping tensors")
    for other, tensor in inputs.items():
        if not _has_memory(tensor):
            continue
        first, last = _addresses(tensor)
        for start, end, name in ranges:
            if first < end and start < last:
                raise ValueError(
                    f"{other} must not share memory with {name}, which is updated in place, got "
                    "overlapping tensors"
                )


def _has_memory(tensor: Tensor | None) -> TypeGuard[Tensor]:
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_nested:
        return False  # whatever it is, the checks of its name come later
    return not tensor.is_meta and tensor.numel() > 0


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """Returns the first address of a tensor's elements, and the one behind the last."""
    start, size = tensor.data_ptr(), tensor.element_size()
    if tensor.is_contiguous():
        return start, start + tensor.numel() * size
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return start, start + (1 + sum((length - 1) * step for length, step in steps)) * size


def check_columns(
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    non_finite_count: Tensor | None,
    last_non_finite: Tensor | None,
    last_correct: Tensor | None,
    forget_count: Tensor | None,
) -> ScoreColumns:
    """Returns the columns of a score table, checked."""
    check_vector("mean", mean, FLOAT32)
    check_updatable("mean", mean)
    for name, column, dtypes in (("variance", variance, FLOAT32), ("count", count, COUNT_DTYPES)):
        check_vector(name, column, dtypes, mean)
        check_updatable(name, column)
    for name, optional, dtypes in (
        ("non_finite_count", non_finite_count, INT32),
        ("last_non_finite", last_non_finite, BOOL),
        ("last_correct", last_correct, BOOL),
        ("forget_count", forget_count, INT32),
    ):
        if optional is not None:
            check_vector(name, optional, dtypes, mean)
            check_updatable(name, optional)
    if forget_count is not None and last_correct is None:
        raise ValueError("forget_count needs last_correct beside it")
    check_num_samples("mean", mean.numel())
    return ScoreColumns(
        mean, variance, count, non_finite_count, last_non_finite, last_correct, forget_count
    )
