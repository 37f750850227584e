# SPDX-License-Identifier: Apache-2.0
"""Functions of the epoch for `Pruner(keep=...)`: how much of the data each epoch trains on.

`SelectionWindow` is for `BatchSelector`: it says which steps choose rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dynprune_cuda._checks.arguments import as_choice, as_float, as_int

__all__ = ["Ramp", "SelectionWindow", "Wave", "growing", "oscillating", "shrinking"]

CURVES = ("linear", "cosine")


@dataclass(frozen=True)
class Ramp:
    """A fraction that goes from `start` to `end` over some epochs, and stays there.

    It can be pickled and compared. Its `repr` is the same in every process.

    Attributes:
        start: The fraction of epoch `first_epoch` and of all before it, in (0, 1].
        end: The fraction of epoch `first_epoch + epochs - 1` and of all after it, in (0, 1].
        epochs: Number of epochs from `start` to `end`, both included, at least 2.
        curve: "linear", or "cosine", half a period: slow, fast, slow.
        first_epoch: The epoch of `start`, at least 0.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    start: float
    end: float
    epochs: int
    curve: str = "linear"
    first_epoch: int = 0

    def __post_init__(self) -> None:
        """Checks the attributes."""
        for name in ("start", "end"):
            object.__setattr__(self, name, _fraction(name, getattr(self, name)))
        object.__setattr__(self, "epochs", as_int("epochs", self.epochs, minimum=2))
        as_choice("curve", self.curve, CURVES)
        first_epoch = as_int("first_epoch", self.first_epoch, minimum=0)
        object.__setattr__(self, "first_epoch", first_epoch)

    def __call__(self, epoch: int) -> float:
        """Returns the fraction of `epoch`, a float in (0, 1]."""
        passed = min(max(epoch - self.first_epoch, 0), self.epochs - 1)
        return _between(self.start, self.end, passed / (self.epochs - 1), self.curve)


@dataclass(frozen=True)
class SelectionWindow:
    """Says which steps choose rows by a `BatchSelector`; the others train on the whole batch.

        window = SelectionWindow(start=0.5, end=0.9, interrupt=2)
        if window(epoch / epochs, step):
            rows, _ = selector(...)

    The schedule is that of Composer's selective backpropagation
    (https://docs.mosaicml.com/projects/composer), with its defaults. A rule that always chooses is
    `SelectionWindow(0.0, 1.0, 0)`.

    Attributes:
        start: Share of the run at which choosing begins, in [0, 1].
        end: Share of the run at which it ends, from `start` to 1; itself outside.
        interrupt: In between, each `interrupt`-th step of an epoch trains on the whole batch; 0: no
            step does.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    start: float = 0.5
    end: float = 0.9
    interrupt: int = 2

    def __post_init__(self) -> None:
        """Checks the attributes."""
        object.__setattr__(self, "start", as_float("start", self.start, low=0.0, high=1.0))
        object.__setattr__(self, "end", as_float("end", self.end, low=self.start, high=1.0))
        object.__setattr__(self, "interrupt", as_int("interrupt", self.interrupt, minimum=0))

    def __call__(self, progress: float, step: int) -> bool:
        """Returns whether a step chooses rows.

        Args:
            progress: The share of the run that is over, in [0, 1].
            step: The step in the epoch, from 0.

        Raises:
            TypeError: An argument is no number.
            ValueError: An argument is out of range.
        """
        progress = as_float("progress", progress, low=0.0, high=1.0)
        step = as_int("step", step, minimum=0)
        if not self.start <= progress < self.end:
            return False
        return self.interrupt == 0 or (step + 1) % self.interrupt != 0


@dataclass(frozen=True)
class Wave:
    """A fraction that falls from `high` to `low` and rises again, once per cycle.

    It can be pickled and compared. Its `repr` is the same in every process.

    Attributes:
        low: The least fraction, in (0, 1]; an odd cycle does not reach it.
        high: The greatest fraction, from `low` to 1: of epoch `first_epoch` and all before it.
        cycle: Number of epochs from one `high` to the next, at least 2.
        curve: "linear", a triangle, or "cosine".
        first_epoch: Where the first cycle begins, at least 0.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    low: float
    high: float
    cycle: int
    curve: str = "linear"
    first_epoch: int = 0

    def __post_init__(self) -> None:
        """Checks the attributes."""
        for name in ("low", "high"):
            object.__setattr__(self, name, _fraction(name, getattr(self, name)))
        if self.low > self.high:
            raise ValueError(f"low must be at most high={self.high}, got {self.low}")
        object.__setattr__(self, "cycle", as_int("cycle", self.cycle, minimum=2))
        as_choice("curve", self.curve, CURVES)
        first_epoch = as_int("first_epoch", self.first_epoch, minimum=0)
        object.__setattr__(self, "first_epoch", first_epoch)

    def __call__(self, epoch: int) -> float:
        """Returns the fraction of `epoch`, a float in (0, 1]."""
        place = max(epoch - self.first_epoch, 0) % self.cycle
        distance = min(place, self.cycle - place)  # epochs to the nearest end of a cycle
        return _between(self.high, self.low, 2 * distance / self.cycle, self.curve)


