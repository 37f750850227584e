# SPDX-License-Identifier: Apache-2.0
"""What a policy is: what to rank samples by, and what its run needs to know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import check_type
from dynprune_cuda.functional.ranking import FixedIds
from dynprune_cuda.functional.rules import SelectionRule
from dynprune_cuda.functional.score_updates import FirstVisit
from dynprune_cuda.scores.history import History
from dynprune_cuda.scores.table import ScoreTable

_Class = TypeVar("_Class", bound=type)


class Policy:
    """The base class of policies. A subclass says what to rank by; selectors do the rest.

        @dataclass(frozen=True)
        class SmallestMargin(Policy):
            uses_scores = True

            def ranking(self, table):
                return Ranking.by_score(table.ranking_mean(), random_share=0.1)

        pruner = Pruner(len(train_set), keep=0.3, policy=SmallestMargin(), score="margin")

    Such a policy selects from whole tables and from shards. Its `repr` tells it from other policies
    in a saved state, so make it a dataclass, or give it a str `fingerprint`.

    A policy of your own need not be a subclass. Any object with the method `select` will do, or a
    function like it. Then its result is checked, which waits for the device, and it cannot select
    from shards. Such an object may have `static`, `uses_scores`, `uses_history`, `weighs` and
    `first_visit`, a method `fixed_count` or `settings`, and a str `fingerprint`.

    The table has one row per sample: `mean` and `variance` (moving averages of the score, float32),
    `count` (finite values, int32), `non_finite_count` (int32) and `last_non_finite` (bool). With
    `track_forgetting` it also has `last_correct` (bool) and `forget_count` (int32).
    `ranking_mean()` is `mean`, and NaN where a sample should rank first. See `ScoreTable`.

    Attributes:
        static: One selection serves the whole run.
        uses_scores: Warn if a selection is made before any score was recorded.
        weighs: The policy decides itself how many samples it keeps; see `WeighingPolicy`.
        rescales: Losses are multiplied by the factors of `functional.select_rescaled`. For policies
            whose `ranking` draws by weights, and that leave `select` as it is.
        coordinated: Successive selections share their random numbers: all get the same seed, and
            `table.start` tells where to begin. For draws by weights, see `Ranking.by_weight`.
        first_visit: The score table's rule for first visits; see `ScoreTable`.
        default_period: Epochs between selections, if the `Pruner` is not told.
        default_alpha: Weight of the newest value in a moving average, if the `Pruner` is not told.
        default_anneal_share: Share of the run, at its end, that trains on everything, if the
            `Pruner` is not told; rounded up to whole epochs.
        takes_negative_scores: Whether scores below 0 are ranked like others.
        uses_history: The policy reads `table.history`, which the run sets before it selects.
        memory: Columns of its own: dtypes by name. The run sets `table.memory`, replaces it by what
            `remember` returns after each selection, and saves it. Floats begin as NaN, others as 0.
        whole: It decides about all samples at once, so that groups cannot be balanced around it.

    Policies with `uses_history` or `memory` do not select from shards.
    """

    static: bool = False
    uses_scores: bool = False
    weighs: bool = False
    rescales: bool = False
    coordinated: bool = False
    first_visit: FirstVisit = "zero"
    default_period: int = 1
    default_alpha: float = 0.8
    default_anneal_share: float = 0.0
    takes_negative_scores: bool = True
    uses_history: bool = False
    memory: Mapping[str, torch.dtype] = MappingProxyType({})
    whole: bool = False

    def ranking(self, table: ScoreTable) -> SelectionRule:
        """Returns what to rank by, without waiting for the device.

        Args:
            table: The scores: of all samples, of one group, or of one rank's shard.

        Returns:
            A `functional.Ranking` of the table's rows, such a ranking `functional.Trimmed`,
            `functional.Uniform()`, or the same `functional.FixedIds` every time.
        """
        raise NotImplementedError(f"{type(self).__name__} must define ranking(table)")

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Selects `k` of `table.num_samples` samples.

        Args:
            table: The scores so far.
            k: How many samples to select, from 1 to `table.num_samples`.
            seed: Decides everything random: the same table, `k` and seed give the same samples.

        Returns:
            `k` distinct positions in the table, int64 [k], on the table's device; ascending if this
            is not overridden. They are the sample ids, unless the table is a part, as for `groups`
            and in `Covered`: then `table.sample_ids` tells the ids.
        """
        check_type("table", table, ScoreTable)
        rule, num_samples = self.ranking(table), table.num_samples
        if self.fixes_count and not isinstance(rule, FixedIds):
            fixed = self.fixed_count(num_samples)
            if fixed is not None and k != fixed:
                raise ValueError(f"k must be {fixed} for {self!r}, got {k}")
        return functional.select(rule, num_samples, k, seed=seed, device=table.device)

    def fixed_count(self, num_samples: int) -> int | None:
        """Returns how many samples are selected, if the policy decides that; None: `keep` does.

        Args:
            num_samples: Size of the training set.
        """
        return None

    def check_size(self, num_samples: int) -> None:
        """Raises ValueError if the policy does not fit a training set of this size.

        Args:
            num_samples: Size of the training set.
        """

    def check_count(self, k: int, num_samples: int) -> None:
        """Raises ValueError if the policy cannot select `k` of `num_samples` samples.

        Args:
            k: How many samples are to be selected.
            num_samples: Size of the training set.
        """

    def remember(self, table: ScoreTable, chosen: Tensor) -> Mapping[str, Tensor]:
        """Returns the columns of `memory` after a selection, without waiting for the device.

        Args:
            table: What the selection was made from; `table.memory` is not to be changed.
            chosen: Which samples were selected, bool [num_samples].

        Returns:
            New columns with the names and dtypes of `memory`, [num_samples] each.
        """
        raise NotImplementedError(f"{type(self).__name__} must define remember(table, chosen)")

    def initial_memory(self, num_samples: int, device: torch.device | str) -> dict[str, Tensor]:
        """Returns the columns of `memory` before the first selection.

        Args:
            num_samples: Size of the training set.
            device: Where the columns live.
        """
        return {
            name: torch.full(
                (num_samples,),
                float("nan") if dtype.is_floating_point else 0,
                dtype=dtype,
                device=device,
            )
            for name, dtype in self.memory.items()
        }

    @property
    def fixes_count(self) -> bool:
        """Whether the policy, not `keep`, decides how many samples are selected."""
        own = self.fixed_count
        return callable(own) and getattr(own, "__func__", None) is not Policy.fixed_count

    @property
    def selects_by_ranking(self) -> bool:
        """Whether `ranking` says everything, so that the policy can select from shards."""
        if self.weighs or self.uses_history or self.memory:
            return False
        return getattr(self.select, "__func__", None) is Policy.select

    @property
    def has_factors(self) -> bool:
        """Whether losses are multiplied by factors."""
        return self.weighs or self.rescales

    def settings(self, epochs: int | None) -> dict[str, Any]:
        """Returns its own defaults of `period`, `alpha` and `anneal_epochs`.

        Args:
            epochs: Length of the run, None if it is open.
        """
        return {
            "period": self.default_period,
            "alpha": self.default_alpha,
            "anneal_epochs": math.ceil(self.default_anneal_share * (epochs or 0)),
        }


