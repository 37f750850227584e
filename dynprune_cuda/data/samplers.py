# SPDX-License-Identifier: Apache-2.0
"""How sample ids travel from the pruner to a loader, in the order of the epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from dynprune_cuda._checks.arguments import MAX_INT64, as_bool, as_int
from dynprune_cuda._schedule.schedule import num_batches
from dynprune_cuda.data.generators import LoaderDraw, PlacedBatch
from dynprune_cuda.data.indexed import check_size
from dynprune_cuda.data.prefetch import Prefetch, find_prefetch

__all__ = ["EpochBatchSampler", "EpochSampler"]

CHUNK_IDS = 1 << 20  # ids per copy from the device: 8 MiB of pinned memory, twice
PIECE_IDS = 1 << 12  # ids that `EpochSampler` turns into Python ints at a time

_Item = TypeVar("_Item")
_Iterator = TypeVar("_Iterator", bound="EpochIterator[Any]")


class EpochSource(Protocol):
    """What a sampler needs to know of a `Pruner`."""

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the ids are."""
        ...

    @property
    def epoch(self) -> int:
        """The current epoch."""
        ...

    def share_length(self, drop_last: bool = False) -> int:
        """How many ids of the current epoch this process gets."""
        ...

    def epoch_order(self) -> Tensor:
        """This process's ids of the current epoch in the order of their visits, int64.

        The first `share_length(drop_last)` of them are those to train on.
        """
        ...


def check_source(source: Any, *names: str) -> None:
    """Checks that a source is a pruner, or has these attributes."""
    if isinstance(source, type) or not all(hasattr(source, name) for name in names):
        # Lightning does so with what looks like a batch sampler.
        raise TypeError(
            f"source must be a pruner, got {type(source).__name__}; a trainer that puts its own "
            "sampler here must be told not to: Trainer(use_distributed_sampler=False) in Lightning"
        )


