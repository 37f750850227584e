# SPDX-License-Identifier: Apache-2.0
"""What a policy is, and the check of what a user's own policy returns."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dynprune_cuda.scores.table import ScoreTable

_BELIEVED: set[type] = set()
_Class = TypeVar("_Class", bound=type)


class Policy(Protocol):
    """What a policy of your own has to offer: this one method. A function like it will do, too.

        def least_visited(table, k, *, seed):
            return table.count.argsort(stable=True)[:k]

        pruner = Pruner(len(train_set), keep=0.3, policy=least_visited)

    Optional attributes of a class tell the `Pruner` more. `static = True`: one selection serves the
    whole run. `fixed_count(num_samples) -> int`: the policy, not `keep`, decides how many samples
    are selected. `first_visit = "published"`: the score table's rule for first visits.
    `uses_scores = True`: selecting before any score was observed earns a warning.
    `settings(epochs) -> dict`: its own defaults of `period`, `alpha` and `anneal_epochs`.
    `fingerprint`: a str that tells it from other policies in a saved state (default: its `repr`).
    """

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Selects `k` of `table.num_samples` samples.

        Args:
            table: The scores so far.
            k: How many samples to select, from 1 to `table.num_samples`.
            seed: Decides everything random: the same table, `k` and seed give the same samples.

        Returns:
            `k` distinct positions in the table, int64 [k], on the table's device. They are the
            sample ids, unless `groups` are balanced: then `table.sample_ids` tells the ids.
        """
        ...


class WeighingPolicy(Protocol):
    """A policy that decides itself how many samples it keeps, and rescales their losses.

    How many these are is known once they are selected: `Pruner` takes no `keep` then, and tells the
    length of a pruned epoch only after `set_epoch` has begun it or one of the same selection. The
    attributes of `Policy` are understood here too.
    """

    @property
    def weighs(self) -> bool:
        """True. A class attribute will do."""
        ...

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Weighs all `table.num_samples` samples, without waiting for the device.

        Args:
            table: The scores so far.
            seed: Decides everything random.

        Returns:
            What each sample's loss is multiplied by, finite and >= 0, float32 [num_samples], on the
            table's device. Samples of weight 0 are left out.
        """
        ...


def believed(policy: _Class) -> _Class:
    """Marks a class whose results are right by construction, so that nobody has to wait for them.

    Its subclasses are not believed.
    """
    _BELIEVED.add(policy)
    return policy


def is_believed(policy: object) -> bool:
    """Returns whether `policy` is of a class whose results are right by construction."""
    return type(policy) in _BELIEVED


def checked_select(policy: Policy, table: ScoreTable, k: int, seed: int) -> Tensor:
    """Lets `policy` select, and checks what it returns.

    A policy of this package is believed, at no cost. What a user's own policy returns is sorted and
    checked, which waits for the device.

    Args:
        policy: The policy.
        table: The scores so far.
        k: How many samples to select.
        seed: Decides everything random.

    Returns:
        `k` distinct positions in the table in ascending order, int64 [k], on the table's device.

    Raises:
        TypeError: The policy returned no tensor.
        ValueError: The policy returned something other than `k` distinct sample ids, int64.
    """
    ids = policy.select(table, k, seed=seed)
    if is_believed(policy):
        return ids
    _check_tensor(policy, ids, torch.int64)
    if ids.shape != (k,):
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


def checked_weigh(policy: WeighingPolicy, table: ScoreTable, seed: int) -> Tensor:
    """Lets `policy` weigh all samples, and checks what it returns as `checked_select` does."""
    weights = policy.weigh(table, seed=seed)
    if is_believed(policy):
        return weights
    _check_tensor(policy, weights, torch.float32)
    if weights.shape != (table.num_samples,):
        raise ValueError(
            f"{policy!r} must return {table.num_samples} weights as float32, got shape "
            f"{tuple(weights.shape)}"
        )
    weights = weights.detach().to(table.device)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError(f"{policy!r} must return finite weights >= 0, got others")
    return weights


def _check_tensor(policy: Any, result: Any, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    if not isinstance(result, Tensor):
        raise TypeError(f"{policy!r} must return an {name} tensor, got {type(result).__name__}")
    if result.dtype != dtype:
        raise ValueError(f"{policy!r} must return its result as {name}, got {result.dtype}")
