# SPDX-License-Identifier: Apache-2.0
"""The training loop of every comparison, with times by part, evaluations and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD

from benchmarks.common.records import TRAINING_PARTS, Epoch, Evaluation, Run, run_from_json
from benchmarks.common.result_files import replaced
from benchmarks.training.clock import Clock
from benchmarks.training.learning_rate import one_cycle
from benchmarks.training.plans import Plan
from benchmarks.training.source import Source, new_model

__all__ = ["Trainer", "evenly"]


class Trainer:
    """Trains one model by a plan; can stop after any epoch and resume in another process."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        run: Run,
        *,
        model: nn.Module | None = None,
        evaluate: bool = True,
    ) -> None:
        """Seeds torch's generator with the run's seed, which determines everything random."""
        self.source, self.settings, self.plan, self.run = source, source.settings, plan, run
        settings = self.settings
        torch.manual_seed(run.seed)
        self.model = new_model(source.task, settings) if model is None else model
        self.forward = torch.compile(self.model) if settings.compile else self.model
        self.optimizer = SGD(
            self.model.parameters(),
            settings.lr,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )
        self.loader = source.train_loader(plan.pruner)
        self.step = 0  # of the whole run
        total = plan.total_steps(settings.batch_size) if plan.total_steps else None
        self.total_steps = total
        # When it evaluates: after these steps, or after these epochs if the steps are not known.
        self._steps: set[int] = set()
        self._epochs: set[int] = set()
        count = settings.evaluations
        if evaluate and count and total:
            self._steps = evenly(count, total)
        elif evaluate:
            self._epochs = evenly(count or plan.epochs, plan.epochs)

    def train(
        self, *, epochs: int | None = None, after_epoch: Callable[[], None] = lambda: None
    ) -> Run:
        """Trains to the end of the plan, or of the first `epochs`; calls `after_epoch` after each.

        An exception of `after_epoch` stops the run in a state that can be saved.
        """
        last = self.plan.epochs if epochs is None else epochs
        while len(self.run.epochs) < last:
            self.train_epoch(len(self.run.epochs))
            after_epoch()
        return self.run

    def train_epoch(self, epoch: int) -> None:
        """Trains one epoch, and records its time by part and its evaluations."""
        settings, plan, clock = self.settings, self.plan, Clock(self.settings.device)
        seconds_before, samples_before = self.run.train_seconds, self.run.samples
        loss_sum = torch.zeros(
            (), device=settings.device
        )  # on the device, so that no step waits for it
        samples, parts = 0, dict.fromkeys((*TRAINING_PARTS, "evaluation"), 0.0)

        def add_laps() -> None:
            for part, seconds in clock.read().items():
                parts[part] += seconds

        def look() -> None:
            clock.start()
            accuracy = self.evaluate()
            clock.lap("evaluation")
            add_laps()
            seconds = seconds_before + sum(parts[name] for name in TRAINING_PARTS)
            self.run.evaluations.append(Evaluation(samples_before + samples, seconds, accuracy))
            self.model.train()

        self.model.train()
        clock.start()
        plan.pruner.set_epoch(epoch)
        clock.lap("selection")
        steps = len(self.loader)
        for number, (images, labels, ids) in enumerate(self.loader):
            self._set_learning_rate(epoch + number / steps)
            clock.lap("data")
            with settings.autocast():
                logits = self.forward(images)
            clock.lap("step")
            loss = plan.loss(logits, labels, ids)
            clock.lap("loss")
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss_sum += loss.detach() * len(ids)
            samples += len(ids)
            self.step += 1
            clock.lap("step")
            if self.step in self._steps:
                look()
        if epoch + 1 in self._epochs:
            look()
        add_laps()
        self.run.epochs.append(Epoch(samples, loss_sum.item() / samples, parts))

    def _set_learning_rate(self, epochs: float) -> None:
        """Follows one cycle over the steps of the run, or over its epochs if steps are unknown."""
        if self.total_steps:
            progress = self.step / max(1, self.total_steps - 1)
        else:
            progress = epochs / self.plan.epochs
        lr, momentum = one_cycle(progress)
        for group in self.optimizer.param_groups:
            group["lr"], group["momentum"] = self.settings.lr * lr, momentum

    @torch.inference_mode()
    def evaluate(self) -> float:
        """The accuracy on the test set, 0 to 1. Waits for the device."""
        self.model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.settings.device)
        for images, labels in self.source.test_batches():
            with self.settings.autocast():
                logits = self.model(images)
            correct += (logits.argmax(dim=1) == labels).sum()
        return correct.item() / len(self.source.task.test)

    def save(self, path: Path) -> None:
        """Writes a checkpoint; the file appears as a whole or not at all."""
        on_gpu = self.settings.device.type == "cuda"
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plan": [thing.state_dict() for thing in self.plan.stateful],
            "step": self.step,
            "run": asdict(self.run),
            "cpu_random_state": torch.get_rng_state(),
            "gpu_random_state": torch.cuda.get_rng_state() if on_gpu else None,
        }
        with replaced(path) as new:
            torch.save(state, new)

    def load(self, path: Path) -> None:
        """Resumes from a checkpoint of a trainer that was made with the same arguments."""
        state = torch.load(path, map_location=self.settings.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for thing, saved in zip(self.plan.stateful, state["plan"], strict=True):
            thing.load_state_dict(saved)
        self.step = state["step"]
        run = run_from_json(state["run"])
        self.run = replace(run, resumed=run.resumed + 1)
        torch.set_rng_state(state["cpu_random_state"].cpu())
        if state["gpu_random_state"] is not None:
            torch.cuda.set_rng_state(state["gpu_random_state"].cpu())


def evenly(count: int, total: int) -> set[int]:
    """`count` evenly spaced numbers from 1 to `total`; `total` is one of them."""
    return {math.ceil(number * total / count) for number in range(1, count + 1)}
