# SPDX-License-Identifier: Apache-2.0
"""What a process that holds a part of the samples trains on in an epoch, and in which order.

By default the order is the one that every process would draw alone, over the canonical rank of the
selected samples, which is their place in ascending order. The owner of a sample finds its position
in the order by the inverse of the permutation, and sends id and position to the process that trains
there: 8 bytes. Nobody holds the whole order.

Where the surplus stays local, each process draws an order of what it holds, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._ops import ops
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.routing import to_owners
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.sharded.digit_search import signed


class Share(NamedTuple):
    """What one process trains on in an epoch."""

    ids: Tensor  # in the order of their visits, int64 [as many as in every other process]
    own: int  # how many come before the padding; 0: all are padding, which changes no score


def moved_share(
    ids: Tensor | None, sizes: Sequence[int], seed: int, shard: Shard, ranks: Ranks, like: Tensor
) -> Share:
    """Returns the share that this process has with replicated scores. Collective if there are ids.

    Args:
        ids: The selected ids that this process holds, ascending; None if all are selected.
        sizes: How many selected ids each process holds.
        seed: Of the epoch's order.
        shard: Which samples this process holds.
        ranks: The processes.
        like: An empty tensor on the device.
    """
    rank, size = ranks.rank, ranks.size
    if ids is not None and shard.layout == "strided":
        # Places in ascending order are known to who holds neighbours.
        (ids,) = to_owners([ids], shard.in_pieces(), ranks)
        ids = ids.sort().values
        sizes = ranks.gather(ids.new_full((1,), len(ids))).flatten().tolist()
    total = shard.num_samples if ids is None else sum(sizes)
    before = sum(sizes[:rank])
    seed = signed(seed)
    if total < size:  # some process repeats an id of another one
        order = functional.permutation(total, seed=seed, device=like.device)
        if ids is not None:
            everything = torch.zeros_like(order)
            everything[before : before + len(ids)] = ids
            order = ranks.add_up_(everything)[order]
        return Share(ranks.share(order), int(rank < total))
    length = len(range(rank, total, size))
    if ids is None:
        order = ops.permutation_part(like, total, rank, size, length, False, None, seed)
    else:
        places = ops.permutation_part(like, total, before, 1, len(ids), True, None, seed)
        # Id and place in one word: both are below 2^32.
        words = (ids << 32) | (places // size)
        consumer, by_consumer = (places % size).to(torch.int32).sort(stable=True)
        counts = torch.bincount(consumer, minlength=size)
        (received,) = ranks.exchange([words[by_consumer]], counts)
        order = torch.empty_like(received)
        order[received & 0xFFFFFFFF] = (received >> 32) & 0xFFFFFFFF
    padded = length < ranks.share_length(total)
    return Share(torch.cat([order, order[:1]]) if padded else order, length)


def local_share(ids: Tensor, sizes: Sequence[int], seed: int, shard: Shard) -> Share:
    """Returns this process's own ids in a random order, filled up to the longest share.

    It goes on from the beginning as often as it takes. A process that holds none of the selection
    fills up with others of its samples, so that nobody waits for it in the backward pass.

    Args:
        ids: The selected ids that this process holds, ascending.
        sizes: How many selected ids each process holds.
        seed: Of this process's order.
        shard: Which samples this process holds.
    """
    pool = ids if len(ids) else shard.ids(ids.device)
    order = pool[functional.permutation(len(pool), seed=seed, device=ids.device)]
    length = max(sizes)
    if length != len(order):
        order = order[torch.arange(length, device=order.device) % len(order)]
    return Share(order, len(ids))


class Repeats:
    """The ids of a share that come again, as padding: in the scores only the first visit counts."""

    def __init__(self, share: Share) -> None:
        """Finds them, none visited yet; if all is padding, every visit is a repetition."""
        padding = len(share.ids) - share.own
        again = share.ids[: min(padding, share.own)] if share.own else share.ids
        self._ids = again.sort().values
        # And a place for the marks of all other ids, which nobody reads.
        self._visited = self._ids.new_full((len(again) + 1,), share.own == 0, dtype=torch.bool)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._ids)

    def without(self, ids: Tensor) -> Tensor:
        """Returns `ids`, int64 [batch], with -1 in place of visits that count for nothing."""
        places, found = self._find(ids)
        in_order, order = ids.sort(stable=True)
        again = torch.zeros_like(found)
        again[order[1:]] = in_order[1:] == in_order[:-1]
        return torch.where(found & (again | self._visited[places]), -1, ids)

    def note(self, ids: Tensor) -> None:
        """Marks ids, int64, as visited; those that do not come again are left alone."""
        places, found = self._find(ids)
        self._visited.index_fill_(0, torch.where(found, places, len(self._ids)), True)

    def visited(self) -> Tensor:
        """Returns the ids that are marked, ascending. Waits."""
        return self._ids[self._visited[:-1]]

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.searchsorted(self._ids, ids).clamp_(max=len(self._ids) - 1)
        return places, self._ids[places] == ids


def repeats_of(share: Share, visited: Tensor | None) -> Repeats:
    """Returns the repeats of a share, of which the ids in `visited` were visited already."""
    repeats = Repeats(share)
    if visited is not None and repeats:
        repeats.note(visited)
    return repeats
