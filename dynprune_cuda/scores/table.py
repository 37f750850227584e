# SPDX-License-Identifier: Apache-2.0
"""The per-sample state that dynamic pruning learns from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import (
    MAX_SAMPLES,
    as_choice,
    as_device,
    as_float,
    as_int,
    check_vector,
)
from dynprune_cuda._checks.batches import check_correct, check_ids_and_values, move_without_waiting
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda.functional.row_reductions import RowReductionName, as_row_rule
from dynprune_cuda.functional.score_updates import FIRST_VISITS, FirstVisit, ScoreColumns
from dynprune_cuda.scores.history import History
from dynprune_cuda.stats import Stats, gini, score_summary, share

__all__ = ["ScoreTable"]

COLUMNS = {
    "mean": torch.float32,
    "variance": torch.float32,
    "count": torch.int32,
    "non_finite_count": torch.int32,
    "last_non_finite": torch.bool,
}
FORGETTING = {"last_correct": torch.bool, "forget_count": torch.int32}


class CheckedIds(NamedTuple):
    """Sample ids that are known to be in range."""

    ids: Tensor  # int64 [batch]; -1 for rows without a sample, and where the id was out of range
    num_wrong: Tensor | None = None  # on a GPU: how many ids were out of range, 0-d int64
    example: Tensor | None = None  # on a GPU: one of them, 0-d int64


class UpdateTarget(NamedTuple):
    """Where a scored step writes the scores of a batch.

    Attributes:
        rows: The row of each sample of the batch, int64 [batch]; -1 belongs to no sample.
        columns: The columns that have these rows.
        batch: The ids of the batch, if the columns are for this batch alone.
    """

    rows: Tensor
    columns: ScoreColumns
    batch: CheckedIds | None = None


class ScoreTable:
    """A moving average and a moving variance of the score of every sample.

    A visit with the value `v` updates the sample's row as the UCB baseline of the InfoBatch authors
    does (https://github.com/henryqin1997/InfoBatch-ImageNet, `infobatch_ucb.py`). It computes
    `variance = (1 - alpha) * variance + alpha * (v - mean)**2`, with the old mean, then `mean = (1
    - alpha) * mean + alpha * v`. The first visit sets `mean = v`.

    A value that is not finite leaves the averages alone: it is counted, and the sample ranks first
    until its next finite value. The table is a plain object: it can be pickled and deep-copied.

    Attributes:
        mean: Moving average of the score, float32 [num_samples]. It is NaN until the first finite
            value. So a sample that was never visited ranks first: NaN is the greatest score.
        variance: Moving variance of the score, float32 [num_samples]; 0 until the second visit.
        count: Finite values seen, int32 [num_samples].
        non_finite_count: Values seen that were not finite, int32 [num_samples].
        last_non_finite: Whether the newest value was not finite, bool [num_samples].
        last_correct: Whether the sample was classified correctly at its last visit that told, bool
            [num_samples]; None without `track_forgetting`.
        forget_count: Forgetting events, int32 [num_samples]; None without `track_forgetting`. These
            are visits at which the sample was not classified correctly, and had been at the visit
            before (Toneva et al. 2019, https://arxiv.org/abs/1812.05159).
        sample_ids: None; in a `part` the sample id of each row, int64 [num_samples].
        history: None; where the run is, in the table of a policy with `uses_history`.
        start: 0; in the table that a run shows its policy, the starting point of a `coordinated`
            draw. Each selection has its own, see `Ranking.by_weight`.
        memory: None; the policy's own columns, in the table of a policy with `memory`.
    """

    last_correct: Tensor | None = None
    forget_count: Tensor | None = None
    sample_ids: Tensor | None = None
    history: History | None = None
    start: float = 0.0
    memory: Mapping[str, Tensor] | None = None

    @torch.inference_mode(False)  # tensors that it made could not be updated outside
    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str | int = "cpu",
        alpha: float = 0.8,
        first_visit: FirstVisit = "zero",
        track_forgetting: bool = False,
        row_reduction: RowReductionName = "mean",
    ) -> None:
        """Makes the table of a training set in which no sample has been visited.

        Args:
            num_samples: Size of the training set, at least 1.
            device: Where the table lives.
            alpha: Weight of the newest value in the moving averages, in (0, 1].
            first_visit: Variance after the first visit: "zero", or "published" for the baseline's
                own `alpha * value**2`, which lifts samples that were visited once.
            track_forgetting: Keep `last_correct` and `forget_count`, 5 bytes per sample.
            row_reduction: The value of a sample that has several rows in a batch: their "mean",
                "sum" or "max", or a float in (0, 1]. The float is a share: the mean of its greatest
                values. See `functional.update_scores_`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range.
        """
        self.num_samples = as_int("num_samples", num_samples, minimum=1, maximum=MAX_SAMPLES)
        self.alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
        as_choice("first_visit", first_visit, FIRST_VISITS)
        self.first_visit = first_visit
        self.row_reduction, self.row_rule = row_reduction, as_row_rule(row_reduction)
        if not isinstance(track_forgetting, bool):
            raise TypeError(f"track_forgetting must be a bool, got {track_forgetting!r}")
        size, device = self.num_samples, as_device("device", device)
        self.mean = torch.full((size,), float("nan"), dtype=torch.float32, device=device)
        self.variance = torch.zeros(size, dtype=torch.float32, device=device)
        self.count = torch.zeros(size, dtype=torch.int32, device=device)
        self.non_finite_count = torch.zeros(size, dtype=torch.int32, device=device)
        self.last_non_finite = torch.zeros(size, dtype=torch.bool, device=device)
        if track_forgetting:
            self.last_correct = torch.zeros(size, dtype=torch.bool, device=device)
            self.forget_count = torch.zeros(size, dtype=torch.int32, device=device)

    @property
    def track_forgetting(self) -> bool:
        """Whether the table counts forgetting events."""
        return self.forget_count is not None

    @property
    def column_types(self) -> dict[str, torch.dtype]:
        """The columns that this table has, by name."""
        return {**COLUMNS, **FORGETTING} if self.track_forgetting else COLUMNS

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self.mean.device

    def columns(self) -> ScoreColumns:
        """Returns the columns, as the scoring operators take them."""
        columns = (
            self.mean,
            self.variance,
            self.count,
            self.non_finite_count,
            self.last_non_finite,
            self.last_correct,
            self.forget_count,
        )
        # Without the Python code of ScoreColumns(): every step calls this.
        return tuple.__new__(ScoreColumns, columns)

    def update_target(self, ids: Tensor, *, grouped: bool = False) -> UpdateTarget:
        """Returns where the scored step writes the scores of a batch; nothing changes.

        Args:
            ids: Sample ids, int64 [batch], on the table's device; -1 belongs to no sample.
            grouped: Whether each of the ids stands for several rows of the batch.
        """
        return UpdateTarget._make((ids, self.columns(), None))

    @torch.no_grad()
    def update(
        self,
        ids: Tensor,
        values: Tensor,
        correct: Tensor | None = None,
        alpha: float | None = None,
    ) -> None:
        """Enters one value per sample id, without waiting for the device.

        The rows of an id that occurs several times are one visit. Its value is made of theirs by
        `row_reduction`, and their order changes no bit of it. A row whose id is -1 belongs to no
        sample and is skipped.

        Args:
            ids: Sample ids, any integer dtype [batch]; on the CPU or on the table's device.
            values: Scores, any floating-point dtype [batch], on the CPU or on the table's device;
                read as float32, detached from the graph.
            correct: Was the sample classified correctly, bool [batch], on the CPU or on the table's
                device; counts for nothing without `track_forgetting`. A sample is correct if all
                of its rows are. None: this visit does not tell, and leaves `last_correct` and
                `forget_count` alone.
            alpha: Weight of these values in the moving averages, in (0, 1]. None: the table's.

        Raises:
            TypeError: `ids`, `values` or `correct` is no tensor, or `alpha` no number.
            ValueError: A dtype or a shape is wrong, the lengths differ, or `alpha` is out of range.
                Or a tensor is on a GPU and the table on the CPU: moving it would wait for the GPU
                at every step.
            IndexError: An id is out of range. On a GPU the row is skipped, and the next call that
                may wait raises, such as `stats`.
        """
        check_ids_and_values(ids, values)
        if correct is not None:
            check_correct(correct, ids)
            tracked = self.track_forgetting
            correct = move_without_waiting("correct", correct, self.device) if tracked else None
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        values = move_without_waiting("values", values.to(torch.float32), self.device)
        functional.update_scores_(
            self.mean,
            self.variance,
            self.count,
            ids,
            values,
            alpha=self.alpha if alpha is None else alpha,
            first_visit=self.first_visit,
            non_finite_count=self.non_finite_count,
            last_non_finite=self.last_non_finite,
            correct=correct,
            last_correct=None if correct is None else self.last_correct,
            forget_count=None if correct is None else self.forget_count,
            row_reduction=self.row_reduction,
        )

    def part(self, sample_ids: Tensor) -> ScoreTable:
        """Returns a table of some samples only, with a copy of their rows, without waiting.

        Args:
            sample_ids: Distinct sample ids, int64 [n], on the table's device.

        Returns:
            A table of n rows, whose `sample_ids` tell which samples they are.

        Raises:
            TypeError: `sample_ids` is no tensor.
            ValueError: `sample_ids` has the wrong dtype, shape or device.
            IndexError: An id is out of range (CPU; on a GPU it is an error of the device).
        """
        check_vector("sample_ids", sample_ids, (torch.int64,), self.mean, None)
        part = copy.copy(self)
        part.num_samples, part.sample_ids = len(sample_ids), sample_ids
        for name in self.column_types:
            try:
                setattr(part, name, getattr(self, name).index_select(0, sample_ids))
            except IndexError:
                low, high = int(sample_ids.min()), int(sample_ids.max())
                raise IndexError(
                    f"sample_ids must be from 0 to {self.num_samples - 1}, got {low} to {high}"
                ) from None
        if self.history is not None:
            part.history = self.history.part(sample_ids)
        if self.memory is not None:
            memory = self.memory.items()
            part.memory = {name: column.index_select(0, sample_ids) for name, column in memory}
        return part

    def told(
        self,
        history: History | None,
        memory: Mapping[str, Tensor] | None,
        start: float = 0.0,
    ) -> ScoreTable:
        """Returns a table with the same columns, and with what a run tells a policy.

        Args:
            history: Where the run is.
            memory: The policy's own columns by name, [num_samples] each.
            start: See the attribute.
        """
        table = copy.copy(self)
        table.history, table.memory, table.start = history, memory, start
        return table

    def ranking_mean(self) -> Tensor:
        """Returns the mean as selections read it, without waiting for the device.

        Returns:
            float32 [num_samples] on the table's device: `mean`, and NaN, the greatest score, where
            the sample was never visited or its newest value was not finite.
        """
        return self.mean.masked_fill(self.last_non_finite, float("nan"))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of all columns, by name, on the table's device."""
        return {name: getattr(self, name).clone() for name in self.column_types}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, from any device. Waits for the device.

        Args:
            state_dict: From `state_dict`.

        Raises:
            TypeError: The state is no mapping, or an entry no tensor.
            ValueError: The state is damaged, or of another number of samples. Or it tracked
                forgetting and this table does not, or the other way round. Nothing changes then.
        """
        self.take(self.checked("state_dict", state_dict))

    def checked(self, name: str, state_dict: Any) -> dict[str, Tensor]:
        """Returns copies of the columns of a state, called `name` in errors, once they are sound.

        Args:
            name: What errors call the state.
            state_dict: From `state_dict`.

        Raises:
            TypeError: The state is no mapping, or an entry no tensor.
            ValueError: The state is damaged, or of another number of samples. Or it tracked
                forgetting and this table does not, or the other way round.
        """
        read = StateReader(name, state_dict)
        saved = not FORGETTING.keys().isdisjoint(state_dict)
        if saved != self.track_forgetting and COLUMNS.keys() <= set(state_dict):
            raise ValueError(
                f"{name} is of another run: it was saved with track_forgetting={saved}, and here "
                f"it is {self.track_forgetting}"
            )
        read.has(self.column_types)
        columns = {
            column: read.tensor(column, dtype, (self.num_samples,), self.device)
            for column, dtype in self.column_types.items()
        }
        mean, variance, count, broken, is_broken, *forgetting = columns.values()
        read.sound("count", (count >= 0).all(), "a count is negative")
        visited = count > 0
        read.sound("mean", mean[visited].isfinite().all(), "a visited sample has no mean")
        read.sound("mean", mean[~visited].isnan().all(), "a sample without visits has a mean")
        read.sound("variance", ~(variance < 0).any(), "a variance is negative")
        # The operators write the greatest float instead of an infinity.
        read.sound("variance", variance.isfinite().all(), "a variance is not finite")
        read.sound("non_finite_count", (broken >= 0).all(), "a count is negative")
        read.sound("last_non_finite", (broken[is_broken] > 0).all(), "it contradicts the counts")
        if forgetting:
            correct, forgotten = forgetting
            visits = count.long() + broken
            read.sound("last_correct", (visits[correct] > 0).all(), "it contradicts the counts")
            fits = (forgotten >= 0) & (2 * forgotten.long() <= visits)
            read.sound("forget_count", fits.all(), "it contradicts the counts")
        return columns

    def take(self, columns: dict[str, Tensor]) -> None:
        """Copies columns that are known to be sound into the table's own memory.

        Args:
            columns: From `checked`: tensors [num_samples] by name.
        """
        for name, column in columns.items():
            getattr(self, name).copy_(column)

    def stats(self) -> Stats:
        """Summarises the table for a log; waits for the device only when a number is read.

        Returns:
            The numbers by name. Those over the visited samples are NaN while there are none.

            - `visited`, `never_visited`: samples with and without a finite value.
            - `values`: all finite values. `non_finite_values`: the others.
            - `non_finite_samples`: samples whose newest value was not finite.
            - `score_mean`, `score_min`, `score_max`: over the visited samples.
            - `score_p05`, `score_p25`, `score_p50`, `score_p75`, `score_p95`: their percentiles.
            - `score_variance`: the mean of `variance` over the visited samples.
            - `visits_gini`: the Gini coefficient of `count` over all samples. It is 0 if all have
              as many values, and near 1 if few have nearly all; NaN before the first.

            With `track_forgetting` also:

            - `forget_events`: the sum of `forget_count`.
            - `never_learned`: visited samples that no visit found correct.
            - `unforgettable`: samples that were correct once, and ever since.
            - `share_correct`: the share that was correct at its last visit that told.

            Reading the first number raises IndexError if an earlier update on a GPU had an id out
            of range.
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
            "visits_gini": gini(self.count),
        }
        if self.last_correct is not None and self.forget_count is not None:
            steady = self.forget_count == 0
            seen = visited | (self.non_finite_count > 0)
            tensors["forget_events"] = self.forget_count.sum()
            tensors["never_learned"] = (seen & steady & ~self.last_correct).sum()
            tensors["unforgettable"] = (steady & self.last_correct).sum()
            tensors["share_correct"] = share(self.last_correct, seen)
        return Stats({}, tensors, partial(functional.check_errors, self.device))

    def __repr__(self) -> str:
        """Tells how the table was made."""
        return (
            f"ScoreTable(num_samples={self.num_samples}, device='{self.device}', "
            f"alpha={self.alpha}, first_visit={self.first_visit!r}"
            f"{', track_forgetting=True' if self.track_forgetting else ''}"
            f"{f', row_reduction={self.row_reduction!r}' if self.row_reduction != 'mean' else ''})"
        )
