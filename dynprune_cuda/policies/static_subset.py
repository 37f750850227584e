# SPDX-License-Identifier: Apache-2.0
"""A subset that was chosen before the training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.policies.protocol import believed
from dynprune_cuda.scores.sharded_table import ShardedScoreTable
from dynprune_cuda.scores.table import ScoreTable


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

    def sizes_in(self, shard: Shard) -> list[int]:
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
