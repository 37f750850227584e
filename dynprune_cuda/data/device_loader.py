# SPDX-License-Identifier: Apache-2.0
"""Batches of data that live on the device: gathered there, and never seen by the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import check_dense
from dynprune_cuda.data.bucketing import BucketBatchSampler
from dynprune_cuda.data.samplers import EpochBatchSampler, EpochIterator, EpochSource

__all__ = ["DeviceLoader"]

Transform = Callable[..., Any]  # the tensors of a batch in, as many out


class DeviceLoader:
    """Serves the pruner's current epoch from tensors on its device.

        loader = DeviceLoader(images, labels, pruner=pruner, batch_size=512, transforms=[flip])
        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            for x, y, ids in loader:
                loss = pruner.cross_entropy(model(x), y, ids)

    On a GPU every batch is gathered and transformed on a stream of its own while the one before is
    trained on. No step waits for the host or makes it wait. Iterating has no side effect, as in
    `EpochBatchSampler`, and `state_dict` counts what was really handed out.

    Attributes:
        tensors: The data, each [num_samples, ...], on the pruner's device.
        sampler: Gives the order, the batch size and `drop_last`.
        transforms: Callbacks, applied one after the other to each batch. A callback takes the
            tensors of the batch, without the ids. It returns as many, as a tuple, or a tensor if
            there is one. They run on the loader's own stream, under `torch.no_grad()`.
    """

    def __init__(
        self,
        *tensors: Tensor,
        pruner: EpochSource | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        sampler: EpochBatchSampler | None = None,
        transforms: Sequence[Transform] = (),
    ) -> None:
        """Serves `tensors`.

        Args:
            *tensors: One or more, each with one row per sample, on the pruner's device.
            pruner: The pruner; `batch_size` is needed then.
            batch_size: Samples per batch.
            drop_last: Whether to leave out a smaller last batch.
            sampler: Instead of these three, a `pruner.batch_sampler(...)`.
            transforms: On-device augmentation, see the class.

        Raises:
            TypeError: An argument has the wrong type, or is missing.
            ValueError: A tensor has another number of rows than the training set, or is elsewhere.
        """
        if (pruner is None) == (sampler is None):
            raise TypeError("either pruner= and batch_size=, or sampler= must be given")
        if sampler is None:
            assert pruner is not None
            sampler = EpochBatchSampler(pruner, batch_size, drop_last)  # type: ignore[arg-type]
        elif not isinstance(sampler, EpochBatchSampler):
            raise TypeError(f"sampler must be a batch_sampler, got {type(sampler).__name__}")
        elif isinstance(sampler, BucketBatchSampler):
            raise TypeError(
                "sampler must have no lengths=, got a BucketBatchSampler: tensors in memory have "
                "one length; use a DataLoader"
            )
        elif batch_size is not None or drop_last:
            raise TypeError("batch_size and drop_last must be left out: the sampler has its own")
        if not tensors:
            raise TypeError("tensors must be at least one, got none")
        source = sampler.source
        for number, tensor in enumerate(tensors):
            name = f"tensors[{number}]"
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
            check_dense(name, tensor)
            if tensor.dim() == 0 or len(tensor) != source.num_samples:
                raise ValueError(
                    f"{name} must have {source.num_samples} rows, one per sample, got shape "
                    f"{tuple(tensor.shape)}"
                )
            if tensor.device != source.device:
                raise ValueError(
                    f"{name} must be on the pruner's device, {source.device}, got {tensor.device}"
                )
        self.tensors = tensors
        self.sampler = sampler
        try:
            self.transforms = tuple(transforms)
        except TypeError:
            raise TypeError(
                f"transforms must be a sequence of functions, got {transforms!r}"
            ) from None
        for transform in self.transforms:
            if not callable(transform):
                raise TypeError(f"transforms must be callable, got {transform!r}")

    def __len__(self) -> int:
        """Returns the number of batches in the current epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Returns an iterator over the current epoch: the tensors of each batch, and its ids."""
        rows, wanted = len(self.tensors[0]), self.sampler.source.num_samples
        if rows != wanted:
            raise ValueError(
                f"tensors must have {wanted} rows, one per sample, got {rows}: the pruner was "
                "resized; make a new DeviceLoader with the new tensors"
            )
        return self.sampler.iterate(_DeviceIterator, self)

    def state_dict(self) -> dict[str, int]:
        """As `EpochBatchSampler.state_dict`; the batch that was prepared ahead does not count."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `EpochBatchSampler.load_state_dict`.

        Args:
            state_dict: From `state_dict`.
        """
        self.sampler.load_state_dict(state_dict)

    @torch.no_grad()
    def gather(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Returns the samples `ids`, transformed, and the ids themselves.

        Args:
            ids: Sample ids, int64 [batch], on the device of the tensors.
        """
        batch = tuple(tensor.index_select(0, ids) for tensor in self.tensors)
        for transform in self.transforms:
            result = transform(*batch)
            batch = (result,) if isinstance(result, Tensor) else tuple(result)
            if len(batch) != len(self.tensors):
                raise ValueError(
                    f"transforms must return {len(self.tensors)} tensors, got {len(batch)} from "
                    f"{transform!r}"
                )
        return (*batch, ids)


class _DeviceIterator(EpochIterator[tuple[Tensor, ...]]):
    """Batches on the device; position and state as of the samplers."""

    def __init__(self, epoch: int, order: Tensor, position: int, loader: DeviceLoader) -> None:
        self._loader = loader
        super().__init__(epoch, order, position)

    def _num_ids(self, item: tuple[Tensor, ...]) -> int:
        return len(item[-1])

    def _walk(self, order: Tensor) -> Iterator[tuple[Tensor, ...]]:
        sampler = self._loader.sampler
        if sampler.drop_last:
            order = order[: len(order) // sampler.batch_size * sampler.batch_size]
        pieces = torch.split(order, sampler.batch_size) if len(order) else ()
        if order.device.type == "cuda":
            return _one_ahead(self._loader, order, pieces)
        return map(self._loader.gather, pieces)


def _one_ahead(
    loader: DeviceLoader, order: Tensor, pieces: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Yields the batches; the next one is already on its way on another stream."""
    device = order.device
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # The iterator or the loader may be dropped while a batch is prepared. Until the batch is done,
    # the allocator must not give the memory that it reads to others.
    for tensor in (order, *loader.tensors):
        tensor.record_stream(stream)

    def prepare(ids: Tensor) -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
        # Not before the work that is queued so far. So the batch is at most one ahead of the
        # training, and what the training stream wrote is there: at first, the order.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            batch = loader.gather(ids)
            return batch, stream.record_event()

    ahead = prepare(pieces[0]) if pieces else None
    for number in range(len(pieces)):
        assert ahead is not None
        batch, ready = ahead
        ahead = prepare(pieces[number + 1]) if number + 1 < len(pieces) else None
        training = torch.cuda.current_stream(device)
        training.wait_event(ready)
        for tensor in batch:
            tensor.record_stream(training)
        yield batch
