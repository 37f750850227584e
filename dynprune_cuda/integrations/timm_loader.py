# SPDX-License-Identifier: Apache-2.0
"""timm's training loader on the pruner's epochs: the ids stay beside its pairs."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from timm.data import FastCollateMixup
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from dynprune_cuda._checks.arguments import as_int
from dynprune_cuda._schedule.schedule import num_batches
from dynprune_cuda.data.collate import CollateWithIds
from dynprune_cuda.integrations.batches import LOADER_OPTIONS, check_saved_by_all
from dynprune_cuda.pruner import Pruner


class PrunedLoader:
    """A training loader of timm on the pruner's epochs, which yields `(input, target)` as before.

        pruner = Pruner(len(dataset_train), keep=0.3, device=device)
        loader_train = PrunedLoader(loader_train, pruner, accumulate=args.grad_accum_steps)
        ...
        prune_task(task, loader_train)
        ...
        for epoch in range(start_epoch, num_epochs):
            loader_train.set_epoch(epoch, lr_scheduler)

    The ids of a batch wait here until the task's criterion takes them. A batch that is not scored
    before the next one comes is an error. `len(loader)` is that of the current epoch, as timm's
    script reads it in each. Before the first `set_epoch` it is that of an epoch of all samples;
    there the script makes its scheduler. Prefetcher, workers, Mixup in the collate function, and
    AugMix splits work as they did.

    Attributes:
        pruner: The pruner.
        updates: The optimiser's steps so far, as the task counts them.
    """

    def __init__(self, loader: Any, pruner: Pruner, *, accumulate: int) -> None:
        """Makes the loader anew, with the pruner's batches; `loader` itself stays as it is.

        Args:
            loader: From `timm.data.create_loader(..., is_training=True)`.
            pruner: A pruner of as many samples as the dataset has; made after torch.distributed is
                initialised.
            accumulate: Batches of a step of the optimiser: timm's `grad_accum_steps`.

        Raises:
            TypeError: An argument has the wrong type, or the dataset is iterable.
            ValueError: The dataset has another length than the pruner, or the loader chooses
                samples in a way that the pruner would replace. Or Mixup halves batches, or the
                pruner has sharding="shard" and several processes.
        """
        if not isinstance(pruner, Pruner):
            raise TypeError(f"pruner must be a Pruner, got {type(pruner).__name__}")
        check_saved_by_all(pruner)
        self._accumulate = as_int("accumulate", accumulate, minimum=1)
        plain = loader.loader if isinstance(loader, PrefetchLoader) else loader
        dataset = pruner.wrap(getattr(plain, "dataset", None))
        _check_choice(plain)
        self._sampler = pruner.batch_sampler(plain.batch_size, plain.drop_last)
        self.pruner = pruner
        self.updates = 0
        self._ids: Tensor | None = None  # of the batch that was yielded last
        self._has_begun = False  # whether set_epoch was called
        self._pairs = _Pairs(
            DataLoader(
                dataset,
                batch_sampler=self._sampler,
                collate_fn=CollateWithIds(plain.collate_fn),
                **{name: getattr(plain, name) for name in LOADER_OPTIONS},
            ),
            plain.collate_fn,
        )
        self._loader: Any = self._pairs
        if isinstance(loader, PrefetchLoader):
            self._loader = copy.copy(loader)
            self._loader.loader = self._pairs
        share = pruner.ranks.share_length(pruner.num_samples, plain.drop_last)
        self._all = num_batches(share, plain.batch_size, plain.drop_last)

    def __len__(self) -> int:
        """Returns the number of batches in the pruner's current epoch, of this process."""
        # A scheduler is made by this: the same for a run that is resumed in a shorter epoch.
        return self._batches_now() if self._has_begun else self._all

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Yields the epoch's batches; each must be scored before the next one is read.

        Raises:
            RuntimeError: No epoch was begun, or the last batch was not scored.
        """
        if not self._has_begun:
            raise RuntimeError(
                "loader.set_epoch(epoch, lr_scheduler) must be called before each epoch"
            )
        self._ids = None
        # An iterator that was left early has prefetched ids into a queue of its own.
        waiting = self._pairs.waiting = deque()
        for batch in self._loader:
            self._check_scored()
            self._ids = waiting.popleft()
            yield batch
        self._check_scored()

    def set_epoch(self, epoch: int, lr_scheduler: Any) -> None:
        """Begins an epoch, and lets a scheduler that is stepped by updates follow its length.

        Such a scheduler was made for epochs of all samples. It is told the place in the run in
        these terms: half of a short epoch's updates are half of an epoch. It therefore ends with
        the run, and its warm-up, milestones and cycles stay at their epochs.

        Args:
            epoch: The epoch, from 0.
            lr_scheduler: A scheduler of timm, made with the updates of `len(loader)` as
                `updates_per_epoch`; or None.

        Raises:
            ValueError: The epoch has no batch, or `Pruner.set_epoch` refuses it.
        """
        self.pruner.set_epoch(epoch)
        self._has_begun = True
        if self._batches_now() == 0:
            raise ValueError(
                f"batch_size must be at most {len(self.pruner.epoch_order())} here, the samples of "
                f"epoch {epoch} of this process, got {self._sampler.batch_size} with drop_last: "
                "use smaller batches, or keep more"
            )
        if lr_scheduler is None or isinstance(lr_scheduler.step_update, _StepUpdate):
            return
        lr_scheduler.step_update = _StepUpdate(self, lr_scheduler.step_update)

    def take_ids(self) -> Tensor:
        """Returns the ids of the batch that was yielded last, once.

        Returns:
            int64 [batch], on the CPU.

        Raises:
            RuntimeError: They were taken before, or there is no batch.
        """
        ids, self._ids = self._ids, None
        if ids is None:
            raise RuntimeError(
                "the task's criterion must be called once for each batch of the loader: there is "
                "no batch, or it has been scored. Use another criterion for validation"
            )
        return ids

    def place(self, num_updates: int) -> int:
        """Returns the place of an update in a run whose epochs are of all samples.

        Args:
            num_updates: As timm counts: the epoch times its own length, and the updates in it.

        Raises:
            ValueError: The number does not lie in the pruner's epoch.
        """
        epoch, length = self.pruner.epoch, self._updates_now()
        done = num_updates - epoch * length
        if not 0 <= done <= length:
            raise ValueError(
                f"num_updates must lie in epoch {epoch} of {length} updates, from "
                f"{epoch * length} to {(epoch + 1) * length}, got {num_updates}"
            )
        planned = -(-self._all // self._accumulate)
        return epoch * planned + round(done * planned / length)

    @property
    def mixup_enabled(self) -> bool:
        """Whether a Mixup in the collate function mixes; timm's script turns it off by this."""
        return bool(getattr(self._loader, "mixup_enabled", False))

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        self._loader.mixup_enabled = value

    def state_dict(self) -> dict[str, Any]:
        """Returns the pruner's state and the number of updates."""
        return {"pruner": self.pruner.state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        updates = as_int("state_dict['updates']", state_dict["updates"], minimum=0)
        self.pruner.load_state_dict(state_dict["pruner"])
        self.updates = updates

    def __getattr__(self, name: str) -> Any:
        """Returns the attribute of timm's loader."""
        if name.startswith("_"):  # while this object is being made, or copied
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)

    def _batches_now(self) -> int:
        sampler = self._sampler
        return self.pruner.steps_per_epoch(sampler.batch_size, sampler.drop_last)

    def _updates_now(self) -> int:
        return -(-self._batches_now() // self._accumulate)

    def _check_scored(self) -> None:
        if self._ids is not None:
            self._ids = None  # or they would be those of whatever is scored next
            raise RuntimeError(
                "the last batch of the loader was not scored: call prune_task(task, loader) after "
                "the task is made, and train by task(input, target)"
            )


class _Pairs:
    """The loader that timm's prefetcher reads: its batches have no ids, which wait in a queue."""

    def __init__(self, loader: DataLoader[Any], collate: Callable[..., Any]) -> None:
        self._loader = loader
        self.collate_fn = collate  # timm looks for Mixup there
        self.waiting: deque[Tensor] = deque()

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        waiting = self.waiting
        for *pair, ids in self._loader:
            waiting.append(ids)
            yield tuple(pair)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)


