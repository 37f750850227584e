# SPDX-License-Identifier: Apache-2.0
"""The object that a training script touches: scores in, subsets and samplers out."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune_cuda import functional, policies
from dynprune_cuda._arguments import as_choice, as_int
from dynprune_cuda._schedule import Schedule, derive_seed
from dynprune_cuda.data import EpochBatchSampler, EpochSampler, num_batches
from dynprune_cuda.scores import ScoreTable, check_ids_and_values, move_without_waiting

__all__ = ["Pruner"]

SCORES = ("loss", "el2n", "entropy", "margin")
REDUCTIONS = ("mean", "sum", "none")


class Pruner:
    """Decides which samples each epoch trains on, and learns from the losses it is shown.

        pruner = Pruner(len(train_set), keep=0.3, policy="ucb", device="cuda")
        loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(512))
        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            for images, labels, ids in loader:
                loss = pruner.cross_entropy(model(images), labels, ids)
                ...

    Epochs `warmup_epochs`, `warmup_epochs + period`, ... select a new subset; until the next
    selection the subset stays, in an order that is drawn anew each epoch. The warm-up before and
    the annealing at the end train on everything. Before the first `set_epoch` the epoch is 0.

    A jump, forwards or backwards, selects if the subset at hand belongs to another period: with
    the scores of now and the seed of the period that the epoch lies in.

    A pruner is a plain object: it can be pickled and deep-copied. It never touches the random
    generators of Python, NumPy or torch.

    Attributes:
        num_samples: Size of the training set.
        table: The scores, a `ScoreTable`.
        policy: The selection rule, see `policies`.
        schedule: When it selects: `num_kept`, `period`, `warmup_epochs`, `anneal_epochs`, `epochs`.
        score: What `cross_entropy` enters as the score.
        seed: The seed, in [0, 2**64).
    """

    def __init__(
        self,
        num_samples: int,
        keep: float | None = None,
        policy: str | policies.Policy = "ucb",
        *,
        period: int = 10,
        warmup_epochs: int = 1,
        anneal_epochs: int = 0,
        epochs: int | None = None,
        score: str = "loss",
        alpha: float = 0.8,
        seed: int = 0,
        device: torch.device | str | int = "cpu",
        process_group: bool | None = None,
        sharding: str = "replicate",
    ) -> None:
        """Makes a pruner that has seen nothing yet.

        Args:
            num_samples: Size of the training set.
            keep: How much of it a pruned epoch trains on: a float in (0, 1] is a fraction, of
                which `max(1, floor(keep * num_samples + 0.5))` samples result; an int is the
                number itself. A policy that decides the number itself (full data, a static
                subset) needs no `keep`; if one is given, it must agree.
            policy: A name from `policies.names()`, or an object from `policies` or of your own.
            period: Epochs between selections, at least 1.
            warmup_epochs: First epochs, which train on everything.
            anneal_epochs: Last epochs, which train on everything; needs `epochs`.
            epochs: Length of the run.
            score: What `cross_entropy` enters as a sample's score: "loss" (the training loss with
                its class weight and label smoothing), "el2n", "entropy", or "margin" (its
                negative, so that small margins rank high).
            alpha: Weight of the newest value in a sample's moving average, in (0, 1].
            seed: Any int, taken modulo 2**64; decides everything random.
            device: Where scores and subsets live: the device of the model.
            process_group: None or False. This version trains in a single process only.
            sharding: "replicate". This version has no other.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of range, or does not fit another one.
            RuntimeError: torch.distributed runs several processes and `process_group` is None.
        """
        self.num_samples = as_int("num_samples", num_samples, minimum=1)
        self.policy = policies.resolve(policy)
        self.schedule = Schedule(
            self.num_samples,
            policies.resolve_count(self.policy, keep, self.num_samples),
            period=period,
            warmup_epochs=warmup_epochs,
            anneal_epochs=anneal_epochs,
            epochs=epochs,
        )
        self.score = as_choice("score", score, SCORES)
        if self.score == "margin" and isinstance(self.policy, policies.Weighted):
            raise ValueError(
                "score='margin' does not fit policy='weighted', which needs scores >= 0: the "
                "margins of correct samples count as negative, and would all weigh nothing"
            )
        self.seed = as_int("seed", seed) % 2**64
        _check_single_process(process_group, sharding)
        self.table = ScoreTable(
            self.num_samples,
            device=device,
            alpha=alpha,
            first_visit=getattr(self.policy, "first_visit", "zero"),
        )
        self._epoch: int | None = None  # None: epoch 0, which nobody has looked at yet
        self._subset: Tensor | None = None  # ascending ids of the period `_subset_epoch`
        self._subset_epoch = -1
        self._order: Tensor | None = None  # the current epoch's, once somebody asked for it
        self._observed = False  # any score at all
        self._unscheduled: int | None = 0  # rows observed before any set_epoch; None: no matter

    @property
    def device(self) -> torch.device:
        """Where scores and subsets live."""
        return self.table.device

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._epoch or 0

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, and selects if a selection is due. May wait for the device.

        Nothing changes if `epoch` is already the current one, or if an error is raised.

        Args:
            epoch: The epoch, counted from 0.

        Raises:
            TypeError: `epoch` is no int, or the policy returned no tensor.
            ValueError: `epoch` is negative, or the policy returned something other than
                `schedule.num_kept` distinct sample ids.
            IndexError: An earlier step on a GPU met a target or an id out of range.
        """
        epoch = as_int("epoch", epoch, minimum=0)
        if epoch != self._epoch:
            functional.check_errors(self.device)
            self._enter(epoch)
        self._unscheduled = None

    @property
    def selected(self) -> Tensor:
        """The sample ids of the current epoch, ascending, int64 [num_selected], on `device`."""
        self._begin()
        if self.schedule.phase(self.epoch) == "pruned":
            assert self._subset is not None
            return self._subset.clone()
        return torch.arange(self.num_samples, device=self.device)

    def epoch_order(self) -> Tensor:
        """Returns the ids of the current epoch in the order in which the samplers yield them.

        Returns:
            int64 [num_selected] on `device`: `selected` in an order drawn for this epoch, the same
            at every call. Not to be changed.
        """
        self._begin()
        if self._order is None:
            order = functional.permutation(
                self.num_selected,
                seed=derive_seed(self.seed, "order", self.epoch),
                device=self.device,
            )
            if self.schedule.phase(self.epoch) == "pruned":
                assert self._subset is not None
                order = self._subset[order]
            self._order = order
        return self._order

    @property
    def num_selected(self) -> int:
        """How many samples the current epoch trains on."""
        return self.schedule.count(self.epoch)

    def steps_per_epoch(
        self, batch_size: int, drop_last: bool = False, epoch: int | None = None
    ) -> int:
        """Returns how many batches an epoch has; known for every epoch from the beginning.

        Args:
            batch_size: Samples per batch, at least 1.
            drop_last: Whether a smaller last batch is left out.
            epoch: Which epoch; None is the current one.
        """
        batch_size = as_int("batch_size", batch_size, minimum=1)
        epoch = self.epoch if epoch is None else as_int("epoch", epoch, minimum=0)
        return num_batches(self.schedule.count(epoch), batch_size, drop_last)

    def total_steps(self, epochs: int, batch_size: int, drop_last: bool = False) -> int:
        """Returns how many batches the epochs 0 to `epochs - 1` have, for an LR schedule.

        Args:
            epochs: Number of epochs, at least 0.
            batch_size: As in `steps_per_epoch`.
            drop_last: As in `steps_per_epoch`.
        """
        epochs = as_int("epochs", epochs, minimum=0)
        return sum(self.steps_per_epoch(batch_size, drop_last, epoch) for epoch in range(epochs))

    def sampler(self) -> EpochSampler:
        """Returns a sampler for `DataLoader(sampler=...)` that follows the current epoch."""
        return EpochSampler(self)

    def batch_sampler(self, batch_size: int, drop_last: bool = False) -> EpochBatchSampler:
        """Returns a sampler for `DataLoader(batch_sampler=...)` that follows the current epoch.

        Args:
            batch_size: Samples per batch, at least 1.
            drop_last: Whether to leave out a smaller last batch.
        """
        return EpochBatchSampler(self, batch_size, drop_last)

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Computes the cross-entropy and enters the samples' scores, without waiting.

        The loss is that of `torch.nn.functional.cross_entropy` with the same options. Ignored rows
        leave their samples' scores alone. The scores enter the table at this call, not at the
        backward pass: compute a validation loss with torch's own function.

        Args:
            logits: Floating point [batch, num_classes].
            target: Class indices, int64, int32 or uint8 [batch].
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`.
            weight: Class weights [num_classes].
            ignore_index: Target of rows that count for nothing.
            label_smoothing: In [0, 1].
            reduction: "mean" (weighted by the targets' class weights), "sum" or "none".

        Returns:
            The loss: 0-d, or [batch] for "none"; float32, or float64 for float64 logits.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong dtype, shape, length or value.
            IndexError: A target or an id is out of range (CPU; on a GPU the row is skipped and the
                error is raised by the next call that may wait, such as `set_epoch`).
        """
        as_choice("reduction", reduction, REDUCTIONS)
        scored = functional.scored_cross_entropy(
            logits,
            target,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
        values = self._score_of(scored)
        check_ids_and_values(ids, values)
        labels = target.to(torch.int64)
        # A GPU cannot raise for a target out of range without waiting: such a row is left out here
        # and reported by the next call that may wait.
        counts = (labels != ignore_index) & (labels >= 0) & (labels < logits.shape[1])
        ids = move_without_waiting("ids", ids.to(torch.int64), labels.device)
        self._update(torch.where(counts, ids, -1), values)
        loss = torch.where(counts, scored.loss, 0.0)
        if reduction == "none":
            return loss
        total = loss.sum()
        if reduction == "sum":
            return total
        if weight is None:
            return total / counts.sum()
        # Rows whose target is out of range must not read outside the class weights.
        row_weights = weight.detach().to(total.dtype)[labels.clamp(0, len(weight) - 1)]
        return total / torch.where(counts, row_weights, 0.0).sum()

    def observe(
        self,
        ids: Tensor,
        values: Tensor | functional.ScoredLoss,
        correct: Tensor | None = None,
    ) -> None:
        """Enters per-sample values for losses that `cross_entropy` does not cover, without waiting.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`. A row whose id
                is -1 belongs to no sample and is skipped.
            values: One value per sample, floating point [batch]; bigger means more worth training
                on. Or the result of `functional.scored_cross_entropy`, of which the configured
                `score` is taken.
            correct: Was the sample classified correctly, bool [batch]. Not read in this version.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype or a shape is wrong, or the lengths differ.
            IndexError: An id is out of range (CPU; on a GPU the row is skipped and the error is
                raised by the next call that may wait, such as `set_epoch`).
        """
        if isinstance(values, functional.ScoredLoss):
            values = self._score_of(values)
        check_ids_and_values(ids, values)
        if correct is not None and not isinstance(correct, Tensor):
            raise TypeError(f"correct must be a tensor, got {type(correct).__name__}")
        if correct is not None and (correct.dtype != torch.bool or correct.shape != ids.shape):
            raise ValueError(
                f"correct must be bool of shape {tuple(ids.shape)}, got {correct.dtype} of shape "
                f"{tuple(correct.shape)}"
            )
        self._update(ids, values)

    def stats(self) -> dict[str, Any]:
        """Summarises the current epoch and the scores for a log. Waits for the device.

        Returns:
            `epoch`, `phase` ("warm-up", "pruned" or "annealing"), `num_selected`, and everything
            from `ScoreTable.stats`.

        Raises:
            IndexError: An earlier step on a GPU met a target or an id out of range.
        """
        return {
            "epoch": self.epoch,
            "phase": self.schedule.phase(self.epoch),
            "num_selected": self.num_selected,
            **self.table.stats(),
        }

    def __repr__(self) -> str:
        """Tells how the pruner was made, and where the run is."""
        plan = self.schedule
        return (
            f"Pruner(num_samples={self.num_samples}, keep={plan.num_kept}, "
            f"policy={self.policy!r}, period={plan.period}, warmup_epochs={plan.warmup_epochs}, "
            f"anneal_epochs={plan.anneal_epochs}, epochs={plan.epochs}, score={self.score!r}, "
            f"alpha={self.table.alpha}, seed={self.seed}, device='{self.device}'; "
            f"epoch {self.epoch}, {plan.phase(self.epoch)})"
        )

    def _begin(self) -> None:
        """Enters epoch 0 if no epoch was ever set."""
        if self._epoch is None:
            self._enter(0)

    def _enter(self, epoch: int) -> None:
        """Makes `epoch` the current one; whatever may fail comes before the first change."""
        subset, start = self._subset, self._subset_epoch
        if self.schedule.phase(epoch) == "pruned":
            start = self.schedule.period_start(epoch)
            static = getattr(self.policy, "static", False)
            due = not static and (epoch == start or start != self._subset_epoch)
            if subset is None or due:
                if start > 0 and not self._observed and getattr(self.policy, "uses_scores", False):
                    self._observed = True  # said once
                    warnings.warn(
                        f"no score was observed before epoch {start}, so {self.policy!r} selects "
                        "at random; compute the loss with pruner.cross_entropy(...), or call "
                        "pruner.observe(ids, values), in the training loop",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                seed = derive_seed(self.seed, "select", 0 if static else start)
                subset = policies.select(self.policy, self.table, self.schedule.num_kept, seed)
        self._subset, self._subset_epoch = subset, start
        self._epoch, self._order = epoch, None

    def _score_of(self, scored: functional.ScoredLoss) -> Tensor:
        """Returns the configured score, detached: bigger means more worth training on."""
        if self.score == "margin":
            return -scored.margin
        values: Tensor = getattr(scored, self.score)
        return values.detach()

    def _update(self, ids: Tensor, values: Tensor) -> None:
        self.table.update(ids, values)
        self._observed = True
        if self._unscheduled is not None:
            self._unscheduled += len(ids)
            if self._unscheduled > 2 * self.num_samples:
                self._unscheduled = None
                warnings.warn(
                    "more than two epochs of samples were observed and set_epoch was never "
                    "called: nothing is being pruned or reshuffled; call "
                    "pruner.set_epoch(epoch) at the start of each epoch",
                    RuntimeWarning,
                    stacklevel=3,
                )


def _check_single_process(process_group: Any, sharding: Any) -> None:
    """Refuses what this version cannot do yet, before it would silently do something else."""
    if process_group is not None and process_group is not False:
        raise ValueError(
            f"process_group must be None or False in this version, got {process_group!r}"
        )
    if sharding != "replicate":
        raise ValueError(f"sharding must be 'replicate' in this version, got {sharding!r}")
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and process_group is None:
        raise RuntimeError(
            f"torch.distributed runs {dist.get_world_size()} processes, and multi-process training "
            "is not supported yet in this version; process_group=False makes a pruner that knows "
            "its own process only"
        )
