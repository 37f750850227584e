# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Trainer: epochs of different lengths, sample ids past the collator, checkpoints."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dynprune_cuda.data.collate import CollateWithIds
from dynprune_cuda.data.indexed import ID_KEY, IndexedDataset
from dynprune_cuda.integrations.accelerate import prepare_loader
from dynprune_cuda.integrations.batches import LOADER_OPTIONS, BatchCounter
from dynprune_cuda.integrations.log_advice import log_advice
from dynprune_cuda.pruner import Pruner

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ImportError(
        "dynprune_cuda.integrations.transformers needs Transformers and Accelerate: "
        "pip install 'transformers[torch]'"
    ) from error

from dynprune_cuda.integrations.model_losses import LossCheck, OutputCapture, takes_labels
from dynprune_cuda.integrations.row_scores import rows_of_outputs, shifts_labels
from dynprune_cuda.integrations.sequence_batches import lengths_for_batches, with_ids_of_tokens

__all__ = ["PrunedTrainer", "PrunedTrainerMixin"]

STATE_FILE = "pruner.pt"  # in a checkpoint's folder
_KNOWN = {"epoch", "steps_in_epoch", "num_update_steps_per_epoch"}
if not set(inspect.signature(getattr(Trainer, "_run_epoch", len)).parameters) >= _KNOWN:
    raise ImportError(
        "dynprune_cuda.integrations.transformers needs a Trainer that runs its epochs by "
        "_run_epoch, as that of transformers 5.23 does: pip install -U transformers"
    )


_PACKED = (
    "packing=True joins documents into rows before training. A sample of the pruner is then a row, "
    "chosen and scored as a whole. The pruner needs as many samples as there are rows. Pack the "
    "data set first (trl.pack_dataset), or use padding_free=True, which keeps the samples"
)


