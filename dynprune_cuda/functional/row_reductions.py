# SPDX-License-Identifier: Apache-2.0
"""How the rows of one sample in a batch become the sample's value, and its part of the loss."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_INT64, as_choice, as_float
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


class Runs(NamedTuple):
    """Runs of equal keys in an order of them.

    Attributes:
        place: 0, 1, ..., int64 [n].
        first: Where the run of each place begins, int64 [n].
        last: Its last place, int64 [n].
    """

    place: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, keys: Tensor) -> Runs:
        """Returns the runs of keys that are in order, [n] with n at least 1."""
        place = torch.arange(len(keys), device=keys.device)
        begins = torch.ones_like(keys, dtype=torch.bool)
        begins[1:] = keys[1:] != keys[:-1]
        first = torch.where(begins, place, 0).cummax(0).values
        ends = begins.roll(-1)  # the first place begins a run, and so the last one ends one
        last = torch.where(ends, place, len(keys)).flip(0).cummin(0).values.flip(0)
        return cls(place, first, last)

    def sums(self, values: Tensor) -> Tensor:
        """Returns the sum of the values of each place's run, [n]."""
        upto = values.cumsum(0)
        return upto[self.last] - upto[self.first] + values[self.first]


def first_places(ids: Tensor) -> Tensor:
    """Returns for each id the first place at which it occurs, int64 [n], without waiting."""
    if not len(ids):
        return ids
    in_order, order = ids.sort(stable=True)
    places = torch.empty_like(ids)
    places[order] = order[Runs.of(in_order).first]
    return places


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
        `ids` with -1 for the other rows. And `correct`, False in all rows of a sample if one of its
        rows, remaining or not, is not correct.
    """
    if not len(ids):
        return ids, correct
    finite = torch.where(values.isfinite(), values, float("nan"))  # which sorts as the greatest
    order = finite.sort(descending=True, stable=True).indices
    order = order[ids[order].sort(stable=True).indices]
    in_order = ids[order]
    runs = Runs.of(in_order)
    rows = runs.last - runs.first + 1
    kept = (rows.double() * share + 0.5).floor().clamp(min=1)
    remaining = torch.empty_like(ids)
    remaining[order] = torch.where(runs.place - runs.first < kept, in_order, -1)
    if correct is None:
        return remaining, None
    all_correct = torch.empty_like(correct)
    all_correct[order] = runs.sums(correct[order].long()) == rows
    return remaining, all_correct


def sample_shares(ids: Tensor, rows_per_id: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what makes of a sum over rows the mean over samples of each sample's mean.

    Args:
        ids: Sample ids, int64 [rows / rows_per_id]; equal ids are one sample, and each -1 is one by
            itself.
        rows_per_id: Rows of an id, which follow each other.
        weights: Weight of each row in its sample's mean, floating point [rows]; 0 for rows that
            count for nothing.

    Returns:
        The factors of the rows, [rows], in the dtype of `weights`, and how many samples have a row
        that counts, 0-d.
    """
    if not len(weights):
        return weights, weights.sum()
    totals = weights.double().view(-1, rows_per_id).sum(1)
    own = torch.arange(len(ids), device=ids.device) - MAX_INT64
    keys, order = torch.where(ids == -1, own, ids).sort(stable=True)
    runs = Runs.of(keys)
    sums = runs.sums(totals[order])
    number = ((runs.place == runs.first) & (sums > 0)).sum()
    factors = torch.empty_like(totals)
    factors[order] = torch.where(sums > 0, 1 / sums, 0.0)
    factors = factors[:, None].expand(-1, rows_per_id).flatten()
    return factors.to(weights.dtype), number.to(weights.dtype)
