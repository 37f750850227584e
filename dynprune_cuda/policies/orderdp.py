# SPDX-License-Identifier: Apache-2.0
"""OrderDP: the greatest losses of a random subset."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import as_float
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.policies.protocol import Policy, trusted
from dynprune_cuda.scores.table import ScoreTable


@trusted
@dataclass(frozen=True)
class OrderDP(Policy):
    """The greatest losses of a uniformly random subset, drawn anew at every selection.

    The rule is that of Jin et al. (ICLR 2026, https://arxiv.org/abs/2606.08574; released at
    https://github.com/shengze-xu/OrderDP). Draw s of n samples, then keep the q of them with the
    greatest last losses. Losses are not rescaled. The rule decides how many samples it keeps, so
    `keep` is left out. The defaults keep 30 % of the data; those of the released class, 0.75 and
    0.85, keep 64 %. The abstract and the released code were read, not the whole paper.

    As released, a `Pruner` with this policy selects before every epoch, ranks by the newest loss
    (`alpha=1`), and anneals no epoch. Samples that were never visited, or whose newest value was
    not finite, rank first. Equal losses rank at random.

    Attributes:
        subset_share: s / n, in (0, 1].
        top_share: q / s, in (0, 1]. Both counts are rounded to the nearest, and at least 1.

    Raises:
        TypeError: An attribute is no number.
        ValueError: An attribute is out of range.
    """

    subset_share: float = 0.5
    top_share: float = 0.6

    uses_scores = True
    default_period = 1
    default_alpha = 1.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        for name in ("subset_share", "top_share"):
            share = as_float(name, getattr(self, name), low=0.0, high=1.0, above_low=True)
            object.__setattr__(self, name, share)

    def counts(self, num_samples: int) -> tuple[int, int]:
        """Returns how many samples are drawn, and how many of them are kept.

        Args:
            num_samples: Size of the training set.
        """
        drawn = max(1, math.floor(self.subset_share * num_samples + 0.5))
        return drawn, max(1, math.floor(self.top_share * drawn + 0.5))

    def fixed_count(self, num_samples: int) -> int:
        """Returns how many samples are kept."""
        return self.counts(num_samples)[1]

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns the `k` samples, ascending, int64 [k], without waiting.

        Raises:
            ValueError: `k` is not `fixed_count(table.num_samples)`.
        """
        drawn, kept = self.counts(table.num_samples)
        if k != kept:
            raise ValueError(f"k must be {kept} for {self!r}, got {k}")
        subset_seed, top_seed = derive_seed(seed, "subset"), derive_seed(seed, "top")
        ids = functional.select_uniform(
            table.num_samples, drawn, seed=subset_seed, device=table.device, order="ascending"
        )
        scores = table.ranking_mean().index_select(0, ids)
        return ids[functional.select_top_k(scores, k, seed=top_seed, order="ascending")]
