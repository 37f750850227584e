# SPDX-License-Identifier: Apache-2.0
"""From what a user passes as `policy` and `keep` to what a run trains on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dynprune_cuda._schedule.keep import resolve_plan
from dynprune_cuda.policies.adapter import AnyPolicy, as_object
from dynprune_cuda.policies.adaptive import Adaptive
from dynprune_cuda.policies.epsilon_greedy import EpsilonGreedy
from dynprune_cuda.policies.full import Full
from dynprune_cuda.policies.ies import IES
from dynprune_cuda.policies.infobatch import InfoBatch
from dynprune_cuda.policies.orderdp import OrderDP
from dynprune_cuda.policies.protocol import Policy, fingerprint_of
from dynprune_cuda.policies.repb import RePB
from dynprune_cuda.policies.seta import SeTa
from dynprune_cuda.policies.ucb import UCB
from dynprune_cuda.policies.uniform import RandomStatic, UniformRandom
from dynprune_cuda.policies.weighted import Weighted

_REGISTRY: dict[str, Callable[[], AnyPolicy]] = {
    "adaptive": Adaptive,
    "full": Full,
    "random_static": RandomStatic,
    "uniform": UniformRandom,
    "epsilon_greedy": EpsilonGreedy,
    "ucb": UCB,
    "infobatch": InfoBatch,
    "weighted": Weighted,
    "orderdp": OrderDP,
    "seta": SeTa,
    "ies": IES,
    "repb": RePB,
}


def register(name: str, make: Callable[[], AnyPolicy]) -> None:
    """Makes `Pruner` understand a name.

    Args:
        name: The name, not registered yet.
        make: Returns the policy, without arguments: a class whose parameters have defaults.

    Raises:
        TypeError: `name` is no str, or `make` not callable.
        ValueError: The name is taken.
    """
    if not isinstance(name, str) or not callable(make):
        raise TypeError(f"name must be a str and make callable, got {name!r} and {make!r}")
    if name in names():
        raise ValueError(f"name must be a new one, got {name!r}")
    _REGISTRY[name] = make


def names() -> tuple[str, ...]:
    """Returns the policy names that `Pruner` understands."""
    return (*_REGISTRY, "static")


def resolve(policy: str | AnyPolicy | Callable[..., Tensor]) -> AnyPolicy:
    """Turns a name or a function into a policy; passes policies through.

    Args:
        policy: One of `names()`, an object with the method of `Policy` or `WeighingPolicy`, or a
            function like `Policy.select`.

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
    return as_object(policy)


def resolve_count(
    policy: Policy, keep: Any, num_samples: int
) -> int | tuple[int, ...] | Callable[[int], float] | None:
    """Returns how many samples `policy` selects: as many as it knows itself, or as `keep` says.

    Args:
        policy: The policy.
        keep: A number, a sequence, a function or None; see `Pruner`.
        num_samples: Size of the training set.

    Returns:
        What `Schedule.keep` takes.

    Raises:
        TypeError: `keep` is no number.
        ValueError: `keep` is missing, out of range, or not what the policy knows.
    """
    if policy.weighs:
        if keep is not None:
            raise ValueError(
                f"keep must be left out: {policy!r} decides how many samples it keeps, got {keep!r}"
            )
        return None
    count = policy.fixed_count(num_samples) if policy.fixes_count else None
    if count is None:
        if keep is None:
            raise ValueError(
                f"keep is needed: {policy!r} does not decide how many samples to keep; pass a "
                "fraction such as keep=0.3, or a count such as keep=30_000"
            )
        plan = resolve_plan(keep, num_samples)
        if policy.static and not isinstance(plan, int):
            raise ValueError(f"keep must be one number for {policy!r}, which selects only once")
        return plan
    if keep is not None and resolve_plan(keep, num_samples) != count:
        raise ValueError(
            f"keep must agree with {policy!r}, which keeps {count} of {num_samples} samples, "
            f"or be left out; got {keep!r}"
        )
    return count


def fingerprint(policy: AnyPolicy) -> str:
    """Returns what tells `policy` from others in a saved state, the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", fingerprint_of(policy))
