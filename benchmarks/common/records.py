# SPDX-License-Identifier: Apache-2.0
"""The record of a training run, as it is reported and as it is written to a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TRAINING_PARTS", "Epoch", "Evaluation", "Run", "group_by", "run_from_json"]

# The parts of training time. "loss" includes the scores of methods that have any, because one
# operator computes both.
TRAINING_PARTS = ("selection", "data", "loss", "step")


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run; all numbers are of this epoch alone."""

    samples: int
    train_loss: float  # mean over the samples of the epoch
    parts: dict[str, float]  # seconds of each of TRAINING_PARTS, and of "evaluation"

    @property
    def seconds(self) -> float:
        """Seconds of training, without evaluation."""
        return sum(self.parts.get(name, 0.0) for name in TRAINING_PARTS)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the test set."""

    samples: int  # trained on so far
    seconds: float  # of training so far, without static scoring and evaluation
    accuracy: float  # 0 to 1


@dataclass
class Run:
    """One training run from a fresh model."""

    method: str
    label: str
    seed: int
    keep: float | None = None
    epochs: list[Epoch] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    static: dict[str, Any] | None = None  # kind and cost of the scores of a static subset
    resumed: int = 0  # how often the run resumed from a checkpoint

    @property
    def accuracy(self) -> float:
        """Accuracy at the end. The best epoch would need a validation set to select it by."""
        return self.evaluations[-1].accuracy

    @property
    def samples(self) -> int:
        return sum(epoch.samples for epoch in self.epochs)

    @property
    def train_seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def static_seconds(self) -> float:
        """Seconds of the scoring that precedes the training."""
        return 0.0 if self.static is None else self.static["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of static scoring and training, without evaluation."""
        return self.static_seconds + self.train_seconds

    def part(self, name: str) -> float:
        """Seconds of one of TRAINING_PARTS, or of "evaluation"."""
        return sum(epoch.parts.get(name, 0.0) for epoch in self.epochs)

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds until the first evaluation that reached `accuracy`, None if none did."""
        for evaluation in self.evaluations:
            if evaluation.accuracy >= accuracy:
                return self.static_seconds + evaluation.seconds
        return None


def run_from_json(entry: Mapping[str, Any]) -> Run:
    """The run that `dataclasses.asdict` turned into this dict."""
    names = ("method", "label", "seed", "keep", "static", "resumed")
    return Run(
        **{name: entry[name] for name in names},
        epochs=[Epoch(**epoch) for epoch in entry["epochs"]],
        evaluations=[Evaluation(**evaluation) for evaluation in entry["evaluations"]],
    )


def group_by(runs: Iterable[Run], *names: str) -> dict[Any, list[Run]]:
    """Groups runs by one attribute, or by a tuple of several, in order of first appearance."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        key = tuple(getattr(run, name) for name in names)
        groups.setdefault(key[0] if len(names) == 1 else key, []).append(run)
    return groups
