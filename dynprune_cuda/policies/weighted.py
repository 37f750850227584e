# SPDX-License-Identifier: Apache-2.0
"""Draws in proportion to the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dynprune_cuda import functional, sharded
from dynprune_cuda.policies.protocol import believed
from dynprune_cuda.scores.sharded_table import ShardedScoreTable
from dynprune_cuda.scores.table import ScoreTable


@believed
@dataclass(frozen=True)
class Weighted:
    """Samples drawn without replacement, with probabilities proportional to their mean scores.

    A negative mean weighs 0, and zero weights are drawn only when positive ones run out. Samples
    that were never visited, or whose newest value was not finite, come first.
    """

    uses_scores: ClassVar[bool] = True

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_weighted(_weights(table), k, seed=seed, order="ascending")

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64. Collective."""
        return sharded.select_weighted(_weights(table), k, **table.selection(seed))


def _weights(table: ScoreTable) -> Tensor:
    return table.ranking_mean().clamp_(min=0.0).nan_to_num_(nan=float("inf"))
