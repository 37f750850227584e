# SPDX-License-Identifier: Apache-2.0
"""What a run tells a policy beside the scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class History:
    """Where a run is when it selects, and what it trained on before.

    Attributes:
        epoch: First epoch that the selection serves, from 0.
        epochs: Length of the run; None if it is open.
        warmup_epochs: First epochs, which train on everything.
        period: Epochs between selections.
        num_selections: How many selections there were before this one.
        times_selected: How many of these chose each sample, int32 [num_samples].
        length: How many samples the epoch that just ended trained on; 0 if none ended.
        places: Place of each sample in the order of that epoch, from 0, int64 [num_samples]; -1 if
            it did not train on the sample. The order is that of all processes together.
    """

    epoch: int
    epochs: int | None
    warmup_epochs: int
    period: int
    num_selections: int
    times_selected: Tensor
    length: int
    places: Tensor

    @property
    def turn(self) -> int:
        """Number of the selection in the schedule; each warm-up epoch counts as one."""
        return self.warmup_epochs + (self.epoch - self.warmup_epochs) // self.period

    def part(self, sample_ids: Tensor) -> History:
        """Returns the history of some samples only, without waiting.

        Args:
            sample_ids: Distinct sample ids, int64 [n], on the device of the columns.
        """
        return replace(
            self,
            times_selected=self.times_selected.index_select(0, sample_ids),
            places=self.places.index_select(0, sample_ids),
        )
