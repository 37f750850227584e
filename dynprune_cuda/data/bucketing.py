# SPDX-License-Identifier: Apache-2.0
"""Batches of like lengths from the samples of an epoch: less padding, the same samples.

The epoch's random order is cut into windows of some batches. Within a window the ids are sorted by
length and cut into batches; then the batches are shuffled. All is decided by the epoch's order and
the pruner's seed. It takes about 80 bytes of host memory per id of a process while an epoch begins,
and 8 after it. With `max_tokens` and several processes, it takes 8 more per id of all while the
epoch begins.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import MAX_SAMPLES, as_int, on_host
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.data.samplers import (
    CHUNK_IDS,
    EpochBatchSampler,
    EpochSource,
    _BatchIterator,
    _pinned,
    check_source,
)
from dynprune_cuda.distributed.ranks import Ranks

__all__ = ["BucketBatchSampler"]

WINDOW = 100  # batches


class BucketSource(EpochSource, Protocol):
    """What buckets need to know of a `Pruner`, besides its epochs."""

    @property
    def seed(self) -> int:
        """The seed of the run."""
        ...

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        ...

    @property
    def sharding(self) -> str:
        """Who holds the scores."""
        ...

    def whole_order(self) -> Tensor:
        """The ids of all processes in the order of the epoch, int64."""
        ...


class Plan(NamedTuple):
    """The batches of one process in one epoch.

    Attributes:
        order: `epoch_order` that they were made of.
        ids: Sample ids in the order of their visits, int64, on the CPU.
        ends: Where each batch ends in `ids`, int64 [num_batches], ascending.
    """

    order: Tensor
    ids: Tensor
    ends: np.ndarray[Any, np.dtype[np.int64]]


class _BucketIterator(_BatchIterator):
    def __init__(
        self, epoch: int, order: Tensor, position: int, plan: Plan, batch_size: int
    ) -> None:
        self._ends = plan.ends
        super().__init__(epoch, plan.ids, position, batch_size, False)

    def _walk(self, order: Tensor) -> Iterator[list[int]]:
        start = last = self.position
        ids = order.numpy()
        for end in self._ends[np.searchsorted(self._ends, start, side="right") :].tolist():
            yield ids[last - start : end - start].tolist()
            last = end

    def _end_of(self, batches: int) -> int:
        ends = self._ends[np.searchsorted(self._ends, self._start, side="right") :][:batches]
        return int(ends[-1]) if len(ends) else self._start


class BucketBatchSampler(EpochBatchSampler):
    """Yields the sample ids of the pruner's current epoch in batches of like lengths.

    For `DataLoader(batch_sampler=...)`, as `EpochBatchSampler`; states and positions are the same.
    A smaller last batch comes last, and has the longest ids of the last window.

    With `max_tokens`, a batch of n ids whose longest sample has length l holds n * l tokens with
    its padding. `len` and the number of steps are then known once an epoch has begun. All processes
    have as many steps: those with fewer batches halve their largest ones.

    Batches that processes train on in the same step mostly have like lengths, too.

    Attributes:
        lengths: int64 [num_samples], on the CPU.
        max_tokens: Most tokens of a batch, with its padding; or None.
        window: Batches per window.
    """

    source: BucketSource
    _plan: Plan | None = None

    def __init__(
        self,
        source: BucketSource,
        batch_size: int,
        drop_last: bool = False,
        *,
        lengths: Tensor | Sequence[int],
        max_tokens: int | None = None,
        window: int = WINDOW,
    ) -> None:
        """Follows `source`; `Pruner.batch_sampler` is the usual way here.

        Args:
            source: The pruner.
            batch_size: Ids per batch, at least 1; with `max_tokens`, at most so many.
            drop_last: Whether to leave out a smaller last batch, of random ids.
            lengths: The length of each sample, any integers [num_samples], at least 0.
            max_tokens: Most tokens of a batch, at least the greatest length. None: no limit.
            window: Batches per window, at least 1: more make lengths more alike, and batches less
                random.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range, or `max_tokens` is given with sharded scores
                and several processes.
        """
        super().__init__(source, batch_size, drop_last)
        check_source(source, "seed", "ranks", "sharding", "whole_order")
        self.lengths = _checked_lengths(lengths, source.num_samples)
        self.window = as_int("window", window, minimum=1, maximum=MAX_SAMPLES)
        self.max_tokens = None
        if max_tokens is None:
            return
        self.max_tokens = as_int("max_tokens", max_tokens, minimum=1)
        longest = int(self.lengths.max())
        if longest > self.max_tokens:
            raise ValueError(
                f"max_tokens must be at least the greatest length, {longest}, got {max_tokens}"
            )
        if source.sharding == "shard" and source.ranks.size > 1:
            raise ValueError(
                f"max_tokens needs sharding='replicate' with {source.ranks.size} processes, got "
                "'shard': no process knows how many batches the others have; use lengths= alone"
            )

    def __len__(self) -> int:
        """Returns the number of batches in the current epoch, of this process.

        With `max_tokens`, this begins epoch 0 if no epoch has begun.
        """
        return super().__len__() if self.max_tokens is None else len(self._planned().ends)

    def __iter__(self) -> Iterator[list[int]]:
        """Returns an iterator over the current epoch, from its beginning."""
        return self.iterate(_BucketIterator, self._planned(), self.batch_size)

    def ids_after(self, batches: int) -> int:
        """Returns how many ids the first batches of the current epoch have.

        Args:
            batches: How many batches.
        """
        if batches == 0:
            return 0  # without beginning an epoch
        ends = self._planned().ends[:batches]
        return int(ends[-1]) if len(ends) else 0

    def batches_before(self, ids: int) -> int:
        """Returns how many batches of the current epoch the first ids take.

        Args:
            ids: How many ids.
        """
        if ids == 0:
            return 0
        ends = self._planned().ends
        return min(int(np.searchsorted(ends, ids)) + 1, len(ends))

    def _planned(self) -> Plan:
        order = self.source.epoch_order()
        if self._plan is None or self._plan.order is not order:
            if len(self.lengths) != self.source.num_samples:
                raise ValueError(
                    f"lengths must have {self.source.num_samples} entries, one per sample, got "
                    f"{len(self.lengths)}: the pruner was resized; make a new batch_sampler"
                )
            self._plan = self._make_plan(order)
        return self._plan

    def _make_plan(self, order: Tensor) -> Plan:
        number, size = self.source.share_length(self.drop_last), self.batch_size
        seed = derive_seed(self.source.seed, "buckets", self.source.epoch)
        if self.max_tokens is None:
            if self.drop_last:
                number -= number % size
            size = min(size, max(number, 1))
            ids, _ = self._arranged(_on_host(order[:number]))
            ends = np.minimum(np.arange(size, number + size, size), number)
            return _shuffled(order, ids, ends, number // size, seed)
        ids, lengths = self._arranged(_on_host(order[:number]))
        ends = _cut(lengths, self._window_ids(), size, self.max_tokens)
        ends = _split(ends, lengths, self._most_batches(len(ends), number))
        return _shuffled(order, ids, ends, len(ends), seed)

    def _most_batches(self, own: int, number: int) -> int:
        """Returns the number of batches of the process that has the most before any is halved."""
        assert self.max_tokens is not None
        ranks = self.source.ranks
        if ranks.size == 1:
            return own
        whole, most = _on_host(self.source.whole_order()), own
        for rank in range(ranks.size):
            if rank != ranks.rank:
                share = Ranks(None, rank, ranks.size).share(whole)[:number]
                lengths = self._arranged(share)[1]
                ends = _cut(lengths, self._window_ids(), self.batch_size, self.max_tokens)
                most = max(most, len(ends))
        return most

    def _window_ids(self) -> int:
        """Returns how many ids a window has."""
        return min(self.window * self.batch_size, MAX_SAMPLES)

    def _arranged(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ids sorted by length within each window, and their lengths."""
        lengths = self.lengths[order]
        windows = torch.arange(len(order)).div_(self._window_ids(), rounding_mode="floor")
        places = lengths.sort(stable=True).indices
        places = places[windows[places].sort(stable=True).indices]
        return order[places], lengths[places]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the batches, which can be made again."""
        return {**super().__getstate__(), "_plan": None}


def _checked_lengths(lengths: Any, num_samples: int) -> Tensor:
    tensor = on_host("lengths", lengths)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ValueError(f"lengths must have an integer dtype, got {tensor.dtype}")
    if tensor.shape != (num_samples,):
        raise ValueError(
            f"lengths must have shape ({num_samples},), one per sample, got {tuple(tensor.shape)}"
        )
    tensor = tensor.to(torch.int64)  # torch finds no least of unsigned integers
    if (least := int(tensor.min())) < 0:
        raise ValueError(f"lengths must be at least 0 and below 2**63, got {least}")
    return tensor


def _on_host(order: Tensor) -> Tensor:
    """Returns ids on the CPU; from a GPU on a stream of their own."""
    if order.device.type == "cpu":
        return order
    chunks = [chunk.clone() for chunk in _pinned(order, CHUNK_IDS)] if len(order) else []
    return torch.cat([torch.empty(0, dtype=torch.int64), *chunks])


def _cut(
    lengths: Tensor, rows: int, batch_size: int, max_tokens: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the ends of batches within the limits, as few as go in their order.

    Args:
        lengths: int64, ascending within each window.
        rows: Ids per window.
        batch_size: Most ids of a batch.
        max_tokens: Most tokens of a batch, with its padding.
    """
    values, ends = lengths.numpy(), []
    counts = np.arange(1, min(batch_size, len(values)) + 1)
    for window in range(0, len(values), rows):
        start, stop = window, min(window + rows, len(values))
        while start < stop:
            longest = values[start : min(start + batch_size, stop)]
            tokens = longest * counts[: len(longest)]
            start += max(1, int(np.searchsorted(tokens, max_tokens, side="right")))
            ends.append(start)
    return np.asarray(ends, dtype=np.int64)


