# SPDX-License-Identifier: Apache-2.0
"""What each epoch trains on, and the state of a run."""

from __future__ import annotations

from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.replicated import ReplicatedRun
from dynprune_cuda._epochs.run import Run
from dynprune_cuda.distributed.ranks import Ranks


def make_run(config: Config, ranks: Ranks) -> Run:
    """Returns a run before its first epoch: replicated or sharded, as configured.

    Raises:
        ValueError: There are too few samples for the processes.
    """
    if config.sharding == "replicate":
        return ReplicatedRun(config, ranks)
    from dynprune_cuda._epochs.sharded import ShardedRun  # only where it is used

    return ShardedRun(config, ranks)
