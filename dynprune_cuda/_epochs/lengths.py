# SPDX-License-Identifier: Apache-2.0
"""How many steps the epochs of a run have, and who must be told that they differ."""

from __future__ import annotations

import sys
import warnings

from dynprune_cuda._checks.arguments import MAX_INT64
from dynprune_cuda._epochs.run import Run
from dynprune_cuda._schedule.schedule import num_batches

DISPLAYS = {"rich", "tqdm"}
# Packages that ask a loader for its length in each epoch, to show it or to follow it.
FOLLOWERS = DISPLAYS | {
    "accelerate",
    "dynprune_cuda",
    "ignite",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torch",
    "torchdata",
    "transformers",
}


class Lengths:
    """Numbers of steps; warns once of `len()` of a loader if the epochs differ in length."""

    def __init__(self, run: Run) -> None:
        """Counts the steps of `run`."""
        self._run = run
        self._known = False  # whether the program knows that epochs differ

    def follow(self, run: Run) -> None:
        """Counts the steps of `run` from now on, as after a resize."""
        self._run = run

    def steps(self, epoch: int, batch_size: int, drop_last: bool) -> int:
        """Returns how many batches an epoch has, of each process."""
        return num_batches(self._run.share_length(epoch, drop_last), batch_size, drop_last)

    def total(self, epochs: int, batch_size: int, drop_last: bool) -> int:
        """Returns how many batches the epochs 0 to `epochs - 1` have."""
        self._known = True
        spans = self._run.schedule.spans(epochs, by_period=self._by_period)
        return sum(length * self.steps(first, batch_size, drop_last) for first, length in spans)

    def locate(self, step: int, batch_size: int, drop_last: bool) -> tuple[int, int]:
        """Returns the epoch of a step, and how many steps of that epoch come before it.

        Raises:
            ValueError: The length of an epoch is not known yet, or an epoch has no step.
        """
        self._known = True
        left = step
        for first, length in self._run.schedule.spans(MAX_INT64, by_period=self._by_period):
            steps = self.steps(first, batch_size, drop_last)
            if steps == 0:
                raise ValueError(
                    f"batch_size must be at most the samples of epoch {first} with drop_last, got "
                    f"{batch_size}: the epoch has no step; use a smaller one, or drop_last=False"
                )
            if left < steps * length:
                return first + left // steps, left % steps
            left -= steps * length
        raise ValueError(f"step must lie in the first {MAX_INT64} epochs, got {step}")

    def asked(self, batch_size: int, drop_last: bool) -> None:
        """Notes that `len()` of a loader is read; warns once if it is not that of all epochs.

        Programs that show the length of each epoch, and those that know better, are left alone.
        """
        if self._known or not self._differ(batch_size, drop_last):
            return
        package, level = _asker()
        if package in FOLLOWERS:
            return
        warnings.warn(
            "len() of this loader counts the batches of the current epoch only, and epochs differ "
            "in length. Use pruner.total_steps(epochs, batch_size) for a learning-rate schedule. "
            "Use pruner.locate_step(step, batch_size) to find the epoch of a step. Calling either "
            "one stops this warning (docs/troubleshooting.md).",
            UserWarning,
            stacklevel=level,
        )
        self._known = True

    @property
    def _by_period(self) -> bool:
        # With surplus="local" two selections of as many samples need not be as many steps.
        return self._run.config.surplus == "local"

    def _differ(self, batch_size: int, drop_last: bool) -> bool:
        counts = self._run.schedule.counts()
        if counts is None:
            return True
        if self._by_period and self._run.ranks.size > 1:
            return counts != {self._run.config.num_samples}
        lengths = (self._run.ranks.share_length(count, drop_last) for count in counts)
        return len({num_batches(length, batch_size, drop_last) for length in lengths}) > 1


def _asker() -> tuple[str, int]:
    """Returns the package whose code calls `len()`, and its level for `warnings.warn`."""
    frame, level = sys._getframe(1), 1  # of `asked`, which warns
    while True:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        is_between = frame.f_code.co_name in ("asked", "batches_in", "__len__")
        if frame.f_back is None or package in DISPLAYS or not is_between:
            return package, level
        frame, level = frame.f_back, level + 1
