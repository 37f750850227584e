# SPDX-License-Identifier: Apache-2.0
"""The highest upper confidence bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynprune_cuda._checks.arguments import as_choice, as_float
from dynprune_cuda.functional.ranking import BONUSES, FLOAT32_MAX, Ranking
from dynprune_cuda.functional.score_updates import FIRST_VISITS, FirstVisit
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class UCB(Policy):
    """The highest upper confidence bounds: the mean score plus a bonus for uncertainty.

    Samples that were never visited, or whose newest value was not finite, rank first.

    Attributes:
        c: Weight of the bonus, at least 0.
        bonus: "variance" for `mean + c * variance`, "std" for `mean + c * sqrt(variance)`.
        first_visit: A sample's variance after its first visit, as in `ScoreTable`.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    c: float = 1.0
    bonus: Literal["variance", "std"] = "variance"
    first_visit: FirstVisit = "zero"

    uses_scores = True

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "c", as_float("c", self.c, low=0.0, high=FLOAT32_MAX))
        as_choice("bonus", self.bonus, BONUSES)
        as_choice("first_visit", self.first_visit, FIRST_VISITS)

    @classmethod
    def infobatch_baseline(cls) -> UCB:
        """UCB as the InfoBatch authors released it as their ImageNet baseline.

        Source: https://github.com/henryqin1997/InfoBatch-ImageNet, `imagenet/infobatch_ucb.py` and
        `imagenet/prune_experiment_ucb.py`. They have c = 1 on the variance, a first visit that
        counts as the variance `alpha * loss**2`, and alpha = 0.8. They select every 10 epochs after
        one warm-up epoch on full data. Pass `period=10` to `Pruner`; its alpha and warm-up are
        these. The script keeps 59 %.
        """
        return cls(c=1.0, bonus="variance", first_visit="published")

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the ranking by the upper confidence bound."""
        mean = table.ranking_mean()
        return Ranking.by_ucb(mean, table.variance, c=self.c, bonus=self.bonus)
