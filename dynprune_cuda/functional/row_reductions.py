# SPDX-License-Identifier: Apache-2.0
"""How the rows of one sample in a batch become the sample's value."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import as_choice, as_float
from dynprune_cuda._ops.contract import RowReduction

# A float is a share: the mean of the greatest values.
RowReductionName = Literal["mean", "sum", "max"] | float

ROW_REDUCTIONS = tuple(reduction.name.lower() for reduction in RowReduction)
MEAN = int(RowReduction.MEAN)


def as_row_rule(value: Any) -> int | float:
    """Returns a `row_reduction` as the number that the operators take, or as a share below 1."""
    if isinstance(value, str):
        return ROW_REDUCTIONS.index(as_choice("row_reduction", value, ROW_REDUCTIONS))
    share = as_float("row_reduction", value, low=0.0, high=1.0, above_low=True)
    return share if share < 1 else MEAN


def top_rows(
    ids: Tensor, values: Tensor, correct: Tensor | None, share: float
) -> tuple[Tensor, Tensor | None]:
    """Leaves of each sample the share of its rows with the greatest values, without waiting.

    Of n rows `max(1, floor(share * n + 0.5))` remain. A value that is not finite is the greatest.
    The remaining values do not depend on the order of the rows.

    Args:
        ids: Sample ids, int64 [rows]; negative for rows that do not count.
        values: Floating point [rows].
        correct: bool [rows], or None.
        share: In (0, 1).

    Returns:
        `ids` with -1 for the other rows, and `correct` with False in all rows of a sample of which
        one row, remaining or not, is not correct.
    """
    if not len(ids):
        return ids, correct
    finite = torch.where(values.isfinite(), values, float("nan"))  # which sorts as the greatest
    order = finite.sort(descending=True, stable=True).indices
    order = order[ids[order].sort(stable=True).indices]
    ids_in_order = ids[order]
    place = torch.arange(len(ids), device=ids.device)
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[1:] = ids_in_order[1:] != ids_in_order[:-1]
    first = torch.where(begins, place, 0).cummax(0).values
    ends = begins.roll(-1)  # the first row begins a sample, and so the last one ends one
    last = torch.where(ends, place, len(ids)).flip(0).cummin(0).values.flip(0)
    kept = ((last - first + 1).double() * share + 0.5).floor().clamp(min=1)
    remaining = torch.empty_like(ids)
    remaining[order] = torch.where(place - first < kept, ids_in_order, -1)
    if correct is None:
        return remaining, None
    right = correct[order].long()
    before = right.cumsum(0) - right
    number = before[last] + right[last] - before[first]
    all_correct = torch.empty_like(correct)
    all_correct[order] = number == last - first + 1
    return remaining, all_correct
