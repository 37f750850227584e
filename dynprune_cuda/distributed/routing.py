# SPDX-License-Identifier: Apache-2.0
"""Rows of samples on their way between processes."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard


def to_owners(columns: list[Tensor], shard: Shard, ranks: Ranks) -> list[Tensor]:
    """Sends rows to the processes that hold their samples. Collective; waits.

    Args:
        columns: The sample ids, int64 [rows], ascending, and what belongs to them [rows].
        shard: Which samples a process holds.
        ranks: The processes.

    Returns:
        The rows of this process's samples, by sender, and of each sender in its order.
    """
    owners = shard.owner_of(columns[0])
    if shard.stride > 1:
        owners, order = owners.sort(stable=True)
        columns = [column[order] for column in columns]
    return ranks.exchange(columns, torch.bincount(owners, minlength=shard.size))


def moved_rows(columns: list[Tensor], source: Shard, target: Shard, ranks: Ranks) -> list[Tensor]:
    """Gives each process the rows of other samples than it has. Collective; waits.

    Rows move of samples that both shards know: with another number of samples in all, those with
    the smaller ids.

    Args:
        columns: What belongs to this process's samples, [len(source)].
        source: Which samples these are.
        target: Whose rows it gets instead, [len(target)], or the first ones of them.
        ranks: The processes.
    """
    if source == target:
        return columns
    device, common = columns[0].device, min(source.num_samples, target.num_samples)
    ids = source.ids(device)[: source.num_below(common)]
    wanted_by, order = target.owner_of(ids).sort(stable=True)
    counts = torch.bincount(wanted_by, minlength=source.size)
    received = ranks.exchange([column[: len(ids)][order] for column in columns], counts)
    # Of each sender the samples come by rising id, as it held them.
    wanted = target.ids(device)[: target.num_below(common)]
    places = source.owner_of(wanted).sort(stable=True).indices
    return [torch.empty_like(column).index_copy_(0, places, column) for column in received]
