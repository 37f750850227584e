# SPDX-License-Identifier: Apache-2.0
"""Saving a run and going on with it, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._epochs.replicated import EpochSubsets, Subset
from dynprune_cuda.policies.registry import fingerprint

STATE_VERSION = 2  # grows with every change of what a state holds
SUBSET_ENTRIES = (
    "epoch",
    "subset_epoch",
    "subset",
    "num_selections",
    "times_selected",
    "turnover",
    "repeat",
)


class ResumableEpochs(EpochSubsets):
    """The part of a `Pruner` that saves and loads: all that decides how the run goes on."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that decides how the run goes on: scores, subset, epoch, seed. May wait.

        A run that loads it goes on bit for bit; the position inside the epoch belongs to the
        sampler, see `EpochBatchSampler.state_dict`. The tensors are copies on `device`, and the
        rest are ints, floats and strings: `torch.load(weights_only=True)` and
        `torch.distributed.checkpoint` take it.

        With several processes, this one asks no other for anything. After `set_epoch` the states
        of all of them are equal, and one is enough. In mid-epoch each holds the scores that it has
        seen itself: to go on bit for bit, each saves and loads its own. From the state of one, all
        of them go on too, without what the others had seen since `set_epoch`.

        Raises:
            IndexError: An earlier step on a GPU met a target or an id out of range.
        """
        functional.check_errors(self.device)
        return {**self._settings(), "table": self.table.state_dict(), **self._saved_subset()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, from any device. Waits for the device.

        The pruner must have been made like the one that was saved; of its arguments, `epochs`,
        `anneal_epochs` and later values of `keep` may differ, and the saved seed replaces its own.

        Args:
            state_dict: From `state_dict`.

        Raises:
            TypeError: The state is no mapping, or an entry has the wrong type.
            ValueError: The state is of another number of samples, version, policy or setting, or it
                is damaged. Nothing changes then.
        """
        columns, attributes = self._checked(state_dict)
        subset = attributes["_subset"]
        self._check_total(attributes, 0 if subset is None else len(subset.ids))
        self._adopt(columns, attributes)

    def _checked(self, state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the table's columns and this object's attributes of a state, once sound."""
        read = self._reader(state)
        seed = read.integer("seed", 0, 2**64 - 1)
        columns = self.table.checked("state_dict['table']", state["table"])
        return columns, {**self._checked_subset(read), "seed": seed}

    def _reader(self, state: Any) -> StateReader:
        """Returns a reader of a state that has all entries, and is of a run like this one."""
        settings = self._settings()
        read = StateReader("state_dict", state)
        for name, mine in settings.items():
            if name != "seed":
                read.same(name, mine)
        weights = () if self._weights is None else ("weights",)
        read.has([*settings, "table", *SUBSET_ENTRIES, *weights])
        return read

    def _adopt(self, columns: dict[str, Tensor], attributes: dict[str, Any]) -> None:
        """Takes over what `_checked` returned."""
        self.table.take(columns)
        self._repeat.copy_(attributes.pop("_repeat"))
        self.__dict__.update(attributes)
        self._set_weights()
        seen = (self.table.count > 0) | (self.table.non_finite_count > 0)
        self._observed = bool(seen.any())
        self._unscheduled = 0 if self._epoch is None else None

    def _settings(self) -> dict[str, Any]:
        """Returns the entries of a state that a loaded one must share, and the seed."""
        return {
            "version": STATE_VERSION,
            "num_samples": self.num_samples,
            "policy": fingerprint(self.policy),
            "period": self.schedule.period,
            "warmup_epochs": self.schedule.warmup_epochs,
            "alpha": self.table.alpha,
            "seed": self.seed,
        }

    def _saved_subset(self) -> dict[str, Any]:
        """Returns the entries of a state that tell the subset and its history.

        Their keys and shapes are those of every pruner made alike, whatever it has selected so far:
        `torch.distributed.checkpoint` loads into a state of the same shape.
        """
        subset = self._subset
        chosen = self._mask(subset)
        state = {
            "epoch": -1 if self._epoch is None else self._epoch,
            "subset_epoch": -1 if subset is None else subset.epoch,
            "subset": chosen,
            "num_selections": self.num_selections,
            "times_selected": self.times_selected.clone(),
            "turnover": self.turnover.clone(),
            "repeat": self._repeat.clone(),
        }
        if getattr(self.policy, "weighs", False):
            weights = chosen.float() if subset is None else subset.weights
            assert weights is not None
            state["weights"] = weights.clone()
        return state

    def _checked_subset(self, read: StateReader) -> dict[str, Any]:
        """Returns the attributes that the entries of `_saved_subset` stand for, once sound."""
        shape, device = (self.table.num_samples,), self.device
        epoch = read.integer("epoch", -1)
        start = read.integer("subset_epoch", -1)
        chosen = read.tensor("subset", torch.bool, shape, device)
        ids = self._ids_of(chosen)
        selections = read.integer("num_selections", 0)
        times = read.tensor("times_selected", torch.int32, shape, device)
        turnover = read.tensor("turnover", torch.float64, (), device)
        weights = None
        if getattr(self.policy, "weighs", False):
            weights = read.tensor("weights", torch.float32, shape, device)
            fits = weights.isfinite() & (weights >= 0) & ((weights > 0) == chosen)
            read.sound("weights", fits.all(), "it contradicts the subset")
        repeat = read.tensor("repeat", torch.int64, (2,), device)
        fits = (repeat >= -1).all() & (repeat[0] < self.num_samples)
        read.sound("repeat", fits, "out of range")
        read.sound("times_selected", ((times >= 0) & (times <= selections)).all(), "out of range")
        read.sound("turnover", ~((turnover < 0) | (turnover > 1)), "it is outside [0, 1]")
        return {
            "_epoch": epoch if epoch >= 0 else None,
            "_subset": Subset(start, ids, weights) if start >= 0 or len(ids) else None,
            "_order": None,
            "num_selections": selections,
            "times_selected": times,
            "turnover": turnover,
            "_repeat": repeat,
        }

    def _check_total(self, attributes: dict[str, Any], total: int) -> None:
        """Checks that the subset of a state, of `total` samples in all processes, fits the run."""
        subset = attributes["_subset"]
        start = -1 if subset is None else subset.epoch
        if (start >= 0) != (total > 0):
            raise ValueError("state_dict['subset'] is damaged: it contradicts 'subset_epoch'")
        epoch = attributes["_epoch"]
        if epoch is not None and self.schedule.phase(epoch) == "pruned":
            wanted = self.schedule.period_start(epoch)
            if start != wanted:
                raise ValueError(
                    f"state_dict is damaged, or of a run with another end: epoch {epoch} is "
                    f"pruned here and trains on the selection of epoch {wanted}, not {start}"
                )
        kept = self.schedule.kept(start) if start >= 0 else None
        if kept is not None and kept != total:
            raise ValueError(
                f"state_dict is of another run: it kept {total} samples in epoch {start}, and "
                f"here keep gives {kept}"
            )
