# SPDX-License-Identifier: Apache-2.0
"""Uniformly random subsets."""

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
class UniformRandom:
    """A new uniformly random subset at every selection: the baseline that is hard to beat."""

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_uniform(
            table.num_samples, k, seed=seed, device=table.device, order="ascending"
        )

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64."""
        return sharded.select_uniform(k, shard=table.shard, seed=seed, device=table.device)


@believed
@dataclass(frozen=True)
class RandomStatic(UniformRandom):
    """One uniformly random subset, drawn once and kept for the whole run."""

    static: ClassVar[bool] = True
