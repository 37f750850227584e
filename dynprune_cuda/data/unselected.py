# SPDX-License-Identifier: Apache-2.0
"""Batches of the samples that the current epoch leaves out, for a scoring pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor
from torch.utils.data import Sampler

from dynprune_cuda._checks.arguments import MAX_INT64, as_int
from dynprune_cuda._schedule.schedule import num_batches
from dynprune_cuda.data.samplers import check_source, id_batches

__all__ = ["UnselectedBatchSampler"]


class UnselectedSource(Protocol):
    """What the sampler needs to know of a `Pruner`."""

    def unselected_share(self) -> Tensor:
        """Returns this process's part of the ids that the current epoch leaves out, int64."""
        ...


class UnselectedBatchSampler(Sampler[list[int]]):
    """Yields the ids that the pruner's current epoch leaves out, ascending, as lists of ints.

    For `DataLoader(batch_sampler=...)`. Every iterator takes the epoch that is current when it is
    made; in an epoch that trains on everything there is none. Iterating changes nothing. With
    several processes, each yields its own part, and their numbers of batches may differ by one.

    Attributes:
        batch_size: Ids per batch; the last batch may be smaller.
    """

    def __init__(self, source: UnselectedSource, batch_size: int) -> None:
        """Follows `source`; `Pruner.unselected_sampler` is the usual way here.

        Args:
            source: The pruner.
            batch_size: Ids per batch, at least 1.

        Raises:
            TypeError: `source` is no pruner, or `batch_size` no int.
            ValueError: `batch_size` is below 1.
        """
        check_source(source, "unselected_share")
        self.batch_size = as_int("batch_size", batch_size, minimum=1, maximum=MAX_INT64)
        self.source = source

    def __len__(self) -> int:
        """Returns the number of batches, of this process."""
        return num_batches(len(self.source.unselected_share()), self.batch_size, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        """Returns an iterator over what the current epoch leaves out."""
        ids = self.source.unselected_share()
        return id_batches(ids, self.batch_size, drop_last=False) if len(ids) else iter(())
