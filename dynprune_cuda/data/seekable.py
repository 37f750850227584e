# SPDX-License-Identifier: Apache-2.0
"""Streaming data sets that can seek, as map-style data sets of all their samples.

A `StreamingDataset` of mosaicml-streaming or litdata is iterable and splits itself, but it also
reads the sample at a position. A pruner's samplers need only that. No library is imported here.
"""

from __future__ import annotations

import copy
import os
from typing import Any

from torch.utils.data import Dataset

from dynprune_cuda._checks.arguments import as_int
from dynprune_cuda.data.stream_sources import LITDATA, MOSAICML, library_of

__all__ = ["SeekableDataset"]


class SeekableDataset(Dataset[Any]):
    """A map-style view of a `StreamingDataset` of mosaicml-streaming or litdata.

        view = SeekableDataset(StreamingDataset(local="train", batch_size=64))
        pruner = Pruner(len(view), keep=0.3)
        loader = DataLoader(
            pruner.wrap(view), batch_sampler=pruner.batch_sampler(64), num_workers=2
        )

    The pruner's sampler decides the order, each process's share and the position to resume at. The
    library's own shuffling, splitting, prefetching and checkpoints take no part. The order is
    random over the whole data set. A shard that is not on this machine is downloaded when one of
    its samples is read.

    To read from remote storage shard by shard, filter the positions in their order:
    `pruner.filter(range(len(view)), decode=view.__getitem__)`.

    Attributes:
        stream: The wrapped data set.
    """

    def __init__(self, stream: Any) -> None:
        """Counts the samples of `stream`.

        Args:
            stream: A `StreamingDataset`. That of mosaicml-streaming needs its own environment
                variables (`RANK`, `WORLD_SIZE`, ...) where several processes share a local folder.

        Raises:
            TypeError: `stream` is of neither library.
        """
        self._library = library_of(stream)
        if self._library not in (MOSAICML, LITDATA):
            raise TypeError(
                f"stream must be a StreamingDataset of {MOSAICML} or {LITDATA}, got "
                f"{type(stream).__name__}"
            )
        self.stream = stream
        self._open()
        if self._library == MOSAICML:
            self._size = int(stream.num_samples)
        else:
            # Its own length is that of a process's part.
            self._opened[0]
            intervals = self._opened.cache.get_chunk_intervals()
            self._size = sum(interval[2] - interval[1] for interval in intervals)

    def _open(self) -> None:
        """Makes this process's own reader: one with open files must not be shared by a fork."""
        self._pid = os.getpid()
        self._opened = self.stream
        if self._library == LITDATA:
            self._opened = copy.copy(self.stream)
            self._opened.cache = None

    def __len__(self) -> int:
        """Returns the number of samples of the whole data set, whatever the process."""
        return self._size

    def __getitem__(self, index: Any) -> Any:
        """Returns the sample at a position from 0 to `len(self) - 1`, decoded by the library.

        Raises:
            TypeError: `index` is no int.
            IndexError: There is no such position.
        """
        number = as_int("index", index)
        if not 0 <= number < self._size:
            raise IndexError(f"index {number} is out of range for a stream of {self._size} samples")
        if self._pid != os.getpid():
            self._open()
        return self._opened[number]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open reader behind."""
        return {**self.__dict__, "_opened": None, "_pid": None}

    def __repr__(self) -> str:
        """Names the library."""
        return f"SeekableDataset({self._library}, {self._size} samples)"
