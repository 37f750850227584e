# SPDX-License-Identifier: Apache-2.0
"""The table of a new pruner: of all samples, or of those that this process holds."""

from __future__ import annotations

from typing import Any

import torch

from dynprune_cuda._epochs.sharded import ShardedEpochs
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.policies.protocol import is_believed
from dynprune_cuda.scores.sharded_table import ShardedScoreTable
from dynprune_cuda.scores.table import ScoreTable

SURPLUS = ("move", "local")


def shard_of(num_samples: int, ranks: Ranks, policy: Any, layout: str) -> Shard:
    """Returns the samples of this process.

    Raises:
        ValueError: `policy` cannot select from shards, or there are too few samples.
    """
    if not (is_believed(policy) and hasattr(policy, "select_shard")):
        raise ValueError(
            "sharding must be 'replicate' for groups, InfoBatch and policies of your own: only "
            "full, static, random_static, uniform, epsilon_greedy, ucb and weighted select from "
            f"shards, got 'shard' and {policy!r}"
        )
    shard = Shard(num_samples, ranks.rank, ranks.size, layout)
    if not all(shard.sizes()):
        raise ValueError(
            f"sharding='shard' needs samples for every process, got {num_samples} samples for "
            f"{ranks.size} processes, in {layout} pieces of {shard.piece}"
        )
    return shard


def make_table(
    pruner: object,
    sharding: str,
    num_samples: int,
    ranks: Ranks,
    policy: Any,
    *,
    layout: str,
    surplus: str,
    device: torch.device | str | int,
    track_forgetting: bool,
    **options: Any,
) -> ScoreTable:
    """Returns the table of a new pruner: whole, or this process's rows. Collective.

    What fails in one process is an error in all of them.

    Raises:
        RuntimeError: Another process failed.
        TypeError: `pruner` is of a user's own class, and shall be sharded.
        ValueError: As of `shard_of`, or it shall track forgetting events, too; or the table is
            whole, and an option is of shards.
    """
    made: list[ScoreTable] = []

    def make() -> dict[str, int]:
        if sharding == "replicate":
            for name, value in (("shard_layout", layout), ("surplus", surplus)):
                if value not in ("contiguous", "move"):
                    raise ValueError(
                        f"{name}={value!r} needs sharding='shard', got sharding='replicate'"
                    )
            table = ScoreTable(
                num_samples, device=device, track_forgetting=track_forgetting, **options
            )
        else:
            if track_forgetting:
                raise ValueError(
                    "track_forgetting needs sharding='replicate', got sharding='shard'"
                )
            if not isinstance(pruner, ShardedEpochs):
                kind = type(pruner).__name__
                raise TypeError(f"sharding='shard' needs Pruner itself, not its subclass {kind}")
            shard = shard_of(num_samples, ranks, policy, layout)
            table = ShardedScoreTable(shard, ranks, device=device, **options)
        made.append(table)
        return {}

    ranks.check_device(torch.device(device))
    ranks.meet("making the pruner", torch.device(device), make, False)
    return made[0]