class EpochIterator(Iterator[_Item]):
    """The rest of one epoch from a position on; counts the ids that it hands out.

    Attributes:
        epoch: The epoch that it walks through.
        position: How many ids of that epoch were handed out, those before its start included.
        prefetch: How far its loader asks ahead.
    """

    prefetch = Prefetch()
    _draw: LoaderDraw | None = None  # until the first item is read

    def __init__(self, epoch: int, order: Tensor, position: int) -> None:
        """Starts at `position` in `order`, the ids of `epoch`."""
        self.epoch = epoch
        self._order = order
        self._start_at(position)

    def follow(self, draw: LoaderDraw, prefetch: Prefetch, num_samples: int) -> None:
        """Takes back what the loader drew, if this is the rest of an epoch; counts what it has.

        Args:
            draw: The loader's random draw.
            prefetch: What the loader requests ahead.
            num_samples: How many samples its dataset must have.
        """
        self._draw, self.prefetch, self._num_samples = draw, prefetch, num_samples

    def _start_at(self, position: int) -> None:
        if position > len(self._order):
            raise ValueError(
                f"the state's ids must be at most {len(self._order)}, the length of epoch "
                f"{self.epoch}, got {position}"
            )
        self.position = self._start = position
        self._asked = 0  # calls of __next__
        self._items = self._walk(self._order[position:])

    @abstractmethod
    def _walk(self, order: Tensor) -> Iterator[_Item]:
        """Yields what the loader requests, one after the other."""

    @abstractmethod
    def _num_ids(self, item: _Item) -> int:
        """Returns how many ids an item stands for."""

    def __next__(self) -> _Item:
        """Returns the next item.

        Raises:
            ValueError: It is the first, and the loader's dataset has another length.
        """
        if self._draw is not None:
            # Not before: a loader with workers cannot be taken down while it is made.
            if self.prefetch.dataset is not None:
                check_size(self.prefetch.dataset, self._num_samples)
            self._draw.end(resumed=self.position > 0)
            self._draw = None
        self._asked += 1
        item = next(self._items)
        self.position += self._num_ids(item)
        return item

    def trained(self) -> int:
        """Returns how many ids of the epoch have left the loader, those before its start included.

        Raises:
            ValueError: It cannot be told from what was requested.
        """
        if self.prefetch.batches and not self.prefetch.has_state:
            raise ValueError(_PREFETCHED.format(what="samples", ahead=self.prefetch.batches))
        return self.position

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has left the loader yet."""
        return self._asked <= self.prefetch.batches

    def state_dict(self) -> dict[str, int]:
        """Returns the position, for loaders that keep the state of their sampler's iterator."""
        return {"epoch": self.epoch, "ids": self.position}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues at the position of a state of the same epoch.

        Raises:
            TypeError: The state is no mapping, or an entry no int.
            ValueError: The state is incomplete, or of another epoch.
        """
        epoch, position = _parse(state_dict)
        if epoch != self.epoch:
            raise ValueError(
                f"the state is of epoch {epoch}, and the pruner is in epoch {self.epoch}: load the "
                "pruner's state before the loader's"
            )
        self._start_at(position)


_PREFETCHED = (
    "state_dict cannot tell which {what} were trained on: the DataLoader prefetches {ahead} "
    "batches; use pruner.batch_sampler(batch_size) and in_order=True, the state of a "
    'StatefulDataLoader (torchdata), or {{"epoch": pruner.epoch, "ids": trained}} with the number '
    "of samples trained on in this epoch"
)


class _IdIterator(EpochIterator[int]):
    def _walk(self, order: Tensor) -> Iterator[int]:
        pieces = id_batches(order, PIECE_IDS, drop_last=False)
        return (sample_id for piece in pieces for sample_id in piece)

    def _num_ids(self, item: int) -> int:
        return 1


class _BatchIterator(EpochIterator[list[int]]):
    def __init__(
        self,
        epoch: int,
        order: Tensor,
        position: int,
        batch_size: int,
        drop_last: bool,
    ) -> None:
        self._batch_size, self._drop_last = batch_size, drop_last
        self._seed = torch.initial_seed()
        super().__init__(epoch, order, position)

    def _walk(self, order: Tensor) -> Iterator[list[int]]:
        return id_batches(order, self._batch_size, drop_last=self._drop_last)

    def _num_ids(self, item: list[int]) -> int:
        return len(item)

    def trained(self) -> int:
        # A loader with workers reads some batches at first, and then one more before it yields one.
        # So it does at the end, where it gets none.
        if not (self.prefetch.in_order or self.prefetch.has_state):
            raise ValueError(_PREFETCHED.format(what="batches", ahead=self.prefetch.batches))
        batches = max(0, self._asked - self.prefetch.batches)
        return min(self.position, self._end_of(batches))

    def _end_of(self, batches: int) -> int:
        """Returns the position behind the first batches of this iterator, if it has as many."""
        return self._start + batches * self._batch_size

    def __next__(self) -> list[int]:
        position = self.position
        batch = PlacedBatch(super().__next__())
        batch.place = self._seed, self.epoch, position
        batch.num_samples = self._num_samples
        return batch


class ResumableSampler:
    """What samplers and `DeviceLoader` share: iterators of the current epoch, and the position."""

    source: EpochSource
    drop_last: bool
    _newest: EpochIterator[Any] | None = None
    _draw: LoaderDraw | None = None
    _resumed: tuple[int, int] | None = None  # epoch and position of a state that was loaded

    def iterate(self, iterator: Callable[..., _Iterator], *options: Any) -> _Iterator:
        """Makes an iterator of the given class over what is left of the current epoch.

        Args:
            iterator: The class.
            *options: What it takes after epoch, order and start.
        """
        order = self.source.epoch_order()[: self.source.share_length(self.drop_last)]
        self._draw = self._draw or LoaderDraw()
        self._draw.begin()
        newest = iterator(self.source.epoch, order, self._start(), *options)
        newest.follow(self._draw, find_prefetch(), self.source.num_samples)
        self._newest = newest
        return newest

    def _start(self) -> int:
        """Returns where iterators of the current epoch begin."""
        if self._resumed is not None and self._resumed[0] != self.source.epoch:
            self._resumed = None  # that epoch is over
        return self._resumed[1] if self._resumed else 0

    def state_dict(self) -> dict[str, int]:
        """Returns the position in the current epoch: how many ids have left the newest iterator.

        Of a `DataLoader` with workers, what they prefetch does not count with `EpochBatchSampler`.

        Returns:
            `{"epoch": ..., "ids": ...}`.

        Raises:
            ValueError: A `DataLoader` with workers prefetches by `EpochSampler`, or hands batches
                out in another order. Keep the state of a `StatefulDataLoader` (torchdata) then, or
                set `"ids"` to the number of samples trained on in this epoch.
        """
        epoch = self.source.epoch
        if self._newest is not None and self._newest.epoch == epoch:
            return {"epoch": epoch, "ids": self._newest.trained()}
        return {"epoch": epoch, "ids": self._start()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Lets every iterator of the state's epoch start at its position; other epochs are whole.

        `len` stays that of the whole epoch.

        Args:
            state_dict: From `state_dict`. Load the pruner's state, too.

        Raises:
            TypeError: The state is no mapping, or an entry no int.
            ValueError: The state is incomplete, or an entry is negative.
        """
        self._resumed = _parse(state_dict)
        self._newest = None

    def batches_in(self, batch_size: int) -> int:
        """Returns the number of batches in the current epoch; may warn that epochs differ.

        Args:
            batch_size: Samples per batch.
        """
        lengths = getattr(self.source, "lengths", None)
        # `list(loader)` reads the length, too, after it has made the iterator.
        is_hint = self._newest is not None and self._newest.is_fresh
        if lengths is not None and not is_hint:
            lengths.asked(batch_size, self.drop_last)
        return num_batches(self.source.share_length(self.drop_last), batch_size, self.drop_last)

    def __getstate__(self) -> dict[str, Any]:
        """Copies start where the state says; iterators stay behind."""
        return {**self.__dict__, "_newest": None, "_draw": None}


