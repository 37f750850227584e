# SPDX-License-Identifier: Apache-2.0
"""Samples of a stream that are not selected are dropped before they are decoded.

A stream has no place to jump to, but its items have a key that tells the sample id. Each consumer,
a worker of a process, reads the whole stream of raw items. With C consumers, each decodes 1/C of
the selected ids, so all yield equally many. The parts are decided by ids, in ascending order, so
consumers may read the stream in different orders.

The selection lies in shared memory, one byte per sample. The pruner writes it when an epoch begins.
Workers read it, also those that live longer than an epoch.
"""

from __future__ import annotations

import copy
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dynprune_cuda._checks.arguments import as_bool, as_int
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda.data.indexed import _with_id
from dynprune_cuda.data.samplers import check_source
from dynprune_cuda.data.stream_sources import check_whole, read_whole
from dynprune_cuda.distributed.ranks import Ranks

__all__ = ["FilteredStream"]

NO_SAMPLE = -1  # the id of a row that only trains
MOST_PASSES = 100  # over a stream without an end, before ids that never came are an error
_NOT_BEGUN, _REPLACED = -1, -2  # in place of an epoch


class StreamSource(Protocol):
    """What a stream needs to know of a `Pruner`."""

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        ...

    @property
    def epoch(self) -> int:
        """The current epoch."""
        ...

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        ...

    @property
    def sharding(self) -> str:
        """Who holds the scores."""
        ...

    @property
    def selected(self) -> Tensor:
        """The sample ids of the current epoch, ascending, int64."""
        ...


