# SPDX-License-Identifier: Apache-2.0
"""A policy that a user might write: the smallest margins first, and a tenth at random."""

from dataclasses import dataclass

from dynprune_cuda.functional import Ranking
from dynprune_cuda.policies import Policy


@dataclass(frozen=True)
class SmallestMargin(Policy):
    """For `Pruner(score="margin")`, which enters margins as negative numbers."""

    uses_scores = True

    def ranking(self, table):
        """Returns the ranking by the mean score, with a tenth at random."""
        return Ranking.by_score(table.ranking_mean(), random_share=0.1)
