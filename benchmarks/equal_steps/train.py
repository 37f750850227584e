# SPDX-License-Identifier: Apache-2.0
"""Trains one run: a fixed number of steps, whatever the pruner chooses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.equal_steps.config import Method, Setting
from benchmarks.equal_steps.data import Part, Task
from benchmarks.equal_steps.models import make_model
from benchmarks.training.images import ImageTask, Prepare, TensorImages
from benchmarks.training.learning_rate import one_cycle
from dynprune_cuda import DeviceLoader, Pruner
from dynprune_cuda.policies import Adaptive

__all__ = ["train"]

EVALUATION_BATCH = 500
FORWARD_SHARE = 1 / 3  # cost of a forward pass, of a training step with as many samples


class Inputs:
    """Turns the inputs of a batch into what the network takes."""

    def __init__(self, task: Task, setting: Setting, device: torch.device) -> None:
        images = task.train.inputs
        self.is_text = images.dim() == 2
        if self.is_text:
            return
        pixels = images.float().div(255).transpose(0, 1).flatten(1)
        _, channels, height, width = images.shape
        nothing = TensorImages(images[:0], [])
        described = ImageTask(
            setting.data,
            nothing,
            nothing,
            task.num_classes,
            (channels, height, width),
            tuple(pixels.mean(dim=1).tolist()),
            tuple(pixels.std(dim=1).tolist()),
            crop_padding=max(1, height // 8) if setting.augment else 0,
            flip=setting.augment,
        )
        self._prepare = Prepare(described, device)

    def __call__(self, inputs: Tensor, *, augment: bool) -> Tensor:
        if self.is_text:
            return inputs
        prepared = self._prepare(inputs, augment=augment)
        return prepared.contiguous(memory_format=torch.channels_last)


def train(setting: Setting, method: Method, task: Task, seed: int, device: str) -> dict[str, Any]:
    """Trains a fresh model, and measures it after the last step.

    Forward passes of a method that rescores, or that chooses in every batch, count as
    `FORWARD_SHARE` of a step with as many samples. So all methods of a setting cost the same.

    Returns:
        Accuracies in %: test set, validation set, training set by its clean labels, rarest class.
        Also the spread of the visits, the mean tilt of `Adaptive`, and the cost.
    """
    place = torch.device(device)
    torch.manual_seed(seed)
    inputs, labels = task.train.inputs.to(place), task.train.labels.to(place)
    num_samples = len(labels)
    prepare = Inputs(task, setting, place)
    shape = tuple(inputs.shape[1:])
    model = make_model(setting.model, shape=shape, num_classes=task.num_classes).to(place)
    if not prepare.is_text:
        model = model.to(memory_format=torch.channels_last)
    optimizer = SGD(
        model.parameters(),
        setting.lr,
        momentum=0.9,
        weight_decay=setting.weight_decay,
        nesterov=True,
        fused=True,
    )
    pruner = method.make(num_samples, task.train.labels, seed, place, setting.budget)
    selector = method.selector(seed, place)
    loader = DeviceLoader(
        inputs,
        labels,
        pruner=pruner,
        batch_size=round(setting.batch_size / method.in_batch.get("keep", 1.0)),
        transforms=[lambda x, y: (prepare(x, augment=True), y)],
    )
    total = round(method.steps * setting.budget * num_samples / setting.batch_size)
    mixed = setting.precision == "bfloat16"
    start, cpu_start = time.perf_counter(), time.process_time()
    step, epoch, samples, rescored = 0, 0, 0, 0
    tilts: list[Tensor] = []
    model.train()

    def spent() -> float:
        return step + FORWARD_SHARE * rescored / setting.batch_size

    while spent() < total:
        pruner.set_epoch(epoch)
        if isinstance(pruner.policy, Adaptive) and epoch:
            tilts.append(pruner.policy.tilt(pruner.table))
        peak = setting.lr
        if method.lr_by_tilt and tilts:
            peak *= 1 + method.lr_by_tilt * float(tilts[-1])
        for x, y, ids in loader:
            _set_learning_rate(optimizer, peak, min(1.0, spent() / max(1, total - 1)))
            if selector is not None:
                with torch.no_grad(), torch.autocast(place.type, torch.bfloat16, enabled=mixed):
                    choice = selector(model(x).float(), y)
                rescored += len(ids)
                x, y, ids = selector.take(choice, x, y, ids)
            with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
                logits = model(x)
            loss = pruner.cross_entropy(logits.float(), y, ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step, samples = step + 1, samples + len(ids)
            if spent() >= total:
                break
        epoch += 1
        if method.rescore and spent() < total:
            with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
                rescored += pruner.rescore(
                    model, _left_out(pruner, prepare, inputs, labels)
                ).samples
    if place.type == "cuda":
        torch.cuda.synchronize(place)  # the steps are only queued there
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    def measure(part: Part) -> tuple[float, float]:
        return _accuracy(model, prepare, part, place, mixed)

    test, worst = measure(task.test)
    visits = pruner.table.count.cpu()
    wrong = task.train.labels != task.clean
    return {
        "test": test,
        "worst_class": worst,
        "validation": measure(task.validation)[0] if len(task.validation.labels) else None,
        "train": measure(Part(task.train.inputs[:10_000], task.clean[:10_000]))[0],
        "steps": step,
        "samples": samples,
        "rescored": rescored,
        "epochs": epoch,
        "gini": _gini(visits),
        "never_visited": 100 * float((visits == 0).double().mean()),
        "visits_of_wrong_labels": 100 * float(visits[wrong].sum() / visits.sum()),
        "wrong_labels": 100 * float(wrong.double().mean()),
        "tilt": float(torch.stack(tilts).mean()) if tilts else None,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def _left_out(
    pruner: Pruner, prepare: Inputs, inputs: Tensor, labels: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields inputs, labels and ids of the samples that the epoch left out."""
    for ids in pruner.unselected_share().split(EVALUATION_BATCH):
        yield prepare(inputs[ids], augment=False), labels[ids], ids


def _set_learning_rate(optimizer: SGD, peak: float, progress: float) -> None:
    factor, momentum = one_cycle(progress)
    for group in optimizer.param_groups:
        group["lr"], group["momentum"] = peak * factor, momentum


@torch.inference_mode()
def _accuracy(
    model: nn.Module, prepare: Inputs, part: Part, device: torch.device, mixed: bool
) -> tuple[float, float]:
    """Accuracy in %, of all samples and of the class that has the lowest."""
    model.eval()
    hits = []
    for inputs, labels in zip(
        part.inputs.split(EVALUATION_BATCH), part.labels.split(EVALUATION_BATCH), strict=True
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = model(prepare(inputs.to(device), augment=False))
        hits.append((logits.argmax(1).cpu() == labels).double())
    model.train()
    hit = torch.cat(hits)
    classes = F.one_hot(part.labels).double()
    by_class = (hit @ classes) / classes.sum(0).clamp(min=1)
    return 100 * float(hit.mean()), 100 * float(by_class.min())


def _gini(visits: Tensor) -> float:
    """Gini coefficient of the visits: 0 if all samples were visited equally often."""
    ordered, number = visits.double().sort().values, len(visits)
    ranks = 2 * torch.arange(1, number + 1) - number - 1
    return float((ranks * ordered).sum() / (number * ordered.sum()))
