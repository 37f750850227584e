# SPDX-License-Identifier: Apache-2.0
"""A collate function that never sees the sample ids, and whose batches have them nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from dynprune_cuda.data.indexed import ID_KEY

__all__ = ["CollateWithIds"]


class CollateWithIds:
    """Adds the ids of an `IndexedDataset` to the batches of a collate function without them.

        def collate(samples):  # knows of images and labels only
            return mixup(*default_collate(samples))

        DataLoader(pruner.wrap(train_set), batch_sampler=..., collate_fn=CollateWithIds(collate))

    Samples come back as they were before `IndexedDataset`; only a tuple of one element does not:
    its element comes. The result gets the ids, int64 [batch]. They are appended to a tuple or a
    list, at the key `"sample_id"` of a mapping, and otherwise the second of two.

    The function must keep the number and the order of the samples: each id names the sample at its
    place. A mixed sample is then credited to the sample whose place it has.

    Attributes:
        collate: The collate function.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        """Wraps a collate function.

        Raises:
            TypeError: `collate` is not callable.
        """
        if not callable(collate):
            raise TypeError(f"collate must be callable, got {type(collate).__name__}")
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        """Returns the batch with its ids.

        Raises:
            TypeError: A sample has no id.
            ValueError: The function's batch has the key `"sample_id"` already.
        """
        pairs = [_split(sample) for sample in samples]
        ids = torch.tensor([sample_id for _, sample_id in pairs], dtype=torch.int64)
        batch = self.collate([sample for sample, _ in pairs])
        if isinstance(batch, Mapping):
            if ID_KEY in batch:
                raise ValueError(
                    f"the batch already has the key {ID_KEY!r}, where its ids belong: let the "
                    "collate function use another key"
                )
            return {**batch, ID_KEY: ids}
        if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
            return (*batch, ids)
        return batch, ids


def _split(sample: Any) -> tuple[Any, int]:
    """Returns the sample as it was, and its id."""
    if isinstance(sample, MutableMapping) and ID_KEY in sample:
        sample_id = sample.pop(ID_KEY)  # of the copy that IndexedDataset made
        return sample, sample_id
    if isinstance(sample, tuple) and not hasattr(sample, "_fields") and len(sample) >= 2:
        *rest, sample_id = sample
        if isinstance(sample_id, int):
            return (rest[0] if len(rest) == 1 else tuple(rest)), sample_id
    raise TypeError(
        f"samples must be those of an IndexedDataset, got {type(sample).__name__} without an id: "
        "give the DataLoader pruner.wrap(dataset)"
    )