class EpochSampler(ResumableSampler, Sampler[int]):
    """Yields the sample ids of the pruner's current epoch, one by one, as Python ints.

    Every iterator starts the epoch from its beginning, and iterating changes nothing. An epoch may
    be left early or be iterated again, and has the same order each time. An iterator keeps the
    epoch that was current when it was made.

    Attributes:
        drop_last: Whether ids that do not divide among the processes are left out.
    """

    def __init__(self, source: EpochSource, drop_last: bool = False) -> None:
        """Follows `source`; `Pruner.sampler` is the usual way here.

        Args:
            source: The pruner.
            drop_last: Whether ids that do not divide among the processes are left out.
        """
        check_source(source, "epoch_order", "share_length")
        self.drop_last = as_bool("drop_last", drop_last)
        self.source = source

    def __len__(self) -> int:
        """Returns the number of ids in the current epoch, of this process."""
        return self.batches_in(1)

    def __iter__(self) -> Iterator[int]:
        """Returns an iterator over the current epoch, from its beginning."""
        return self.iterate(_IdIterator)


class EpochBatchSampler(ResumableSampler, Sampler[list[int]]):
    """Yields the sample ids of the pruner's current epoch in batches, as lists of Python ints.

    For `DataLoader(batch_sampler=...)`. Ids leave a GPU in chunks of about a million, through
    pinned memory, while earlier ones are in use. No list ever holds more than one batch. Iterating
    has no side effect, as in `EpochSampler`, but for one. When an epoch begins, a `DataLoader`
    draws a number from torch's generator. In the rest of an epoch that is resumed, the sampler
    rolls this draw back. Restore the generators before the loop, and dropout goes on as it would
    have.

    Attributes:
        batch_size: Ids per batch; the last batch of an epoch may be smaller.
        drop_last: Whether a smaller last batch is left out.
        sampler: The same epoch, id by id.
    """

    def __init__(self, source: EpochSource, batch_size: int, drop_last: bool = False) -> None:
        """Follows `source`; `Pruner.batch_sampler` is the usual way here.

        Args:
            source: The pruner.
            batch_size: Ids per batch, at least 1.
            drop_last: Whether to leave out a smaller last batch.

        Raises:
            TypeError: `source` is no pruner, `batch_size` no int, or `drop_last` no bool.
            ValueError: `batch_size` is below 1.
        """
        check_source(source, "epoch_order", "share_length")
        self.batch_size = as_int("batch_size", batch_size, minimum=1, maximum=MAX_INT64)
        self.drop_last = as_bool("drop_last", drop_last)
        self.source = source

    @property
    def sampler(self) -> EpochSampler:
        """The same epoch, id by id, in the same order."""
        return EpochSampler(self.source, self.drop_last)

    def __len__(self) -> int:
        """Returns the number of batches in the current epoch, of this process."""
        return self.batches_in(self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Returns an iterator over the current epoch, from its beginning."""
        return self.iterate(_BatchIterator, self.batch_size, self.drop_last)

    def ids_after(self, batches: int) -> int:
        """Returns how many ids the first batches of the current epoch have.

        Args:
            batches: How many batches.
        """
        return min(batches * self.batch_size, self.source.share_length(self.drop_last))

    def batches_before(self, ids: int) -> int:
        """Returns how many batches of the current epoch the first ids take.

        Args:
            ids: How many ids.
        """
        return -(-ids // self.batch_size)


def _parse(state_dict: Any) -> tuple[int, int]:
    """Returns epoch and position of a sampler's state."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    if set(state_dict) != {"epoch", "ids"}:
        raise ValueError(
            f"state_dict must hold 'epoch' and 'ids', got {sorted(map(str, state_dict))}"
        )
    return tuple(  # type: ignore[return-value]
        as_int(f"state_dict[{name!r}]", state_dict[name], minimum=0) for name in ("epoch", "ids")
    )


def id_batches(order: Tensor, batch_size: int, *, drop_last: bool) -> Iterator[list[int]]:
    """Yields `order` (int64, 1-D, on any device) as lists of `batch_size` ints."""
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
    batch_size = min(batch_size, max(len(order), 1))
    chunk_size = max(1, CHUNK_IDS // batch_size) * batch_size
    chunks = (
        torch.split(order, chunk_size) if order.device.type == "cpu" else _pinned(order, chunk_size)
    )
    for chunk in chunks:
        ids = chunk.numpy()  # its slices are no tensors
        for start in range(0, len(ids), batch_size):
            yield ids[start : start + batch_size].tolist()


def _pinned(order: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """Yields `order` from a GPU in chunks, each overwritten two chunks later.

    The copies run on a stream of their own. On the training stream, a chunk would arrive only after
    all the work that is queued there. The host waits for one chunk while the next is on its way.
    """
    with torch.cuda.device(order.device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        # An iterator may be dropped during a copy. Until the copy is done, the allocator must not
        # give the memory of `order` to others.
        order.record_stream(stream)
    pieces = torch.split(order, chunk_size)
    width = min(chunk_size, len(order))
    buffers = [
        torch.empty(width, dtype=order.dtype, device="cpu", pin_memory=True) for _ in pieces[:2]
    ]
    events: list[torch.cuda.Event] = []

    def start(number: int) -> None:
        if number < len(pieces):
            with torch.cuda.stream(stream):
                target = buffers[number % 2][: len(pieces[number])]
                target.copy_(pieces[number], non_blocking=True)
                events.append(stream.record_event())

    start(0)
    for number, piece in enumerate(pieces):
        start(number + 1)
        events[number].synchronize()
        yield buffers[number % 2][: len(piece)]
