# SPDX-License-Identifier: Apache-2.0
"""What a trainer that reads an epoch's length once gets wrong, found before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dynprune_cuda.data.samplers import EpochBatchSampler
from dynprune_cuda.pruner import Pruner

TOTALS = ("total_steps", "T_max", "T_0", "total_iters", "max_iters", "num_training_steps")


class EpochLengths:
    """Batches and optimiser steps of a run's epochs, as a trainer counts them.

    Attributes:
        batches: Batches of each epoch; None of one whose length is not known before it begins.
        updates: The optimiser's steps of each, likewise.
    """

    def __init__(
        self,
        sampler: EpochBatchSampler,
        epochs: int,
        most: int,
        *,
        accumulate: int = 1,
        limit: float = 1.0,
    ) -> None:
        """Counts the epochs of the sampler's pruner, from 0 on.

        Args:
            sampler: Gives the batches.
            epochs: Number of epochs at most; -1 for no limit.
            most: Steps of the optimiser at most, -1 for no limit. Without either limit, no epoch is
                counted.
            accumulate: Batches of a step of the optimiser.
            limit: Batches of an epoch at most: an int, or a float as a fraction.
        """
        assert isinstance(sampler.source, Pruner)
        self._epochs, self._most = epochs, math.inf if most == -1 else most
        self.batches: list[int | None] = []
        self.updates: list[int | None] = []
        end, done = epochs, 0
        if epochs == -1:
            end = max(most, 0)  # an epoch has one step at least
        for epoch in range(end):
            if done >= self._most:
                break
            try:
                length = sampler.source.steps_per_epoch(
                    sampler.batch_size, sampler.drop_last, epoch
                )
            except ValueError:
                self.batches.append(None)
                self.updates.append(None)
                continue
            number = min(length, int(length * limit) if isinstance(limit, float) else limit)
            self.batches.append(number)
            self.updates.append(-(-number // accumulate))
            done += -(-number // accumulate)

    def total_updates(self) -> int | None:
        """Returns the optimiser's steps of the run, None if they are not known before."""
        known = [number for number in self.updates if number is not None]
        if self._epochs == -1 or sum(known) >= self._most:
            return None if self._most == math.inf else int(self._most)
        return sum(known) if len(known) == len(self.updates) else None

    def shortest(self) -> tuple[int, int] | None:
        """Returns the epoch with the fewest batches, and how many it has; None if none is known."""
        known = [(number, epoch) for epoch, number in enumerate(self.batches) if number is not None]
        if not known:
            return None
        number, epoch = min(known)
        return epoch, number

    def wrong_totals(self) -> set[int]:
        """Returns what a trainer takes for all steps that multiplies the length of one epoch.

        A number that is right by chance is left out.
        """
        found = {min(number * self._epochs, self._most) for number in self.updates if number}
        return {int(number) for number in found - {self.total_updates(), self._most}}


def numbers_of(scheduler: Any) -> set[int]:
    """Returns what may be the number of steps that a learning-rate scheduler was made for.

    Those are its attributes of such names, those of the schedulers inside, and what its functions
    hold.
    """
    found = {value for name, value in vars(scheduler).items() if name in TOTALS}
    for inside in getattr(scheduler, "_schedulers", ()):
        found |= numbers_of(inside)
    for function in getattr(scheduler, "lr_lambdas", ()):
        found.update(value for value in _held_by(function) if type(value) is int)
    return found


def _held_by(function: Callable[..., Any]) -> Iterator[Any]:
    if isinstance(function, partial):
        yield from function.args
        yield from function.keywords.values()
        yield from _held_by(function.func)
    for cell in getattr(function, "__closure__", None) or ():
        yield cell.cell_contents
