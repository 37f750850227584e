# SPDX-License-Identifier: Apache-2.0
"""Forgetting events, counted during a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import FLOATING, MAX_SAMPLES, as_device, as_int, check_tensor
from dynprune_cuda.static_scores.early import EarlyModels, Loader, Loss, Train, num_samples_of
from dynprune_cuda.static_scores.result import StaticScores


class ForgettingCounter:
    """Counts how often each sample is forgotten, without waiting for the device.

        counter = ForgettingCounter(len(train_set), device="cuda")
        for inputs, labels, ids in loader:
            counter.cross_entropy(model(inputs), labels, ids).backward()
            ...
        scores = StaticScores(counter.values(), "forgetting")

    A sample is forgotten when it was classified correctly at its last visit and is not at this one
    (Toneva et al. 2019, arXiv:1812.05159).

    Attributes:
        count: Visits of each sample, int32 [num_samples].
        last_correct: Whether the last visit was correct, bool [num_samples].
        forget_count: Forgetting events, int32 [num_samples].
    """

    @torch.inference_mode(False)  # tensors that it made could not be updated outside
    def __init__(self, num_samples: int, *, device: torch.device | str | int = "cpu") -> None:
        """Begins before the first visit; the counts live on `device`.

        Args:
            num_samples: Size of the training set.
            device: Where the counts live.
        """
        size = as_int("num_samples", num_samples, minimum=1, maximum=MAX_SAMPLES)
        device = as_device("device", device)
        self._mean, self._variance = torch.zeros(2, size, device=device).unbind(0)
        self.count, self.forget_count = torch.zeros(
            2, size, dtype=torch.int32, device=device
        ).unbind(0)
        self.last_correct = torch.zeros(size, dtype=torch.bool, device=device)

    def cross_entropy(self, logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """Returns the mean cross-entropy of a batch, and counts.

        Args:
            logits: Floating point [batch, num_classes], on the device of the counts.
            labels: Class indices [batch].
            ids: Sample ids, int64 [batch].

        Returns:
            The loss, 0-d, differentiable.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong dtype, shape or device.
            IndexError: A label or an id is out of range (CPU; on a GPU the row is skipped, and
                `functional.check_errors` raises).
        """
        check_tensor("logits", logits, FLOATING)
        if logits.device != self.count.device:
            raise ValueError(f"logits must be on {self.count.device}, got {logits.device}")
        return functional.scored_cross_entropy_step_(
            logits,
            labels,
            ids,
            self._mean,
            self._variance,
            self.count,
            alpha=1.0,
            last_correct=self.last_correct,
            forget_count=self.forget_count,
        ).loss

    def values(self) -> Tensor:
        """Returns the scores, float32 [num_samples]: forgetting events.

        Samples that were never classified correctly rank highest, as in the source. They count as
        if every visit had been an event, which is more than any sample can have.

        Raises:
            ValueError: A sample was never visited: nothing is known of it.
        """
        unseen = self.count == 0
        if unseen.any():
            raise ValueError(
                f"every sample must be visited before it has a score: {int(unseen.sum())} of "
                f"{len(unseen)} were not, such as {int(unseen.int().argmax())}"
            )
        learned = self.last_correct | (self.forget_count > 0)
        return torch.where(learned, self.forget_count, self.count.max()).float()


def forgetting_scores(
    make_model: Callable[[], nn.Module],
    loader: Loader,
    *,
    epochs: int = 10,
    seeds: Iterable[int] = range(3),
    train: Train | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    about: str = "",
    progress: bool = False,
) -> StaticScores:
    """How often each sample is forgotten in a training, from its batches as they come.

    Toneva et al. 2019 (arXiv:1812.05159), algorithm 1: samples that are never learned rank highest.
    An epoch can add at most half an event to a sample: few epochs tell few samples apart.

    Args:
        make_model: See `el2n_scores`.
        loader: As in `el2n_scores`; its size must be known.
        epochs: Number of epochs, at least 1.
        seeds: See `el2n_scores`.
        train: Your own training loop. Only losses computed by `loss(logits, labels, ids)` are
            counted.
        optimizer: See `el2n_scores`.
        about: See `el2n_scores`.
        progress: See `el2n_scores`.

    Returns:
        The scores: the mean number of events.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or a sample was never visited: the loader (or
            `train`) must give every sample at least once.
    """
    as_int("epochs", epochs, minimum=1)
    num_samples = num_samples_of(loader)
    models = EarlyModels(
        make_model,
        loader,
        epochs=epochs,
        seeds=seeds,
        train=train,
        optimizer=optimizer,
        progress=progress,
    )

    def of_seed(seed: int, tick: Callable[[], None]) -> Tensor:
        counters: list[ForgettingCounter] = []

        def loss_for(device: torch.device) -> Loss:
            counters.append(ForgettingCounter(num_samples, device=device))
            return counters[0].cross_entropy

        models.trained(seed, tick, loss_for)
        if train is not None and not counters[0].count.any():
            raise ValueError("train must compute its losses by loss(logits, labels, ids)")
        functional.check_errors(counters[0].count.device)
        try:
            return counters[0].values()
        except ValueError as error:
            name = "loader" if train is None else "train, with the loader that it uses,"
            raise ValueError(f"{name} must give every sample: {error}") from None

    return StaticScores(
        models.mean_over_seeds(of_seed), "forgetting", models.seeds, models.epochs, about
    )
