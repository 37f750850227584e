# SPDX-License-Identifier: Apache-2.0
"""Visits of samples outside the subset: what a loader without the pruner's sampler leaves behind.

Nothing is counted while training. In a pruned epoch the visits of the samples outside the subset
must not grow. Their sum is taken when the epoch begins, and again when the next one does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda.scores.table import ScoreTable

_ROWS_AT_ONCE = 1 << 24  # so that a selection of any size takes 64 MiB


def visits_outside(table: ScoreTable, rows: Tensor) -> Tensor:
    """Returns how often samples outside `rows` were visited, 0-d int64, without waiting.

    Args:
        table: The scores.
        rows: Distinct rows of the table, int64.
    """
    columns = table.count, table.non_finite_count
    outside = torch.stack([column.sum() for column in columns]).sum()
    for piece in torch.split(rows, _ROWS_AT_ONCE):
        for column in columns:
            outside -= column.index_select(0, piece).sum()
    return outside


def warning(epoch: int, number: int) -> str | None:
    """Returns what to warn of after an epoch with `number` visits outside its subset."""
    if number <= 0:
        return None
    return (
        f"{number} visits in epoch {epoch} were of samples outside its subset: the loader does not "
        "follow the pruner, and prunes less than it should, or nothing; make it as "
        "DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(batch_size)), "
        "without shuffle= (if their scores were entered on purpose, filter this warning)"
    )
