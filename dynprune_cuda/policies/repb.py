# SPDX-License-Identifier: Apache-2.0
"""RePB: compare losses within batches only, and rescale by how often a sample was used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_SAMPLES, as_int
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.functional.rules import as_share
from dynprune_cuda.policies.arithmetic import as_integers, coins
from dynprune_cuda.policies.protocol import WeighingPolicy, history_of, trusted
from dynprune_cuda.scores.table import ScoreTable


@trusted
@dataclass(frozen=True)
class RePB(WeighingPolicy):
    """Keeps samples at or above their batch's mean loss and a random part of the rest.

    Losses are rescaled by how often a sample was used.

    The rule is that of Zhou et al. (Inconsistency Biases in Dynamic Data Pruning, ICLR 2026,
    https://openreview.net/forum?id=Zw1Uw7u6Su). Losses are compared within the batches of the epoch
    that just ended, where the model was nearly the same. A sample of it stays if its loss is at
    least the mean of its batch; others stay with probability `1 - prune_ratio`. A sample that was
    left out of it returns with probability `1 - prune_ratio`. Losses count E / N times: N of E
    epochs used the sample, the one that begins included.

    Only the abstract and a summary could be read, neither the whole paper nor its code. The
    abstract compares losses within windows of several batches; here a window is one batch. The
    default of `prune_ratio`, that the epoch that begins counts in E and N, and that no epoch is
    annealed are choices made here, too.

    A `Pruner` with this policy selects before every epoch, by the newest loss (`alpha=1`). Warm-up
    epochs count in E and N, and so does each selection, once. Samples without a finite newest value
    stay, and do not count in the mean. Nothing is sorted, and how many samples stay is random.

    Attributes:
        prune_ratio: Probability that a sample below the mean is left out, in [0, 1).
        batch_size: Samples per batch, at least 1; of all processes together. Batches are
            consecutive pieces of the epoch's order.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    prune_ratio: float = 0.5
    batch_size: int = 128

    uses_scores = True
    uses_history = True
    default_period = 1
    default_alpha = 1.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "prune_ratio", as_share("prune_ratio", self.prune_ratio))
        object.__setattr__(
            self,
            "batch_size",
            as_int("batch_size", self.batch_size, minimum=1, maximum=MAX_SAMPLES),
        )

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Returns E / N for samples that stay, and 0 for others, without waiting.

        Returns:
            float32 [num_samples] on the table's device; the same on every device.

        Raises:
            ValueError: `table.history` is None.
        """
        history, size = history_of(self, table), table.num_samples
        if not history.length:
            return torch.ones_like(table.mean)
        was_in = history.places >= 0
        num_batches = -(-history.length // self.batch_size)
        batch = torch.where(was_in, history.places // self.batch_size, num_batches)
        below = _below_own_mean(table.ranking_mean(), batch, num_batches + 1)
        share = 1.0 - self.prune_ratio
        lucky = coins(size, share, seed=derive_seed(seed, "stay"), device=table.device)
        stays = torch.where(was_in, ~below | lucky, lucky)
        before = history.warmup_epochs + 1
        uses = history.times_selected + before
        factors = (history.num_selections + before) / uses.double()
        # One sample at least: a run cannot train on nothing.
        return torch.where(stays | ~stays.any(), factors, 0.0).float()


def _below_own_mean(scores: Tensor, batch: Tensor, num_batches: int) -> Tensor:
    """Returns which scores are below the mean of those of their batch that are not NaN, exactly.

    Args:
        scores: float32 [n].
        batch: The batch of each, int64 [n].
        num_batches: How many there are.
    """
    known = ~scores.isnan()
    values = torch.where(known, scores, 0.0).double()
    nothing = torch.zeros(num_batches, dtype=torch.int64, device=scores.device)
    largest = nothing.double().scatter_reduce(0, batch, values.abs(), "amax")
    integers = as_integers(values, largest[batch])
    sums = nothing.scatter_add(0, batch, integers)
    sizes = nothing.scatter_add(0, batch, known.long())
    return known & (integers * sizes[batch] < sums[batch])
