# SPDX-License-Identifier: Apache-2.0
"""When a run selects, and how many samples and batches each epoch has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dynprune_cuda._checks.arguments import MAX_INT64, as_bool, as_int
from dynprune_cuda._schedule.keep import resolve_keep

GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Schedule:
    """When a run selects, and how many samples each epoch trains on.

    Epochs before `warmup_epochs` are warm-up, the last `anneal_epochs` of `epochs` (and any after
    those) are annealing; both train on all `num_samples`. The epochs between are pruned.

    Attributes:
        num_samples: Size of the training set.
        keep: How much a pruned epoch trains on. It is a count, or one count per epoch, of which the
            last one goes on. Or it is a function from the epoch to a fraction or a count. None: the
            policy decides at each selection.
        period: Epochs between selections.
        warmup_epochs: First epochs on full data.
        anneal_epochs: Last epochs on full data.
        epochs: Length of the run, None if it is open.
        first_epoch: Where the warm-up begins; above 0 if the run began later, without scores.
    """

    num_samples: int
    keep: int | tuple[int, ...] | Callable[[int], float] | None
    period: int
    warmup_epochs: int
    anneal_epochs: int
    epochs: int | None
    first_epoch: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, least in (("period", 1), ("warmup_epochs", 0), ("anneal_epochs", 0)):
            number = as_int(name, getattr(self, name), minimum=least)
            object.__setattr__(self, name, number)  # an int of NumPy becomes Python's
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
        if isinstance(self.keep, tuple) and self.epochs not in (None, len(self.keep)):
            raise ValueError(
                f"keep must have one entry per epoch, {self.epochs}, got {len(self.keep)}"
            )

    def beginning_at(self, first_epoch: int) -> Schedule:
        """Returns the schedule of a run whose warm-up begins at `first_epoch`."""
        if first_epoch == self.first_epoch:
            return self
        return replace(self, first_epoch=first_epoch)

    @property
    def warm_until(self) -> int:
        """The first epoch after the warm-up; those before it train on everything."""
        return self.first_epoch + self.warmup_epochs

    def phase(self, epoch: int) -> str:
        """Returns "warm-up", "pruned" or "annealing"."""
        if epoch < self.warm_until:
            return "warm-up"
        if self.epochs is not None and self.anneal_epochs:
            return "annealing" if epoch >= self.epochs - self.anneal_epochs else "pruned"
        return "pruned"

    def period_start(self, epoch: int) -> int:
        """Returns the epoch whose selection serves the pruned epoch `epoch`."""
        return epoch - (epoch - self.warm_until) % self.period

    def kept(self, start: int) -> int | None:
        """Returns how many samples the selection of epoch `start` keeps; None: not known before."""
        if self.keep is None or isinstance(self.keep, int):
            return self.keep
        if isinstance(self.keep, tuple):
            return self.keep[min(start, len(self.keep) - 1)]
        return resolve_keep(self.keep(start), self.num_samples, f"keep({start})")

    def starting_point(self, start: int) -> float:
        """Returns where the draw of a coordinated policy starts, see `Ranking.by_weight`.

        For a sequence, it is 63/64 of the sum of k / N over the selections before, without whole
        ones. With all of it, a keep of 0.3 would come back to the same ten points for ever. Then a
        sample whose chance is 0.37 would be drawn three or four times in ten selections for ever.

        A constant k has the same points in another order. About N / k selections make a pass: every
        second of its points comes first, then those between. Uniform draws still take nearly every
        sample once in a pass. Draws from a half of the samples take about twice as much of the
        circle each, so that draws from neighbouring points would share samples.

        A function is not called for earlier epochs: its starting points are multiples of the golden
        ratio, which lie apart from those before.

        Args:
            start: First epoch of a period.
        """
        periods = (start - self.warm_until) // self.period
        if self.keep is None or callable(self.keep):
            return periods * GOLDEN_RATIO % 1.0
        if isinstance(self.keep, int):
            number = max(1, round(self.num_samples / self.keep)) if self.keep else 1  # of a pass
            before, place = divmod(periods, number)
            second = 2 * place
            if second >= number:
                second = 2 * (place - (number + 1) // 2) + 1
            total = (before * number + second) * self.keep
        else:
            earlier = range(self.warm_until, start, self.period)
            total = sum(self.kept(epoch) or 0 for epoch in earlier)
        return total * 63 % (64 * self.num_samples) / (64 * self.num_samples)

    def spans(self, epochs: int, *, by_period: bool = False) -> Iterator[tuple[int, int]]:
        """Yields runs of epochs that train on as many samples: the first epoch, and how many.

        Args:
            epochs: Where the last run ends.
            by_period: Whether a run must not be longer than a selection serves.
        """
        last = epochs  # first epoch of the annealing
        if self.epochs is not None and self.anneal_epochs:
            last = min(epochs, self.epochs - self.anneal_epochs)
        first = min(self.warm_until, epochs)
        if first:
            yield 0, first
        constant = None if by_period else self._constant_from()
        while first < last:
            serves = last
            if constant is None or first < constant:
                serves = min(first + self.period, last)
            yield first, serves - first
            first = serves
        if first < epochs:
            yield first, epochs - first

    def _constant_from(self) -> int | None:
        """Returns the epoch from which all selections keep as many samples; None: not known."""
        if isinstance(self.keep, int):
            return 0
        return len(self.keep) - 1 if isinstance(self.keep, tuple) else None

    def counts(self) -> set[int] | None:
        """Returns how many samples epochs of the run train on; None if it is not known before."""
        pruned_until = None if self.epochs is None else self.epochs - self.anneal_epochs
        found = set()
        if self.warm_until or (self.epochs is not None and self.anneal_epochs):
            found.add(self.num_samples)
        if pruned_until is None or self.warm_until < pruned_until:
            if not isinstance(self.keep, int | tuple):
                return None
            last = -1 if isinstance(self.keep, int) else len(self.keep) - 1
            kept = (self.keep,) if isinstance(self.keep, int) else self.keep
            found.update(kept if last < 0 else kept[min(self.warm_until, last) : pruned_until])
        return found

    def known_counts(self) -> tuple[int, ...]:
        """Returns what selections may keep, as far as it is known without calling a function."""
        if isinstance(self.keep, int):
            return (self.keep,)
        return self.keep if isinstance(self.keep, tuple) else ()


def num_batches(num_ids: int, batch_size: int, drop_last: bool) -> int:
    """Returns how many batches `num_ids` make."""
    return num_ids // batch_size if as_bool("drop_last", drop_last) else -(-num_ids // batch_size)


def same_steps(
    total_steps: int,
    num_samples: int,
    batch_size: int,
    *,
    epochs: int | None = None,
    drop_last: bool = False,
) -> list[int]:
    """Plans a baseline that takes exactly as many steps as another run: the fair comparison.

    The result goes into `Pruner(keep=...)` with `period=1, warmup_epochs=0` and
    `policy="uniform"`:

        steps = pruner.total_steps(epochs, batch_size)
        keep = same_steps(steps, num_samples, batch_size)             # full data, fewer epochs
        keep = same_steps(steps, num_samples, batch_size, epochs=90)  # random subsets, 90 epochs
        baseline = Pruner(num_samples, keep, "uniform", period=1, warmup_epochs=0)

    Args:
        total_steps: Optimiser steps of the run to compare with, at least 1.
        num_samples: Size of the training set.
        batch_size: Samples per batch; with several processes, of all their batches together.
        epochs: Epochs over which to spread the steps evenly (the first ones get one more step if
            they do not divide). None: as many epochs of full data as fit, and a last one of the
            rest.
        drop_last: Whether the loader leaves out a smaller last batch.

    Returns:
        One count of samples per epoch.

    Raises:
        TypeError: An argument is no int.
        ValueError: An argument is out of range, or the steps do not fit.
    """
    total_steps = as_int("total_steps", total_steps, minimum=1, maximum=MAX_INT64)
    num_samples = as_int("num_samples", num_samples, minimum=1)
    batch_size = as_int("batch_size", batch_size, minimum=1)
    full = num_batches(num_samples, batch_size, drop_last)
    if full == 0:
        raise ValueError(
            f"batch_size must be at most num_samples={num_samples} with drop_last, got {batch_size}"
        )
    if epochs is None:
        whole, rest = divmod(total_steps, full)
        steps = [full] * whole + [rest] * (rest > 0)
    else:
        epochs = as_int("epochs", epochs, minimum=1)
        if not epochs <= total_steps <= epochs * full:
            raise ValueError(
                f"total_steps must be from {epochs} to {epochs * full} for epochs={epochs} of at "
                f"most {full} steps, got {total_steps}"
            )
        each, more = divmod(total_steps, epochs)
        steps = [each + 1] * more + [each] * (epochs - more)
    return [num_samples if number == full else number * batch_size for number in steps]