class PrunedTrainerMixin:
    """Makes a Trainer train on the pruner's epochs; put it before the class that it changes.

        args = TrainingArguments(output_dir, num_train_epochs=20)
        pruner = Pruner(len(train_set), keep=0.3, device=args.device)
        PrunedTrainer(model, args, train_dataset=train_set, pruner=pruner).train()

    The training set is any map-style dataset of dicts; the ids go past the data collator and past
    `remove_unused_columns`. `max_steps`, epochs, evaluation and the learning-rate schedule follow
    the pruner's lengths. With `max_steps` above 0, the run takes as many steps and as many epochs
    as that needs. Evaluation and prediction are the Trainer's own.

    The loss is the model's own, or the trainer's, or for a model that returns none that of
    `pruner.cross_entropy`. The scores are made of the outputs: of `logits`
    [batch, classes] with integer `labels` [batch], and of `logits` [batch, tokens, vocabulary] with
    `labels` [batch, tokens]. A sequence is a sample. The pruner's `row_reduction` makes its score
    of those of its tokens; tokens with the label -100 count for nothing. Samples that the collate
    function joins into one row without padding are told apart. TRL's SFTTrainer returns losses of
    tokens instead of logits, which is enough for the scores "loss" and "entropy".

    Of any other model, the loss counts for each sample of the batch. Where per-sample losses are at
    hand, override `compute_loss` and call `pruner.observe`. `inputs["sample_id"]` are the ids:
    [batch], or [1, tokens] in batches without padding. A policy that rescales needs a loss that is
    the mean over samples or tokens. This is checked in the first epoch.

    With `packing=True`, TRL joins documents before training. A sample is then a row of several
    documents, which are chosen and scored together.

    Checkpoints hold the pruner in `pruner.pt`, and `train(resume_from_checkpoint=...)` continues
    with bit-identical results. With several processes it is the state of the first. A checkpoint
    from inside an epoch lacks the scores that other processes have seen since it began.

    Attributes:
        pruner: The pruner, made after the `TrainingArguments`, which initialise torch.distributed.
        log_stats: Whether the numbers of `pruner.stats()` are logged after every epoch.
        shift_labels: Whether the label of a token stands at the token after it, as causal language
            models of Transformers have it. None: as the model's class says.
    """

    pruner: Pruner

    def __init__(
        self,
        *args: Any,
        pruner: Pruner,
        log_stats: bool = False,
        shift_labels: bool | None = None,
        **more: Any,
    ) -> None:
        """Takes what the Trainer takes, and the pruner.

        Args:
            *args: Arguments of the Trainer.
            pruner: A pruner of as many samples as the training set has, on the Trainer's device.
            log_stats: Whether to log `pruner.stats()` after every epoch; waits for the device once.
            shift_labels: Whether the label of a token stands at the token after it; for models
                whose class does not tell.
            **more: Keyword arguments of the Trainer, but for `compute_loss_func`.

        Raises:
            TypeError: `pruner` is no pruner.
            ValueError: The pruner does not fit the training set or the Trainer, or has
                sharding="shard" and several processes.
        """
        batches = BatchCounter(pruner)
        super().__init__(*args, **more)
        trainer: Any = self
        if trainer.compute_loss_func is not None:
            raise ValueError("compute_loss_func must be None: override compute_loss instead")
        if trainer.args.n_gpu > 1:
            raise ValueError(
                f"the Trainer must use one GPU per process, got {trainer.args.n_gpu}: start it by "
                "torchrun, or make one GPU visible"
            )
        self.pruner = pruner
        self.log_stats = log_stats
        self.shift_labels = shift_labels
        self._batches = batches
        self._loss_check = LossCheck(pruner.policy)
        if getattr(trainer.args, "packing", False):
            warnings.warn(_PACKED, UserWarning, stacklevel=2)
        trainer.add_callback(_Follower(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the Trainer's loader, with the pruner's batches and the samples' ids."""
        trainer: Any = self
        usual = super().get_train_dataloader()  # type: ignore[misc]
        if len(usual.dataset) != self.pruner.num_samples:
            packed = getattr(trainer.args, "packing", False)
            raise ValueError(
                f"the training set must have {self.pruner.num_samples} samples, as the pruner, "
                f"got {len(usual.dataset)}{f': {_PACKED}' if packed else ''}"
            )
        loader: DataLoader[Any] = DataLoader(
            IndexedDataset(usual.dataset),
            batch_sampler=self.pruner.batch_sampler(
                self._batch_size(), self._drop_last(), lengths=lengths_for_batches(trainer)
            ),
            collate_fn=_CollateDicts(usual.collate_fn),
            **{name: getattr(usual, name) for name in LOADER_OPTIONS},
        )
        return prepare_loader(trainer.accelerator, loader)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the loss of the batch, and records the samples' scores if it is for training."""
        inputs = dict(inputs)
        ids = inputs.pop(ID_KEY, None)
        usual = super().compute_loss  # type: ignore[misc]
        if ids is None:
            return usual(model, inputs, return_outputs, num_items_in_batch)
        found = loss = None
        if takes_labels(model):
            with OutputCapture(model) as captured:
                try:  # with a copy: trainers take labels out, or put options in
                    found = usual(model, dict(inputs), return_outputs, num_items_in_batch)
                except ValueError:
                    if not captured.lacks_loss():  # which the Trainer refuses
                        raise
            outputs = captured.outputs
            if found is not None:
                loss = found[0] if return_outputs else found
        else:
            outputs = model(**{name: x for name, x in inputs.items() if name != "labels"})
        rows = rows_of_outputs(
            outputs, inputs, ids, self._shifts(model), has_loss=self._has_loss(loss)
        )
        if rows is None:
            if loss is None:
                raise ValueError(
                    f"{type(model).__name__} returns no loss, and its outputs are no logits of one "
                    "class index per row: override compute_loss"
                )
            self._observe_batch(ids.flatten(), loss)
            return found
        if loss is not None and self.pruner.rescales and not self._loss_check.is_done:
            plain = rows.plain(num_items_in_batch, self._smoothing())
            self._loss_check.compare(loss, plain * self._loss_scale(num_items_in_batch))
        trains = loss is None or self.pruner.rescales
        own = rows.enter(self.pruner, num_items_in_batch, self._smoothing(), trains=trains)
        if not trains:
            return found
        own = own * self._loss_scale(num_items_in_batch)
        if not return_outputs:
            return own
        return own, outputs if found is None else found[1]

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Returns the Trainer's plan, with the number of steps that the pruner's epochs have.

        Raises:
            ValueError: The length of an epoch is not known yet, and `max_steps` is not set.
        """
        values = list(super().set_initial_training_values(args, dataloader))  # type: ignore[misc]
        epochs, *_, max_steps = values
        if args.max_steps > 0:
            epochs = max_steps  # more than needed: the Trainer stops at max_steps
        else:
            try:
                updates = [self._updates(epoch) for epoch in range(epochs)]
            except ValueError as error:
                raise ValueError(
                    "TrainingArguments.max_steps must be set: the policy decides at each selection "
                    "how many samples it keeps"
                ) from error
            # A last epoch of which only a part is wanted.
            updates[-1] = math.ceil(updates[-1] * (args.num_train_epochs - (epochs - 1)))
            max_steps = sum(updates)
        values[0], values[-1] = epochs, max_steps
        return tuple(values)

    def _init_training_state(self, *args: Any, **more: Any) -> tuple[int, int]:
        """Restores the pruner, and tells the Trainer the epoch and the batch to go on with."""
        epochs_trained, batches = super()._init_training_state(*args, **more)  # type: ignore[misc]
        bound = inspect.signature(Trainer._init_training_state).bind(self, *args, **more)
        folder = bound.arguments["resume_from_checkpoint"]
        self._batches.count = 0
        if folder is None:
            return epochs_trained, batches
        trainer: Any = self
        path = Path(folder) / STATE_FILE
        if not path.exists():
            raise ValueError(f"resume_from_checkpoint must hold a pruner, got {folder} without")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.pruner.load_state_dict(state["pruner"])
        epoch = self.pruner.epoch
        if state["batches"] == self._steps(epoch):
            return epoch + 1, 0
        if trainer.args.ignore_data_skip:
            return epoch, 0
        self._batches.count = state["batches"]
        return epoch, state["batches"]

    def _run_epoch(self, **values: Any) -> None:
        """Runs an epoch of the pruner's length."""
        trainer: Any = self
        epoch = values["epoch"]
        self._batches.begin(epoch)
        values["steps_in_epoch"] = self._steps(epoch)
        values["num_update_steps_per_epoch"] = self._updates(epoch)
        super()._run_epoch(**values)  # type: ignore[misc]
        self._loss_check.end_epoch()
        if self.log_stats:
            trainer.log(self.pruner.stats().scalars())

    def _save_pruner(self) -> None:
        """Adds the pruner to the checkpoint that the Trainer has just written."""
        trainer: Any = self
        state = {"pruner": self.pruner.state_dict(), "batches": self._batches.count}
        if trainer.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
            torch.save(state, Path(trainer.args.output_dir, folder, STATE_FILE))

    def _observe_batch(self, ids: Tensor, loss: Tensor) -> None:
        """Credits a loss of the batch to its samples."""
        if self.pruner.rescales:
            self._loss_check.refuse()
        self.pruner.observe(ids, loss.detach())

    def _loss_scale(self, num_items: Tensor | int | None) -> int:
        """Returns the factor by which the Trainer undoes the mean over processes."""
        trainer: Any = self
        if num_items is None or not trainer.args.average_tokens_across_devices:
            return 1
        number: int = trainer.accelerator.num_processes
        return number

    def _smoothing(self) -> float:
        trainer: Any = self
        factor: float = trainer.args.label_smoothing_factor
        return factor

    def _has_loss(self, loss: Tensor | None) -> bool:
        """Whether the model was given labels, so that its loss comes first in a tuple."""
        trainer: Any = self
        return loss is not None and trainer.label_smoother is None

    def _shifts(self, model: torch.nn.Module) -> bool | None:
        trainer: Any = self
        if self.shift_labels is not None:
            return self.shift_labels
        return shifts_labels(trainer.accelerator.unwrap_model(model))

    def _batch_size(self) -> int:
        trainer: Any = self
        size: int = trainer._train_batch_size
        return size

    def _drop_last(self) -> bool:
        trainer: Any = self
        return bool(trainer.args.dataloader_drop_last)

    def _steps(self, epoch: int) -> int:
        """Returns the batches of an epoch."""
        return self.pruner.steps_per_epoch(self._batch_size(), self._drop_last(), epoch)

    def _updates(self, epoch: int) -> int:
        """Returns the optimiser's steps in an epoch."""
        trainer: Any = self
        accumulated: int = trainer.args.gradient_accumulation_steps
        return -(-self._steps(epoch) // accumulated)


class PrunedTrainer(PrunedTrainerMixin, Trainer):  # type: ignore[misc]
    """The Trainer with a pruner, see `PrunedTrainerMixin`."""


class _Follower(TrainerCallback):  # type: ignore[misc]
    """Counts batches, saves the pruner where the Trainer saves, and logs the advice at the end."""

    def __init__(self, trainer: PrunedTrainerMixin) -> None:
        self._trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """After the last batch of an optimiser's step."""
        self._trainer._batches.add()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """After any other batch."""
        self._trainer._batches.add()

    def on_save(self, *_: Any, **__: Any) -> None:
        """After a checkpoint."""
        self._trainer._save_pruner()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the last step: logs `pruner.advice()`, if there is any, on the first process."""
        if state.is_world_process_zero:
            log_advice(self._trainer.pruner)


class _CollateDicts(CollateWithIds):
    """Of samples that are dicts: the Trainer gives batches to the model by the names in them."""

    def __call__(self, samples: list[Any]) -> Any:
        """Returns the batch."""
        if not hasattr(samples[0], "pop") or not hasattr(samples[0], "keys"):
            raise TypeError("the training set must hold dicts, got (sample, id) tuples of others")
        # Before the collate function, which may change the samples.
        tokens = [sample.get("input_ids") for sample in samples]
        known = all(isinstance(one, Sized) for one in tokens)
        batch = super().__call__(samples)
        return with_ids_of_tokens(batch, [len(one) for one in tokens] if known else None)
