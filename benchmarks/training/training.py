# SPDX-License-Identifier: Apache-2.0
"""One training loop for every comparison: any plan, with a clock, evaluations and checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from benchmarks.common.records import TRAINING_PARTS, Epoch, Evaluation, Run, run_from_json
from benchmarks.training.clock import Clock
from benchmarks.training.image_datasets import ImageTask, Prepare, TensorImages
from benchmarks.training.image_models import build_model
from benchmarks.training.methods import Plan, Rules
from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner

__all__ = ["PRECISIONS", "Settings", "Source", "Trainer", "new_model", "one_cycle", "warm_up"]

PRECISIONS = ("float32", "bfloat16")
PEAK = 0.2  # share of the steps after which the learning rate is highest
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share."""

    model: str
    epochs: int
    batch_size: int
    lr: float  # the peak
    weight_decay: float
    device: torch.device
    rules: Rules = field(default_factory=Rules)
    num_workers: int = 0
    resident: bool = False  # images in memory on the device, served by a DeviceLoader
    precision: str = "float32"  # of the forward and backward pass
    channels_last: bool = True  # the faster layout on CPUs and GPUs alike
    compile: bool = False
    evaluations: int | None = None  # at equal distances in steps; None: after every epoch

    def autocast(self) -> AbstractContextManager[Any]:
        mixed = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)


class Source:
    """The images of a task where a comparison wants them, and loaders over them."""

    def __init__(self, task: ImageTask, settings: Settings) -> None:
        self.task, self.settings = task, settings
        self.num_samples = len(task.train)
        self._prepare = Prepare(task, settings.device)
        self._train = self._test = None
        if settings.resident:
            self._train, self._test = (self._on_device(part) for part in (task.train, task.test))

    def _on_device(self, part: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(part, TensorImages):
            raise ValueError("resident data must fit into memory, which image folders may not")
        device = self.settings.device
        return part.images.to(device), torch.tensor(part.labels, device=device)

    def prepared(self, images: Tensor, *, augment: bool) -> Tensor:
        """The input of the model."""
        images = images.to(self.settings.device, non_blocking=True)
        images = self._prepare(images, augment=augment)
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def train_loader(self, pruner: Pruner) -> Any:
        """Augmented batches of the pruner's current epoch: images, labels, ids."""
        return self._loader(pruner, self.settings.batch_size, augment=True)

    def scoring_loader(self) -> Any:
        """Every training sample once, as it is: images, labels, ids."""
        pruner = Pruner(self.num_samples, policy="full", device=self.settings.device)
        return self._loader(pruner, EVALUATION_BATCH, augment=False)

    def _loader(self, pruner: Pruner, batch_size: int, *, augment: bool) -> Any:
        def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return self.prepared(images, augment=augment), labels

        if self._train is not None:
            return DeviceLoader(
                *self._train, pruner=pruner, batch_size=batch_size, transforms=[transform]
            )
        return _Prepared(self, IndexedDataset(self.task.train), pruner, batch_size, transform)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, ready for the model, and labels of the test set."""
        if self._test is not None:
            batches: Any = zip(*(part.split(EVALUATION_BATCH) for part in self._test), strict=True)
        else:
            workers = self.settings.num_workers
            batches = DataLoader(self.task.test, EVALUATION_BATCH, num_workers=workers)
        for images, labels in batches:
            device = self.settings.device
            yield self.prepared(images, augment=False), labels.to(device, non_blocking=True)


class _Prepared:
    """A DataLoader whose batches arrive on the device, ready for the model."""

    def __init__(
        self,
        source: Source,
        dataset: IndexedDataset,
        pruner: Pruner,
        batch_size: int,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.dataset = dataset
        self._transform = transform
        self._device = source.settings.device
        workers = source.settings.num_workers
        self._loader = DataLoader(
            dataset,
            batch_sampler=pruner.batch_sampler(batch_size),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for images, labels, ids in self._loader:
            labels = labels.to(self._device, non_blocking=True)
            yield (*self._transform(images, labels), ids)


class Trainer:
    """Trains one model by a plan; can stop after any epoch and go on in another process."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        run: Run,
        *,
        model: nn.Module | None = None,
        evaluate: bool = True,
    ) -> None:
        """Seeds torch's generator by the run's seed, which decides everything random."""
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
        # After which steps, or after which epochs where the steps are not known, it evaluates.
        self._steps, self._epochs = set(), set()
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
        settings, plan, clock = self.settings, self.plan, Clock(self.settings.device)
        seconds_before, samples_before = self.run.train_seconds, self.run.samples
        loss_sum = torch.zeros((), device=settings.device)  # on the device: no step waits for it
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
        """One cycle over the steps of the run; over its epochs where the steps are not known."""
        if self.total_steps:
            progress = self.step / max(1, self.total_steps - 1)
        else:
            progress = epochs / self.plan.epochs
        lr, momentum = one_cycle(progress)
        for group in self.optimizer.param_groups:
            group["lr"], group["momentum"] = self.settings.lr * lr, momentum

    @torch.inference_mode()
    def evaluate(self) -> float:
        """Returns the accuracy on the test set, 0 to 1. Waits for the device."""
        self.model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.settings.device)
        for images, labels in self.source.test_batches():
            with self.settings.autocast():
                logits = self.model(images)
            correct += (logits.argmax(dim=1) == labels).sum()
        return correct.item() / len(self.source.task.test)

    def save(self, path: Path) -> None:
        """Writes all that decides how the run goes on; the file is there as a whole or not."""
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
        new = path.with_suffix(".new")
        torch.save(state, new)
        os.replace(new, path)

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote, of a trainer that was made alike."""
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
    """`count` of the numbers 1 to `total` at equal distances, the last one among them."""
    return {math.ceil(number * total / count) for number in range(1, count + 1)}


def one_cycle(progress: float) -> tuple[float, float]:
    """Learning rate as a share of its peak, and momentum, at a share of the steps in [0, 1].

    The shape of torch's OneCycleLR with its defaults (Smith & Topin 2018, arXiv:1708.07120), as a
    function without state: a run whose steps are not known in advance can follow it too.
    """
    if progress < PEAK:
        return _cosine(1 / 25, 1.0, progress / PEAK), _cosine(0.95, 0.85, progress / PEAK)
    progress = (progress - PEAK) / (1 - PEAK)
    return _cosine(1.0, 1 / 25e4, progress), _cosine(0.85, 0.95, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def new_model(task: ImageTask, settings: Settings) -> nn.Module:
    """Returns an untrained model on the device."""
    model = build_model(settings.model, shape=task.shape, num_classes=task.num_classes)
    model = model.to(settings.device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def warm_up(source: Source, steps: int = 3) -> None:
    """Takes a few unrecorded steps: starting threads and libraries is no method's own time."""
    settings, shape = source.settings, source.task.shape
    model = new_model(source.task, settings)
    forward = torch.compile(model) if settings.compile else model
    images = torch.zeros((settings.batch_size, *shape), dtype=torch.uint8, device=settings.device)
    for _ in range(steps):
        with settings.autocast():
            logits = forward(source.prepared(images, augment=True))
        logits.float().sum().backward()
