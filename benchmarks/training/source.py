# SPDX-License-Identifier: Apache-2.0
"""Settings of a comparison, its images on the device, its untrained models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.training.image_models import build_model
from benchmarks.training.images import ImageTask, Prepare, TensorImages
from benchmarks.training.methods import Rules
from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner

__all__ = ["PRECISIONS", "Settings", "Source", "new_model", "warm_up"]

PRECISIONS = ("float32", "bfloat16")
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Settings:
    """The settings that all runs of a comparison share."""

    model: str
    epochs: int
    batch_size: int
    lr: float  # the peak
    weight_decay: float
    device: torch.device
    rules: Rules = field(default_factory=Rules)
    num_workers: int = 0
    resident: bool = False  # keeps the images in device memory, with a DeviceLoader
    precision: str = "float32"  # of the forward and backward pass
    channels_last: bool = True  # the faster layout on CPUs and GPUs
    compile: bool = False
    evaluations: int | None = None  # evenly spaced in steps; None: after each epoch

    def autocast(self) -> AbstractContextManager[Any]:
        mixed = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)


class Source:
    """The images of a task on the device that a comparison needs, and loaders over them."""

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
        """Images as the input of the model."""
        images = images.to(self.settings.device, non_blocking=True)
        images = self._prepare(images, augment=augment)
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def train_loader(self, pruner: Pruner) -> Any:
        """Augmented batches of the pruner's current epoch: images, labels, ids."""
        return self._loader(pruner, self.settings.batch_size, augment=True)

    def scoring_loader(self) -> Any:
        """Every training sample once, without augmentation: images, labels, ids."""
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
        """Batches of the test set: images, prepared for the model, and labels."""
        if self._test is not None:
            batches: Any = zip(*(part.split(EVALUATION_BATCH) for part in self._test), strict=True)
        else:
            workers = self.settings.num_workers
            batches = DataLoader(self.task.test, EVALUATION_BATCH, num_workers=workers)
        for images, labels in batches:
            device = self.settings.device
            yield self.prepared(images, augment=False), labels.to(device, non_blocking=True)


class _Prepared:
    """A DataLoader whose batches are on the device and prepared for the model."""

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


def new_model(task: ImageTask, settings: Settings) -> nn.Module:
    """An untrained model on the device."""
    model = build_model(settings.model, shape=task.shape, num_classes=task.num_classes)
    model = model.to(settings.device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def warm_up(source: Source, steps: int = 3) -> None:
    """Runs a few steps that are not recorded, so that no method pays for starting threads."""
    settings, shape = source.settings, source.task.shape
    model = new_model(source.task, settings)
    forward = torch.compile(model) if settings.compile else model
    images = torch.zeros((settings.batch_size, *shape), dtype=torch.uint8, device=settings.device)
    for _ in range(steps):
        with settings.autocast():
            logits = forward(source.prepared(images, augment=True))
        logits.float().sum().backward()
