# SPDX-License-Identifier: Apache-2.0
"""Draws in proportion to the scores."""

from __future__ import annotations

from dataclasses import dataclass

from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class Weighted(Policy):
    """Samples drawn without replacement, with probabilities proportional to their mean scores.

    A negative mean weighs 0, and zero weights are drawn only when positive ones run out. Samples
    that were never visited, or whose newest value was not finite, come first.
    """

    uses_scores = True
    takes_negative_scores = False

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the ranking by weights, which are the mean scores."""
        weights = table.ranking_mean().clamp_(min=0.0).nan_to_num_(nan=float("inf"))
        return Ranking.by_weight(weights)
