# SPDX-License-Identifier: Apache-2.0
"""The samples of one epoch, addressed by their place in it, for readers with indices of their own.

Such readers take a sequence and decide by themselves when to read which place: Grain, DALI's
external source, FFCV by its `indices`. The order of the sequence is the pruner's.
"""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynprune_cuda._checks.arguments import as_bool, as_int
from dynprune_cuda.data.indexed import IndexedDataset
from dynprune_cuda.data.samplers import EpochSource, check_source

__all__ = ["EpochRecords"]


class EpochRecords:
    """A sequence of this process's samples of the pruner's current epoch, in the epoch's order.

        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            records = EpochRecords(pruner, train_set)
            for batch in grain.MapDataset.source(records).batch(64):
                ...

    Record `i` is the sample with the id `ids[i]`, which it carries as in `IndexedDataset`. The
    sequence is of one epoch: each epoch needs a new one. An older one raises in the process that
    made it. All processes have equally many records; some repeat an id, whose second visit changes
    no score.

    Attributes:
        epoch: The epoch.
        ids: Sample ids in the order of the records, int64 [n]; read-only.
    """

    def __init__(self, source: EpochSource, dataset: Any, *, drop_last: bool = False) -> None:
        """Holds the order of the current epoch. Waits for the device.

        Args:
            source: The pruner.
            dataset: A map-style data set of `num_samples` samples.
            drop_last: Whether ids that do not divide among the processes are left out, instead of
                repeated.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `dataset` has another length than the pruner.
        """
        check_source(source, "num_samples", "epoch", "epoch_order", "share_length")
        self.drop_last = as_bool("drop_last", drop_last)
        self._dataset = IndexedDataset(dataset, source.num_samples)
        self._num_samples = source.num_samples
        self._order: Tensor | None = source.epoch_order()
        order = self._order[: source.share_length(self.drop_last)]
        self.epoch = source.epoch
        self.ids: NDArray[np.int64] = order.cpu().numpy().copy()
        self.ids.flags.writeable = False
        self._source: weakref.ref[EpochSource] | None = weakref.ref(source)

    def _check_current(self) -> None:
        source = self._source() if self._source else None
        if source is None:
            return
        if source.epoch != self.epoch:
            now = f"is in epoch {source.epoch}"
        elif source.num_samples != self._num_samples or source.epoch_order() is not self._order:
            now = "was resized, or loaded another state"
        else:
            return
        raise RuntimeError(
            f"these records are of epoch {self.epoch}, and the pruner {now}: make new EpochRecords "
            "after pruner.set_epoch"
        )

    def __len__(self) -> int:
        """Returns the number of records of this process."""
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        """Returns the sample at a place of the epoch, from 0 to `len(self) - 1`, with its id.

        Raises:
            IndexError: There is no such place.
            RuntimeError: The pruner is in another epoch, was resized, or loaded a state.
        """
        self._check_current()
        number = as_int("place", place)
        if not 0 <= number < len(self.ids):
            raise IndexError(f"place {number} is out of range for {len(self.ids)} records")
        return self._dataset[self.ids[number]]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the pruner behind; a worker process gets the records of its epoch only."""
        self._check_current()
        return {**self.__dict__, "_source": None, "_order": None}

    def __repr__(self) -> str:
        """Tells the epoch and its ids: Grain compares this when it loads an iterator's state."""
        digest = hashlib.sha256(self.ids.tobytes()).hexdigest()[:12]
        return (
            f"EpochRecords(epoch={self.epoch}, records={len(self.ids)}, ids={digest}, "
            f"dataset={type(self._dataset.dataset).__name__})"
        )
