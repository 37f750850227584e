# SPDX-License-Identifier: Apache-2.0
"""Train on everything."""

from __future__ import annotations

from dataclasses import dataclass

from dynprune_cuda.functional.ranking import Uniform
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class Full(Policy):
    """Every sample, always: training without pruning."""

    static = True
    default_period = 10  # as in saved states of version 0.1.0; only one selection is made

    def fixed_count(self, num_samples: int) -> int:
        """Returns `num_samples`."""
        return num_samples

    def ranking(self, table: ScoreTable) -> Uniform:
        """Returns the uniform rule, which selects all of as many samples."""
        return Uniform()
