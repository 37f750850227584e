# SPDX-License-Identifier: Apache-2.0
"""A floor or a fixed share for every class or group, whatever the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import as_float, as_int, digest, on_host
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.policies.adapter import AnyPolicy
from dynprune_cuda.policies.inside import WithPolicyInside
from dynprune_cuda.policies.protocol import WeighingPolicy, fingerprint_of, trusted
from dynprune_cuda.policies.quotas import ClassShares, checked_shares, quotas, whole_shares
from dynprune_cuda.scores.others import other_ids
from dynprune_cuda.scores.table import ScoreTable


@trusted
@dataclass(frozen=True, eq=False, repr=False)
class Balanced(WithPolicyInside, WeighingPolicy):
    """Another policy, held to a floor or a share of every group; still exactly k samples.

    `Pruner(groups=labels, group_floor=...)` makes one. First the policy fills the floor of each
    group from that group alone, then the rest of k from all samples that are left over. Nothing
    waits for the device, because the size of every group is known from the beginning. A selection
    costs one call of the policy per group.

    With `class_shares` there is no rest. The shares decide how many samples of each group are kept,
    and the policy decides which. A group that is smaller than its part is kept whole, and what it
    lacks is divided among the others by their shares. Parts are rounded by largest remainder. Equal
    remainders are ordered at random, by the seed of the selection.

    A policy that weighs, such as `InfoBatch`, works inside each group instead, with the group's own
    mean and share. So no group loses more than the prune ratio; `floor` has no meaning then.

    Attributes:
        policy: The policy that selects.
        groups: The group of each sample, any integers [num_samples]; kept as int64 on the CPU.
        floor: A float in [0, 1] is a share of the proportional part. Of a group of n samples, at
            least `floor(group_floor * k * n / num_samples)` are kept; 1.0 keeps the groups'
            proportions. An int is a number of samples per group (or all, if the group is smaller).
            None: 0.5, or nothing with `class_shares`.
        class_shares: "equal": as many samples of each group. "proportional": the groups'
            proportions. A dict {label: share}: numbers from 0 for every group, of which only the
            ratios count. None: the floor.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute has the wrong shape, dtype or value, or there are `floor` and
            `class_shares`. Or the policy knows its samples from the beginning, or weighs and has
            `class_shares`.
    """

    policy: AnyPolicy
    groups: Tensor
    floor: float | None = None
    class_shares: ClassShares | None = None

    whole = True

    def __post_init__(self) -> None:
        """Checks the attributes."""
        if self.class_shares is None:
            floor = _checked_floor(0.5 if self.floor is None else self.floor)
            object.__setattr__(self, "floor", floor)
        else:
            if self.floor is not None:
                raise ValueError(
                    f"group_floor={self.floor} and class_shares={self.class_shares!r} exclude each "
                    "other: leave one out"
                )
            if self._inside.weighs:
                raise ValueError(
                    f"class_shares={self.class_shares!r} do not fit {self.policy!r}, which decides "
                    "how many samples it keeps: leave them out, or choose another policy"
                )
            object.__setattr__(self, "class_shares", checked_shares(self.class_shares))
        if self._inside.fixes_count:
            raise ValueError(
                f"groups do not fit {self.policy!r}, which knows its samples from the beginning"
            )
        if self._inside.whole:
            raise ValueError(
                f"groups do not fit {self.policy!r}, which decides about all samples at once: "
                "leave them out, or choose another policy"
            )
        object.__setattr__(self, "groups", _checked_groups(self.groups))
        if self.class_shares is not None:
            _ = self._shares  # names missing and unknown labels

    @property
    def static(self) -> bool:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.static

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.weighs

    @property
    def memory(self) -> Mapping[str, torch.dtype]:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.memory

    def remember(self, table: ScoreTable, chosen: Tensor) -> Mapping[str, Tensor]:
        """As of the policy inside."""
        return self._inside.remember(table, chosen)

    @cached_property
    def fingerprint(self) -> str:
        """Tells one grouping from another in a saved state."""
        inside, rule = fingerprint_of(self.policy), f"floor={self.floor}"
        if isinstance(self.class_shares, str):
            rule = f"class_shares={self.class_shares}"
        elif self.class_shares is not None:
            parts = [share / sum(self._shares) for share in self._shares]
            rule = f"class_shares={digest(torch.tensor(parts, dtype=torch.float64))}"
        return f"Balanced({inside}, groups={digest(self.groups)}, {rule})"

    @cached_property
    def _labels_and_sizes(self) -> tuple[list[int], list[int]]:
        """The labels, rising, and how many samples have each."""
        labels, sizes = torch.unique(self.groups, return_counts=True)
        return labels.tolist(), sizes.tolist()

    @property
    def _sizes(self) -> list[int]:
        """How many samples each group has, by rising label."""
        return self._labels_and_sizes[1]

    @cached_property
    def _shares(self) -> list[int]:
        """The share of each group, by rising label; only their ratios count."""
        assert self.class_shares is not None
        return whole_shares(self.class_shares, *self._labels_and_sizes)

    @cached_property
    def _members(self) -> dict[torch.device, Tensor]:
        """All sample ids, ordered by group, on each device that needed them."""
        return {torch.device("cpu"): self.groups.argsort(stable=True)}

    def check_size(self, num_samples: int) -> None:
        """Checks that there is one label per sample.

        Raises:
            ValueError: There are more or fewer.
        """
        if len(self.groups) != num_samples:
            raise ValueError(
                f"groups must have one label per sample, {num_samples}, got {len(self.groups)}"
            )

    def check_count(self, k: int, num_samples: int) -> None:
        """Checks that a selection of `k` samples is possible.

        Raises:
            ValueError: The floors add up to more than `k`, or the groups with a share have fewer.
        """
        if self.class_shares is not None:
            self.quotas(k, seed=0)
        elif not self.weighs:
            self.floors(k)

    def quotas(self, k: int, *, seed: int) -> list[int]:
        """Returns how many samples of each group, by rising label, `class_shares` give.

        Args:
            k: How many samples are selected.
            seed: Seed of the selection; decides between equal remainders.

        Raises:
            ValueError: The groups with a share have fewer than `k` samples.
        """
        sizes, shares = self._sizes, self._shares
        most = sum(size for size, share in zip(sizes, shares, strict=True) if share)
        if k > most:
            raise ValueError(
                f"keep must be at most {most} with class_shares={self.class_shares!r}, which leave "
                f"no other samples, got {k}; give further classes a share above 0"
            )
        return quotas(sizes, shares, k, seed=seed)

    def floors(self, k: int) -> list[int]:
        """Returns how many samples of each group, by rising label, `floor` keeps.

        Args:
            k: How many samples are selected.

        Raises:
            ValueError: The floors add up to more than `k`.
        """
        assert self.floor is not None
        if isinstance(self.floor, int):
            floors = [min(size, self.floor) for size in self._sizes]
        else:
            part = self.floor * k / len(self.groups)
            floors = [math.floor(part * size) for size in self._sizes]
        if sum(floors) > k:
            raise ValueError(
                f"group_floor={self.floor} of {len(floors)} groups needs {sum(floors)} samples, "
                f"and only {k} are kept"
            )
        return floors

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids in ascending order, int64 [k]."""
        inside, shares = self._inside, self.class_shares
        # A coordinated policy gets one seed. What is left over goes to other groups each time.
        quota_seed = derive_seed(seed, "quotas", int(table.start * 2**24)) if table.start else seed
        floors = self.floors(k) if shares is None else self.quotas(k, seed=quota_seed)
        chosen = [
            ids[inside.select(table.part(ids), floor, seed=derive_seed(seed, "group", number))]
            for number, (ids, floor) in enumerate(zip(self._parts(table), floors, strict=True))
            if floor
        ]
        if sum(floors) < k:
            taken = torch.cat(chosen) if chosen else self.groups.new_empty(0, device=table.device)
            ids = other_ids(taken, table.num_samples)
            rest, seed = k - sum(floors), derive_seed(seed, "rest")
            positions = inside.select(table.part(ids), rest, seed=seed)
            chosen.append(ids[positions])
        return torch.cat(chosen).sort().values

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Returns the weights that the policy inside gives in each group, float32 [num_samples]."""
        inside = self._inside
        assert isinstance(inside, WeighingPolicy)
        weights = torch.empty_like(table.mean)
        for number, ids in enumerate(self._parts(table)):
            group_seed = derive_seed(seed, "group", number)
            weights.index_copy_(0, ids, inside.weigh(table.part(ids), seed=group_seed))
        return weights

    def _parts(self, table: ScoreTable) -> tuple[Tensor, ...]:
        """Returns the ids of each group, by rising label, on the table's device."""
        self.check_size(table.num_samples)
        if table.device not in self._members:
            members = self._members[torch.device("cpu")]
            self._members[table.device] = move_without_waiting("groups", members, table.device)
        return torch.split(self._members[table.device], self._sizes)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be computed again."""
        names = ("policy", "groups", "floor", "class_shares")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        """Tells the policy inside, the number of groups, and the floor or the shares."""
        rule = f"floor={self.floor}"
        if self.class_shares is not None:
            rule = f"class_shares={self.class_shares!r}"
        return f"Balanced({self.policy!r}, <{len(self._sizes)} groups>, {rule})"


def _checked_floor(floor: Any) -> float:
    """Returns the floor as an int or a float in [0, 1]."""
    if isinstance(floor, bool):
        raise TypeError(f"group_floor must be a number, got {floor!r}")
    if hasattr(floor, "__index__"):
        return as_int("group_floor", floor, minimum=0)
    return as_float("group_floor", floor, low=0.0, high=1.0)


def _checked_groups(groups: Any) -> Tensor:
    """Returns the labels as int64 on the CPU."""
    tensor = on_host("groups", groups)
    if tensor.dim() != 1 or len(tensor) == 0:
        raise ValueError(f"groups must hold one label per sample, got shape {tuple(tensor.shape)}")
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ValueError(f"groups must have an integer dtype, got {tensor.dtype}")
    return tensor.to(torch.int64, copy=True).as_subclass(Tensor)
