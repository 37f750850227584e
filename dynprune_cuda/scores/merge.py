# SPDX-License-Identifier: Apache-2.0
"""One table of scores for several processes that train one model.

Every process holds the whole table and records what it observes itself. When an epoch begins,
`merge_tables` makes all tables equal. Of each sample, the record with the most visits wins; on a
tie, that of the lowest rank. Within an epoch a sample belongs to one rank, so the merged table is
the one that a single process would have. If two ranks visited a sample, as with the padding of
`torch.utils.data.DistributedSampler`, the rule decides the same on all ranks.

Why all-reduce the table instead of gathering the records that changed? There is no list of changes
to save with a run, no sizes to exchange, and no waiting. The merge may be repeated, or follow any
loss of state, and always ends with equal tables. It moves 28 bytes per sample and epoch, 36 with
forgetting events. For a million samples that is less than the gradients of one training step of a
ResNet-50.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.scores.table import ScoreTable

MERGED_SAMPLES = 1 << 22  # rows per collective: at most about 200 MB of buffers


@torch.no_grad()
def merge_tables(table: ScoreTable, ranks: Ranks) -> None:
    """Makes the tables of all ranks equal, bit for bit, without waiting for the device."""
    for start in range(0, table.num_samples, MERGED_SAMPLES):
        columns = [getattr(table, name) for name in table.column_types]
        rows = [column[start : start + MERGED_SAMPLES] for column in columns]
        visits = visits_of(table, slice(start, start + MERGED_SAMPLES))
        mine = visits * ranks.size + (ranks.size - 1 - ranks.rank)  # distinct on every rank
        best = mine.clone()
        dist.all_reduce(best, dist.ReduceOp.MAX, ranks.group)
        # Each record comes from one rank and is 0 on all others: the sum is that record's bits.
        records = torch.stack([_as_int32(row) for row in rows]).masked_fill_(best != mine, 0)
        dist.all_reduce(records, dist.ReduceOp.SUM, ranks.group)
        for row, record in zip(rows, records, strict=True):
            row.copy_(record if row.dtype == torch.bool else record.view(row.dtype))


def visits_of(table: ScoreTable, rows: slice | Tensor) -> Tensor:
    """Returns how often samples were visited, finite or not: every visit adds one. int64."""
    return table.count[rows].long() + table.non_finite_count[rows]


def _as_int32(column: Tensor) -> Tensor:
    return column.to(torch.int32) if column.dtype == torch.bool else column.view(torch.int32)
