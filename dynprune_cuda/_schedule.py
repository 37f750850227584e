# SPDX-License-Identifier: Apache-2.0
"""What an epoch trains on, how much of it, and with which seeds: pure functions of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dynprune_cuda._arguments import as_int

_MASK = 2**64 - 1


@dataclass(frozen=True)
class Schedule:
    """When a run selects; `num_kept` samples in pruned epochs, all `num_samples` in the others.

    Epochs before `warmup_epochs` are warm-up, the last `anneal_epochs` of `epochs` (and any after
    those) are annealing.
    """

    num_samples: int
    num_kept: int
    period: int
    warmup_epochs: int
    anneal_epochs: int
    epochs: int | None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        as_int("period", self.period, minimum=1)
        as_int("warmup_epochs", self.warmup_epochs, minimum=0)
        as_int("anneal_epochs", self.anneal_epochs, minimum=0)
        if self.epochs is None:
            if self.anneal_epochs:
                raise ValueError(
                    f"anneal_epochs={self.anneal_epochs} needs epochs=, the length of the run, "
                    "to know which epochs are the last"
                )
        elif self.anneal_epochs > as_int("epochs", self.epochs, minimum=1):
            raise ValueError(
                f"anneal_epochs must be at most epochs={self.epochs}, got {self.anneal_epochs}"
            )

    def phase(self, epoch: int) -> str:
        """Returns "warm-up", "pruned" or "annealing"."""
        if epoch < self.warmup_epochs:
            return "warm-up"
        if self.epochs is not None and self.anneal_epochs:
            return "annealing" if epoch >= self.epochs - self.anneal_epochs else "pruned"
        return "pruned"

    def count(self, epoch: int) -> int:
        """Returns how many samples the epoch trains on."""
        return self.num_kept if self.phase(epoch) == "pruned" else self.num_samples

    def period_start(self, epoch: int) -> int:
        """Returns the epoch whose selection serves the pruned epoch `epoch`."""
        return epoch - (epoch - self.warmup_epochs) % self.period


def resolve_keep(keep: Any, num_samples: int) -> int:
    """Returns how many of `num_samples` samples `keep`, a fraction or a count, selects."""
    if isinstance(keep, bool) or not (hasattr(keep, "__float__") or hasattr(keep, "__index__")):
        raise TypeError(
            f"keep must be a float (fraction) or an int (count), got {keep!r} of type "
            f"{type(keep).__name__}"
        )
    if hasattr(keep, "__index__"):
        count = as_int("keep", keep)
        if not 1 <= count <= num_samples:
            raise ValueError(
                f"keep as a count must be from 1 to num_samples={num_samples}, got {count}"
            )
        return count
    fraction = float(keep)
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"keep as a fraction must be in (0, 1], got {keep!r}")
    return max(1, math.floor(fraction * num_samples + 0.5))


def derive_seed(seed: int, *path: int | str) -> int:
    """Derives the seed of one purpose from the seed of the run.

    A chain of splitmix64 finalisers, one per word of `path`. For a given path it is one-to-one in
    `seed` modulo 2**64: no two runs share a stream, and no bit of the seed is lost.

    Args:
        seed: The seed of the run.
        *path: What the seed is for, for example "order" and the epoch.

    Returns:
        An int in [0, 2**64), the same on every machine and in every process.
    """
    state = _mix(seed & _MASK)
    for part in path:
        for word in _words(part):
            state = _mix(state ^ word)
    return state


def _words(part: int | str) -> list[int]:
    """Returns a path element as 64-bit words, led by its kind and length."""
    if isinstance(part, str):
        data = part.encode()
        words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
        return [2 * len(data) + 1, *words]
    return [0, part & _MASK]


def _mix(value: int) -> int:
    """Advances splitmix64 by one step (https://prng.di.unimi.it/splitmix64.c)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
