# SPDX-License-Identifier: Apache-2.0
"""A forward-only pass that scores samples, such as those that an epoch leaves out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import FLOATING, MAX_INT64, as_float, as_int, check_vector
from dynprune_cuda.functional import ScoredLoss
from dynprune_cuda.functional.cross_entropy import ignored_rows
from dynprune_cuda.functional.shapes import per_row

__all__ = ["Rescored"]

# Of a model and a batch: ids, and values as `Pruner.observe` takes them.
ScoreBatch = Callable[[nn.Module, Any], tuple[Tensor, Tensor | ScoredLoss]]

IGNORE_INDEX = -100


class Rescored(NamedTuple):
    """What a scoring pass took.

    Attributes:
        seconds: Wall-clock time, loading and the device's work included.
        batches: How many batches the loader had.
        samples: How many rows they had.
    """

    seconds: float
    batches: int
    samples: int


class Scores(Protocol):
    """What a scoring pass needs to know of a `Pruner`."""

    @property
    def device(self) -> torch.device:
        """Where the model and the scores are."""
        ...

    def observe(self, ids: Tensor, values: Tensor | ScoredLoss) -> None:
        """Records values."""
        ...


def check_arguments(
    model: nn.Module,
    loader: Iterable[Any],
    score: ScoreBatch | None,
    *,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    """Checks what `rescore` gets, before anything changes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if score is not None and not callable(score):
        raise TypeError(f"score must be a function (model, batch) -> (ids, values), got {score!r}")
    ignored = as_int("ignore_index", ignore_index, minimum=-MAX_INT64 - 1, maximum=MAX_INT64)
    smoothing = as_float("label_smoothing", label_smoothing, low=0.0, high=1.0)
    has_options = weight is not None or ignored != IGNORE_INDEX or smoothing != 0
    if score is not None and has_options:
        raise ValueError(
            "weight, ignore_index and label_smoothing must be left out with score, which computes "
            f"the values itself, got {weight!r}, {ignore_index!r} and {label_smoothing!r}"
        )
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | np.ndarray | str):
        raise TypeError(f"loader must be an iterable of batches, got {type(loader).__name__}")
    if weight is not None:
        check_vector("weight", weight, FLOATING)


def rescore(
    pruner: Scores,
    model: nn.Module,
    loader: Iterable[Any],
    score: ScoreBatch | None,
    *,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Rescored:
    """Scores the samples of a loader without training; see `Pruner.rescore`."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # its forward pass would wait for the other processes
    device = pruner.device

    def cross_entropy(model: nn.Module, batch: Any) -> tuple[Tensor, ScoredLoss]:
        inputs, target, ids = (part.to(device, non_blocking=True) for part in _parts(batch))
        if target.is_floating_point():
            _check_probabilities(target)
        scored = functional.scored_cross_entropy(
            model(inputs),
            target,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
        if scored.loss.dim() > 1:
            ids = per_row(ids, scored.loss)
        if not target.is_floating_point():  # probabilities ignore no row
            ids = ids.masked_fill(ignored_rows(target, ignore_index), -1)
        return ids, scored

    function: ScoreBatch = cross_entropy if score is None else score
    began, batches, samples = time.perf_counter(), 0, 0
    with _evaluating(model, device):
        for batch in loader:
            scored = function(model, batch)
            if not isinstance(scored, tuple | list) or len(scored) != 2:
                raise TypeError(f"score must return (ids, values), got {type(scored).__name__}")
            ids, values = scored
            pruner.observe(ids, values)
            batches, samples = batches + 1, samples + len(ids)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Rescored(time.perf_counter() - began, batches, samples)


def _check_probabilities(target: Tensor) -> None:
    """Refuses targets of several labels, whose loss is another one. Waits."""
    class_dim = min(1, target.dim() - 1)
    furthest = (target.sum(class_dim, dtype=torch.float32) - 1).abs().max() if target.numel() else 0
    if furthest > 0.02:  # 16-bit probabilities of many classes add up to that much
        raise ValueError(
            "targets must be class indices, or probabilities that sum to 1: rescore computes "
            "cross-entropy. For several labels, or a loss of your own, pass score=, a function "
            "that returns ids and one value per sample"
        )


def _parts(batch: Any) -> list[Tensor]:
    """Returns inputs, targets and ids of a batch."""
    is_triple = isinstance(batch, list | tuple) and len(batch) == 3
    if not is_triple or not all(isinstance(part, Tensor) for part in batch):
        parts = batch if isinstance(batch, list | tuple) else [batch]
        found = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(
            f"loader must yield (inputs, targets, ids), three tensors, got {found}: pass score=, a "
            "function (model, batch) -> (ids, values), for other batches"
        )
    return list(batch)


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluates without gradients; then restores modules' modes and the random generators.

    A `DataLoader` draws from torch's generator when it is iterated, and a dataset may draw from
    any.
    """
    modes = [(module, module.training) for module in model.modules()]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(of_python)
        np.random.set_state(of_numpy)
