# SPDX-License-Identifier: Apache-2.0
"""The keys of one rank's samples, and what all ranks must agree about."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import check_tensor, check_values
from dynprune_cuda._ops import checking_weights, ops
from dynprune_cuda._ops.contract import RankingKind
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.functional.ranking import Ranking

# float64 has composite keys of 96 bits, which do not fit an int64.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_rows(ranking: Ranking, shard: Shard) -> None:
    """Checks that a ranking holds this rank's samples, in a dtype whose keys have 32 bits."""
    check_tensor(ranking.name, ranking.values, DTYPES)
    check_values(ranking.name, ranking.values)  # the ranks compare them
    if len(ranking.values) != len(shard):
        raise ValueError(
            f"{ranking.name} must have one element for each of this rank's {len(shard)} samples, "
            f"got {len(ranking.values)}"
        )


def keys_of(ranking: Ranking, shard: Shard, seed: int) -> Tensor:
    """Returns the keys of this rank's samples, int32 [len(shard)].

    Raises:
        ValueError: A weight on the CPU is negative or NaN.
    """
    place = (shard.first, shard.stride, None, as_int64(seed))
    keys: Tensor = checking_weights(ops.shard_keys, *ranking.arguments(), *place)
    return keys


def explore_like(ranking: Ranking) -> Ranking:
    """Returns the ranking by a hash of the sample id: the random part of epsilon-greedy."""
    return Ranking(RankingKind.EXPLORE, ranking.values)


def options_hash(ranking: Ranking) -> int:
    """Returns 63 bits that are equal in every process for equal kinds, options and dtypes."""
    options = (ranking.kind.name, ranking.c, ranking.log_step, ranking.values.dtype)
    return int.from_bytes(hashlib.sha256(repr(options).encode()).digest()[:8], "big") >> 1
