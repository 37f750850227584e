# SPDX-License-Identifier: Apache-2.0
"""Draws in proportion to a power of the scores."""

from __future__ import annotations

from dataclasses import dataclass

from dynprune_cuda._checks.arguments import as_float
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class Weighted(Policy):
    """Samples drawn without replacement, in proportion to a power of their mean scores.

    A mean that is not positive weighs 0, and zero weights are drawn only when positive ones run
    out. Samples that were never visited, or whose newest value was not finite, come first. With
    power 0.5 the selection is softer than with power 1.

    Attributes:
        power: 0.5 or 1.

    Raises:
        TypeError: `power` is no number.
        ValueError: `power` is another number.
    """

    power: float = 1.0

    uses_scores = True
    takes_negative_scores = False

    def __post_init__(self) -> None:
        """Checks the parameter."""
        power = as_float("power", self.power, low=0.0)
        if power not in (0.5, 1.0):
            raise ValueError(f"power must be 0.5 or 1, got {self.power!r}")
        object.__setattr__(self, "power", power)

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the ranking by weights."""
        return Ranking.by_score_weight(table.ranking_mean(), power=self.power)

    @property
    def fingerprint(self) -> str:
        """Tells the powers apart in a saved state; version 0.1.0 knew power 1 only."""
        return "Weighted()" if self.power == 1.0 else repr(self)
