# SPDX-License-Identifier: Apache-2.0
"""The per-sample state that dynamic pruning learns from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._arguments import as_choice, as_float, as_int
from dynprune_cuda._state import StateReader
from dynprune_cuda.stats import Stats, score_summary

__all__ = ["ScoreTable"]

FIRST_VISITS = ("zero", "published")
COLUMNS = {
    "mean": torch.float32,
    "variance": torch.float32,
    "count": torch.int32,
    "non_finite_count": torch.int32,
    "last_non_finite": torch.bool,
}
FirstVisit = Literal["zero", "published"]


class ScoreTable:
    """A moving average and a moving variance of the score of every sample.

    A visit with the value `v` updates the sample's row as the UCB baseline of the InfoBatch
    authors does (https://github.com/henryqin1997/InfoBatch-ImageNet, `infobatch_ucb.py`):
    `variance = (1 - alpha) * variance + alpha * (v - mean)**2`, with the old mean, then
    `mean = (1 - alpha) * mean + alpha * v`. The first visit sets `mean = v`.

    A value that is not finite leaves the averages alone: it is counted, and the sample ranks first
    until its next finite value. The table is a plain object: it can be pickled and deep-copied.

    Attributes:
        mean: Moving average of the score, float32 [num_samples]; NaN until the first finite value,
            so that a sample that was never visited ranks first (NaN is the greatest score).
        variance: Moving variance of the score, float32 [num_samples]; 0 until the second visit.
        count: Finite values seen, int32 [num_samples].
        non_finite_count: Values seen that were not finite, int32 [num_samples].
        last_non_finite: Whether the newest value was not finite, bool [num_samples].
        sample_ids: None; in a `part` the sample id of each row, int64 [num_samples].
    """

    sample_ids: Tensor | None = None

    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str | int = "cpu",
        alpha: float = 0.8,
        first_visit: FirstVisit = "zero",
    ) -> None:
        """Makes the table of a training set in which no sample has been visited.

        Args:
            num_samples: Size of the training set, at least 1.
            device: Where the table lives.
            alpha: Weight of the newest value in the moving averages, in (0, 1].
            first_visit: Variance after the first visit: "zero", or "published" for the baseline's
                own `alpha * value**2`, which lifts samples that were visited once.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range.
        """
        self.num_samples = as_int("num_samples", num_samples, minimum=1)
        self.alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
        as_choice("first_visit", first_visit, FIRST_VISITS)
        self.first_visit = first_visit
        size = self.num_samples
        self.mean = torch.full((size,), float("nan"), dtype=torch.float32, device=device)
        self.variance = torch.zeros(size, dtype=torch.float32, device=device)
        self.count = torch.zeros(size, dtype=torch.int32, device=device)
        self.non_finite_count = torch.zeros(size, dtype=torch.int32, device=device)
        self.last_non_finite = torch.zeros(size, dtype=torch.bool, device=device)

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self.mean.device

    def columns(self) -> tuple[Tensor | None, ...]:
        """Returns the columns in the order in which the scoring operators take them."""
        return (
            self.mean,
            self.variance,
            self.count,
            self.non_finite_count,
            self.last_non_finite,
            None,  # last_correct
            None,  # forget_count
        )

    @torch.no_grad()
    def update(self, ids: Tensor, values: Tensor) -> None:
        """Enters one value per sample id, without waiting for the device.

        An id that occurs more than once counts once, with its last value. A row whose id is -1
        belongs to no sample and is skipped.

        Args:
            ids: Sample ids, any integer dtype [batch]; on the CPU or on the table's device.
            values: Scores, any floating-point dtype [batch], on the CPU or on the table's device;
                read as float32, detached from the graph.

        Raises:
            TypeError: `ids` or `values` is no tensor.
            ValueError: A dtype or a shape is wrong, the lengths differ, or a tensor is on a GPU and
                the table on the CPU (moving it would wait for the GPU at every step).
            IndexError: An id is out of range (CPU; on a GPU the row is skipped and the error is
                raised by the next call that may wait, such as `stats`).
        """
        check_ids_and_values(ids, values)
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        values = move_without_waiting("values", values.to(torch.float32), self.device)
        functional.update_scores_(
            self.mean,
            self.variance,
            self.count,
            ids,
            values,
            alpha=self.alpha,
            first_visit=self.first_visit,
            non_finite_count=self.non_finite_count,
            last_non_finite=self.last_non_finite,
        )

    def part(self, sample_ids: Tensor) -> ScoreTable:
        """Returns a table of some samples only, with a copy of their rows, without waiting.

        Args:
            sample_ids: Distinct sample ids, int64 [n], on the table's device.

        Returns:
            A table of n rows, whose `sample_ids` tell which samples they are.
        """
        part = copy.copy(self)
        part.num_samples, part.sample_ids = len(sample_ids), sample_ids
        for name in COLUMNS:
            setattr(part, name, getattr(self, name).index_select(0, sample_ids))
        return part

    def ranking_mean(self) -> Tensor:
        """Returns the mean as selections read it, without waiting for the device.

        Returns:
            float32 [num_samples] on the table's device: `mean`, and NaN, the greatest score, where
            the sample was never visited or its newest value was not finite.
        """
        return self.mean.masked_fill(self.last_non_finite, float("nan"))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of all columns, by name, on the table's device."""
        return {name: getattr(self, name).clone() for name in COLUMNS}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, from any device. Waits for the device.

        Raises:
            TypeError: The state is no mapping, or an entry no tensor.
            ValueError: The state is damaged, or of another number of samples. Nothing changes then.
        """
        self.take(self.checked("state_dict", state_dict))

    def checked(self, name: str, state_dict: Any) -> dict[str, Tensor]:
        """Returns copies of the columns of a state, called `name` in errors, once they are sound.

        Raises:
            TypeError: The state is no mapping, or an entry no tensor.
            ValueError: The state is damaged, or of another number of samples.
        """
        read = StateReader(name, state_dict)
        read.has(COLUMNS)
        columns = {
            column: read.tensor(column, dtype, (self.num_samples,), self.device)
            for column, dtype in COLUMNS.items()
        }
        mean, variance, count, broken, is_broken = columns.values()
        read.sound("count", (count >= 0).all(), "a count is negative")
        read.sound("mean", ~(mean.isnan() & (count > 0)).any(), "a visited sample has no mean")
        read.sound("variance", ~(variance < 0).any(), "a variance is negative")
        read.sound("non_finite_count", (broken >= 0).all(), "a count is negative")
        read.sound("last_non_finite", (broken[is_broken] > 0).all(), "it contradicts the counts")
        return columns

    def take(self, columns: dict[str, Tensor]) -> None:
        """Copies columns that are known to be sound into the table's own memory."""
        for name, column in columns.items():
            getattr(self, name).copy_(column)

    def stats(self) -> Stats:
        """Summarises the table for a log; waits for the device only when a number is read.

        Returns:
            `visited` and `never_visited` (samples with and without a finite value), `values` (all
            finite values entered), `non_finite_values`, `non_finite_samples` (those whose newest
            value was not finite), and over the visited samples `score_mean`, `score_min`,
            `score_max`, the percentiles `score_p05`, `_p25`, `_p50`, `_p75`, `_p95`, and
            `score_variance` (the mean of `variance`), which are NaN while there are none. Reading
            the first number raises IndexError if an earlier update on a GPU met an id out of range.
        """
        visited = self.count > 0
        number = visited.sum()
        tensors = {
            "visited": number,
            "never_visited": self.num_samples - number,
            "values": self.count.sum(),
            "non_finite_values": self.non_finite_count.sum(),
            "non_finite_samples": self.last_non_finite.sum(),
            **score_summary(self.mean, visited),
            "score_variance": self.variance.sum(dtype=torch.float64) / number,
        }
        return Stats({}, tensors, partial(functional.check_errors, self.device))

    def __repr__(self) -> str:
        """Tells how the table was made."""
        return (
            f"ScoreTable(num_samples={self.num_samples}, device='{self.device}', "
            f"alpha={self.alpha}, first_visit={self.first_visit!r})"
        )


def check_ids(ids: Any) -> None:
    """Checks the type, dtype and shape of a batch of sample ids."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be a tensor, got {type(ids).__name__}")
    dtype = ids.dtype
    if dtype == torch.int64 and ids.dim() == 1:
        return
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"ids must have an integer dtype, got {dtype}")
    if ids.dim() != 1:
        raise ValueError(f"ids must be 1-D, got shape {tuple(ids.shape)}")


def check_ids_and_values(ids: Any, values: Any) -> None:
    """Checks the types, dtypes and lengths of one batch of sample ids and their values."""
    check_ids(ids)
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor, got {type(values).__name__}")
    if not values.dtype.is_floating_point:
        raise ValueError(f"values must have a floating-point dtype, got {values.dtype}")
    if values.dim() != 1:
        raise ValueError(
            f"values must hold one value per sample in 1-D, got shape "
            f"{tuple(values.shape)}; compute the loss with reduction='none'"
        )
    if ids.shape != values.shape:
        raise ValueError(
            f"ids and values must have the same length, got {len(ids)} ids and {len(values)} values"
        )


def move_without_waiting(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to `device` in stream order; refuses the direction that would wait."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu":
        # Only from pinned memory is the copy asynchronous; the allocator that hands out pinned
        # memory keeps it until the copy is done, although nobody holds it here any longer.
        pinned = tensor.pin_memory() if device.type == "cuda" else tensor
        return pinned.to(device, non_blocking=True)
    if device.type == "cpu":
        raise ValueError(
            f"{name} is on {tensor.device} and the score table on the CPU: make the table with "
            f"device='{tensor.device.type}', so that no step has to wait for {name}"
        )
    return tensor.to(device, non_blocking=True)
