# SPDX-License-Identifier: Apache-2.0
"""A score table in pieces: each process holds the rows of its own samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.batches import check_correct, check_ids_and_values, move_without_waiting
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.routing import to_owners
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.functional.row_reductions import RowReductionName
from dynprune_cuda.functional.score_updates import FirstVisit
from dynprune_cuda.scores.outbox import VisitOutbox
from dynprune_cuda.scores.table import COLUMNS, ScoreTable, UpdateTarget


class RowsBefore(NamedTuple):
    """Rows as they were before visits were recorded."""

    rows: Tensor  # int64 [rows]
    columns: list[Tensor]  # in the order of COLUMNS, each [rows]


class ShardedScoreTable(ScoreTable):
    """The rows of one process's samples, and an outbox for what it observes of any sample.

    A batch mostly holds samples of other processes. Its visits stay in the outbox and go to the
    samples' owners when an epoch begins. An owner records them in the order of arrival; of several
    processes that visited the same sample, the lowest rank first.

    Attributes:
        shard: Which samples these are; row i is that of sample `shard.ids()[i]`.
        ranks: The processes.
        outbox: The visits that this process observed since the epoch began.
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
        row_reduction: RowReductionName = "mean",
    ) -> None:
        """Makes the rows of a shard, none of them visited; the rest is as in `ScoreTable`."""
        super().__init__(
            len(shard),
            device=device,
            alpha=alpha,
            first_visit=first_visit,
            row_reduction=row_reduction,
        )
        self.shard, self.ranks = shard, ranks
        self.outbox = VisitOutbox(shard.num_samples, self.device, row_reduction)

    def update(
        self,
        ids: Tensor,
        values: Tensor,
        correct: Tensor | None = None,
        alpha: float | None = None,
    ) -> None:
        """Puts values of any samples into the outbox; arguments and errors as `ScoreTable.update`.

        The owners enter them when the next epoch begins.

        Raises:
            ValueError: `alpha` is given: a visit on its way to its owner carries none.
        """
        check_ids_and_values(ids, values)
        if alpha is not None:
            raise ValueError(f"alpha must be left out for a sharded table, got {alpha!r}")
        if correct is not None:
            check_correct(correct, ids)
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        values = move_without_waiting("values", values.detach().to(torch.float32), self.device)
        self.outbox.add(ids, values)

    def update_target(self, ids: Tensor, *, grouped: bool = False) -> UpdateTarget:
        """Returns columns for this batch alone, which `commit` puts into the outbox."""
        return self.outbox.target(ids, grouped)

    def commit(self, target: UpdateTarget) -> None:
        """Puts what a scored step wrote into `target` into the outbox."""
        self.outbox.commit(target)

    def exchange(self) -> tuple[Tensor, Tensor]:
        """Sends the outbox to the samples' owners. Collective; changes nothing yet; waits.

        Returns:
            Rows of this table and values, one per visit, in the order in which to enter them.
        """
        ids, values = to_owners(list(self.outbox.visits()), self.shard, self.ranks)
        return self.shard.positions_of(ids), values

    @torch.no_grad()
    def enter(self, rows: Tensor, values: Tensor) -> RowsBefore:
        """Records visits, all or none; returns what `restore` needs to take them back."""
        touched = torch.unique(rows)
        before = RowsBefore(touched, [getattr(self, name)[touched] for name in COLUMNS])
        try:
            self._enter(rows, values)
        except BaseException:
            self.restore(before)
            raise
        return before

    def restore(self, before: RowsBefore) -> None:
        """Restores what `enter` has changed."""
        for name, column in zip(COLUMNS, before.columns, strict=True):
            getattr(self, name)[before.rows] = column

    def _enter(self, rows: Tensor, values: Tensor) -> None:
        rows, order = rows.sort(stable=True)
        values = values[order]
        # A call records one value per row: the first visits of all rows, then the second ones, ...
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
