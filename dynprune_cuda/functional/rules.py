# SPDX-License-Identifier: Apache-2.0
"""Every rule that selections take, and weighted rules without the greatest scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import as_float
from dynprune_cuda._ops.contract import RankingKind
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.functional.ranking import FixedIds, Ranking, Uniform
from dynprune_cuda.functional.tilted import Tilted


@dataclass(frozen=True, eq=False)
class Trimmed:
    """A weighted ranking without its greatest scores, of which some are drawn nevertheless.

    What is left out is drawn only when nothing else is left, and counts as 0 in a rescaled mean.
    Under label noise, the greatest losses are mostly those of wrong labels. A tenth of the samples,
    drawn anew by each seed, is exempt: what was left out is looked at again now and then.

    Attributes:
        ranking: `Ranking.by_score_weight` or `Tilted`.
        share: Share of all samples that is left out, in [0, 1): `floor(share * N + 0.5)` samples
            with the greatest scores. NaN is not left out.
        revisited: Share of all samples that is exempt, in [0, 1].

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: A share is out of range, or the ranking of another kind.
    """

    ranking: Ranking | Tilted
    share: float
    revisited: float = 0.1

    def __post_init__(self) -> None:
        """Checks the attributes."""
        if not isinstance(self.ranking, Ranking | Tilted):
            raise TypeError(
                f"ranking must be a Ranking or Tilted, got {type(self.ranking).__name__}"
            )
        kind = RankingKind.SCORE_WEIGHT if isinstance(self.ranking, Tilted) else self.ranking.kind
        if kind not in (RankingKind.SCORE_WEIGHT, RankingKind.SCORE_WEIGHT_SQRT):
            raise ValueError(f"ranking must be made by Ranking.by_score_weight, got {kind.name}")
        object.__setattr__(self, "share", as_share("share", self.share))
        object.__setattr__(
            self, "revisited", as_float("revisited", self.revisited, low=0.0, high=1.0)
        )

    def counts(self, num_samples: int) -> tuple[int, int]:
        """Returns how many samples are left out, and how many are exempt.

        Args:
            num_samples: How many samples are ranked.
        """
        return (
            math.floor(self.share * num_samples + 0.5),
            math.floor(self.revisited * num_samples + 0.5),
        )

    def known(self) -> Tensor:
        """Returns the scores, and -inf for NaN, which is not left out."""
        return self.ranking.values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)

    def without(self, rows: Tensor, exempt: Tensor) -> Tensor:
        """Returns the scores as float32, with -inf for `rows` but for those that are exempt.

        Others are positive if they are weights, so that learned samples come before those that are
        left out.

        Args:
            rows: Positions that are left out, int64.
            exempt: Positions that stay, int64.
        """
        values = self.ranking.values.to(torch.float32)
        out = torch.zeros_like(values, dtype=torch.bool)
        out.index_fill_(0, rows, True).index_fill_(0, exempt, False)
        least = 0.0 if isinstance(self.ranking, Tilted) else LEAST
        return values.clamp(min=least).masked_fill_(out, -math.inf)


def trim_seeds(rule: Trimmed, seed: int) -> tuple[int, int]:
    """Returns the seeds of what is left out, and of what is exempt, for the seed of a selection.

    Draws with one seed and several starting points exempt other samples each time.
    """
    inner = rule.ranking
    start = inner.start if isinstance(inner, Tilted) else inner.c
    places = (int(start * (1 << 24)),) if start else ()
    return derive_seed(seed, "trim", *places), derive_seed(seed, "revisit", *places)


# A score that weighs next to nothing, and more than nothing.
LEAST = 1e-16

# Rules whose samples are drawn by weights, which a selection computes from the scores of all.
WeightedRule: TypeAlias = Ranking | Tilted | Trimmed
SelectionRule: TypeAlias = Ranking | Tilted | Trimmed | Uniform | FixedIds
RULES = "Ranking, Tilted, Trimmed, Uniform or FixedIds"


def as_share(name: str, share: float) -> float:
    """Returns a share that is left out, in [0, 1)."""
    number = as_float(name, share, low=0.0, high=1.0)
    if number == 1.0:
        raise ValueError(f"{name} must be below 1, got {share!r}")
    return number
