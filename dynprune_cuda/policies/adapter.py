# SPDX-License-Identifier: Apache-2.0
"""Policies of a user's own behind the interface of `Policy`; what they return is checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from dynprune_cuda.policies.protocol import Policy, WeighingPolicy, is_trusted, trusted
from dynprune_cuda.scores.table import ScoreTable


class Selects(Protocol):
    """An object of a user's own with the method of a policy."""

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """As `Policy.select`."""
        ...


class Weighs(Protocol):
    """An object of a user's own with the method of a policy that weighs."""

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """As `WeighingPolicy.weigh`."""
        ...


AnyPolicy: TypeAlias = Policy | Selects | Weighs


@dataclass(frozen=True)
class FunctionPolicy(Policy):
    """A function `(table, k, *, seed) -> ids` as a policy."""

    function: Callable[..., Tensor]

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Calls the function."""
        return self.function(table, k, seed=seed)


@trusted
class AdaptedPolicy(WeighingPolicy):
    """A user's own policy; its results are checked, and attributes that it lacks are filled in.

    Attributes:
        own: The user's object, with a method `select`, or `weigh` if it has `weighs = True`.
    """

    def __init__(self, own: Any) -> None:
        """Reads the attributes of `own` that `Policy` names."""
        self.own = own
        self.static = bool(getattr(own, "static", Policy.static))
        self.uses_scores = bool(getattr(own, "uses_scores", Policy.uses_scores))
        self.weighs = bool(getattr(own, "weighs", Policy.weighs))
        self.first_visit = getattr(own, "first_visit", Policy.first_visit)
        self.uses_history = bool(getattr(own, "uses_history", Policy.uses_history))
        if isinstance(own, Policy):
            self.takes_negative_scores = own.takes_negative_scores
            self.coordinated = own.coordinated
            self.memory, self.whole = dict(own.memory), own.whole

    @property
    def fixes_count(self) -> bool:
        """As of the user's policy: whether it has a method `fixed_count`."""
        if isinstance(self.own, Policy):
            return self.own.fixes_count
        return callable(getattr(self.own, "fixed_count", None))

    def fixed_count(self, num_samples: int) -> int | None:
        """As of the user's policy."""
        return self.own.fixed_count(num_samples) if self.fixes_count else None

    def check_size(self, num_samples: int) -> None:
        """As of the user's policy, if it has one."""
        if isinstance(self.own, Policy):
            self.own.check_size(num_samples)

    def check_count(self, k: int, num_samples: int) -> None:
        """As of the user's policy, if it has one."""
        if isinstance(self.own, Policy):
            self.own.check_count(k, num_samples)

    def remember(self, table: ScoreTable, chosen: Tensor) -> Mapping[str, Tensor]:
        """Lets the user's policy remember, and checks the columns.

        Raises:
            ValueError: A column is missing or unknown, or has another dtype, shape or device.
        """
        memory = dict(self.own.remember(table, chosen))
        size = (table.num_samples,)
        fits = memory.keys() == self.memory.keys() and all(
            isinstance(column, Tensor)
            and (column.dtype, tuple(column.shape)) == (self.memory[name], size)
            and column.device == table.device
            for name, column in memory.items()
        )
        if not fits:
            raise ValueError(
                f"{self.own!r} must remember one column per sample on {table.device} for each of "
                f"{dict(self.memory)}, got {memory}"
            )
        return memory

    def settings(self, epochs: int | None) -> dict[str, Any]:
        """As of the user's policy; it may leave out what has the default."""
        own = getattr(self.own, "settings", None)
        return {**super().settings(epochs), **(own(epochs) if callable(own) else {})}

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Lets the user's policy select, and checks the result; waits for the device.

        Returns:
            `k` distinct positions in the table in ascending order, int64 [k], on its device.

        Raises:
            TypeError: The policy returned no tensor.
            ValueError: The policy returned something other than `k` distinct sample ids, int64.
        """
        ids = self._tensor(self.own.select(table, k, seed=seed), torch.int64)
        if ids.shape != (k,):
            raise ValueError(
                f"{self.own!r} must return {k} sample ids as int64, got {ids.dtype} of shape "
                f"{tuple(ids.shape)}"
            )
        ids = ids.to(table.device).sort().values
        valid = (ids[0] >= 0) & (ids[-1] < table.num_samples) & (ids[1:] > ids[:-1]).all()
        if not bool(valid):
            raise ValueError(
                f"{self.own!r} must return distinct sample ids from 0 to {table.num_samples - 1}, "
                "got repeated ids or ids out of range"
            )
        return ids

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Lets the user's policy weigh all samples, and checks the result as `select` does."""
        weights = self._tensor(self.own.weigh(table, seed=seed), torch.float32)
        if weights.shape != (table.num_samples,):
            raise ValueError(
                f"{self.own!r} must return {table.num_samples} weights as float32, got shape "
                f"{tuple(weights.shape)}"
            )
        weights = weights.detach().to(table.device)
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError(f"{self.own!r} must return finite weights >= 0, got others")
        return weights

    def _tensor(self, result: Any, dtype: torch.dtype) -> Tensor:
        name = str(dtype).removeprefix("torch.")
        if not isinstance(result, Tensor):
            raise TypeError(
                f"{self.own!r} must return an {name} tensor, got {type(result).__name__}"
            )
        if result.dtype != dtype:
            raise ValueError(f"{self.own!r} must return its result as {name}, got {result.dtype}")
        return result

    def __repr__(self) -> str:
        """Tells the user's policy."""
        return repr(self.own)


def as_object(policy: Any) -> AnyPolicy:
    """Returns a policy as an object that selects or weighs; a function becomes a `FunctionPolicy`.

    Raises:
        TypeError: `policy` is neither.
    """
    # A tensor has a method `select`, too.
    if not isinstance(policy, type | Tensor):
        method = "weigh" if getattr(policy, "weighs", False) else "select"
        if callable(getattr(policy, method, None)):
            _check_parameters(policy, method, getattr(policy, method))
            own: AnyPolicy = policy
            return own
        if callable(policy):
            _check_parameters(policy, "select", policy)
            return FunctionPolicy(policy)
    raise TypeError(
        "policy must be a name or an object with a method select(table, k, *, seed), or a function "
        f"like it, got {policy!r}"
    )


def _check_parameters(policy: Any, method: str, function: Callable[..., Tensor]) -> None:
    """Raises TypeError if a function does not take what a selection passes to it."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # builtin functions need not tell
    try:
        signature.bind(*(("table", "k") if method == "select" else ("table",)), seed=0)
    except TypeError as error:
        wanted = "select(table, k, *, seed)" if method == "select" else "weigh(table, *, seed)"
        raise TypeError(
            f"policy must take the arguments of {wanted}, got {policy!r}, whose parameters are "
            f"{signature}: {error}"
        ) from None


def adapt(policy: Any) -> Policy:
    """Returns a policy whose results need no further check: `policy` itself if it is trusted."""
    if is_trusted(policy):
        trusted_policy: Policy = policy
        return trusted_policy
    return AdaptedPolicy(as_object(policy))
