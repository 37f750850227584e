# SPDX-License-Identifier: Apache-2.0
"""The highest scores, and a random share."""

from __future__ import annotations

from dataclasses import dataclass

from dynprune_cuda._checks.arguments import as_float
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class EpsilonGreedy(Policy):
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

    uses_scores = True

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "epsilon", as_float("epsilon", self.epsilon, low=0.0, high=1.0))

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the ranking by the mean score, with the random share."""
        return Ranking.by_score(table.ranking_mean(), random_share=self.epsilon)
