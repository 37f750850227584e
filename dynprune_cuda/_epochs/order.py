# SPDX-License-Identifier: Apache-2.0
"""What a process trains on in an epoch, and in which order.

Replicated scores: every process draws the same order and takes its part. Sharded scores: the order
is the same one, over the selected samples in ascending order. The owner of a sample finds its place
in the order by the inverse permutation. It sends id and place to the process that trains there: 8
bytes, and 4 for the factor of a policy that rescales. No process holds the whole order.

With surplus="local", each process draws an order of the samples that it holds; nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._ops import ops
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.routing import to_owners
from dynprune_cuda.distributed.shard import Shard


class Share(NamedTuple):
    """What one process trains on in an epoch."""

    ids: Tensor  # in the order of their visits, int64 [as many as in every other process]
    own: int  # how many come before the padding; 0: all are padding, which changes no score
    factors: Tensor | None = None  # what their losses are multiplied by, float32; None: nothing

    def again(self) -> Tensor:
        """Returns the ids that come again, ascending; all, if all are padding."""
        padding = len(self.ids) - self.own
        again = self.ids[: min(padding, self.own)] if self.own else self.ids
        return again.sort().values


# Ids put into their order at a time: what this needs beside the order itself stays small.
ORDER_IDS = 1 << 18


def replicated_share(
    ids: Tensor | None, count: int, seed: int, ranks: Ranks, like: Tensor
) -> Share:
    """Returns the part of the common order that this process trains on.

    Args:
        ids: The selected ids, ascending, int64 [count]; None if all are selected.
        count: How many samples are selected.
        seed: Seed of the epoch's order.
        ranks: The processes.
        like: A tensor on the device.
    """
    order = functional.permutation(count, seed=seed, device=like.device)
    order = ranks.share(order)
    if ids is not None:
        for piece in torch.split(order, ORDER_IDS):
            piece.copy_(ids.index_select(0, piece))
    padded = ranks.rank >= count % ranks.size > 0
    return Share(order, len(order) - padded)


def moved_share(
    ids: Tensor | None,
    sizes: Sequence[int],
    seed: int,
    shard: Shard,
    ranks: Ranks,
    like: Tensor,
    factors: Tensor | None = None,
) -> Share:
    """Returns the share that this process has with replicated scores. Collective if there are ids.

    Args:
        ids: The selected ids that this process holds, ascending; None if all are selected.
        sizes: How many selected ids each process holds.
        seed: Seed of the epoch's order.
        shard: Which samples this process holds.
        ranks: The processes.
        like: An empty tensor on the device.
        factors: Factors of the losses of `ids`, float32; or None, in all processes.
    """
    rank, size = ranks.rank, ranks.size
    if ids is not None and shard.layout == "strided":
        # An id's place is known where shards are contiguous. Waits, in set_epoch only.
        ids, *others = to_owners([ids, *_given(factors)], shard.in_pieces(), ranks)
        ids, ascending = ids.sort()
        factors = others[0][ascending] if others else None
        # Waits, in set_epoch only: places need what the processes before have.
        sizes = ranks.gather(ids.new_full((1,), len(ids))).flatten().tolist()
    total = shard.num_samples if ids is None else sum(sizes)
    before = sum(sizes[:rank])
    seed = as_int64(seed)
    if total < size:  # some process repeats an id of another one
        order = functional.permutation(total, seed=seed, device=like.device)
        if ids is None:
            return Share(ranks.share(order), int(rank < total))
        everything = [column.new_zeros(total) for column in (ids, *_given(factors))]
        for whole, part in zip(everything, (ids, *_given(factors)), strict=True):
            whole[before : before + len(ids)] = part
        columns = [ranks.share(ranks.add_up_(whole)[order]) for whole in everything]
        return Share(columns[0], int(rank < total), *columns[1:])
    length = len(range(rank, total, size))
    if ids is None:
        order = ops.permutation_part(like, total, rank, size, length, False, None, seed)
    else:
        places = ops.permutation_part(like, total, before, 1, len(ids), True, None, seed)
        # Id and place in one word: both are below 2^32.
        words = (ids << 32) | (places // size)
        consumer, by_consumer = (places % size).to(torch.int32).sort(stable=True)
        counts = torch.bincount(consumer, minlength=size)
        columns = [column[by_consumer] for column in (words, *_given(factors))]
        received, *others = ranks.exchange(columns, counts)
        order = torch.empty_like(received)
        place = received & 0xFFFFFFFF
        order[place] = (received >> 32) & 0xFFFFFFFF
        if others:
            factors = torch.empty_like(others[0]).index_copy_(0, place, others[0])
    if length < ranks.share_length(total):
        order = torch.cat([order, order[:1]])
        factors = None if factors is None else torch.cat([factors, factors[:1]])
    return Share(order, length, factors)


def local_share(
    ids: Tensor, sizes: Sequence[int], seed: int, shard: Shard, factors: Tensor | None = None
) -> Share:
    """Returns this process's own ids in a random order, filled up to the longest share.

    A shorter share repeats its order from the beginning until it has the longest length. A process
    that holds none of the selection fills up with others of its samples: every process must take
    part in the backward pass.

    Args:
        ids: The selected ids that this process holds, ascending.
        sizes: How many selected ids each process holds.
        seed: Seed of this process's order.
        shard: Which samples this process holds.
        factors: Factors of the losses of `ids`, float32; or None. Fillers have the factor 1.
    """
    pool = ids if len(ids) else shard.ids(ids.device)
    if factors is not None and not len(ids):
        factors = factors.new_ones(len(pool))
    order = functional.permutation(len(pool), seed=seed, device=ids.device)
    length = max(sizes)
    if length != len(order):
        order = order[torch.arange(length, device=order.device) % len(order)]
    return Share(pool[order], len(ids), None if factors is None else factors[order])


def _given(factors: Tensor | None) -> list[Tensor]:
    return [] if factors is None else [factors]
