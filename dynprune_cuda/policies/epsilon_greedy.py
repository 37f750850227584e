# SPDX-License-Identifier: Apache-2.0
"""The highest scores, and a random share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dynprune_cuda import functional, sharded
from dynprune_cuda._checks.arguments import as_float
from dynprune_cuda.policies.protocol import believed
from dynprune_cuda.scores.sharded_table import ShardedScoreTable
from dynprune_cuda.scores.table import ScoreTable


@believed
@dataclass(frozen=True)
class EpsilonGreedy:
    """The highest mean scores, and a random share of what they left over.

    Of `k` samples, `floor(epsilon * k + 0.5)` are random (https://arxiv.org/abs/2111.12621).
    Samples that were never visited, or whose newest value was not finite, rank first.

    Attributes:
        epsilon: The random share, in [0, 1].

    Raises:
        TypeError: `epsilon` is no number.
        ValueError: `epsilon` is outside [0, 1].
    """

    epsilon: float = 0.1

    uses_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "epsilon", as_float("epsilon", self.epsilon, low=0.0, high=1.0))

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_epsilon_greedy(
            table.ranking_mean(), k, self.epsilon, seed=seed, order="ascending"
        )

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64. Collective."""
        options = table.selection(seed)
        return sharded.select_epsilon_greedy(table.ranking_mean(), k, self.epsilon, **options)
