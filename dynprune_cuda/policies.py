# SPDX-License-Identifier: Apache-2.0
"""Which samples to train on next: one small frozen class per rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._arguments import as_choice, as_float
from dynprune_cuda._schedule import resolve_keep
from dynprune_cuda.scores import FIRST_VISITS, FirstVisit, ScoreTable, move_without_waiting

__all__ = [
    "UCB",
    "EpsilonGreedy",
    "Full",
    "Policy",
    "RandomStatic",
    "StaticSubset",
    "UniformRandom",
    "Weighted",
    "names",
    "resolve",
]

BONUSES = ("variance", "std")


class Policy(Protocol):
    """What a policy of your own has to offer: this one method.

    Four optional attributes tell the `Pruner` more. `static = True`: one selection serves the whole
    run. `fixed_count(num_samples) -> int`: the policy, not `keep`, decides how many samples are
    selected. `first_visit = "published"`: the score table's rule for first visits.
    `uses_scores = True`: selecting before any score was observed earns a warning.
    """

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Selects `k` of `table.num_samples` samples.

        Args:
            table: The scores so far.
            k: How many samples to select, from 1 to `table.num_samples`.
            seed: Decides everything random: the same table, `k` and seed give the same samples.

        Returns:
            `k` distinct sample ids, int64 [k], on the table's device.
        """
        ...


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

    @property
    def _tensor(self) -> Tensor:
        assert isinstance(self.ids, Tensor)
        return self.ids

    def __repr__(self) -> str:
        """Tells how many ids there are."""
        return f"StaticSubset(<{len(self._tensor)} ids>)"


@dataclass(frozen=True)
class UniformRandom:
    """A new uniformly random subset at every selection: the baseline that is hard to beat."""

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        return functional.select_uniform(
            table.num_samples, k, seed=seed, device=table.device, order="ascending"
        )


@dataclass(frozen=True)
class RandomStatic(UniformRandom):
    """One uniformly random subset, drawn once and kept for the whole run."""

    static: ClassVar[bool] = True


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


@dataclass(frozen=True)
class Weighted:
    """Samples drawn without replacement, with probabilities proportional to their mean scores.

    A negative mean weighs 0, and zero weights are drawn only when positive ones run out. Samples
    that were never visited, or whose newest value was not finite, come first.
    """

    uses_scores: ClassVar[bool] = True

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        weights = table.ranking_mean().clamp_(min=0.0).nan_to_num_(nan=float("inf"))
        return functional.select_weighted(weights, k, seed=seed, order="ascending")


_REGISTRY: dict[str, Callable[[], Policy]] = {
    "full": Full,
    "random_static": RandomStatic,
    "uniform": UniformRandom,
    "epsilon_greedy": EpsilonGreedy,
    "ucb": UCB,
    "weighted": Weighted,
}


# Their ids are distinct, in range and ascending by construction.
_OWN = frozenset({Full, StaticSubset, RandomStatic, UniformRandom, EpsilonGreedy, UCB, Weighted})


def names() -> tuple[str, ...]:
    """Returns the policy names that `Pruner` understands."""
    return (*_REGISTRY, "static")


def resolve(policy: str | Policy) -> Policy:
    """Turns a policy name into a policy with its default parameters; passes policies through.

    Args:
        policy: One of `names()`, or an object with the method of `Policy`.

    Returns:
        The policy.

    Raises:
        TypeError: `policy` is neither a name nor a policy.
        ValueError: The name is unknown, or is "static", which needs its ids.
    """
    if isinstance(policy, str):
        if policy == "static":
            raise ValueError(
                "policy 'static' needs its sample ids: pass policies.StaticSubset(ids) instead"
            )
        if policy not in _REGISTRY:
            known = ", ".join(map(repr, names()))
            raise ValueError(f"policy must be one of {known}, got {policy!r}")
        return _REGISTRY[policy]()
    if isinstance(policy, type) or not callable(getattr(policy, "select", None)):
        raise TypeError(
            "policy must be a name or an object with a method select(table, k, *, seed), "
            f"got {policy!r}"
        )
    return policy


def resolve_count(policy: Policy, keep: Any, num_samples: int) -> int:
    """Returns how many samples `policy` selects: as many as it knows itself, or as `keep` says.

    Args:
        policy: The policy.
        keep: A fraction, a count, or None; see `Pruner`.
        num_samples: Size of the training set.

    Raises:
        TypeError: `keep` is no number.
        ValueError: `keep` is missing, out of range, or not what the policy knows.
    """
    fixed_count = getattr(policy, "fixed_count", None)
    if fixed_count is None:
        if keep is None:
            raise ValueError(
                f"keep is needed: {policy!r} does not decide how many samples to keep; pass a "
                "fraction such as keep=0.3, or a count such as keep=30_000"
            )
        return resolve_keep(keep, num_samples)
    count: int = fixed_count(num_samples)
    if keep is not None and resolve_keep(keep, num_samples) != count:
        raise ValueError(
            f"keep must agree with {policy!r}, which keeps {count} of {num_samples} samples, "
            f"or be left out; got {keep!r}"
        )
    return count


def select(policy: Policy, table: ScoreTable, k: int, seed: int) -> Tensor:
    """Lets `policy` select, and checks what it returns.

    A policy of this module is believed, at no cost. What a user's own policy returns is sorted and
    checked, which waits for the device.

    Args:
        policy: The policy.
        table: The scores so far.
        k: How many samples to select.
        seed: Decides everything random.

    Returns:
        `k` distinct sample ids in ascending order, int64 [k], on the table's device.

    Raises:
        TypeError: The policy returned no tensor.
        ValueError: The policy returned something other than `k` distinct sample ids, int64.
    """
    ids = policy.select(table, k, seed=seed)
    if type(policy) in _OWN:
        return ids
    if not isinstance(ids, Tensor):
        raise TypeError(f"{policy!r} must return an int64 tensor, got {type(ids).__name__}")
    if ids.dtype != torch.int64 or ids.shape != (k,):
        raise ValueError(
            f"{policy!r} must return {k} sample ids as int64, got {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    ids = ids.to(table.device).sort().values
    valid = (ids[0] >= 0) & (ids[-1] < table.num_samples) & (ids[1:] > ids[:-1]).all()
    if not bool(valid):
        raise ValueError(
            f"{policy!r} must return distinct sample ids from 0 to {table.num_samples - 1}, "
            "got repeated ids or ids out of range"
        )
    return ids


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
