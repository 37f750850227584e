# SPDX-License-Identifier: Apache-2.0
"""Visits of samples outside the subset: what a loader without the pruner's sampler leaves behind.

Nothing is counted while training. In a pruned epoch the visits of the samples outside the subset
must not grow. Their sum is taken when the epoch begins, and when the next one does: some small
operations, whatever the size of the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.scores.table import ScoreTable

_ROWS = 1 << 14  # to look at: of a larger table, rows at equal distances


def visits_outside(table: ScoreTable, selected: Tensor, shard: Shard) -> Tensor:
    """Returns how often samples outside a selection were visited, 0-d int64, without waiting.

    Of a large table a part of the samples is looked at: a loader that follows nothing visits them.

    Args:
        table: The scores.
        selected: The selected sample ids of the table, ascending, int64.
        shard: Which samples the rows are of.
    """
    rows = torch.arange(0, table.num_samples, -(-table.num_samples // _ROWS), device=table.device)
    visits = table.count.index_select(0, rows) + table.non_finite_count.index_select(0, rows)
    if not len(selected):
        return visits.sum()
    ids = shard.ids_at(rows)
    places = torch.searchsorted(selected, ids).clamp_(max=len(selected) - 1)
    return (visits * (selected[places] != ids)).sum()


def about_strays(epoch: int, number: int) -> str | None:
    """Returns what to warn of after an epoch with `number` visits outside its subset."""
    if number <= 0:
        return None
    return (
        f"at least {number} visits in epoch {epoch} were of samples outside its subset. The loader "
        "does not follow the pruner, and prunes less than it should, or nothing. Make it as "
        "DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(batch_size)), "
        "without shuffle= (if you recorded their scores on purpose, filter this warning)"
    )
