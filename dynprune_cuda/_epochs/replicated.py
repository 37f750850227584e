# SPDX-License-Identifier: Apache-2.0
"""Which samples each epoch trains on, in which order, and how many steps that makes."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda import distributed, functional
from dynprune_cuda._checks.arguments import as_int
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._schedule.schedule import Schedule, num_batches
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.data.samplers import EpochBatchSampler, EpochSampler
from dynprune_cuda.policies.protocol import checked_select, checked_weigh
from dynprune_cuda.policies.registry import AnyPolicy
from dynprune_cuda.scores import merge
from dynprune_cuda.scores.table import ScoreTable

# Ids put into their order at a time: what this needs beside the order itself stays small.
_ORDER_IDS = 1 << 18


class Subset(NamedTuple):
    """What one selection gave."""

    epoch: int  # first epoch of the period that it serves
    ids: Tensor  # ascending sample ids, int64 [num_selected]
    weights: Tensor | None  # factors of the losses, float32 [num_samples], of InfoBatch and such


class EpochSubsets:
    """The part of a `Pruner` that follows the epochs: selections, orders, lengths.

    Attributes:
        num_samples: Size of the training set.
        table: The scores.
        policy: The selection rule.
        schedule: When it selects, and how much.
        seed: The seed, in [0, 2**64).
        ranks: The processes that train together, and this one's place: `rank`, `size`.
        times_selected: How many selections chose each sample, int32 [num_samples] on `device`.
        num_selections: How many selections there were.
        turnover: Share of the last selection that the one before had not chosen, 0-d float64 on
            `device`; NaN before the second selection.
    """

    def __init__(
        self,
        table: ScoreTable,
        policy: AnyPolicy,
        schedule: Schedule,
        seed: int,
        ranks: distributed.Ranks,
    ) -> None:
        """Begins before the first epoch."""
        self.num_samples = schedule.num_samples
        self.table = table
        self.policy = policy
        self.schedule = schedule
        self.seed = seed
        self.ranks = ranks
        self.num_selections = 0
        self.times_selected = torch.zeros_like(table.count)
        self.turnover = torch.full((), float("nan"), dtype=torch.float64, device=table.device)
        # In one place for the whole run: a compiled or captured step may go on reading them.
        self._repeat = torch.full((2,), -1, dtype=torch.int64, device=table.device)
        weighs = getattr(policy, "weighs", False)
        self._weights = torch.ones_like(table.mean) if weighs else None  # of the current epoch
        self._epoch: int | None = None  # None: epoch 0, which nobody has looked at yet
        self._subset: Subset | None = None
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

        With several processes, all of them must call it: it shares the scores that each has seen
        (which an error of the selection does not undo), and ends with the same table and the same
        subset on all of them.

        Args:
            epoch: The epoch, counted from 0.

        Raises:
            TypeError: `epoch` is no int, or the policy returned no tensor.
            ValueError: `epoch` is negative, `keep` gives no valid number for it, or the policy
                returned something other than as many distinct sample ids. Or the processes are
                not in the same place of the same run.
            IndexError: An earlier step on a GPU met a target or an id out of range.
            RuntimeError: Another process failed, or the pruner was made before torch.distributed
                was initialised.
        """
        epoch = as_int("epoch", epoch, minimum=0)
        if epoch != self._epoch:
            if self.ranks.size == 1:
                self.ranks.check_alone()
                functional.check_errors(self.device)
            else:
                prepare = partial(self._place, epoch)
                self._observed = self.ranks.meet("set_epoch", self.device, prepare, self._observed)
                merge.merge(self.table, self.ranks)
            self._enter(epoch)
        self._unscheduled = None

    def _place(self, epoch: int) -> dict[str, int]:
        """Returns what all processes must agree about before they begin `epoch` together."""
        functional.check_errors(self.device)
        start = self.schedule.period_start(epoch)
        kept = self.schedule.kept(start) if self.schedule.phase(epoch) == "pruned" else None
        return {
            "epoch": epoch,
            "the epoch before it": -1 if self._epoch is None else self._epoch,
            "keep": -1 if kept is None else kept,
            "the epoch of the last selection": -1 if self._subset is None else self._subset.epoch,
            "num_selections": self.num_selections,
            "seed": self.seed,
        }

    @property
    def selected(self) -> Tensor:
        """The sample ids of the current epoch, ascending, int64 [num_selected], on `device`."""
        subset = self._current()
        if subset is None:
            return torch.arange(self.num_samples, device=self.device)
        return subset.ids.clone()

    def is_selected(self, sample_ids: Tensor) -> Tensor:
        """Returns whether the current epoch trains on each of `sample_ids`, without waiting.

        Args:
            sample_ids: int64, any shape, on `device`.

        Returns:
            bool, of the same shape.
        """
        subset = self._current()
        if subset is None:
            return (sample_ids >= 0) & (sample_ids < self.num_samples)
        places = torch.searchsorted(subset.ids, sample_ids).clamp_(max=len(subset.ids) - 1)
        return subset.ids[places] == sample_ids

    def epoch_order(self) -> Tensor:
        """Returns the ids of the current epoch in the order in which the samplers yield them.

        Returns:
            int64 [share_length()] on `device`: `selected` in an order drawn for this epoch, the
            same at every call; with several processes, this one's share of it, see `Ranks.share`.
            Not to be changed.
        """
        subset = self._current()
        if self._order is None:
            count = self.num_selected
            seed = derive_seed(self.seed, "order", self.epoch)
            order = functional.permutation(count, seed=seed, device=self.device)
            order = self.ranks.share(order)
            if subset is not None:
                for piece in torch.split(order, _ORDER_IDS):
                    piece.copy_(subset.ids.index_select(0, piece))
            if self.ranks.size > 1:
                padded = self.ranks.rank >= count % self.ranks.size > 0
                own = len(order) - padded
                merge.note_repeat(self._repeat, order, padded, own, self.table)
            self._order = order
        return self._order

    def share_length(self, drop_last: bool = False) -> int:
        """Returns how many ids of the current epoch this process gets, as every other one does.

        Args:
            drop_last: Whether a rest that does not divide is left out, instead of filled up.
        """
        return self.ranks.share_length(self.num_selected, drop_last)

    @property
    def num_selected(self) -> int:
        """How many samples the current epoch trains on, in all processes together."""
        if self._epoch is None and self.schedule.keep is None:
            self._current()
        return self._count(self.epoch)

    def steps_per_epoch(
        self, batch_size: int, drop_last: bool = False, epoch: int | None = None
    ) -> int:
        """Returns how many batches an epoch has; known for every epoch from the beginning.

        With several processes: how many each of them has; all have as many.

        A policy that weighs, such as `InfoBatch`, tells the length of a pruned epoch no earlier
        than its selection, and so does a pruner with surplus="local".

        Args:
            batch_size: Samples per batch, at least 1; of one process.
            drop_last: Whether a smaller last batch is left out.
            epoch: Which epoch; None is the current one.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of the epoch is not known yet.
        """
        batch_size = as_int("batch_size", batch_size, minimum=1)
        epoch = self.epoch if epoch is None else as_int("epoch", epoch, minimum=0)
        return num_batches(self._length(epoch, drop_last), batch_size, drop_last)

    def total_steps(self, epochs: int, batch_size: int, drop_last: bool = False) -> int:
        """Returns how many batches the epochs 0 to `epochs - 1` have, for an LR schedule.

        Args:
            epochs: Number of epochs, at least 0.
            batch_size: As in `steps_per_epoch`.
            drop_last: As in `steps_per_epoch`.

        Raises:
            TypeError: An argument is no int.
            ValueError: An argument is out of range, or the length of an epoch is not known yet.
        """
        epochs = as_int("epochs", epochs, minimum=0)
        return sum(self.steps_per_epoch(batch_size, drop_last, epoch) for epoch in range(epochs))

    def sampler(self, drop_last: bool = False) -> EpochSampler:
        """Returns a sampler for `DataLoader(sampler=...)` that follows the current epoch.

        Args:
            drop_last: Whether a rest that does not divide among the processes is left out. With
                False, some processes repeat an id, whose second visit changes no score.
        """
        return EpochSampler(self, drop_last)

    def batch_sampler(self, batch_size: int, drop_last: bool = False) -> EpochBatchSampler:
        """Returns a sampler for `DataLoader(batch_sampler=...)` that follows the current epoch.

        Args:
            batch_size: Samples per batch, at least 1.
            drop_last: Whether to leave out a smaller last batch, and what does not divide among
                the processes. With False, some of them repeat an id, whose second visit changes no
                score.
        """
        return EpochBatchSampler(self, batch_size, drop_last)

    def _mask(self, subset: Subset | None) -> Tensor:
        """Returns which samples are in `subset`, bool [num_samples]."""
        mask = torch.zeros(self.num_samples, dtype=torch.bool, device=self.device)
        return mask if subset is None else mask.index_fill_(0, subset.ids, True)

    def _without_repeat(self, ids: Tensor) -> Tensor:
        """Returns the ids whose scores count: this rank's second visits of one are -1."""
        if self.ranks.size == 1:
            return ids
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        return merge.without_repeat(ids, self._repeat, self.table)

    def _note_entered(self, ids: Tensor) -> None:
        """Notes that scores of `ids` came in, and warns if nobody ever sets the epoch."""
        self._note_visits(ids)
        self._observed = True
        if self._unscheduled is not None:
            self._unscheduled += ids.shape[0]
            if self._unscheduled > 2 * self.num_samples:
                self._unscheduled = None
                warnings.warn(
                    "more than two epochs of samples were observed and set_epoch was never "
                    "called: nothing is being pruned or reshuffled; call "
                    "pruner.set_epoch(epoch) at the start of each epoch",
                    RuntimeWarning,
                    stacklevel=3,
                )

    def _note_visits(self, ids: Tensor) -> None:
        """Remembers which samples were visited, where `_without_repeat` needs it."""

    def _ids_of(self, mask: Tensor) -> Tensor:
        """Returns the ids of the samples that are set in a `_mask`, ascending. Waits."""
        return mask.nonzero().flatten()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the order, which can be drawn again."""
        return {**self.__dict__, "_order": None}

    def _length(self, epoch: int, drop_last: bool) -> int:
        """Returns how many ids of `epoch` each process gets."""
        return self.ranks.share_length(self._count(epoch), drop_last)

    def _count(self, epoch: int) -> int:
        """Returns how many samples `epoch` trains on."""
        if self.schedule.phase(epoch) != "pruned":
            return self.num_samples
        start = self.schedule.period_start(epoch)
        if self._subset is not None and self._subset.epoch == start:
            return len(self._subset.ids)
        count = self.schedule.kept(start)
        if count is None:
            raise ValueError(
                f"epoch must be one whose selection was made, got {epoch}: {self.policy!r} decides "
                "at set_epoch how many samples it keeps, so schedule the learning rate by epochs"
            )
        return count

    def _current(self) -> Subset | None:
        """Returns the subset of the current epoch, None for all samples; begins epoch 0."""
        if self._epoch is None:
            if self.ranks.size == 1:
                self._enter(0)
            elif self.schedule.phase(0) == "pruned":
                raise RuntimeError(
                    "set_epoch must be called first, by every process: epoch 0 begins with a "
                    "selection, which they make together"
                )
        return self._subset if self.schedule.phase(self.epoch) == "pruned" else None

    def _enter(self, epoch: int) -> None:
        """Makes `epoch` the current one; whatever may fail comes before the first change."""
        if self.schedule.phase(epoch) == "pruned":
            start = self.schedule.period_start(epoch)
            if getattr(self.policy, "static", False):
                subset = self._subset or self._select(start, 0)
                if self._subset is None:
                    self._keep(subset)
                self._subset = subset._replace(epoch=start)
            elif self._subset is None or epoch == start or start != self._subset.epoch:
                self._keep(self._select(start, start))
        self._epoch, self._order = epoch, None
        self._repeat.fill_(-1)
        self._set_weights()

    def _set_weights(self) -> None:
        """Fills in the factors of the current epoch's losses."""
        if self._weights is not None:
            subset, phase = self._subset, self.schedule.phase(self.epoch)
            if subset is not None and subset.weights is not None and phase == "pruned":
                self._weights.copy_(subset.weights)
            else:
                self._weights.fill_(1.0)

    def _select(self, start: int, number: int) -> Subset:
        """Returns the selection of epoch `start`, drawn by the seed of that `number`.

        With several processes, every selection is checked to be the same: a policy of a user's own
        may draw from a generator that is not.
        """
        subset = self._selection(start, number)
        if self.ranks.size > 1:

            def found() -> dict[str, int]:
                total = distributed.checksum(subset.ids, subset.weights)
                name = f"the selection of {self.policy!r}"
                return {f"the length of {name}": len(subset.ids), f"{name}": int(total)}

            self.ranks.meet("set_epoch", self.device, found, False)
        return subset

    def _warn_if_unobserved(self, start: int) -> None:
        if start > 0 and not self._observed and getattr(self.policy, "uses_scores", False):
            self._observed = True  # said once
            warnings.warn(
                f"no score was observed before epoch {start}, so {self.policy!r} selects "
                "at random; compute the loss with pruner.cross_entropy(...), or call "
                "pruner.observe(ids, values), in the training loop",
                RuntimeWarning,
                stacklevel=7,
            )

    def _selection(self, start: int, number: int) -> Subset:
        self._warn_if_unobserved(start)
        seed = derive_seed(self.seed, "select", number)
        policy: Any = self.policy
        count = self.schedule.kept(start)
        if count is not None:
            return Subset(start, checked_select(policy, self.table, count, seed), None)
        weights = checked_weigh(policy, self.table, seed)
        ids = weights.nonzero().flatten()  # waits: only now is it known how many there are
        if not len(ids):
            raise ValueError(f"{policy!r} must keep at least one sample, got none")
        return Subset(start, ids, weights)

    def _keep(self, subset: Subset) -> None:
        """Makes `subset` the current one, and enters it into the history."""
        chosen = self._mask(subset)
        if self._subset is not None:
            again = (chosen & self._mask(self._subset)).sum()
            self.turnover = 1.0 - again.double() / len(subset.ids)
        self.times_selected += chosen
        self.num_selections += 1
        self._subset = subset
