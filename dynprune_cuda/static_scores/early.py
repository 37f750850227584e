# SPDX-License-Identifier: Apache-2.0
"""Models in their early epochs, and a look at every sample through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dynprune_cuda._checks.arguments import as_bool, as_int, as_ints, check_type

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, labels, ids -> the mean loss
Measure = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, inputs, labels -> [batch]
Loader = Iterable[Sequence[Tensor]]  # of (inputs, labels, ids)


class Train(Protocol):
    """A training of one's own: trains `model` in place for `epochs` epochs, with `loss`."""

    def __call__(self, model: nn.Module, *, epochs: int, seed: int, loss: Loss) -> object:
        """Trains; must compute the loss of every step by `loss(logits, labels, ids)`."""
        ...


def plain_loss(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy."""
    return F.cross_entropy(logits, labels)


class EarlyModels:
    """Makes and trains one model per seed; checks what all static scores take.

    Attributes:
        seeds: The seeds.
        epochs: Epochs of training.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        loader: Loader,
        *,
        epochs: int,
        seeds: Iterable[int],
        train: Train | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        progress: bool,
    ) -> None:
        """Takes the arguments of `el2n_scores` that are not about the measure."""
        self.seeds = as_ints("seeds", seeds)
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed, got none")
        self.epochs = as_int("epochs", epochs, minimum=0)
        for name, value in (("make_model", make_model), ("train", train), ("optimizer", optimizer)):
            wrong = not callable(value) or isinstance(value, nn.Module)
            if wrong and (value is not None or name == "make_model"):
                raise TypeError(f"{name} must be a function, got {value!r}")
        if train is not None and optimizer is not None:
            raise ValueError("optimizer must be left out: train brings its own")
        if not isinstance(loader, Iterable) or isinstance(loader, Tensor | np.ndarray | str):
            raise TypeError(f"loader must be an iterable of batches, got {type(loader).__name__}")
        as_bool("progress", progress)
        self._make_model, self._loader, self._train = make_model, loader, train
        self._optimizer = optimizer or _default_optimizer
        self._progress = progress

    def mean_over_seeds(self, of_seed: Callable[[int, Callable[[], None]], Tensor]) -> Tensor:
        """Averages `of_seed(seed, tick)`, which calls `tick` after every batch, over the seeds."""
        total: Tensor | float = 0.0
        with _bar(self._progress) as tick, _own_random_state():
            for seed in self.seeds:
                total = total + of_seed(seed, tick).double()
        assert isinstance(total, Tensor)
        return total / len(self.seeds)

    def trained(
        self,
        seed: int,
        tick: Callable[[], None],
        loss_for: Callable[[torch.device], Loss],
        *,
        every_sample: bool = False,
    ) -> nn.Module:
        """Returns a model made and trained by `seed`; `loss_for` gets the device that it is on.

        With `every_sample` a first pass that does not give every sample once is an error.
        """
        torch.manual_seed(seed)
        model = self._make_model()
        check_type("what make_model returns", model, nn.Module)
        loss = loss_for(device_of(model))
        model.train()
        if self._train is not None:
            self._train(model, epochs=self.epochs, seed=seed, loss=loss)
            return model
        optimizer = self._optimizer(model.parameters())
        if not hasattr(optimizer, "zero_grad"):
            raise TypeError(f"optimizer must return an optimizer, got {optimizer!r}")
        for epoch in range(self.epochs):
            seen = []
            for inputs, labels, ids in batches(self._loader, device_of(model)):
                if every_sample and epoch == 0:
                    seen.append(ids)
                value = loss(model(inputs), labels, ids)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                tick()
            if every_sample and epoch == 0:
                self._check_ids(seen)
        return model

    def check_length(self) -> None:
        """Refuses a loader whose batches cannot hold every sample, as far as it tells their size.

        Costs nothing: a pruner's loader of a pruned epoch would be found out after a whole training
        otherwise.
        """
        loader: Any = self._loader
        sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)
        size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        try:
            number, num_samples = len(loader), num_samples_of(loader)
        except TypeError:  # it does not know
            return
        if size is not None and number * size < num_samples:
            raise ValueError(
                f"loader must yield every sample exactly once in a pass: its {number} batches of "
                f"{size} cannot hold the {num_samples} samples of its training set"
            )

    def _check_ids(self, seen: Sequence[Tensor]) -> Tensor:
        """Returns the ids of a pass, once it is sure that they are those of all samples."""
        if not seen:
            raise ValueError("loader must yield at least one batch, got none")
        order = torch.cat(list(seen))
        try:
            num_samples = num_samples_of(self._loader)
        except TypeError:
            num_samples = len(order)
        sorted_ids = order.sort().values
        if not torch.equal(sorted_ids, torch.arange(num_samples, device=order.device)):
            raise ValueError(
                "loader must yield every sample exactly once in a pass: of "
                f"{len(order)} ids, from {int(sorted_ids[0])} to {int(sorted_ids[-1])}, "
                f"{len(set(order.tolist()))} differ, and the training set has {num_samples} samples"
            )
        return order

    def measured(self, model: nn.Module, measure: Measure, tick: Callable[[], None]) -> Tensor:
        """Measures every sample with the model in evaluation mode, in the order of the ids."""
        model.eval()
        seen, values = [], []
        device = device_of(model)
        for inputs, labels, ids in batches(self._loader, device):
            values.append(measure(model, inputs, labels).detach())
            seen.append(ids)
            tick()
        order = self._check_ids(seen)
        result = torch.cat(values)
        return torch.empty_like(result).index_copy_(0, order, result)


def batches(loader: Loader, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields inputs, labels and ids on `device`."""
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 3:
            raise ValueError(
                "loader must yield (inputs, labels, ids): wrap its dataset in IndexedDataset, or "
                f"use a DeviceLoader; got {type(batch).__name__}"
                + (f" of length {len(batch)}" if isinstance(batch, tuple | list) else "")
            )
        inputs, labels, ids = (tensor.to(device, non_blocking=True) for tensor in batch)
        yield inputs, labels, ids


def device_of(model: nn.Module) -> torch.device:
    """Where the model is."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("make_model must return a model with parameters")
    return parameter.device


def num_samples_of(loader: Any) -> int:
    """Size of the training set behind a loader."""
    if hasattr(loader, "dataset"):
        return len(loader.dataset)
    if hasattr(loader, "tensors"):
        return len(loader.tensors[0])
    raise TypeError(
        f"loader must be a DataLoader or a DeviceLoader, got {type(loader).__name__}; wrap your "
        "own in a class with an attribute `dataset` that has a length"
    )


def _default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimiser of Paul, Ganguli & Dziugaite 2021, at its first learning rate."""
    return SGD(parameters, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


@contextmanager
def _own_random_state() -> Iterator[None]:
    """Leaves torch's generators as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def _bar(progress: bool) -> Iterator[Callable[[], None]]:
    """A progress bar over batches, if it is wanted: yields what advances it."""
    if not progress:
        yield lambda: None
        return
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    with tqdm(desc="static scores", unit=" batches", dynamic_ncols=True) as bar:
        yield lambda: bar.update() and None
