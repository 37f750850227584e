# SPDX-License-Identifier: Apache-2.0
"""Uniformly random subsets."""

from __future__ import annotations

from dataclasses import dataclass

from dynprune_cuda.functional.ranking import Uniform
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True)
class UniformRandom(Policy):
    """A new uniformly random subset at every selection: the baseline that is hard to beat."""

    def ranking(self, table: ScoreTable) -> Uniform:
        """Returns the uniform rule."""
        return Uniform()


@dataclass(frozen=True)
class RandomStatic(UniformRandom):
    """One uniformly random subset, drawn once and kept for the whole run."""

    static = True
    default_period = 10  # as in saved states of version 0.1.0; only one selection is made
