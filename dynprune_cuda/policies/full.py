# SPDX-License-Identifier: Apache-2.0
"""Train on everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dynprune_cuda.policies.protocol import believed
from dynprune_cuda.scores.sharded_table import ShardedScoreTable
from dynprune_cuda.scores.table import ScoreTable


@believed
@dataclass(frozen=True)
class Full:
    """Every sample, always: training without pruning."""

    static: ClassVar[bool] = True

    def fixed_count(self, num_samples: int) -> int:
        """Returns `num_samples`."""
        return num_samples

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns all ids in ascending order, int64 [num_samples]."""
        if k != table.num_samples:
            raise ValueError(f"k must be num_samples={table.num_samples} for Full, got {k}")
        return torch.arange(table.num_samples, device=table.device)

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns the ids of this process's samples, int64."""
        return table.shard.ids(table.device)
