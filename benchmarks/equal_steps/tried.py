# SPDX-License-Identifier: Apache-2.0
"""Policies that were tried, and that the package does not offer.

Draws by weights are coordinated, as those of the default policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from dynprune_cuda.functional import Ranking, select, select_uniform
from dynprune_cuda.policies import Adaptive, Policy
from dynprune_cuda.scores import ScoreTable

__all__ = [
    "Aged",
    "ByMargin",
    "ByRoot",
    "HarderPart",
    "Mixed",
    "PowerRamp",
    "Saturating",
    "SoftHalf",
]

# A coordinated draw needs finite positive weights to tell samples apart.
LEAST, GREATEST, FIRST = 2.0**-60, 2.0**60, 2.0**100


def bounded(weights: Tensor, table: ScoreTable) -> Tensor:
    """Returns the weights [N] for a coordinated draw; samples that come first are before others."""
    first = table.ranking_mean().isnan()
    return weights.clamp(LEAST, GREATEST).masked_fill_(first, FIRST)


def roots(table: ScoreTable) -> Tensor:
    """Returns the square roots of the mean losses, float32 [N]; NaN where a sample comes first."""
    return table.ranking_mean().clamp(min=0.0).sqrt()


@dataclass(frozen=True)
class PowerRamp(Policy):
    """Weights are a power of the mean loss; the power goes from one value to another.

    It moves linearly with the epoch, from the first pruned epoch to the last one. So the `Pruner`
    must know the number of epochs.

    Attributes:
        first: The power in the first pruned epoch.
        last: The power in the last epoch; 0 is a uniform draw.
    """

    first: float
    last: float

    uses_scores = True
    uses_history = True
    coordinated = True

    def power(self, epoch: int, warmup_epochs: int, epochs: int) -> float:
        """Returns the power of a pruned epoch of a run with so many epochs."""
        progress = (epoch - warmup_epochs) / max(1, epochs - 1 - warmup_epochs)
        return self.first + (self.last - self.first) * progress

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw of the epoch that the table's history names.

        Raises:
            ValueError: The table has no history, or its run is open.
        """
        history = table.history
        if history is None or history.epochs is None:
            raise ValueError(f"{self!r} needs Pruner(..., epochs=...), got a run without a length")
        power = self.power(history.epoch, history.warmup_epochs, history.epochs)
        weights = table.ranking_mean().clamp(min=0.0).pow(power)
        return Ranking.by_weight(bounded(weights, table), start=table.start)


