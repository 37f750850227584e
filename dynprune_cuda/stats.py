# SPDX-License-Identifier: Apache-2.0
"""Numbers about a run, which stay on the device until one is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import as_int

__all__ = ["Stats"]

QUANTILES = (5, 25, 50, 75, 95)  # percentiles of the scores
# Numbers on the device that are floats; all others are counts.
FLOATS = ("score_", "share_", "turnover", "visits_gini")


class ScalarWriter(Protocol):
    """What `Stats.log` needs: `torch.utils.tensorboard.SummaryWriter` has it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> Any:
        """Logs one number."""
        ...


class Stats(Mapping[str, Any]):
    """A read-only mapping from names to numbers, of the moment when it was made.

    Making it queues work on the device and waits for nothing. The first number that is read fetches
    all of them in one copy, and waits. `dict(stats)` makes a plain dict of Python numbers.

    Attributes:
        tensors: What is on the device, by name, each 0-d float64; reading these never waits.
    """

    def __init__(
        self, known: dict[str, Any], tensors: dict[str, Tensor], check: Callable[[], None]
    ) -> None:
        """Holds what the host knows, what the device knows, and what to call before a fetch.

        Args:
            known: Numbers and strings of the host, by name.
            tensors: 0-d tensors of one device, by name.
            check: Is called before the tensors are fetched; may raise.
        """
        self.tensors = {name: tensor.detach().double() for name, tensor in tensors.items()}
        self._known = known
        self._check = check
        self._numbers: dict[str, Any] | None = None

    def merged(self, known: dict[str, Any], tensors: dict[str, Tensor]) -> Stats:
        """Returns these statistics and further ones.

        Args:
            known: Further numbers and strings of the host, by name.
            tensors: Further 0-d tensors, by name.
        """
        return Stats({**known, **self._known}, {**tensors, **self.tensors}, self._check)

    def __getitem__(self, name: str) -> Any:
        """Returns a Python number or string. May wait, and raise earlier errors of the device."""
        if name in self._known:
            return self._known[name]
        if name not in self.tensors:
            raise KeyError(name)
        if self._numbers is None:
            self._check()
            values = torch.stack(list(self.tensors.values())).tolist()
            self._numbers = dict(zip(self.tensors, values, strict=True))
        value = self._numbers[name]
        whole = not name.startswith(FLOATS)
        return int(value) if whole and math.isfinite(value) else value

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter({**self._known, **self.tensors})

    def __len__(self) -> int:
        """Returns how many names there are."""
        return len(self._known) + len(self.tensors)

    def scalars(self, prefix: str = "pruner/") -> dict[str, float]:
        """Returns every finite number but the epoch, for a logger that takes a dict. Waits.

        Args:
            prefix: What the names begin with.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, got {prefix!r}")
        return {
            prefix + name: value
            for name, value in self.items()
            if not isinstance(value, str) and name != "epoch" and math.isfinite(value)
        }

    def log(self, writer: ScalarWriter, step: int | None = None, prefix: str = "pruner/") -> None:
        """Writes every finite number to TensorBoard, or to anything with `add_scalar`. Waits.

        Args:
            writer: For example a `torch.utils.tensorboard.SummaryWriter`.
            step: Position on the axis; None is the epoch.
            prefix: What the names of the curves begin with.
        """
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must have a method add_scalar, got {writer!r}")
        step = self.get("epoch") if step is None else as_int("step", step)
        for name, value in self.scalars(prefix).items():
            writer.add_scalar(name, value, step)

    def __repr__(self) -> str:
        """Shows the numbers. May wait."""
        return f"Stats({dict(self)!r})"


def gini(counts: Tensor) -> Tensor:
    """Returns the Gini coefficient of counts, without waiting for the device.

    It is the mean difference of two counts, divided by twice the mean. It is 0 if all are equal,
    and `1 - 1 / n` if one of `n` has everything.

    Args:
        counts: Integers, 0 or more [n].

    Returns:
        0-d float64; NaN if all counts are 0.
    """
    size = len(counts)
    ordered = counts.sort().values.double()
    weights = torch.arange(1 - size, size, 2, dtype=torch.float64, device=counts.device)
    return (ordered * weights).sum() / (size * ordered.sum())


def share(chosen: Tensor, among: Tensor) -> Tensor:
    """Returns which share of `among` is in `chosen`, without waiting for the device.

    Args:
        chosen: bool [n], a part of `among`.
        among: bool [n].

    Returns:
        0-d float64; NaN if `among` is empty.
    """
    return chosen.sum().double() / among.sum()


def score_summary(mean: Tensor, visited: Tensor) -> dict[str, Tensor]:
    """Returns minimum, maximum, mean and percentiles of the visited samples' means.

    Args:
        mean: float32 [num_samples]; NaN where a sample was not visited.
        visited: bool [num_samples].

    Returns:
        0-d float64 tensors, NaN if no sample was visited. The percentiles interpolate linearly
        between neighbours, as NumPy's do; there is no limit of 2^24 samples as in `torch.quantile`.
    """
    number = visited.sum()
    ordered = torch.where(visited, mean, float("nan")).sort().values  # NaN comes last
    last = (number - 1).clamp(min=0)
    summary = {
        "score_mean": torch.where(visited, mean, 0.0).sum(dtype=torch.float64) / number,
        "score_min": ordered[0],
        "score_max": ordered.take(last),
    }
    for percent in QUANTILES:
        position = last.double() * (percent / 100)
        below = ordered.take(position.floor().long()).double()
        above = ordered.take(position.ceil().long()).double()
        part = position - position.floor()
        summary[f"score_p{percent:02}"] = below * (1 - part) + above * part
    return summary
