# SPDX-License-Identifier: Apache-2.0
"""Who holds what: the processes that train together, their shards, and rows on their way."""

from dynprune_cuda.distributed.ranks import Ranks, checksum, resolve, telling_of_lost_ranks
from dynprune_cuda.distributed.shard import Shard

__all__ = ["Ranks", "Shard", "checksum", "resolve", "telling_of_lost_ranks"]