def _split(
    ends: np.ndarray[Any, np.dtype[np.int64]], lengths: Tensor, number: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the ends of `number` batches: those with the most tokens are halved."""
    if len(ends) == number:
        return ends
    values, starts = lengths.numpy(), [0, *ends[:-1].tolist()]

    def entry(start: int, end: int) -> tuple[int, int, int]:
        return -int(values[end - 1]) * (end - start) if end - start > 1 else 1, start, end

    heap = [entry(*pair) for pair in zip(starts, ends.tolist(), strict=True)]
    heapq.heapify(heap)
    while len(heap) < number:
        _, start, end = heapq.heappop(heap)
        middle = (start + end + 1) // 2
        heapq.heappush(heap, entry(start, middle))
        heapq.heappush(heap, entry(middle, end))
    return np.asarray(sorted(end for _, _, end in heap), dtype=np.int64)


def _shuffled(
    order: Tensor, ids: Tensor, ends: np.ndarray[Any, np.dtype[np.int64]], number: int, seed: int
) -> Plan:
    """Returns the batches with the first `number` of them in a random order."""
    sizes = torch.as_tensor(np.diff(ends, prepend=0))
    batches = functional.permutation(number, seed=seed)
    batches = torch.cat([batches, torch.arange(number, len(sizes))])
    starts = torch.as_tensor(ends)[batches] - sizes[batches]
    new_ends = sizes[batches].cumsum(0)
    # Of each place in the new order: its place in its batch, behind the batch's old start.
    shift = torch.repeat_interleave(starts - new_ends + sizes[batches], sizes[batches])
    return Plan(order, ids[torch.arange(len(ids)) + shift], new_ends.numpy())
