# SPDX-License-Identifier: Apache-2.0
"""How sample ids travel: into the loader by a sampler, and out of it with the batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dynprune_cuda._arguments import as_int

__all__ = ["EpochBatchSampler", "EpochSampler", "IndexedDataset"]

ID_KEY = "sample_id"
CHUNK_IDS = 1 << 20  # ids per copy from the device: 8 MiB of pinned memory, twice
PIECE_IDS = 1 << 12  # ids that `EpochSampler` turns into Python ints at a time


class IndexedDataset(Dataset[Any]):
    """A map-style dataset whose samples carry their sample id.

    The id is the position in the wrapped dataset, a Python int, so that the default collation
    makes an int64 tensor of it. Wrap last: an id counts positions in exactly the dataset that is
    given here, so subsets and concatenations belong inside.

    - A tuple gets the id appended: `(image, label)` becomes `(image, label, id)`.
    - A dict, or another mutable mapping, is copied and gets the key `"sample_id"`.
    - Anything else becomes `(sample, id)`. This includes named tuples, which keep their field
      names that way: `for batch, ids in loader: batch.image`.

    Other attributes (`classes`, `targets`, ...) are those of the wrapped dataset.

    Attributes:
        dataset: The wrapped dataset.
    """

    def __init__(self, dataset: Any) -> None:
        """Wraps `dataset`.

        Args:
            dataset: Anything with `__len__` and `__getitem__`; `__getitems__` is used if it is
                there.

        Raises:
            TypeError: `dataset` lacks `__len__` or `__getitem__`, as iterable datasets do.
        """
        missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
        if missing:
            raise TypeError(
                "dataset must be map-style: "
                f"{type(dataset).__name__} has no {' and no '.join(missing)}"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Returns the sample at `index` with its id; a negative index counts from the end."""
        sample_id = self._sample_id(index)
        return _with_id(self.dataset[sample_id], sample_id)

    def __getitems__(self, indices: Any) -> list[Any]:
        """Returns the samples at `indices`, in one call if the wrapped dataset can do that."""
        sample_ids = [self._sample_id(index) for index in indices]
        fetch = getattr(self.dataset, "__getitems__", None)
        if fetch is None:
            samples = [self.dataset[sample_id] for sample_id in sample_ids]
        else:
            samples = fetch(sample_ids)
        return [_with_id(*pair) for pair in zip(samples, sample_ids, strict=True)]

    def _sample_id(self, index: Any) -> int:
        number = as_int("index", index)
        size = len(self.dataset)
        if not -size <= number < size:
            raise IndexError(f"index {number} is out of range for a dataset of {size} samples")
        return number + size if number < 0 else number

    def __getattr__(self, name: str) -> Any:
        """Returns the wrapped dataset's attribute."""
        # Runs only for what is not found otherwise. While an object is being unpickled or copied
        # there is no `dataset` yet, and asking for it here would never end.
        if name == "dataset" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __repr__(self) -> str:
        """Names the wrapped dataset."""
        return f"IndexedDataset({self.dataset!r})"


def _with_id(sample: Any, sample_id: int) -> Any:
    """Returns the sample together with its id; never changes the sample itself."""
    if isinstance(sample, tuple) and not hasattr(sample, "_fields"):
        return (*sample, sample_id)
    if isinstance(sample, MutableMapping):
        if ID_KEY in sample:
            raise ValueError(f"sample {sample_id} already has the key {ID_KEY!r}")
        labelled = copy.copy(sample)
        labelled[ID_KEY] = sample_id
        return labelled
    return sample, sample_id


class EpochSource(Protocol):
    """What a sampler needs to know of a `Pruner`."""

    @property
    def num_selected(self) -> int:
        """Length of the current epoch, in samples."""
        ...

    def epoch_order(self) -> Tensor:
        """Ids of the current epoch in the order of their visits, int64 [num_selected]."""
        ...


class EpochSampler(Sampler[int]):
    """Yields the sample ids of the pruner's current epoch, one by one, as Python ints.

    Every iterator starts the epoch from its beginning, and iterating changes nothing: an epoch may
    be left early, or be iterated again, and has the same order each time. An iterator keeps the
    epoch that was current when it was made.
    """

    def __init__(self, source: EpochSource) -> None:
        """Follows `source`; `Pruner.sampler` is the usual way here."""
        self.source = source

    def __len__(self) -> int:
        """Returns the number of ids in the current epoch."""
        return self.source.num_selected

    def __iter__(self) -> Iterator[int]:
        """Returns an iterator over the current epoch, from its beginning."""
        pieces = _batches(self.source.epoch_order(), PIECE_IDS, drop_last=False)
        return (sample_id for piece in pieces for sample_id in piece)


class EpochBatchSampler(Sampler[list[int]]):
    """Yields the sample ids of the pruner's current epoch in batches, as lists of Python ints.

    For `DataLoader(batch_sampler=...)`. Ids leave a GPU in chunks of about a million, through
    pinned memory, while earlier ones are in use; no list ever holds more than one batch. Iterating
    has no side effect, as in `EpochSampler`.

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
            TypeError: `batch_size` is no int, or `drop_last` no bool.
            ValueError: `batch_size` is below 1.
        """
        self.batch_size = as_int("batch_size", batch_size, minimum=1)
        if not isinstance(drop_last, bool):
            raise TypeError(f"drop_last must be a bool, got {drop_last!r}")
        self.drop_last = drop_last
        self.source = source

    @property
    def sampler(self) -> EpochSampler:
        """The same epoch, id by id, in the same order."""
        return EpochSampler(self.source)

    def __len__(self) -> int:
        """Returns the number of batches in the current epoch."""
        return num_batches(self.source.num_selected, self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """Returns an iterator over the current epoch, from its beginning."""
        return _batches(self.source.epoch_order(), self.batch_size, drop_last=self.drop_last)


def num_batches(num_ids: int, batch_size: int, drop_last: bool) -> int:
    """Returns how many batches `num_ids` make."""
    return num_ids // batch_size if drop_last else -(-num_ids // batch_size)


def _batches(order: Tensor, batch_size: int, *, drop_last: bool) -> Iterator[list[int]]:
    """Yields `order` (int64, 1-D, on any device) as lists of `batch_size` ints."""
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
    chunk_size = max(1, CHUNK_IDS // batch_size) * batch_size
    chunks = (
        torch.split(order, chunk_size) if order.device.type == "cpu" else _pinned(order, chunk_size)
    )
    for chunk in chunks:
        for start in range(0, len(chunk), batch_size):
            yield chunk[start : start + batch_size].tolist()


def _pinned(order: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """Yields `order` from a GPU in chunks, each overwritten two chunks later.

    The copies run on a stream of their own: on the training stream, a chunk would arrive only after
    all the work that is queued there. The host waits for one chunk while the next is on its way.
    """
    with torch.cuda.device(order.device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        # An iterator may be dropped with a copy under way: until that is done, nobody else may be
        # given the memory of `order`.
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
