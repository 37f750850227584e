# SPDX-License-Identifier: Apache-2.0
"""What a pruner can be asked: its settings, the current epoch, lengths and statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynprune_cuda import distributed
from dynprune_cuda._checks.arguments import INTEGER, as_bool, as_int, check_tensor
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.lengths import Lengths
from dynprune_cuda._epochs.run import Run
from dynprune_cuda._schedule.schedule import Schedule
from dynprune_cuda.advice import advise
from dynprune_cuda.policies.adapter import AnyPolicy
from dynprune_cuda.scores.others import other_ids
from dynprune_cuda.scores.table import ScoreTable
from dynprune_cuda.stats import Stats, share

__all__ = ["RunStatus"]


class RunStatus:
    """The part of a `Pruner` that only answers: nothing here changes a score or a subset.

    `epoch_order` begins epoch 0 if no epoch has begun.

    Attributes:
        lengths: How long epochs are; samplers ask it.
    """

    lengths: Lengths
    _run: Run
    # False once losses of several rows a sample, or of several labels, were recorded: their size
    # tells no training accuracy.
    _tells_accuracy = True
    _rescore_seconds: float = 0.0

    # ---- what it was made with, and where it is

    @property
    def _config(self) -> Config:
        return self._run.config

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return self._config.num_samples

    @property
    def policy(self) -> AnyPolicy:
        """The selection rule, see `policies`."""
        return self._config.given_policy

    @property
    def weighs(self) -> bool:
        """Whether the policy decides how many samples it keeps, and rescales their losses."""
        return self._config.policy.weighs

    @property
    def rescales(self) -> bool:
        """Whether losses are multiplied by factors of their samples; see `rescale`."""
        return self._config.policy.has_factors

    @property
    def schedule(self) -> Schedule:
        """When it selects: `keep`, `period`, `warmup_epochs`, `anneal_epochs`, `epochs`."""
        return self._run.schedule

    @property
    def score(self) -> str:
        """Which score `cross_entropy` records."""
        return self._config.score

    @property
    def sharding(self) -> str:
        """Whether every process holds all scores, "replicate", or its own part, "shard"."""
        return self._config.sharding

    @property
    def surplus(self) -> str:
        """Where sharded scores let a process train on samples that it does not hold."""
        return self._config.surplus

    @property
    def table(self) -> ScoreTable:
        """The scores; with sharding="shard", those of this process's samples."""
        return self._run.table

    @property
    def ranks(self) -> distributed.Ranks:
        """The processes that train together, and this one's place: `rank`, `size`."""
        return self._run.ranks

    @property
    def seed(self) -> int:
        """The seed, in [0, 2**64)."""
        return self._run.state.seed

    @property
    def device(self) -> torch.device:
        """Where scores and subsets live."""
        return self.table.device

    @property
    def epoch(self) -> int:
        """The current epoch; 0 before the first `set_epoch`."""
        return self._run.state.epoch or 0

    @property
    def times_selected(self) -> Tensor:
        """How many selections chose each sample, int32 [num_samples], on `device`."""
        return self._run.state.times_selected

    @property
    def num_selections(self) -> int:
        """How many selections there were."""
        return self._run.state.num_selections

    @property
    def turnover(self) -> Tensor:
        """Share of the last selection that the one before had not chosen, 0-d float64.

        It is on `device`, and NaN before the second selection.
        """
        return self._run.state.turnover

    # ---- the current epoch

    @property
    def selected(self) -> Tensor:
        """The sample ids of the current epoch, ascending, int64 [num_selected], on `device`.

        With sharding="shard", those that this process holds. Before the first `set_epoch`, what
        epoch 0 would select with the scores of the first look; iterating then begins that epoch.

        Raises:
            RuntimeError: Epoch 0 begins with a selection of several processes, and none was made.
        """
        subset = self._run.current()
        return self._run.all_ids() if subset is None else subset.ids.clone()

    def is_selected(self, sample_ids: Tensor) -> Tensor:
        """Returns whether the current epoch trains on each of `sample_ids`, without waiting.

        Args:
            sample_ids: Any integer dtype and shape, on the CPU or on `device`.

        Returns:
            bool, of the same shape, on `device`.

        Raises:
            TypeError: `sample_ids` is no tensor.
            ValueError: `sample_ids` is of no integer dtype, or on another GPU.
            RuntimeError: With sharding="shard", where a process knows of its own samples only.
        """
        if self.sharding == "shard":
            raise RuntimeError(
                "is_selected needs sharding='replicate': a process knows of its own samples only, "
                "see selected"
            )
        check_tensor("sample_ids", sample_ids, INTEGER)
        sample_ids = move_without_waiting("sample_ids", sample_ids.to(torch.int64), self.device)
        subset = self._run.current()
        if subset is None:
            return (sample_ids >= 0) & (sample_ids < self.num_samples)
        places = torch.searchsorted(subset.ids, sample_ids).clamp_(max=len(subset.ids) - 1)
        return subset.ids[places] == sample_ids

    @property
    def unselected(self) -> Tensor:
        """The sample ids that the current epoch leaves out, ascending, int64, on `device`.

        Nothing waits. With sharding="shard", those that this process holds.

        Raises:
            RuntimeError: As `selected`.
        """
        subset, ids = self._run.current(), self._run.all_ids()
        if subset is None:
            return ids[:0]
        return ids[other_ids(torch.searchsorted(ids, subset.ids), len(ids))]

    def unselected_share(self) -> Tensor:
        """Returns this process's part of `unselected`, ascending, int64, without waiting.

        Processes with replicated scores divide it; with sharding="shard" each takes its own.
        """
        ids = self.unselected
        return ids if self.sharding == "shard" else ids[self.ranks.rank :: self.ranks.size]

    def epoch_order(self) -> Tensor:
        """Returns the ids of the current epoch in the order in which the samplers yield them.

        Begins epoch 0 if no epoch has begun.

        Returns:
            int64 [share_length()] on `device`: the epoch's samples in an order drawn for this
            epoch, the same at every call. With several processes, this one's share of it, see
            `Ranks.share`; the same for replicated and sharded scores, unless surplus="local". Not
            to be changed.
        """
        return self._run.order()

    def whole_order(self) -> Tensor:
        """Returns the ids of the current epoch of all processes, in the epoch's order.

        Process r of R trains on the ids r, r + R, ... of it; see `Ranks.share`.

        Returns:
            int64 [num_selected] on `device`. Not to be changed.

        Raises:
            RuntimeError: As `selected`. Or with sharding="shard" and several processes.
        """
        return self._run.whole_order()

    def share_length(self, drop_last: bool = False) -> int:
        """Returns how many ids of the current epoch this process gets, as every other one does.

        With surplus="local": what the process with the most samples of the epoch has. With
        `drop_last` it is what the one with the fewest has, of those that have any.

        Args:
            drop_last: Whether a rest that does not divide is left out, instead of filled up.

        Raises:
            TypeError: `drop_last` is no bool.
        """
        return self._run.share_length(None, as_bool("drop_last", drop_last))

    @property
    def num_selected(self) -> int:
        """How many samples the current epoch trains on, in all processes together."""
        return self._run.num_selected()

    # ---- lengths

    def steps_per_epoch(
        self, batch_size: int, drop_last: bool = False, epoch: int | None = None
    ) -> int:
        """Returns how many batches an epoch has; known for every epoch from the beginning.

        With several processes: how many each of them has; all have as many.

        With a policy that weighs, such as `InfoBatch`, or with surplus="local", the length of a
        pruned epoch is known after its selection.

        Args:
            batch_size: Samples per batch, at least 1; of one process.
            drop_last: Whether a smaller last batch is left out.
            epoch: Which epoch; None is the current one.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of the epoch is not known yet.
        """
        batch_size = as_int("batch_size", batch_size, minimum=1)
        drop_last = as_bool("drop_last", drop_last)
        epoch = self.epoch if epoch is None else as_int("epoch", epoch, minimum=0)
        return self.lengths.steps(epoch, batch_size, drop_last)

    def total_steps(self, epochs: int, batch_size: int, drop_last: bool = False) -> int:
        """Returns how many batches the epochs 0 to `epochs - 1` have, for an LR schedule.

        It takes one evaluation per selection where `keep` is a function, and less for numbers.

        Args:
            epochs: Number of epochs, at least 0.
            batch_size: As in `steps_per_epoch`.
            drop_last: As in `steps_per_epoch`.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of an epoch is not known yet.
        """
        epochs = as_int("epochs", epochs, minimum=0)
        batch_size = as_int("batch_size", batch_size, minimum=1)
        return self.lengths.total(epochs, batch_size, as_bool("drop_last", drop_last))

    def locate_step(self, step: int, batch_size: int, drop_last: bool = False) -> tuple[int, int]:
        """Returns the epoch that a step of the run lies in, and its place in that epoch.

            epoch, batches = pruner.locate_step(steps_done, batch_size)  # where to go on

        Epochs differ in length, so `divmod(step, len(loader))` gives neither. It costs as much as
        `total_steps`.

        Args:
            step: How many steps come before it, from the start of epoch 0, at least 0.
            batch_size: As in `steps_per_epoch`.
            drop_last: As in `steps_per_epoch`.

        Returns:
            The epoch, and how many of its steps come before; `locate_step(total_steps(e))` is
            `(e, 0)`.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of an epoch is not known yet. Or
                an epoch before the step has no steps at all.
        """
        step = as_int("step", step, minimum=0)
        batch_size = as_int("batch_size", batch_size, minimum=1)
        return self.lengths.locate(step, batch_size, as_bool("drop_last", drop_last))

    # ---- summaries

    def stats(self) -> Stats:
        """Summarises the current epoch, the selections and the scores for a log.

        Waits for the device only when a number is read: see `Stats`, whose `log` writes to
        TensorBoard.

        Returns:
            The numbers by name: everything from `ScoreTable.stats`, and

            - `epoch`, `num_selected`, `num_selections`.
            - `phase`: "warm-up", "pruned" or "annealing".
            - `selected_fraction`: the share of the samples that the epoch trains on.
            - `turnover`: the share of the last selection that the one before had not chosen; NaN
              before the second.
            - `never_selected`, `always_selected`, `sometimes_selected`: samples that none, all or
              some of the selections chose.
            - `rescore_seconds`: wall-clock time of all calls of `rescore` of this object so far.
            - `share_below_ln2`, with score="loss" and without `track_forgetting`: the share of the
              visited samples whose mean loss is below ln 2. There the right class has more than
              half of the probability. For the cross-entropy of one class it is a lower bound of the
              training accuracy; of other values it says nothing.
        """
        table, rescoring = self.table, {"rescore_seconds": self._rescore_seconds}
        stats = table.stats().merged(rescoring, {}).merged(*self._run.describe())
        if self.score == "loss" and not table.track_forgetting:
            below = share(table.mean < math.log(2), table.count > 0)
            stats = stats.merged({}, {"share_below_ln2": below})
        return stats

    def advice(self) -> str | None:
        """Returns a sentence if choosing samples so is unlikely to pay, or None. May wait.

        It compares `stats()` with what was measured: see docs/guides/choosing.md. It looks at the
        training accuracy (`share_correct` or `share_below_ln2`), then at `keep` of greedy policies,
        then at `visits_gini`. Ask at the end of a run: a low accuracy early on says nothing. If
        `epochs` is known, a low accuracy counts from the middle of the run on. Of samples with
        several rows or labels, such as texts or images with tags, it does not judge the accuracy.
        `share_below_ln2` tells of cross-entropies only: if you `observe` other values, set
        `track_forgetting`. With sharding="shard" it speaks of this process's samples.

        Returns:
            The same sentence for the same numbers. It names the number, its limit, what to do, and
            where the evidence is.

        Raises:
            IndexError: An earlier step on a GPU had a target or an id out of range.
        """
        plan = self.schedule
        kept = plan.keep if isinstance(plan.keep, int) else self.num_selected
        is_late = plan.epochs is None or 2 * (self.epoch + 1) > plan.epochs
        return advise(
            self.stats(),
            self.policy,
            keep=kept / self.num_samples,
            rounding=0.5 / self.num_samples,
            is_late=is_late,
            tells_accuracy=self._tells_accuracy,
        )

    def __repr__(self) -> str:
        """Tells how the pruner was made, and where the run is."""
        plan, rows = self.schedule, self.table.row_reduction
        shown = "" if rows == "mean" else f"row_reduction={rows!r}, "
        return (
            f"Pruner(num_samples={self.num_samples}, keep={plan.keep}, "
            f"policy={self.policy!r}, period={plan.period}, warmup_epochs={plan.warmup_epochs}, "
            f"anneal_epochs={plan.anneal_epochs}, epochs={plan.epochs}, score={self.score!r}, "
            f"{shown}"
            f"alpha={self.table.alpha}, "
            f"{'track_forgetting=True, ' if self.table.track_forgetting else ''}"
            f"seed={self.seed}, device='{self.device}'; "
            f"epoch {self.epoch}, {plan.phase(self.epoch)})"
        )
