# SPDX-License-Identifier: Apache-2.0
"""Draws from the harder half where that pays, and from all samples where it does not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dynprune_cuda._checks.arguments import check_type
from dynprune_cuda.functional.rules import Trimmed, WeightedRule, as_share
from dynprune_cuda.functional.tilted import Tilted, tilt_of
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class Adaptive(Policy):
    """Samples drawn from those with the higher mean losses, as far as that pays.

    Choosing by the loss costs accuracy while all samples are about equally hard, and once few of
    them hold most of the loss. Then all samples are equally likely. In between, samples of the
    harder half are drawn, each with the same chance, and others if more than the half is kept.
    `functional.Tilted` tells how, and docs/guides/choosing.md has the measurements. The tilt
    depends on the scores of the table only: it is the same on every rank, and part of a saved
    state. Samples that were never visited, or whose newest value was not finite, come first.

    The score of a sample changes only when it is visited. So a sample of the easier half comes
    again when others fall below its score. `Covered` around this policy bounds the wait.

    Successive draws are coordinated, see `Ranking.by_weight`: each one takes what those before left
    out, as far as the weights allow. Uniform draws go through nearly all samples before they take
    one again, and draws from the harder half through most of it. With groups or `Covered` around
    it, or with a `keep` that changes, that holds only in part.

    The scores must be losses, or others that are 0 for what is learned, such as EL2N. Values below
    0, such as negated confidences, count as 0: use `UCB` for them.

    Attributes:
        trim: As of `Weighted`. The half is that of all samples, before any are left out.

    Raises:
        TypeError: `trim` is no number.
        ValueError: `trim` is out of range.
    """

    trim: float = 0.0

    uses_scores = True
    takes_negative_scores = False
    coordinated = True

    def __post_init__(self) -> None:
        """Checks the parameter."""
        object.__setattr__(self, "trim", as_share("trim", self.trim))

    def ranking(self, table: ScoreTable) -> WeightedRule:
        """Returns the rule by the scores."""
        tilted = Tilted(table.ranking_mean(), table.start)
        return Trimmed(tilted, self.trim) if self.trim else tilted

    @staticmethod
    def tilt(table: ScoreTable) -> Tensor:
        """Returns how far a selection from a whole table keeps to the harder half, without waiting.

        Args:
            table: The scores of all samples.

        Returns:
            0-d float32, from 0, a uniform draw, to 1, a draw from the harder half.
        """
        check_type("table", table, ScoreTable)
        return tilt_of(Tilted(table.ranking_mean()).histogram())
