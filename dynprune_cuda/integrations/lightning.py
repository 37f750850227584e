# SPDX-License-Identifier: Apache-2.0
"""Lightning: a callback that follows the epochs, and saves the pruner with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_leaves

from dynprune_cuda.data.samplers import EpochBatchSampler, ResumableSampler
from dynprune_cuda.integrations.batches import BatchCounter
from dynprune_cuda.integrations.lengths import EpochLengths, numbers_of
from dynprune_cuda.integrations.log_advice import log_advice
from dynprune_cuda.pruner import Pruner

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
        from pytorch_lightning.trainer.states import TrainerFn
    except ImportError as error:
        raise ImportError(
            "dynprune_cuda.integrations.lightning needs Lightning: pip install lightning"
        ) from error

__all__ = ["PrunerCallback"]

KEY = "dynprune_cuda"  # in a checkpoint
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")  # likewise, Lightning's


class PrunerCallback(Callback):  # type: ignore[misc]
    """Begins the pruner's epochs, saves and loads its state, and logs its statistics and advice.

        sampler = pruner.batch_sampler(64)
        loader = DataLoader(IndexedDataset(train_set), batch_sampler=sampler)
        trainer = Trainer(
            callbacks=[PrunerCallback(sampler)],
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
        )
        trainer.fit(model, loader)

    `training_step` computes its loss with `pruner.cross_entropy(logits, labels, ids)`.

    Lightning reads the length of a loader once, unless it reloads the loader every epoch. Epochs
    longer than the first one would be cut, and validation would never run in shorter ones.
    The next epoch therefore begins in `on_train_epoch_end`, before Lightning looks at its length:
    other hooks of that name already see the next epoch's subset. The last epoch has no next one.

    A checkpoint holds the pruner's state and the position inside the epoch, from any hook that
    Lightning saves in: `Trainer.fit(ckpt_path=...)` continues with bit-identical results. With
    several processes, checkpoints are those of rank 0: one from inside an epoch lacks the scores
    that other ranks have seen since it began.

    A DataModule that builds its data in `setup` makes the pruner and its sampler there, and the
    callback is told where they are: `PrunerCallback(lambda trainer: trainer.datamodule.sampler)`.

    `trainer.estimated_stepping_batches` multiplies the first epoch's length: schedule by
    `callback.stepping_batches(trainer)`. `save_hyperparameters()` of a model or a DataModule that
    takes the pruner, or a sampler of it, leaves both out of checkpoints: pass them to
    `load_from_checkpoint`.

    With several processes, start them by torchrun, and call `torch.distributed.init_process_group`
    before the pruner is made: Lightning itself would do it too late.

    Attributes:
        sampler: Gives the batches. If a function finds it, it is there from `setup` on.
        pruner: Its pruner, likewise.
        log_stats: Whether statistics are logged.
    """

    sampler: EpochBatchSampler
    pruner: Pruner

    def __init__(
        self,
        sampler: EpochBatchSampler | Callable[[Trainer], EpochBatchSampler],
        *,
        log_stats: bool = False,
    ) -> None:
        """Follows the pruner that made `sampler`.

        Args:
            sampler: From `Pruner.batch_sampler`; the training loader must use this very object, as
                its `batch_sampler` (`DataLoader`) or `sampler` (`DeviceLoader`). Or a function that
                gets the trainer and returns it, called at each `fit` after `DataModule.setup`.
            log_stats: Whether to send the numbers of `pruner.stats()` to the trainer's loggers at
                the end of every epoch, which waits for the device once.

        Raises:
            TypeError: `sampler` is something else.
            ValueError: The pruner has sharding="shard" and several processes.
        """
        super().__init__()
        self.log_stats = log_stats
        self._find: Callable[[Trainer], EpochBatchSampler] | None = None
        if callable(sampler):
            self._find = sampler
        else:
            self._follow(sampler)

    def _follow(self, sampler: EpochBatchSampler) -> None:
        if not isinstance(sampler, EpochBatchSampler) or not isinstance(sampler.source, Pruner):
            raise TypeError(
                f"sampler must be what pruner.batch_sampler(...) returned, got {sampler!r}"
            )
        self._batches = BatchCounter(sampler.source)
        self.sampler, self.pruner = sampler, sampler.source

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the trainer, and begins the first epoch before any loader is read.

        Raises:
            TypeError: The callback's function found no sampler of a pruner.
            ValueError: The trainer does not reload its loaders at every epoch, or would validate
                after more batches than an epoch has.
        """
        if stage == "fit":
            every = trainer.reload_dataloaders_every_n_epochs
            if every != 1:
                raise ValueError(
                    f"reload_dataloaders_every_n_epochs must be 1, got {every}: epochs differ in "
                    "length, and Lightning reads it only when it reloads"
                )
            if self._find is not None:
                found = self._find(trainer)
                if found is not getattr(self, "sampler", self):
                    self._follow(found)
            self._check_validation(trainer)
            self._begin(trainer)

    def _check_validation(self, trainer: Trainer) -> None:
        """Checks what Lightning itself would find in the middle of the run."""
        every = trainer.val_check_interval
        if not isinstance(every, int) or trainer.check_val_every_n_epoch is None:
            return
        shortest = self._lengths(trainer).shortest()
        if trainer.limit_val_batches and shortest is not None and every > shortest[1]:
            raise ValueError(
                f"val_check_interval must be at most {shortest[1]}, the batches of epoch "
                f"{shortest[0]}, got {every}: use a float, a fraction of each epoch, or "
                "check_val_every_n_epoch=None, which counts batches over epochs"
            )

    def _lengths(self, trainer: Trainer) -> EpochLengths:
        return EpochLengths(
            self.sampler,
            -1 if trainer.max_epochs is None else trainer.max_epochs,
            trainer.max_steps,
            accumulate=trainer.accumulate_grad_batches,
            limit=trainer.limit_train_batches,
        )

    def stepping_batches(self, trainer: Trainer) -> int:
        """Returns how many steps the optimiser takes in the run, for a learning-rate schedule.

        It is what `trainer.estimated_stepping_batches` is for epochs of one length.

        Args:
            trainer: The trainer that runs the fit.

        Returns:
            The number of steps.

        Raises:
            ValueError: The run has no end, or the length of an epoch is not known yet.
        """
        if trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
            raise ValueError("max_epochs or max_steps must be set, got a run without an end")
        total = self._lengths(trainer).total_updates()
        if total is None:
            raise ValueError(
                f"{self.pruner.policy!r} decides at each selection how many samples it keeps: "
                'schedule the learning rate by epochs, with "interval": "epoch"'
            )
        return total

    def _check_schedules(self, trainer: Trainer) -> None:
        """Checks that no learning rate follows the length of one epoch."""
        if trainer.max_epochs in (None, -1):
            return
        lengths = self._lengths(trainer)
        wrong = lengths.wrong_totals()
        for config in trainer.lr_scheduler_configs:
            found = numbers_of(config.scheduler) & wrong if config.interval == "step" else None
            if found:
                total = lengths.total_updates()
                way_out = 'give it "interval": "epoch"'
                if total is not None:
                    way_out = f"use callback.stepping_batches(trainer), {total} here"
                raise ValueError(
                    f"{type(config.scheduler).__name__} must not be made with {min(found)} steps, "
                    "the epochs of the run times the length of one of them, as in "
                    f"trainer.estimated_stepping_batches: epochs differ in length; {way_out}"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the loader is the pruner's; a resumed run may begin another epoch here.

        Raises:
            ValueError: No training loader uses the callback's sampler, or a learning rate is
                scheduled by `trainer.estimated_stepping_batches`.
        """
        names = ("batch_sampler", "sampler")
        used = [
            getattr(leaf, name, None)
            for leaf in tree_leaves(trainer.train_dataloader)
            for name in names
        ]
        if not any(sampler is self.sampler for sampler in used):
            raise ValueError(
                "the training loader must use the callback's sampler, as "
                "DataLoader(..., batch_sampler=sampler), got a loader with "
                f"{[type(sampler).__name__ for sampler in used if sampler is not None]}"
            )
        self._check_schedules(trainer)
        self._begin(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batches of the epoch."""
        self._batches.count = batch_idx + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's statistics, and begins the next one, if there is one."""
        if self.log_stats:
            for logger in trainer.loggers:
                logger.log_metrics(self.pruner.stats().scalars(), step=trainer.global_step)
        # A schedule need not know an epoch after the last.
        if self._next(trainer) != trainer.max_epochs and trainer.global_step != trainer.max_steps:
            self._begin(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs `pruner.advice()`, if there is any, on the first process."""
        if trainer.is_global_zero:
            log_advice(self.pruner)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the pruner's state, the epoch to go on with, and the position in the pruner's.

        A pruner among the hyperparameters would be saved whole, and could not be loaded safely.
        """
        for name in HYPER_PARAMETERS:
            kept = dict(checkpoint.get(name, {}))
            for key in [key for key in kept if isinstance(kept[key], Pruner | ResumableSampler)]:
                del kept[key]
            if len(kept) < len(checkpoint.get(name, {})):
                checkpoint[name] = kept
        checkpoint[KEY] = {
            **self._batches.state_dict(self.sampler),
            "epoch": self._next(trainer),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on where the checkpoint was; validation and prediction leave the pruner alone.

        Raises:
            ValueError: The checkpoint holds no pruner's state, or one of another pruner.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if KEY not in checkpoint:
            raise ValueError(
                "the checkpoint is of a run without PrunerCallback: it must have the entry "
                f"{KEY!r}, got {sorted(map(str, checkpoint))}; start from its weights only, "
                "without ckpt_path"
            )
        state = checkpoint[KEY]
        self._batches.load_state_dict(state, self.sampler)
        self._batches.begin(state["epoch"])

    def _next(self, trainer: Trainer) -> int:
        """Returns the epoch that is under way, or between two epochs the one that comes."""
        # As Lightning's own samplers are told: `current_epoch` still counts the one that ended.
        epoch: int = trainer.fit_loop.epoch_progress.current.processed
        return epoch

    def _begin(self, trainer: Trainer) -> None:
        self._batches.begin(self._next(trainer))
