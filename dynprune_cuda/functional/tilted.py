# SPDX-License-Identifier: Apache-2.0
"""Weighted sampling whose weights adapt to the run; public through `functional`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import check_vector
from dynprune_cuda.functional.inclusion import bin_means, histogram, upper_half
from dynprune_cuda.functional.ranking import Ranking, as_start

# The effective share at which the tilt is 0, and from which on it is 1; and the same from above.
# Measured: docs/guides/choosing.md.
MEMORISED, LEARNED = 0.40, 0.44
LEARNING, UNLEARNED = 0.72, 0.80
_STEPS = 64  # the tilt is a multiple of 1 / 64: rounding errors of sums do not reach it


@dataclass(frozen=True, eq=False)
class Tilted:
    """Samples drawn from the harder half, as far as that pays, and else uniformly.

    The harder half are the samples with the higher scores, and each of them is equally likely. The
    others come when the half is exhausted. The tilt says how far: 0 is a uniform draw, and 1 the
    half. It depends on the spread of the scores, by the effective share of the samples (Kish 1965).
    This is `(sum of r)^2 / (N * sum of r^2)`, with r the square root of the score. It is 1 for
    equal scores and falls while the samples are learned, until few of them hold most of the loss.

    The weight of a sample is `(1 + tilt) / 2` in the harder half, and `(1 - tilt) / 2` in the other
    one. The tilt is 1 for effective shares from 0.44 to 0.72, falls to 0 at 0.4 and at 0.8, and is
    a multiple of 1/64. The half is read from a histogram, whose bins are at most 1/16 of the score
    wide. Scores in the bin of the median share one weight, which lies between the two.

    Attributes:
        scores: [N] float32, float16 or bfloat16: losses, or others that are 0 for a sample that is
            learned. A score that is not positive counts as 0. NaN and infinity come first, and do
            not count in the spread.
        start: Starting point of the draw, as of `Ranking.by_weight`.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: The dtype or shape of the scores is wrong, or the starting point.
    """

    scores: Tensor
    start: float = 0.0

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_vector("scores", self.scores, (torch.float32, torch.float16, torch.bfloat16))
        object.__setattr__(self, "start", as_start(self.start))

    @property
    def values(self) -> Tensor:
        """The scores."""
        return self.scores.detach()

    @property
    def name(self) -> str:
        """What errors call the values."""
        return "scores"

    def histogram(self) -> Tensor:
        """Returns what decides the tilt, int64 [2, NUM_BINS]; that of several ranks adds up."""
        values = self.values.to(torch.float32)
        # Unknown ones go where no sum looks: to the bin of infinity.
        return histogram(values.clamp(min=0.0).masked_fill(values.isnan(), math.inf))

    def ranking(self, table: Tensor, values: Tensor) -> Ranking:
        """Returns the ranking by the weights of some scores.

        Args:
            table: The histogram of all scores.
            values: Scores; -inf for those that are left out.
        """
        tilt = tilt_of(table)
        values = values.to(torch.float32)
        # Each operation is rounded by itself, so that the weights are the same on every device.
        weights = upper_half(values, table).mul_(tilt).add_((1.0 - tilt) / 2)
        # Samples that weigh nothing still come before those that are left out. Coordinated draws
        # tell finite weights apart only, and multiply them by 2^-5 to 2^34.
        weights.clamp_(min=2.0**-60).masked_fill_(values == -math.inf, 0.0)
        first = (values < math.inf).logical_not_()  # NaN, too
        weights.masked_fill_(first, 2.0**100 if self.start else math.inf)
        return Ranking.by_weight(weights, start=self.start)


def effective_share(table: Tensor) -> Tensor:
    """Returns the effective share of the samples, 0-d float64.

    Args:
        table: The histogram of the scores. NaN results from one without known scores above 0.
    """
    means, counts, zeros = bin_means(table)
    roots = (counts * means.sqrt()).sum()
    return roots * roots / ((counts.sum() + zeros) * (counts * means).sum())


def tilt_of(table: Tensor) -> Tensor:
    """Returns the tilt, 0-d float32; 0 without known scores above 0."""
    share = effective_share(table)
    rising = (share - MEMORISED) / (LEARNED - MEMORISED)
    falling = (UNLEARNED - share) / (UNLEARNED - LEARNING)
    tilt = (torch.minimum(rising, falling).clamp(0.0, 1.0) * _STEPS).round() / _STEPS
    return torch.where(share.isfinite(), tilt, 0.0).to(torch.float32)
