# SPDX-License-Identifier: Apache-2.0
"""The rules that choose exactly k samples: one small frozen class per rule."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dynprune_cuda import functional, sharded
from dynprune_cuda._arguments import as_choice, as_float
from dynprune_cuda._shard_table import ShardedScoreTable
from dynprune_cuda.policies.protocol import believed
from dynprune_cuda.scores import FIRST_VISITS, FirstVisit, ScoreTable, move_without_waiting

BONUSES = ("variance", "std")


@believed
@dataclass(frozen=True)
class Full:
    """Every sample, always: training without pruning."""

    static: ClassVar[bool] = True

    def fixed_count(self, num_samples: int) -> int:
        """Returns `num_samples`."""
        return num_samples

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns all ids in ascending order, int64 [num_samples]."""
        if k != table.num_samples:
            raise ValueError(f"k must be num_samples={table.num_samples} for Full, got {k}")
        return torch.arange(table.num_samples, device=table.device)

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns the ids of this process's samples, int64."""
        return table.shard.ids(table.device)


@believed
@dataclass(frozen=True, eq=False, repr=False)
class StaticSubset:
    """A subset that was chosen before training, for example by EL2N or a coreset method.

    Attributes:
        ids: The sample ids in ascending order, int64 [num_ids], on the CPU. Given as any integer
            sequence, array or tensor, in any order.

    Raises:
        TypeError: `ids` cannot become a tensor.
        ValueError: `ids` is empty, not 1-D or not of integers, or an id is negative or repeated.
    """

    ids: Tensor | Sequence[int]

    static: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks and sorts the ids."""
        object.__setattr__(self, "ids", _sorted_ids(self.ids))

    def fixed_count(self, num_samples: int) -> int:
        """Returns how many ids there are, once they are known to fit the training set."""
        largest = int(self._tensor[-1])
        if largest >= num_samples:
            raise ValueError(f"ids must be below num_samples={num_samples}, got {largest}")
        return len(self._tensor)

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns the ids in ascending order on the table's device, int64 [num_ids]."""
        if k != self.fixed_count(table.num_samples):
            raise ValueError(f"k must be the number of ids, {len(self._tensor)}, got {k}")
        return move_without_waiting("ids", self._tensor, table.device)

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns those of the ids that this process holds, ascending, int64."""
        own = table.shard.owner_of(self._tensor) == table.shard.rank
        return move_without_waiting("ids", self._tensor[own], table.device)

    def sizes_in(self, shard: sharded.Shard) -> list[int]:
        """Returns how many of the ids each process holds."""
        counts: list[int] = torch.bincount(
            shard.owner_of(self._tensor), minlength=shard.size
        ).tolist()
        return counts

    @property
    def _tensor(self) -> Tensor:
        assert isinstance(self.ids, Tensor)
        return self.ids

    @cached_property
    def fingerprint(self) -> str:
        """Tells one subset from another in a saved state."""
        return f"StaticSubset({digest(self._tensor)})"

    def __repr__(self) -> str:
        """Tells how many ids there are."""
        return f"StaticSubset(<{len(self._tensor)} ids>)"


@believed
@dataclass(frozen=True)
class UniformRandom:
    """A new uniformly random subset at every selection: the baseline that is hard to beat."""

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_uniform(
            table.num_samples, k, seed=seed, device=table.device, order="ascending"
        )

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64."""
        return sharded.select_uniform(k, shard=table.shard, seed=seed, device=table.device)


@believed
@dataclass(frozen=True)
class RandomStatic(UniformRandom):
    """One uniformly random subset, drawn once and kept for the whole run."""

    static: ClassVar[bool] = True


@believed
@dataclass(frozen=True)
class EpsilonGreedy:
    """The highest mean scores, and a random share of what they left over.

    Of `k` samples, `floor(epsilon * k + 0.5)` are random (https://arxiv.org/abs/2111.12621).
    Samples that were never visited, or whose newest value was not finite, rank first.

    Attributes:
        epsilon: The random share, in [0, 1].

    Raises:
        TypeError: `epsilon` is no number.
        ValueError: `epsilon` is outside [0, 1].
    """

    epsilon: float = 0.1

    uses_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "epsilon", as_float("epsilon", self.epsilon, low=0.0, high=1.0))

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_epsilon_greedy(
            table.ranking_mean(), k, self.epsilon, seed=seed, order="ascending"
        )

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64. Collective."""
        options = table.selection(seed)
        return sharded.select_epsilon_greedy(table.ranking_mean(), k, self.epsilon, **options)


@believed
@dataclass(frozen=True)
class UCB:
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

    uses_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the parameters."""
        object.__setattr__(self, "c", as_float("c", self.c, low=0.0))
        as_choice("bonus", self.bonus, BONUSES)
        as_choice("first_visit", self.first_visit, FIRST_VISITS)

    @classmethod
    def infobatch_baseline(cls) -> UCB:
        """UCB as the InfoBatch authors released it as their ImageNet baseline.

        Source: https://github.com/henryqin1997/InfoBatch-ImageNet, `imagenet/infobatch_ucb.py` and
        `imagenet/prune_experiment_ucb.py`: c = 1 on the variance, a first visit that counts as the
        variance `alpha * loss**2`, alpha = 0.8, a selection every 10 epochs after one warm-up
        epoch on full data. The last three are the defaults of `Pruner`; the script keeps 59 %.
        """
        return cls(c=1.0, bonus="variance", first_visit="published")

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_ucb(
            table.ranking_mean(),
            table.variance,
            k,
            c=self.c,
            bonus=self.bonus,
            seed=seed,
            order="ascending",
        )

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64. Collective."""
        mean, bonus = table.ranking_mean(), self.bonus
        options = table.selection(seed)
        return sharded.select_ucb(mean, table.variance, k, c=self.c, bonus=bonus, **options)


@believed
@dataclass(frozen=True)
class Weighted:
    """Samples drawn without replacement, with probabilities proportional to their mean scores.

    A negative mean weighs 0, and zero weights are drawn only when positive ones run out. Samples
    that were never visited, or whose newest value was not finite, come first.
    """

    uses_scores: ClassVar[bool] = True

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_weighted(_weights(table), k, seed=seed, order="ascending")

    def select_shard(self, table: ShardedScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns this process's ids of the same subset, ascending, int64. Collective."""
        return sharded.select_weighted(_weights(table), k, **table.selection(seed))


def _weights(table: ScoreTable) -> Tensor:
    return table.ranking_mean().clamp_(min=0.0).nan_to_num_(nan=float("inf"))


def _sorted_ids(ids: Any) -> Tensor:
    """Returns the ids of a static subset, checked, on the CPU, int64, ascending."""
    try:
        tensor = torch.as_tensor(ids).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"ids must be a 1-D sequence of ints: {error}") from None
    if tensor.dim() != 1:
        raise ValueError(f"ids must be 1-D, got shape {tuple(tensor.shape)}")
    if len(tensor) == 0:
        raise ValueError("ids must hold at least one sample id, got none")
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ValueError(f"ids must have an integer dtype, got {tensor.dtype}")
    ordered = tensor.to(torch.int64).sort().values
    if int(ordered[0]) < 0:
        raise ValueError(f"ids must not be negative, got {int(ordered[0])}")
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"ids must be distinct, got {int(repeated[0])} more than once")
    return ordered


def digest(tensor: Tensor) -> str:
    """Returns a short hash of what a CPU tensor holds."""
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()[:16]
