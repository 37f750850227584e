# SPDX-License-Identifier: Apache-2.0
"""Adds sample ids to the batches of a loader."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dynprune_cuda._checks.arguments import as_int
from dynprune_cuda.data.generators import PlacedBatch, seed_worker
from dynprune_cuda.data.stream_sources import LITDATA, MOSAICML, library_of

__all__ = ["IndexedDataset"]

ID_KEY = "sample_id"


class IndexedDataset(Dataset[Any]):
    """A map-style dataset whose samples carry their sample id.

    The id is the position in the wrapped dataset, a Python int, so that the default collation
    makes an int64 tensor of it. Wrap last: an id counts positions in exactly the dataset that is
    given here, so subsets and concatenations belong inside.

    - A tuple gets the id appended: `(image, label)` becomes `(image, label, id)`.
    - A dict, or another mutable mapping, is copied and gets the key `"sample_id"`.
    - Anything else becomes `(sample, id)`. This includes named tuples, which keep their field
      names that way: `for batch, ids in loader: batch.image`.

    In workers of a `DataLoader` with `pruner.batch_sampler`, the generators of torch, NumPy and
    Python are seeded for each batch. The seed depends on `torch.initial_seed()`, the epoch and the
    place of the batch. So what is drawn there, such as augmentations, is the same in a run that is
    resumed.

    Other attributes (`classes`, `targets`, ...) are those of the wrapped dataset.

    Attributes:
        dataset: The wrapped dataset.
    """

    def __init__(self, dataset: Any, num_samples: Any = None) -> None:
        """Wraps `dataset`; `Pruner.wrap` passes the size, too.

        Args:
            dataset: Anything with `__len__` and `__getitem__`; `__getitems__` is used if it is
                there.
            num_samples: How many samples there must be: an int, or the pruner. None: as many as
                the pruner has whose `batch_sampler` gives a batch, checked there.

        Raises:
            TypeError: `dataset` is iterable, or lacks `__len__` or `__getitem__`; or `num_samples`
                is no int.
            ValueError: `dataset` has another length.
        """
        if isinstance(dataset, IterableDataset):  # it may have both methods
            raise TypeError(
                f"dataset must be map-style, got the iterable {type(dataset).__name__}: "
                f"{_way_out(dataset)}"
            )
        missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
        if missing:
            raise TypeError(
                "dataset must be map-style: "
                f"{type(dataset).__name__} has no {' and no '.join(missing)}"
            )
        try:
            len(dataset)
        except TypeError as error:
            raise TypeError(f"dataset must be map-style, with a length: {error}") from None
        if num_samples is not None:
            size = as_int("num_samples", getattr(num_samples, "num_samples", num_samples))
            check_size(dataset, size)
        self.dataset = dataset

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Returns the sample at `index` with its id; a negative index counts from the end."""
        sample_id = self._sample_id(index)
        return _with_id(self.dataset[sample_id], sample_id)

    def __getitems__(self, indices: Any) -> list[Any]:
        """Returns the samples at `indices`, in one call if the wrapped dataset can do that.

        Raises:
            ValueError: `indices` are of a pruner with another number of samples.
        """
        if isinstance(indices, PlacedBatch):
            check_size(self.dataset, indices.num_samples)
            if get_worker_info() is not None:
                seed_worker(indices)
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
        # there is no `dataset` yet, and reading it here would never end.
        if name == "dataset" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __repr__(self) -> str:
        """Names the wrapped dataset."""
        return f"IndexedDataset({self.dataset!r})"


def _way_out(stream: Any) -> str:
    if library_of(stream) in (MOSAICML, LITDATA):
        return "wrap it in data.SeekableDataset, which reads the sample at a position"
    return (
        "its samples have no positions to choose from; use pruner.filter, or load them into one "
        "with __getitem__"
    )


def check_size(dataset: Any, num_samples: int) -> None:
    """Raises ValueError if a dataset is not what a pruner of `num_samples` chooses from."""
    try:
        size = len(dataset)
    except TypeError:  # a loader's dataset need not have one
        return
    if size != num_samples:
        raise ValueError(
            f"dataset must have {num_samples} samples, as the pruner, got {type(dataset).__name__} "
            f"of {size}: make the pruner with the length of the training set, Pruner({size}, ...)"
        )


def _with_id(sample: Any, sample_id: int) -> Any:
    """Returns the sample together with its id; never changes the sample itself."""
    if isinstance(sample, tuple) and not hasattr(sample, "_fields"):
        return (*sample, sample_id)
    if isinstance(sample, MutableMapping):
        if ID_KEY in sample:
            raise ValueError(
                f"sample {sample_id} already has the key {ID_KEY!r}, where its id belongs: give "
                "this field of the data set another name"
            )
        labelled = copy.copy(sample)
        labelled[ID_KEY] = sample_id
        return labelled
    return sample, sample_id
