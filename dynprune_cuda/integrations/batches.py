# SPDX-License-Identifier: Apache-2.0
"""What all integrations need: how far an epoch got, and which pruners a framework can save."""

from __future__ import annotations

from dynprune_cuda.pruner import Pruner


class BatchCounter:
    """Follows a pruner through its epochs, and counts the batches of the current one.

    Attributes:
        pruner: The pruner.
        count: Batches of the pruner's current epoch that this process trained on.
    """

    def __init__(self, pruner: Pruner) -> None:
        """Begins at the first batch.

        Raises:
            ValueError: The pruner has sharding="shard" and several processes.
        """
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

    def ids(self, batch_size: int, drop_last: bool) -> int:
        """Returns how many ids of the epoch the batches had."""
        return min(self.count * batch_size, self.pruner.share_length(drop_last))


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