class _StepUpdate:
    """A scheduler's `step_update` that is told the place in a run of equal epochs."""

    def __init__(self, loader: PrunedLoader, step_update: Callable[..., None]) -> None:
        self._loader = loader
        self._step_update = step_update

    def __call__(self, num_updates: int, metric: float | None = None) -> None:
        self._step_update(self._loader.place(num_updates), metric=metric)


def _check_choice(loader: Any) -> None:
    """Checks that the pruner's sampler may replace what chooses the loader's samples."""
    sampler = getattr(loader, "sampler", None)
    is_plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
    is_random = type(sampler) is DistributedSampler or (
        type(sampler) is RandomSampler and not sampler.replacement
    )
    if not is_plain or not is_random:
        raise ValueError(
            "loader must shuffle all samples, as create_loader(is_training=True) does, got a "
            f"{type(loader).__name__} with {type(getattr(loader, 'batch_sampler', None)).__name__} "
            f"and {type(sampler).__name__}: leave out --use-multi-epochs-loader, --aug-repeats, "
            "--train-img-sizes and --naflex-loader"
        )
    collate = loader.collate_fn
    if isinstance(collate, FastCollateMixup) and "half" in collate.mode:
        raise ValueError(
            f"the mode of Mixup must keep the batch, got {collate.mode!r}: half of the samples "
            "would never be scored; use 'batch', 'pair' or 'elem'"
        )