class WeighingPolicy(Policy):
    """A policy that decides itself how many samples it keeps, and rescales their losses.

    How many these are is known once they are selected. `Pruner` takes no `keep` then, and tells the
    length of a pruned epoch only after `set_epoch` has begun it or one of the same selection.
    """

    weighs: bool = True

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Weighs all `table.num_samples` samples, without waiting for the device.

        Args:
            table: The scores so far.
            seed: Decides everything random.

        Returns:
            What each sample's loss is multiplied by, finite and >= 0, float32 [num_samples], on the
            table's device. Samples of weight 0 are left out.
        """
        raise NotImplementedError(f"{type(self).__name__} must define weigh(table, *, seed)")


def history_of(policy: Policy, table: ScoreTable) -> History:
    """Returns what the run told; ValueError if `table` was not given it."""
    if table.history is None:
        raise ValueError(
            f"table must have a history for {policy!r}, got None: a Pruner sets it; for a table of "
            "your own, pass table.told(scores.History(...), None)"
        )
    return table.history


def memory_of(policy: Policy, table: ScoreTable) -> Mapping[str, Tensor]:
    """Returns the policy's own columns; ValueError if `table` has none."""
    if table.memory is None:
        raise ValueError(
            f"table must have a memory for {policy!r}, got None: a Pruner sets it; for a table of "
            "your own, pass table.told(None, policy.initial_memory(num_samples, device))"
        )
    return table.memory


_TRUSTED: set[type] = set()


def trusted(policy: _Class) -> _Class:
    """Marks a class whose own `select` and `weigh` are right by construction, not subclasses."""
    _TRUSTED.add(policy)
    return policy


def is_trusted(policy: object) -> bool:
    """Returns whether what a policy returns needs no check.

    It is of a marked class, or it leaves the selection to `Policy.select`, which checks its rule.
    """
    return type(policy) in _TRUSTED or (isinstance(policy, Policy) and policy.selects_by_ranking)


def fingerprint_of(policy: object) -> str:
    """Returns what tells a policy from others in a saved state: `fingerprint`, or its `repr`."""
    own = getattr(policy, "fingerprint", None)
    return own if isinstance(own, str) else repr(policy)
