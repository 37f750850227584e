# SPDX-License-Identifier: Apache-2.0
"""Visits on their way to the ranks that hold their samples."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import check_values
from dynprune_cuda.functional.row_reductions import RowReductionName, first_places
from dynprune_cuda.functional.score_updates import ScoreColumns, update_scores_
from dynprune_cuda.scores.table import CheckedIds, UpdateTarget

# Batches that are kept apart until they are concatenated: small tensors cost more than their bytes.
LOOSE_BATCHES = 256


class VisitOutbox:
    """Keeps what this process observed until the next epoch, 16 bytes per visit, on the device.

    Attributes:
        num_samples: How many samples there are in all processes.
        device: Where the visits are kept.
        row_reduction: The value of a sample that has several rows in a batch.
    """

    def __init__(
        self, num_samples: int, device: torch.device, row_reduction: RowReductionName = "mean"
    ) -> None:
        """Makes an empty outbox."""
        self.num_samples, self.device = num_samples, device
        self.row_reduction = row_reduction
        self._num_batches = 0
        self._loose: list[tuple[Tensor, ScoreColumns | Tensor, int]] = []
        self._packed: list[tuple[Tensor, Tensor, Tensor]] = []
        # Ids out of range that a GPU found: how many, and one of them.
        self._bad = torch.zeros(2, dtype=torch.int64, device=device)

    def target(self, ids: Tensor, grouped: bool = False) -> UpdateTarget:
        """Returns columns for this batch alone, which a scored step fills; nothing changes.

        Args:
            ids: Sample ids, int64 [batch], on the device; -1 belongs to no sample.
            grouped: Whether each of the ids stands for several rows, which the step reduces: equal
                ids then share a row of the columns. Else each has its own, and `visits` reduces.

        Raises:
            IndexError: An id is out of range (on the CPU).
            RuntimeError: A CUDA graph is being captured.
        """
        batch = self._checked(ids)
        size, device = len(ids), self.device
        mean = torch.zeros(size, dtype=torch.float32, device=device)
        count = torch.zeros(size, dtype=torch.int32, device=device)
        broken = torch.zeros(size, dtype=torch.bool, device=device)
        columns = ScoreColumns(mean, torch.zeros_like(mean), count, last_non_finite=broken)
        rows = first_places(batch.ids) if grouped else torch.arange(size, device=device)
        rows = rows.masked_fill(batch.ids < 0, -1)
        return UpdateTarget(rows, columns, batch)

    def commit(self, target: UpdateTarget) -> None:
        """Keeps what a scored step wrote into a `target` of this outbox."""
        assert target.batch is not None
        self._keep(target.batch, target.columns)

    def add(self, ids: Tensor, values: Tensor) -> None:
        """Keeps one value per id.

        Args:
            ids: As in `target`.
            values: float32 [batch], on the device.

        Raises:
            IndexError: An id is out of range (on the CPU).
            RuntimeError: A CUDA graph is being captured.
        """
        # A copy: the caller may change its tensors before they are sent.
        self._keep(self._checked(ids), values.clone())

    def check_ids(self) -> None:
        """Raises IndexError if a GPU found an id out of range. Waits for the device."""
        number, example = self._bad.tolist()
        if number:
            self._bad.zero_()
            raise IndexError(
                f"on {self.device}: {number} sample ids were out of range, for example {example}"
            )

    def visits(self) -> tuple[Tensor, Tensor]:
        """Returns ids and values by ascending id, those of an id in the order of arrival. Waits."""
        self._pack()
        if not self._packed:
            return self._bad[:0].clone(), self._bad[:0].float()
        ids, values, batches = (torch.cat(column) for column in zip(*self._packed, strict=True))
        ids, order = ids.sort(stable=True)
        values, batches = values[order], batches[order]
        counts = ids >= 0
        ids, values, batches = ids[counts], values[counts], batches[counts]
        # The rows of an id in one batch are one visit.
        begins = torch.ones_like(ids, dtype=torch.bool)
        begins[1:] = (ids[1:] != ids[:-1]) | (batches[1:] != batches[:-1])
        if bool(begins.all()):
            return ids, values
        return ids[begins], self._reduced(begins.cumsum(0) - 1, values, int(begins.sum()))

    def _reduced(self, visits: Tensor, values: Tensor, number: int) -> Tensor:
        """Returns the values of `number` visits from those of their rows, float32 [number]."""
        mean = values.new_zeros(number)
        count = torch.zeros(number, dtype=torch.int32, device=self.device)
        broken = torch.zeros(number, dtype=torch.bool, device=self.device)
        update_scores_(
            mean,
            torch.zeros_like(mean),
            count,
            visits,
            values,
            alpha=1.0,
            last_non_finite=broken,
            row_reduction=self.row_reduction,
        )
        return mean.masked_fill_(broken, float("nan"))

    def clear(self) -> None:
        """Drops all visits."""
        self._loose, self._packed, self._num_batches = [], [], 0

    def _checked(self, ids: Tensor) -> CheckedIds:
        if ids.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a step with sharding='shard' must not be captured in a CUDA graph: a replay would "
                "overwrite visits that are not sent yet. Use sharding='replicate'"
            )
        wrong = (ids < -1) | (ids >= self.num_samples)
        if ids.is_cuda:
            if not len(ids):
                return CheckedIds(ids)
            example = torch.where(wrong, ids, -(2**63)).amax()
            return CheckedIds(ids.masked_fill(wrong, -1), wrong.sum(), example)
        check_values("ids", ids)
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise IndexError(
                f"sample_ids[{place}] = {int(ids[place])} is out of range: expected "
                f"0 <= id < {self.num_samples}"
            )
        return CheckedIds(ids.clone())

    def _keep(self, batch: CheckedIds, visits: ScoreColumns | Tensor) -> None:
        if batch.num_wrong is not None and batch.example is not None:
            self._bad[1] = torch.where(batch.num_wrong > 0, batch.example, self._bad[1])
            self._bad[0] += batch.num_wrong
        if len(self._loose) >= LOOSE_BATCHES:
            self._pack()
        self._loose.append((batch.ids, visits, self._num_batches))
        self._num_batches += 1

    def _pack(self) -> None:
        """Concatenates loose batches without waiting: ids, values, and the number of the batch."""
        if not self._loose:
            return
        ids, values, batches = [], [], []
        for batch, visits, number in self._loose:
            if isinstance(visits, ScoreColumns):
                broken = visits.last_non_finite
                assert broken is not None
                value = visits.mean.masked_fill(broken, float("nan"))
                batch = batch.masked_fill((visits.count == 0) & ~broken, -1)
            else:
                value = visits
            ids.append(batch)
            values.append(value)
            batches.append(torch.full_like(batch, number, dtype=torch.int32))
        self._packed.append((torch.cat(ids), torch.cat(values), torch.cat(batches)))
        self._loose = []