@dataclass(frozen=True)
class Mixed(Policy):
    """A share of the selection is drawn uniformly from all samples, the rest by the losses.

    The rest is drawn from the other samples, in proportion to the square root of their mean losses.
    An epoch shuffles its selection, so that a batch has this share in expectation.

    Attributes:
        share: Share of the selection that is drawn uniformly, in [0, 1].
    """

    share: float

    uses_scores = True
    uses_history = True
    coordinated = True

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` distinct ids, int64 [k]; those that were drawn uniformly come first.

        Raises:
            ValueError: The table has no history.
        """
        if table.history is None:
            raise ValueError(f"{self!r} needs the table of a Pruner, got one without a history")
        number, device = table.num_samples, table.device
        own_seed = seed + 1 + table.history.num_selections  # `seed` is the same in all epochs
        count = round(self.share * k)
        uniform = select_uniform(number, count, seed=own_seed, device=device)
        weights = bounded(roots(table), table)
        weights.index_fill_(0, uniform, 0.0)  # they are taken already, and others weigh more
        by_loss = Ranking.by_weight(weights, start=table.start)
        return torch.cat([uniform, select(by_loss, number, k - count, seed=seed, device=device)])


@dataclass(frozen=True)
class Aged(Policy):
    """Weights are the square root of the mean loss, which loses its meaning with age.

    Its difference to the mean of all losses shrinks by a factor in each epoch that leaves the
    sample out.

    Attributes:
        decay: The factor, in [0, 1]; 1 changes nothing.
    """

    decay: float

    uses_scores = True
    coordinated = True
    memory = MappingProxyType({"age": torch.int32})

    def scores(self, table: ScoreTable) -> Tensor:
        """Returns the losses after the decay, float32 [N]; NaN where a sample comes first."""
        assert table.memory is not None  # a Pruner sets it
        losses = table.ranking_mean()
        mean = losses.nanmean()
        return mean + torch.pow(self.decay, table.memory["age"]) * (losses - mean)

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw by the losses after the decay."""
        weights = self.scores(table).clamp(min=0.0).sqrt()
        return Ranking.by_weight(bounded(weights, table), start=table.start)

    def remember(self, table: ScoreTable, chosen: Tensor) -> Mapping[str, Tensor]:
        """Returns how many epochs in a row left each sample out, int32 [N]."""
        assert table.memory is not None
        return {"age": (table.memory["age"] + 1).masked_fill(chosen, 0)}


@dataclass(frozen=True)
class ByMargin(Policy):
    """Weights are a power of sigmoid(-margin), for a `Pruner` with `score="margin"`.

    The margin is the logit of the class minus the largest other logit. With two classes,
    sigmoid(-margin) is the probability of the wrong one. A weight is at most 1, however wrong the
    model is.

    Attributes:
        power: Of the sigmoid.
    """

    power: float

    uses_scores = True
    coordinated = True

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw; the scores of the table are negative margins."""
        weights = table.ranking_mean().sigmoid().pow(self.power)
        return Ranking.by_weight(bounded(weights, table), start=table.start)


def tilted(weights: Tensor, table: ScoreTable) -> Ranking:
    """Returns the draw by weights [N], as far as the tilt of the default policy says.

    Args:
        weights: NaN where a sample comes first.
        table: The scores of all samples.
    """
    tilt = Adaptive.tilt(table)
    mixed = tilt * weights + (1.0 - tilt) * weights.nanmean()
    return Ranking.by_weight(bounded(mixed, table), start=table.start)


@dataclass(frozen=True)
class ByRoot(Adaptive):
    """The rule of version 0.2.0: weights are the square roots of the mean losses.

    The tilt is that of today's default.
    """

    trim: float = field(default=0.0, init=False)

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw by the weights, as far as the tilt says."""
        return tilted(roots(table), table)


@dataclass(frozen=True)
class Saturating(Policy):
    """`ByRoot` with weights that approach a bound where the loss is high.

    With x the square root of the mean loss, in units of its mean over the samples, they are x^2 /
    (1 + x^2). The tilt is the default's.
    """

    uses_scores = True
    coordinated = True

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw by the weights, as far as the tilt says."""
        losses = table.ranking_mean().clamp(min=0.0)
        return tilted(losses / (losses + roots(table).nanmean().square()), table)


@dataclass(frozen=True)
class HarderPart(Policy):
    """The default policy with another part than a half, or with a share of the easier samples.

    The tilt is the default's.

    Attributes:
        part: Share of all samples that counts as hard, in (0, 1).
        easy: Weight of the others, beside 1 for a hard one.
    """

    part: float
    easy: float = 0.0

    uses_scores = True
    coordinated = True

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw by the weights, as far as the tilt says."""
        losses = table.ranking_mean()
        weights = torch.where(losses >= losses.nanquantile(1 - self.part), 1.0, self.easy)
        return tilted(weights.masked_fill(losses.isnan(), math.nan), table)


@dataclass(frozen=True)
class SoftHalf(Policy):
    """The default policy with weights that rise around the median loss, instead of a step.

    With x the mean loss over its median, they are x^power / (1 + x^power). The tilt is the
    default's.

    Attributes:
        power: How steep they rise.
    """

    power: float

    uses_scores = True
    coordinated = True

    def ranking(self, table: ScoreTable) -> Ranking:
        """Returns the draw by the weights, as far as the tilt says."""
        losses = table.ranking_mean().clamp(min=0.0)
        raised = (losses / losses.nanmedian()).pow(self.power)
        return tilted(raised / (1 + raised), table)
