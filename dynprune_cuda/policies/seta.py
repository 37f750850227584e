# SPDX-License-Identifier: Apache-2.0
"""SeTa: a window of difficulty that moves from easy to hard, over a random part of the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import as_float, as_int
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.functional.rules import as_share
from dynprune_cuda.policies.clusters import BINS, bins_of, k_means
from dynprune_cuda.policies.protocol import WeighingPolicy, history_of, trusted
from dynprune_cuda.scores.table import ScoreTable

WINDOWED_SHARE = 0.875  # of the run; afterwards the window is the whole range


@trusted
@dataclass(frozen=True)
class SeTa(WeighingPolicy):
    """A random part of the samples, and of these a window of consecutive groups of losses.

    The rule of Zhou et al. (CVPR 2025, https://arxiv.org/abs/2503.13385; released at
    https://github.com/mrazhou/SeTa). A random share is left out. k-means divides the losses of the
    rest into groups. A window of `round(window_scale * num_groups)` groups is trained on, as Python
    rounds. It moves by one group per selection, from easy to hard, and begins again. In epoch e it
    begins at group e modulo the number of windows. So epoch 1 does not see the easiest group. With
    another `period`, e counts selections and warm-up epochs. After 0.875 of `epochs` (if `Pruner`
    knows it), only the random share is left out. Losses are not rescaled. The abstract and the
    released code were read, not the whole paper.

    As released, a `Pruner` with this policy selects before every epoch, by the newest loss
    (`alpha=1`). Samples without a finite newest value belong to every group. Losses that are all
    equal are divided at random. If no loss is in the window, all groups are trained on.

    There are two differences to the released code. Epoch 0 trains on everything, not on the random
    part. And k-means is solved exactly on 1024 bins of the losses, so that it is deterministic.

    Attributes:
        random_share: Share of all samples that is left out at random, in [0, 1).
        num_groups: Number of groups, from 1 to 1024.
        window_scale: Share of the groups that are trained on, in (0, 1].

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range, or the window has no group.
    """

    random_share: float = 0.1
    num_groups: int = 5
    window_scale: float = 0.9

    uses_scores = True
    uses_history = True
    default_period = 1
    default_alpha = 1.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "random_share", as_share("random_share", self.random_share))
        object.__setattr__(
            self, "num_groups", as_int("num_groups", self.num_groups, minimum=1, maximum=BINS)
        )
        scale = as_float("window_scale", self.window_scale, low=0.0, high=1.0, above_low=True)
        object.__setattr__(self, "window_scale", scale)
        if not self.window:
            raise ValueError(
                f"window_scale={scale} of num_groups={self.num_groups} is no whole group: raise one"
            )

    @classmethod
    def imagenet(cls) -> SeTa:
        """Returns the rule with the settings that its authors used for ImageNet."""
        return cls(random_share=0.0, num_groups=5, window_scale=0.6)

    @property
    def window(self) -> int:
        """How many groups are trained on."""
        return round(self.window_scale * self.num_groups)

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Returns 1 for samples that are trained on and 0 for others, without waiting.

        Returns:
            float32 [num_samples] on the table's device; the same on every device.

        Raises:
            ValueError: `table.history` is None.
        """
        history, size = history_of(self, table), table.num_samples
        scores = table.ranking_mean()
        if history.turn == 0:
            return torch.ones_like(scores)
        num_out = min(math.floor(self.random_share * size + 0.5), size - 1)
        order = functional.permutation(size, seed=derive_seed(seed, "random"), device=table.device)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(size, device=table.device))
        stays = places >= num_out
        epochs = history.epochs
        if epochs is not None and history.epoch >= math.floor(WINDOWED_SHARE * epochs):
            return stays.float()
        known = ~scores.isnan()
        bins, same = bins_of(scores, stays & known)
        groups = k_means(bins, stays & known, self.num_groups)
        chunks = (places - num_out) * self.num_groups // (size - num_out)
        groups = torch.where(same, chunks, groups)
        start = history.turn % (self.num_groups - self.window + 1)
        inside = known & (groups >= start) & (groups < start + self.window)
        inside |= ~(stays & inside).any()
        return (stays & (inside | ~known)).float()