class FilteredStream(IterableDataset[Any]):
    """Yields the decoded samples of a stream that the pruner's current epoch trains on, with ids.

        raw = wds.WebDataset(urls, nodesplitter=None, shardshuffle=False)
        stream = pruner.filter(raw, key=lambda item: int(item["__key__"]), decode=decode)
        loader = DataLoader(stream, batch_size=64, num_workers=2)
        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            for images, labels, ids in loader:
                ...

    Samples come in the order of the stream, which may differ between workers and epochs. Each
    worker of each process must be given the whole stream: a library that splits it among processes
    must be told not to. Libraries that split it among workers see no worker. Reading raw items is
    all that a dropped sample costs. After the last selected sample, nothing is read.

    A `StatefulDataLoader` (torchdata) resumes it: raw items are read again, and not decoded. They
    must come in the same order again; another one is an error.

    All workers of all processes yield as many samples, so that all processes take as many steps.
    Where the selection does not divide, some yield their first sample again, with the id -1: it
    only trains. Ids are joined to samples as `IndexedDataset` joins them.

    Attributes:
        drop_last: Whether samples that do not divide are left out, instead of filled up.
    """

    def __init__(
        self,
        source: StreamSource,
        stream: Iterable[Any],
        key: Callable[[Any], int] | None = None,
        *,
        decode: Callable[[Any], Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        """Follows `source`; `Pruner.filter` is the usual way here.

        Args:
            source: The pruner.
            stream: Yields raw items, the same ones in every epoch, in any order; can be iterated
                again and again. It is pickled where workers are spawned.
            key: Returns the sample id of a raw item, from 0 to `num_samples - 1`. None: its place
                in the stream, whose order must then be the same in every epoch.
            decode: Makes a sample of a raw item. None: the item is the sample.
            drop_last: Whether samples that do not divide are left out, those with the greatest ids.

        Raises:
            TypeError: An argument has the wrong type, or `stream` cannot be read whole.
            ValueError: Several processes hold the scores in shards, or split the stream.
        """
        super().__init__()
        check_source(source, "ranks", "sharding", "num_samples")
        self._rank, self._size = source.ranks.rank, source.ranks.size
        check_whole(stream, self._size)
        if not isinstance(stream, Iterable) or isinstance(stream, Iterator):
            raise TypeError(
                "stream must be an iterable that can be iterated again, got "
                f"{type(stream).__name__}"
            )
        for name, function in (("key", key), ("decode", decode)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, got {function!r}")
        if source.sharding == "shard" and self._size > 1:
            raise ValueError(
                f"filter needs sharding='replicate' with {self._size} processes, got 'shard': a "
                "process knows of its own samples only"
            )
        self._stream, self._key, self._decode = stream, key, decode
        self.drop_last = as_bool("drop_last", drop_last)
        self._allocate(source.num_samples)

    def _allocate(self, num_samples: int) -> None:
        self._mask = torch.zeros(num_samples, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        # The epoch, and how many samples it trains on.
        self._header = torch.tensor([_NOT_BEGUN, 0]).share_memory_()  # type: ignore[no-untyped-call]

    def update(self, source: StreamSource, begun: bool) -> None:
        """Writes the selection of the current epoch for all workers. Waits for the device.

        Args:
            source: The pruner.
            begun: Whether an epoch has begun.
        """
        if source.num_samples != len(self._mask):
            self._header[0] = _REPLACED
            self._allocate(source.num_samples)
        if not begun:
            self._header[0] = _NOT_BEGUN
            return
        ids = source.selected.cpu()
        self._mask.zero_().index_fill_(0, ids, True)
        self._header.copy_(torch.tensor([source.epoch, len(ids)]))

    @property
    def ranks(self) -> Ranks:
        """This process among those that share the samples; without their group."""
        return Ranks(None, self._rank, self._size)

    def __deepcopy__(self, memo: dict[int, Any]) -> FilteredStream:
        """Returns a copy that follows the pruner as this one does, which it keeps alive."""
        for shared in (self._mask, self._header):
            memo[id(shared)] = shared
        copied = memo[id(self)] = copy.copy(self)
        copied.__dict__ = {**copy.deepcopy(self.__dict__, memo), "_followed": self}
        return copied

    def samples_per_worker(self, num_workers: int = 0) -> int:
        """Returns how many samples each worker yields in the current epoch.

        Args:
            num_workers: As of the `DataLoader`; 0 counts as one.

        Raises:
            RuntimeError: No epoch has begun.
        """
        _, total = self._current()
        consumers = self._size * max(1, as_int("num_workers", num_workers, minimum=0))
        return total // consumers if self.drop_last else -(-total // consumers)

    def steps(self, batch_size: int, num_workers: int = 0, drop_last: bool = False) -> int:
        """Returns how many batches a `DataLoader` makes in the current epoch, in each process.

        Args:
            batch_size: As of the `DataLoader`, at least 1.
            num_workers: As of the `DataLoader`.
            drop_last: As of the `DataLoader`, which leaves out a smaller last batch of each worker.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range.
            RuntimeError: No epoch has begun.
        """
        batch_size = as_int("batch_size", batch_size, minimum=1)
        number = self.samples_per_worker(num_workers)
        whole = (
            number // batch_size if as_bool("drop_last", drop_last) else -(-number // batch_size)
        )
        return whole * max(1, num_workers)

    def _current(self) -> tuple[int, int]:
        """Returns the current epoch, and how many samples it trains on."""
        epoch, total = self._header.tolist()
        if epoch == _NOT_BEGUN:
            raise RuntimeError("pruner.set_epoch(epoch) must be called before a stream is iterated")
        if epoch == _REPLACED:
            raise RuntimeError(
                "the pruner was resized while this worker was running: make a new DataLoader"
            )
        return epoch, total

    def __iter__(self) -> StreamIterator:
        """Returns an iterator over this worker's part of the current epoch."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        consumers = self._size * workers
        epoch, total = self._current()
        consumer = self._rank * workers + number
        return StreamIterator(self, epoch, total, consumer, consumers, self._mask.clone())


class StreamIterator(Iterator[Any]):
    """One worker's part of an epoch.

    Its state is the number of raw items that it has read, and a checksum. The checksum is of the
    ids that were its own, in their order.
    """

    def __init__(
        self,
        dataset: FilteredStream,
        epoch: int,
        total: int,
        consumer: int,
        consumers: int,
        mask: Tensor,
    ) -> None:
        """Starts at the beginning of the stream.

        Args:
            dataset: What to read.
            epoch: The epoch.
            total: How many samples it trains on.
            consumer: This worker among those of all processes, from 0.
            consumers: How many there are.
            mask: Which samples the epoch trains on, bool [num_samples].

        Raises:
            RuntimeError: The mask has another number of samples.
        """
        self._dataset, self._epoch, self._total = dataset, epoch, total
        self._mask = mask.numpy()
        selected = np.flatnonzero(self._mask)
        if len(selected) != total:
            raise RuntimeError(
                "pruner.set_epoch was called while a worker began an epoch: call it before the "
                "loader is iterated"
            )
        whole = total - total % consumers if dataset.drop_last else total
        self._most = -(-whole // consumers)  # samples of each consumer
        self._own: NDArray[np.bool_] = np.zeros_like(self._mask)
        self._own[selected[:whole][consumer::consumers]] = True
        self._read = self._skip = self._checksum = 0
        self._items = self._walk()

    def _walk(self) -> Iterator[Any]:
        """Yields the decoded samples of this worker, with ids."""
        data, left, found, filler, given, end = self._dataset, self._mask.copy(), 0, None, 0, 0
        checksum = 0
        for place, item in enumerate(read_whole(data._stream)):
            if place == MOST_PASSES * len(left):
                break
            sample_id = place if data._key is None else as_int("key(item)", data._key(item))
            if not 0 <= sample_id < len(left):
                raise ValueError(
                    f"key must give ids from 0 to {len(left) - 1}, got {sample_id} for item "
                    f"{place} of the stream"
                )
            end = place + 1
            if not left[sample_id]:
                continue
            left[sample_id] = False  # an id that comes again is dropped
            mine = self._own[sample_id]
            if found == 0 or (mine and not given):
                filler = item
            found += 1
            if mine:
                given += 1
                if place >= self._skip:
                    self._check_order(checksum, read=place)
                checksum = zlib.crc32(sample_id.to_bytes(8, "little"), checksum)
                if place >= self._skip:
                    self._read, self._checksum = end, checksum
                    yield self._sample(item, sample_id)
            if found == self._total:
                break
        if found != self._total:
            raise RuntimeError(
                f"the stream had {found} of the {self._total} samples of epoch {self._epoch}: each "
                "worker of each process must read the whole stream, and each id must occur. Tell "
                "the library not to split it"
            )
        self._check_order(checksum, read=end + 1)
        if given < self._most and self._skip <= end:
            self._read = end + 1  # as if it were one more item
            yield self._sample(filler, NO_SAMPLE)

    def _check_order(self, checksum: int, read: int) -> None:
        """Raises unless this worker has passed the samples that the loaded state has passed."""
        if self._skip > read or checksum != self._checksum:
            raise RuntimeError(
                f"the stream must have the order that it had when the state of epoch {self._epoch} "
                f"was made, got other samples among this worker's first {self._skip} items. Give a "
                "library that shuffles the same seed and the same epoch"
            )

    def _sample(self, item: Any, sample_id: int) -> Any:
        decode = self._dataset._decode
        return _with_id(item if decode is None else decode(item), sample_id)

    def __next__(self) -> Any:
        """Returns the next sample with its id."""
        return next(self._items)

    def state_dict(self) -> dict[str, int]:
        """Returns the position, for loaders that keep the state of a data set's iterator."""
        return {"epoch": self._epoch, "read": self._read, "checksum": self._checksum}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues at the position of a state of the same epoch; raw items before it are read.

        The next item raises RuntimeError where these are others than before.

        Raises:
            TypeError: The state is no mapping, or an entry no int.
            ValueError: The state is damaged, or of another epoch.
        """
        state = _parse(state_dict)
        if state["epoch"] != self._epoch:
            raise ValueError(
                f"the state is of epoch {state['epoch']}, and the pruner is in epoch "
                f"{self._epoch}: load the pruner's state before the loader's"
            )
        self._read = self._skip = state["read"]
        self._checksum = state["checksum"]
        self._items = self._walk()


def _parse(state_dict: Any) -> dict[str, int]:
    read = StateReader("state_dict", state_dict)
    names = ("epoch", "read", "checksum")
    read.has(names)
    return {name: read.integer(name, 0) for name in names}


class Streams:
    """The streams that follow a pruner, which does not keep them; a copy of it has none."""

    def __init__(self) -> None:
        """Begins without any."""
        self._streams: weakref.WeakSet[FilteredStream] = weakref.WeakSet()

    def add(self, stream: FilteredStream) -> FilteredStream:
        """Lets a stream follow."""
        self._streams.add(stream)
        return stream

    def update(self, source: StreamSource, begun: bool = True) -> None:
        """Tells all streams what the current epoch trains on."""
        for stream in self._streams:
            stream.update(source, begun)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the streams behind."""
        return Streams, ()
