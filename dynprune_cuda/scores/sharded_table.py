# SPDX-License-Identifier: Apache-2.0
"""A score table in pieces: each process holds the rows of its own samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.batches import check_correct, check_ids_and_values, move_without_waiting
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.routing import to_owners
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.scores.table import COLUMNS, FirstVisit, ScoreTable

# Batches that wait until they are put together: small tensors cost more than their contents.
LOOSE_BATCHES = 256


class ShardedScoreTable(ScoreTable):
    """The rows of one process's samples. What it sees of any sample waits for `exchange`.

    A batch mostly holds samples of other processes. Its visits are kept on the device, 16 bytes
    each, and go to their owners in bulk when an epoch begins. There they are entered one after the
    other, as they came; of several processes that visited the same sample, the lowest rank first.

    Attributes:
        shard: Which samples these are; row i is that of sample `shard.ids()[i]`.
        ranks: The processes.
        num_samples: How many samples this process holds.
    """

    def __init__(
        self,
        shard: Shard,
        ranks: Ranks,
        *,
        device: torch.device | str | int = "cpu",
        alpha: float = 0.8,
        first_visit: FirstVisit = "zero",
    ) -> None:
        """Makes the rows of a shard, none of them visited; the rest is as in `ScoreTable`."""
        super().__init__(len(shard), device=device, alpha=alpha, first_visit=first_visit)
        self.shard, self.ranks = shard, ranks
        self._num_calls = 0
        self._loose: list[tuple[Tensor, tuple[Tensor | None, ...] | Tensor, int]] = []
        self._packed: list[tuple[Tensor, Tensor, Tensor]] = []
        # Ids out of range that a GPU met: how many, and one of them.
        self._bad = torch.zeros(2, dtype=torch.int64, device=self.device)

    def selection(self, seed: int) -> dict[str, Any]:
        """Returns what the functions of `sharded` want to know."""
        return {"shard": self.shard, "seed": seed, "process_group": self.ranks}

    def update(self, ids: Tensor, values: Tensor, correct: Tensor | None = None) -> None:
        """As `ScoreTable.update`; the values are entered when the next epoch begins."""
        check_ids_and_values(ids, values)
        if correct is not None:
            check_correct(correct, ids)
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        values = move_without_waiting("values", values.detach().to(torch.float32), self.device)
        self._wait_with(ids, values)

    def visits(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns rows and columns of a table of this batch alone, for the scoring operator.

        What it enters there waits like any other visit.
        """
        rows = torch.arange(len(ids), device=self.device)
        mean = torch.zeros(len(ids), dtype=torch.float32, device=self.device)
        count = torch.zeros(len(ids), dtype=torch.int32, device=self.device)
        broken = torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        columns = (mean, torch.zeros_like(mean), count, None, broken, None, None)
        ids = self._wait_with(ids, columns)
        return rows.masked_fill_(ids < 0, -1), columns

    def check_ids(self) -> None:
        """Raises IndexError if a GPU met an id out of range. Waits for the device."""
        number, example = self._bad.tolist()
        if number:
            self._bad.zero_()
            raise IndexError(
                f"on {self.device}: {number} sample ids were out of range, for example {example}"
            )

    def exchange(self) -> tuple[Tensor, Tensor]:
        """Sends the waiting visits to their owners. Collective; changes nothing yet; waits.

        Returns:
            Rows of this table and values, one per visit, in the order in which to enter them.
        """
        ids, values = to_owners(list(self._outgoing()), self.shard, self.ranks)
        return self.shard.positions_of(ids), values

    @torch.no_grad()
    def enter(self, rows: Tensor, values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Enters visits, all or none; returns what `undo` needs to take them back."""
        touched = torch.unique(rows)
        before = [getattr(self, name)[touched] for name in COLUMNS]
        try:
            self._enter(rows, values)
        except BaseException:
            self.undo(touched, before)
            raise
        return touched, before

    def undo(self, touched: Tensor, before: list[Tensor]) -> None:
        """Takes back what `enter` entered."""
        for name, column in zip(COLUMNS, before, strict=True):
            getattr(self, name)[touched] = column

    def _enter(self, rows: Tensor, values: Tensor) -> None:
        rows, order = rows.sort(stable=True)
        values = values[order]
        # A call enters one value per row: the first visits of all rows, then the second ones, ...
        place = torch.arange(len(rows), device=self.device)
        fresh = torch.ones_like(rows, dtype=torch.bool)
        fresh[1:] = rows[1:] != rows[:-1]
        number = place - torch.where(fresh, place, 0).cummax(0).values
        sizes = torch.bincount(number).tolist()
        if len(sizes) > 1:
            order = number.sort(stable=True).indices
            rows, values = rows[order], values[order]
        pieces = zip(torch.split(rows, sizes), torch.split(values, sizes), strict=True)
        for its_rows, its_values in pieces:
            functional.update_scores_(
                self.mean,
                self.variance,
                self.count,
                its_rows,
                its_values,
                alpha=self.alpha,
                first_visit=self.first_visit,
                non_finite_count=self.non_finite_count,
                last_non_finite=self.last_non_finite,
            )

    def forget_waiting(self) -> None:
        """Drops the waiting visits: they were entered, or belong to a run that is left."""
        self._loose, self._packed, self._num_calls = [], [], 0

    def _wait_with(self, ids: Tensor, visits: tuple[Tensor | None, ...] | Tensor) -> Tensor:
        """Keeps a batch; returns its ids, -1 where they are out of range."""
        if ids.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a step with sharding='shard' must not be captured in a CUDA graph: a replay would "
                "write over the visits that wait to be sent to their owners"
            )
        total = self.shard.num_samples
        wrong = (ids < -1) | (ids >= total)
        if not ids.is_cuda:
            if bool(wrong.any()):
                place = int(wrong.nonzero()[0])
                raise IndexError(
                    f"sample_ids[{place}] = {int(ids[place])} is out of range: expected "
                    f"0 <= id < {total}"
                )
            ids = ids.clone()
        else:
            number = wrong.sum()
            example = torch.where(wrong, ids, -(2**63)).amax() if len(ids) else self._bad[1]
            self._bad[1] = torch.where(number > 0, example, self._bad[1])
            self._bad[0] += number
            ids = ids.masked_fill(wrong, -1)
        if isinstance(visits, Tensor):
            visits = visits.clone()  # the caller's may change until they are sent, like the ids
        # Before this batch joins: an operator may fill its columns only after this call.
        if len(self._loose) >= LOOSE_BATCHES:
            self._pack()
        self._loose.append((ids, visits, self._num_calls))
        self._num_calls += 1
        return ids

    def _pack(self) -> None:
        """Puts loose batches together, without waiting: ids, values, and the calls they are of."""
        if not self._loose:
            return
        ids, values, calls = [], [], []
        for batch, visits, call in self._loose:
            if isinstance(visits, Tensor):
                value = visits
            else:
                mean, _, count, _, broken, *_ = visits
                assert mean is not None and count is not None and broken is not None
                value = mean.masked_fill(broken, float("nan"))
                batch = batch.masked_fill((count == 0) & ~broken, -1)
            ids.append(batch)
            values.append(value)
            calls.append(torch.full_like(batch, call, dtype=torch.int32))
        self._packed.append((torch.cat(ids), torch.cat(values), torch.cat(calls)))
        self._loose = []

    def _outgoing(self) -> tuple[Tensor, Tensor]:
        """Returns the waiting visits by rising id, those of an id as they came. Waits."""
        self._pack()
        if not self._packed:
            return self._bad[:0].clone(), self.mean[:0].clone()
        ids, values, calls = (torch.cat(column) for column in zip(*self._packed, strict=True))
        ids, order = ids.sort(stable=True)
        values, calls = values[order], calls[order]
        # Of an id that occurs twice in one call, the last value counts.
        counts = ids >= 0
        counts[:-1] &= (ids[1:] != ids[:-1]) | (calls[1:] != calls[:-1])
        return ids[counts], values[counts]
