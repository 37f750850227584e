# SPDX-License-Identifier: Apache-2.0
"""Which samples a process holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_SAMPLES, as_choice, as_device, as_int

LAYOUTS = ("contiguous", "strided")


@dataclass(frozen=True)
class Shard:
    """Which samples this process holds.

    Attributes:
        num_samples: How many samples there are in all processes together, at most 2^32.
        rank: This process, from 0.
        size: How many processes there are.
        layout: "contiguous": rank r holds the r-th piece of `ceil(num_samples / size)` ids, as
            `torch.chunk` cuts; the last pieces may be shorter, or empty. "strided": the ids that
            are r modulo `size`.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    num_samples: int
    rank: int
    size: int
    layout: str = "contiguous"

    def __post_init__(self) -> None:
        """Checks the attributes; ints of NumPy and the like become Python's."""
        num_samples = as_int("num_samples", self.num_samples, minimum=0, maximum=MAX_SAMPLES)
        size = as_int("size", self.size, minimum=1)
        rank = as_int("rank", self.rank, minimum=0, maximum=size - 1)
        as_choice("layout", self.layout, LAYOUTS)
        for name, number in (("num_samples", num_samples), ("size", size), ("rank", rank)):
            object.__setattr__(self, name, number)  # as a frozen dataclass sets its own

    @property
    def piece(self) -> int:
        """Ids per rank, in ranks that are full."""
        return -(-self.num_samples // self.size)

    @property
    def first(self) -> int:
        """The first id of this rank, if it has any."""
        if self.layout == "strided":
            return self.rank
        return min(self.rank * self.piece, self.num_samples)

    @property
    def stride(self) -> int:
        """The distance between neighbours."""
        return self.size if self.layout == "strided" else 1

    def __len__(self) -> int:
        """Returns how many samples this rank holds."""
        if self.layout == "strided":
            return len(range(self.rank, self.num_samples, self.size))
        return min(self.piece, self.num_samples - self.first)

    def sizes(self) -> list[int]:
        """Returns how many samples each rank holds."""
        return [len(replace(self, rank=rank)) for rank in range(self.size)]

    def num_below(self, sample_id: int) -> int:
        """Returns how many samples of this rank have smaller ids; they are its first ones.

        Args:
            sample_id: A sample id of any rank.
        """
        return min(len(range(self.first, sample_id, self.stride)), len(self))

    def in_pieces(self) -> Shard:
        """Returns the shard of this rank if all were contiguous."""
        return replace(self, layout="contiguous")

    def ids(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns the ids of this rank, ascending, int64 [len(self)].

        Args:
            device: Where the result lies.
        """
        return (
            torch.arange(len(self), device=as_device("device", device))
            .mul_(self.stride)
            .add_(self.first)
        )

    def ids_at(self, positions: Tensor) -> Tensor:
        """Returns the ids of samples of this rank, int64.

        Args:
            positions: Their positions in this rank's tensors, int64.
        """
        return positions * self.stride + self.first

    def positions_of(self, ids: Tensor) -> Tensor:
        """Returns where samples of this rank are in its tensors, int64.

        Args:
            ids: Sample ids of this rank, int64.
        """
        return (ids - self.first) // self.stride

    def owner_of(self, ids: Tensor) -> Tensor:
        """Returns the ranks that hold samples, int64.

        Args:
            ids: Sample ids, int64.
        """
        return ids % self.size if self.layout == "strided" else ids // max(self.piece, 1)

    def counts(self, ids: Tensor) -> list[int]:
        """Returns how many of `ids`, int64 on the CPU, each rank holds.

        Args:
            ids: Sample ids, int64 on the CPU.
        """
        counts: list[int] = torch.bincount(self.owner_of(ids), minlength=self.size).tolist()
        return counts
