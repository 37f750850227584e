# SPDX-License-Identifier: Apache-2.0
"""What integrations share: how far an epoch got, which pruners can be saved, loader options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynprune_cuda.data.samplers import EpochBatchSampler
from dynprune_cuda.pruner import Pruner

# What a DataLoader with the pruner's sampler takes over from the one that a framework made.
LOADER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "worker_init_fn",
    "multiprocessing_context",
    "timeout",
    "in_order",
)


class BatchCounter:
    """Follows a pruner through its epochs, and counts the batches of the current one.

    Attributes:
        pruner: The pruner.
        count: Batches of the pruner's current epoch that this process trained on. A framework that
            counts them itself sets it.
    """

    def __init__(self, pruner: Pruner) -> None:
        """Begins at the first batch.

        Raises:
            TypeError: `pruner` is no pruner.
            ValueError: The pruner has sharding="shard" and several processes.
        """
        if not isinstance(pruner, Pruner):
            raise TypeError(f"pruner must be a Pruner, got {type(pruner).__name__}")
        check_saved_by_all(pruner)
        self.pruner = pruner
        self.count = 0

    def begin(self, epoch: int) -> None:
        """Begins an epoch of the pruner, from its first batch if it is a new one."""
        if epoch != self.pruner.epoch:
            self.count = 0
        self.pruner.set_epoch(epoch)

    def add(self) -> None:
        """Counts one batch."""
        self.count += 1

    def state_dict(self, sampler: EpochBatchSampler) -> dict[str, Any]:
        """Returns the pruner's state, and how many ids of the epoch were trained on.

        Args:
            sampler: Gives the batches.
        """
        return {"pruner": self.pruner.state_dict(), "ids": sampler.ids_after(self.count)}

    def load_state_dict(self, state_dict: Mapping[str, Any], sampler: EpochBatchSampler) -> None:
        """Continues where `state_dict` was: restores the pruner, the count and the sampler.

        Args:
            state_dict: From `state_dict`; further entries are ignored.
            sampler: Gives the batches; its next iterator continues behind the counted ones.
        """
        self.pruner.load_state_dict(state_dict["pruner"])
        self.count = sampler.batches_before(state_dict["ids"])
        sampler.load_state_dict({"epoch": self.pruner.epoch, "ids": state_dict["ids"]})


def check_saved_by_all(pruner: Pruner) -> None:
    """Checks that one process can save the pruner: frameworks save what one process holds.

    Raises:
        ValueError: The pruner has sharding="shard" and several processes.
    """
    if pruner.sharding == "shard" and pruner.ranks.size > 1:
        raise ValueError(
            "sharding must be 'replicate' here, got a pruner with sharding='shard' and "
            f"{pruner.ranks.size} processes: the framework's checkpoints keep what one process "
            "holds"
        )