def growing(
    start: float, end: float, epochs: int, *, curve: str = "linear", first_epoch: int = 0
) -> Ramp:
    """Returns a `keep` that grows from `start` to `end` over `epochs` epochs, and stays there.

        Pruner(n, keep=growing(0.3, 1.0, epochs=20, first_epoch=1), period=1)

    A pruner reads it for the epochs of its selections only: with `period=1` it follows every step.
    Epochs count from the beginning of the run, warm-up included.

    Args:
        start: Fraction of the data at the beginning, in (0, 1].
        end: Fraction at the end, from `start` to 1.
        epochs: Number of epochs from `start` to `end`, both included, at least 2.
        curve: "linear", or "cosine", half a period: slow, fast, slow.
        first_epoch: The epoch of `start`; those before it have `start`, too.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """
    ramp = Ramp(start, end, epochs, curve, first_epoch)
    if ramp.start > ramp.end:
        raise ValueError(
            f"end must be at least start={ramp.start}, got {ramp.end}; use shrinking instead"
        )
    return ramp


def shrinking(
    start: float, end: float, epochs: int, *, curve: str = "linear", first_epoch: int = 0
) -> Ramp:
    """Returns a `keep` that shrinks from `start` to `end` over `epochs` epochs, and stays there.

    Args:
        start: Fraction of the data at the beginning, in (0, 1].
        end: Fraction at the end, above 0, at most `start`.
        epochs: As in `growing`.
        curve: As in `growing`.
        first_epoch: As in `growing`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """
    ramp = Ramp(start, end, epochs, curve, first_epoch)
    if ramp.start < ramp.end:
        raise ValueError(
            f"end must be at most start={ramp.start}, got {ramp.end}; use growing instead"
        )
    return ramp


def oscillating(
    low: float, high: float, cycle: int, *, curve: str = "linear", first_epoch: int = 0
) -> Wave:
    """Returns a `keep` that falls from `high` to `low` and rises again, every `cycle` epochs.

    Args:
        low: Least fraction of the data, in (0, 1]; an odd cycle does not reach it.
        high: Greatest fraction, from `low` to 1; every cycle begins with it.
        cycle: Number of epochs of a cycle, at least 2.
        curve: "linear", a triangle, or "cosine".
        first_epoch: Where the first cycle begins; epochs before it have `high`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """
    return Wave(low, high, cycle, curve, first_epoch)


def _fraction(name: str, value: Any) -> float:
    return as_float(name, value, low=0.0, high=1.0, above_low=True)


def _between(start: float, end: float, progress: float, curve: str) -> float:
    """Returns `start` at progress 0, exactly, and `end` at 1; nothing outside of the two."""
    if curve == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    if progress == 1:
        return end
    value = start + progress * (end - start)  # monotonic, also when it is rounded
    return min(max(value, min(start, end)), max(start, end))
