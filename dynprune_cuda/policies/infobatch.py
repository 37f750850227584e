# SPDX-License-Identifier: Apache-2.0
"""InfoBatch: leave out a random share of what is easy, and rescale the rest of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.functional.rules import as_share
from dynprune_cuda.policies.arithmetic import as_integers
from dynprune_cuda.policies.protocol import WeighingPolicy, trusted
from dynprune_cuda.scores.table import ScoreTable


@trusted
@dataclass(frozen=True)
class InfoBatch(WeighingPolicy):
    """Everything at or above the mean score, and a random share of what is below, rescaled.

    The rule is that of Qin et al. (https://arxiv.org/abs/2303.04947, section 3; released at
    https://github.com/NUS-HPC-AI-Lab/InfoBatch). Of the samples whose score is below the mean, a
    random `1 - prune_ratio` stays, and its losses count `1 / (1 - prune_ratio)` times. The expected
    gradient of an epoch is that of the full data. `Pruner.cross_entropy` rescales by itself; for
    other losses see `Pruner.rescale`.

    As published, a `Pruner` with this policy selects before every epoch and ranks by the newest
    loss (`alpha=1`). If it knows `epochs`, it anneals the last eighth of them on full data. Its own
    arguments change that. Samples that were never visited, or whose newest value was not finite,
    stay, do not count in the mean, and are not rescaled.

    One difference: the released code rounds the number that stays down, which loses up to one
    sample's worth of gradient. Here it is rounded at random, so that the expectation is exact.

    Attributes:
        prune_ratio: Share of the samples below the mean that is left out, in [0, 1).

    Raises:
        TypeError: `prune_ratio` is no number.
        ValueError: `prune_ratio` is outside [0, 1).
    """

    prune_ratio: float = 0.5

    uses_scores = True
    default_period = 1
    default_alpha = 1.0
    default_anneal_share = 1 / 8

    def __post_init__(self) -> None:
        """Checks the parameter."""
        object.__setattr__(self, "prune_ratio", as_share("prune_ratio", self.prune_ratio))

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Returns 0, 1 or `1 / (1 - prune_ratio)` for each sample, without waiting.

        Returns:
            float32 [num_samples] on the table's device. The same on every device: the mean is
            taken over integers, whose sum does not depend on the order of the additions.
        """
        scores = table.ranking_mean()
        below = _below_mean(scores)
        share = 1.0 - self.prune_ratio
        chance = (derive_seed(seed, "rounding") >> 11) * 2.0**-53
        num_stays = (below.sum().double() * share + chance).floor()
        # In a random order of all samples, the first `num_stays` of those below the mean stay.
        order = functional.permutation(
            table.num_samples, seed=derive_seed(seed, "share"), device=table.device
        )
        below = below.index_select(0, order)
        stays = below.cumsum(0) <= num_stays
        weights = torch.where(stays, 1.0 / share, 0.0).masked_fill_(~below, 1.0)
        return torch.empty_like(scores).scatter_(0, order, weights.to(torch.float32))


def _below_mean(scores: Tensor) -> Tensor:
    """Returns which scores are below the mean of those that are not NaN, exactly, bool."""
    known = ~scores.isnan()
    values = torch.where(known, scores, 0.0).double()
    integers = as_integers(values, values.abs().amax())
    return known & (integers * known.sum() < integers.sum())
