# SPDX-License-Identifier: Apache-2.0
"""IES: leave out what the model has mastered, by the second differences of its losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import as_float
from dynprune_cuda.policies.protocol import WeighingPolicy, memory_of, trusted
from dynprune_cuda.scores.table import ScoreTable

_LOSSES = tuple(f"loss_{age}" for age in range(5))  # the newest first


@trusted
@dataclass(frozen=True)
class IES(WeighingPolicy):
    """Everything but the samples whose loss no longer changes its course.

    The rule is that of Yuan et al. (Instance-dependent Early Stopping, ICLR 2025,
    https://arxiv.org/abs/2502.07547; released at https://github.com/tmllab/2025_ICLR_IES). A sample
    is left out of the next epoch if the mean of its last three `|l_t - 2 l_(t-1) + l_(t-2)|` is
    below `delta`. Losses are not rescaled. The abstract and the released code were read, not the
    whole paper.

    Samples that are left out return only if they are scored. The authors do it after each epoch:

        loader = DataLoader(indexed_set, batch_sampler=pruner.unselected_sampler(512))
        ...
        pruner.rescore(model, loader)  # at the end of an epoch

    As released, a `Pruner` with this policy selects before every epoch, by the newest loss
    (`alpha=1`). Each selection notes the newest loss of the samples with a new one. Samples with
    fewer than five losses, or whose newest value was not finite, stay. If all are mastered, all
    stay.

    Difference to the released code, which wants a sixth loss before it leaves a sample out.

    Attributes:
        delta: Threshold, above 0. The authors use 1e-3 for CIFAR-10, and 2e-3 for CIFAR-100.

    Raises:
        TypeError: `delta` is no number.
        ValueError: `delta` is not above 0.
    """

    delta: float = 1e-3

    uses_scores = True
    default_period = 1
    default_alpha = 1.0
    memory = MappingProxyType({**dict.fromkeys(_LOSSES, torch.float32), "visits": torch.int32})

    def __post_init__(self) -> None:
        """Checks the parameter."""
        object.__setattr__(self, "delta", as_float("delta", self.delta, low=0.0, above_low=True))

    def weigh(self, table: ScoreTable, *, seed: int) -> Tensor:
        """Returns 0 for samples that are left out, and 1 for others, without waiting.

        Returns:
            float32 [num_samples] on the table's device; the same on every device.

        Raises:
            ValueError: `table.memory` is None.
        """
        memory = self._noted(table)
        losses = [memory[name].double() for name in _LOSSES]
        bends = [(losses[age] - 2 * losses[age + 1] + losses[age + 2]).abs_() for age in range(3)]
        mastered = (bends[0] + bends[1] + bends[2]) / 3 < self.delta  # not where a loss is NaN
        stays = ~mastered | table.last_non_finite
        return (stays | ~stays.any()).float()

    def remember(self, table: ScoreTable, chosen: Tensor) -> Mapping[str, Tensor]:
        """Returns the losses with the newest among them, float32, and the visits, int32."""
        return self._noted(table)

    def _noted(self, table: ScoreTable) -> dict[str, Tensor]:
        """Returns the columns, in which the newest losses have moved the others on."""
        memory = memory_of(self, table)
        is_new = table.count != memory["visits"]
        newer = [table.mean, *(memory[name] for name in _LOSSES[:-1])]
        columns = {
            name: torch.where(is_new, value, memory[name])
            for name, value in zip(_LOSSES, newer, strict=True)
        }
        return {**columns, "visits": table.count.clone()}
