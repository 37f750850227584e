# SPDX-License-Identifier: Apache-2.0
"""Forecasts the time of a sweep from a short measurement and from finished runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common.records import Run
from benchmarks.sweep.config import Cell, SweepConfig
from benchmarks.training.methods import METHODS
from benchmarks.training.plans import planned_samples
from benchmarks.training.source import Source, new_model
from dynprune_cuda import Pruner
from dynprune_cuda.static_scores.measures import gradient_norms

__all__ = ["Forecast", "Speed", "describe_speed", "hours", "measure_speed"]


@dataclass(frozen=True)
class Speed:
    """Seconds per image."""

    training: float
    evaluation: float
    gradient_norm: float


# Without a measurement only the proportions matter: those of a small network on a CPU.
USUAL = Speed(1.0, 0.35, 6.0)


# Kinds of scores that share the same models.
SHARED = ("el2n", "grand", "grand_last")


class Forecast:
    """Forecasts the seconds of cells, from a measured speed and from observed runs.

    Without a measured `speed` there is no forecast before the first observed run.
    """

    def __init__(
        self, config: SweepConfig, num_train: int, num_test: int, speed: Speed | None = None
    ):
        self.config, self.num_train, self.num_test = config, num_train, num_test
        self.speed, self._measured = speed or USUAL, speed is not None
        self._seconds = self._work = 0.0
        self._scored: set[tuple[str, int]] = set()
        self._trained: set[int] = set()  # seeds whose models for scores are trained

    def observe(self, run: Run) -> None:
        """Records the time of a run, of this or an earlier process, with its static scores.

        Each run includes the cost of its scores and their models. Those that several runs share
        were computed once, so they count once here.
        """
        cell, kind = Cell(run.method, run.keep, run.seed), METHODS[run.method].scores
        self._seconds += run.train_seconds + run.part("evaluation")
        if kind and run.static and (kind, run.seed) not in self._scored:
            self._seconds += run.static_seconds
            if kind in SHARED and run.seed in self._trained:
                self._seconds -= run.static["training_seconds"]
        self._work += self._cell(cell, self._scored, self._trained)

    def seconds(
        self, cells: Iterable[Cell], computed: Iterable[tuple[str, int]] = ()
    ) -> float | None:
        """Seconds of these runs, one after the other; None without a measurement or a run.

        Args:
            cells: The runs.
            computed: Kind and seed of the scores that exist already.
        """
        if not (self._work or self._measured):
            return None
        scored = self._scored.union(computed)
        trained = self._trained | {seed for kind, seed in scored if kind in SHARED}
        work = sum(self._cell(cell, scored, trained) for cell in cells)
        return work * (self._seconds / self._work if self._work else 1.0)

    def _cell(self, cell: Cell, scored: set[tuple[str, int]], trained: set[int]) -> float:
        config, speed = self.config, self.speed
        method, epochs = METHODS[cell.method], config.training.epochs
        samples = planned_samples(self.num_train, epochs, config.pruning, cell.keep)
        if cell.method.startswith("infobatch"):
            samples = int(0.75 * samples)
        looked_at = config.training.evaluations * self.num_test
        work = samples * speed.training + looked_at * speed.evaluation
        if method.scores and (method.scores, cell.seed) not in scored:
            scored.add((method.scores, cell.seed))
            work += self._scores(method.scores, cell.seed, trained)
        return work

    def _scores(self, kind: str, seed: int, trained: set[int]) -> float:
        how, speed = self.config.static, self.speed
        if kind == "random":
            return 0.0
        if kind == "forgetting":
            number = how.forgetting_models * how.forgetting_epochs * self.num_train
            return number * speed.training
        each = speed.gradient_norm if kind == "grand" else speed.evaluation
        work = how.models * self.num_train * each
        if seed not in trained:
            trained.add(seed)
            work += how.models * how.epochs * self.num_train * speed.training
        return work


def measure_speed(source: Source, config: SweepConfig, seconds: float = 4.0) -> Speed:
    """Measures each rate for some seconds, on the data of the sweep."""
    settings = source.settings
    model = new_model(source.task, settings)
    forward = torch.compile(model) if settings.compile else model
    pruner = Pruner(source.num_samples, policy="full", device=settings.device)

    def train(batch: Any) -> int:
        images, labels, _ = batch
        with settings.autocast():
            logits = forward(images)
        F.cross_entropy(logits, labels).backward()
        return len(labels)

    @torch.inference_mode()
    def evaluate(batch: Any) -> int:
        with settings.autocast():
            model(batch[0])
        return len(batch[0])

    def norms(batch: Any) -> int:
        images, labels, _ = batch
        gradient_norms(model, images, labels, config.static.chunk_size or None)
        return len(labels)

    training = _per_image(train, lambda: source.train_loader(pruner), seconds, settings.device)
    model.eval()
    return Speed(
        training,
        _per_image(evaluate, source.test_batches, seconds, settings.device),
        _per_image(norms, source.scoring_loader, seconds, settings.device),
    )


def _per_image(work: Any, loader: Any, seconds: float, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    images, batches, start = 0, 0, float("inf")
    while True:
        for batch in loader():
            images += work(batch)
            batches += 1
            if batches == 2:  # the first batches start threads and allocate memory
                wait()
                images, start = 0, time.perf_counter()
            elif batches % 8 == 0 or device.type != "cuda":
                wait()
                if images and time.perf_counter() - start > seconds:
                    return (time.perf_counter() - start) / images


def describe_speed(config: SweepConfig, source: Source, speed: Speed) -> str:
    """The measured rates, and the forecast for the sweep."""
    forecast = Forecast(config, source.num_samples, len(source.task.test), speed)
    cells = config.cells()
    total = forecast.seconds(cells)
    one_seed = forecast.seconds(cell for cell in cells if cell.seed == cells[0].seed)
    assert total is not None and one_seed is not None
    return (
        f"images a second: {1 / speed.training:,.0f} in training, "
        f"{1 / speed.evaluation:,.0f} in evaluation, "
        f"{1 / speed.gradient_norm:,.0f} of exact gradient norms\n"
        f"about {hours(total)} for {len(cells)} runs, {hours(one_seed)} for the first seed"
    )


def hours(seconds: float) -> str:
    """A time in hours and minutes, or in minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
