# SPDX-License-Identifier: Apache-2.0
"""A run in which every process holds all scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.order import Share, replicated_share
from dynprune_cuda._epochs.repeats import Repeats
from dynprune_cuda._epochs.resize import resized_state, stale, take_rows
from dynprune_cuda._epochs.run import Messages, Run
from dynprune_cuda._epochs.seal import check_seal, sealed
from dynprune_cuda._epochs.state import STALE, EpochState, Subset, read_state
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.distributed.ranks import Ranks, checksum
from dynprune_cuda.policies.protocol import WeighingPolicy
from dynprune_cuda.scores.history import History
from dynprune_cuda.scores.merge import merge_tables, visits_of
from dynprune_cuda.scores.table import ScoreTable


class ReplicatedRun(Run):
    """Every process holds the whole table; an epoch begins by making all tables equal."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Makes the table, and begins before the first epoch."""
        table = ScoreTable(
            config.num_samples,
            device=config.device,
            alpha=config.alpha,
            first_visit=config.policy.first_visit,
            row_reduction=config.row_reduction,
            track_forgetting=config.track_forgetting,
        )
        super().__init__(config, ranks, table)
        # These stay where they are for the whole run: a compiled or captured step reads them.
        self._repeats: Repeats | None = None
        self._visits_before = table.count.new_full((1,), -1, dtype=torch.int64)  # of its id
        if ranks.size > 1:
            self._repeats = Repeats(self._visits_before.clone())
        self._factors = torch.ones_like(table.mean) if config.policy.has_factors else None

    @property
    def is_direct(self) -> bool:
        """Whether the rows of the table are those of the ids, and no loss has a factor."""
        return self._repeats is None and self._factors is None

    def entering(self, epoch: int) -> AbstractContextManager[list[str]]:
        """Merges the tables and selects if due; the context manager begins the epoch."""
        if self.ranks.size == 1:
            self.ranks.check_alone()
            functional.check_errors(self.table.device)
            self._look_for_scores(epoch)
        else:
            place = partial(self._place, epoch)
            self._look_for_scores(epoch)
            observed = self.ranks.agree("set_epoch", self.table.device, place, self._observed)
            self._observed = observed
            merge_tables(self.table, self.ranks)
        return self._beginning(*self._next_state(epoch))

    @contextmanager
    def _beginning(self, state: EpochState, messages: Messages) -> Iterator[list[str]]:
        yield messages.texts()
        outside = self._visits_outside(state)
        self._observed = self._observed or messages.unobserved is not None
        self._strayed = self._strayed or messages.strays is not None
        self._begin(state)
        self._outside, self._rescored = outside, False

    def factors(self, ids: Tensor) -> Tensor | None:
        """Returns the factors of the current epoch, float32 [batch]; 1 for rows without a sample.

        An id out of range is reported by the update of its score.
        """
        if self._factors is None:
            return None
        factors = self._factors
        if self._preview is not None:  # an epoch 0 that was only looked at
            factors = self._factors_of(self._preview)
        ids = self._on_device(ids)
        rows = factors[ids.clamp(0, self.config.num_samples - 1)]
        return rows.masked_fill(ids < 0, 1.0)

    def all_ids(self) -> Tensor:
        """Returns the ids of all samples, ascending, int64 [num_samples]."""
        return torch.arange(self.config.num_samples, device=self.table.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that decides how the run goes on; asks no other process for anything."""
        functional.check_errors(self.table.device)
        subset = self.state.subset
        chosen = self._mask_of(self._nothing() if subset is None else subset.ids)
        saved = self.state.saved(chosen, self._saved_repeat(), self.config.policy.has_factors)
        state = {**self.settings(), "table": self.table.state_dict(), **saved}
        return sealed(state, self.state.first_epoch)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        read, device = self._reader(state_dict), self.table.device
        has_factors = self.config.policy.has_factors
        memory = self.config.policy.memory
        saved = read_state(read, self.config.num_samples, device, has_factors, memory)
        repeat = read.tensor("repeat", torch.int64, (2,), device)
        fits = (repeat >= -1).all() & (repeat[0] < self.config.num_samples)
        read.sound("repeat", fits, "an entry is out of range")
        columns = self.table.checked("state_dict['table']", state_dict["table"])
        ids = saved.chosen.nonzero().flatten()  # waits: a state is loaded off the training path
        self._check_total(saved, len(ids))
        check_seal(read)
        self._adopt(columns, saved.restored(ids, (len(ids),)))
        self._fill_factors()
        if self._repeats is not None:
            self._repeats.ids.copy_(repeat[:1])
            self._visits_before.copy_(repeat[1:])

    def _share_visits(self) -> None:
        if self.ranks.size > 1:
            merge_tables(self.table, self.ranks)

    def _move_rows_to(self, run: Run) -> None:
        rows = min(self.config.num_samples, run.config.num_samples)
        old = {name: getattr(self.table, name)[:rows] for name in self.table.column_types}
        take_rows(run.table, old)
        subset, left = self.state.subset, None
        if subset is not None:
            number = int((subset.ids < rows).sum())  # they are ascending; waits
            factors = None if subset.factors is None else subset.factors[:number].clone()
            left = stale(subset.ids[:number].clone(), factors, (number,))
        times = self.state.times_selected[:rows]
        run.state = resized_state(self.state, times, run.table.mean, left)

    def _saved_repeat(self) -> Tensor:
        """Returns the repeated id and its visits before the epoch, int64 [2]; -1 for no id."""
        ids = self._visits_before if self._repeats is None else self._repeats.ids
        return torch.cat([ids, self._visits_before])

    def _scored(self, ids: Tensor) -> Tensor:
        if self._repeats is None:
            return ids
        # The table tells whether the id was visited, and knows of rows that were ignored.
        visits = visits_of(self.table, self._repeats.ids.clamp(min=0))
        self._repeats.visited.copy_(visits > self._visits_before)
        return self._repeats.without(self._on_device(ids))

    def _select(self, start: int, seed: int) -> Subset:
        made: list[Subset] = []

        def digest() -> dict[str, int]:
            """Selects, where an error reaches the other ranks."""
            subset = self._subset_of(start, seed)
            made.append(subset)
            total = checksum(subset.ids, subset.factors)
            name = f"the selection of {self.config.policy!r}"
            return {f"the length of {name}": len(subset.ids), name: int(total)}

        if self.ranks.size == 1:
            return self._subset_of(start, seed)
        # A policy of a user's own may draw from a generator that differs between processes.
        self.ranks.agree("set_epoch", self.table.device, digest)
        return made[0]

    def _subset_of(self, start: int, seed: int) -> Subset:
        policy, table = self.config.policy, self._told(start)
        count = self.config.schedule.kept(start)
        factors: Tensor | None = None
        if count is None:
            assert isinstance(policy, WeighingPolicy)
            weights = policy.weigh(table, seed=seed)
            ids = weights.nonzero().flatten()  # waits: only now is it known how many there are
            if not len(ids):
                raise ValueError(f"{policy!r} must keep at least one sample, got none")
            factors = weights[ids]
        elif policy.rescales:
            rule = policy.ranking(table)
            ids, factors = functional.select_rescaled(rule, len(table.mean), count, seed=seed)
        else:
            ids = policy.select(table, count, seed=seed)
        return Subset(start, ids, factors, (len(ids),))

    def _told(self, start: int) -> ScoreTable:
        """Returns the table as the policy sees it when it selects for the period from `start`."""
        policy = self.config.policy
        if not (policy.uses_history or policy.memory or policy.coordinated):
            return self.table
        history = self._history(start) if policy.uses_history else None
        memory = self.state.memory if policy.memory else None
        return self.table.told(history, memory, self.schedule.starting_point(start))

    def _history(self, start: int) -> History:
        state, schedule, device = self.state, self.schedule, self.table.device
        length, places = 0, torch.full((self.config.num_samples,), -1, device=device)
        if state.epoch is not None:
            subset = state.subset if schedule.phase(state.epoch) == "pruned" else None
            length = self.config.num_samples if subset is None else subset.total
            seed = derive_seed(state.seed, "order", state.epoch)
            order = functional.permutation(length, seed=seed, device=device)
            ids = order if subset is None else subset.ids[order]
            places.index_copy_(0, ids, torch.arange(length, device=device))
        return History(
            start,
            schedule.epochs,
            schedule.warm_until,
            schedule.period,
            state.num_selections,
            state.times_selected,
            length,
            places,
        )

    def _remembered(self, start: int, chosen: Tensor) -> Mapping[str, Tensor] | None:
        policy = self.config.policy
        return policy.remember(self._told(start), chosen) if policy.memory else None

    def _begin(self, state: EpochState) -> None:
        self.state, self._preview, self._share = state, None, None
        if self._repeats is not None:
            self._repeats.ids.fill_(-1)
            self._visits_before.fill_(-1)
        self._fill_factors()

    def _fill_factors(self) -> None:
        """Fills in the factors of the current epoch's losses."""
        if self._factors is not None:
            self._factors.copy_(self._factors_of(self.state))

    def _factors_of(self, state: EpochState) -> Tensor:
        """Returns what the losses of a state's epoch are multiplied by, float32 [num_samples]."""
        factors, subset = torch.ones_like(self.table.mean), state.subset
        if (
            subset is None
            or subset.epoch == STALE
            or self.schedule_of(state).phase(state.epoch or 0) != "pruned"
        ):
            return factors
        assert subset.factors is not None
        return factors.zero_().index_copy_(0, subset.ids, subset.factors)

    def _draw_share(self) -> Share:
        subset, epoch = self.current(), self.state.epoch or 0
        ids = None if subset is None else subset.ids
        seed = derive_seed(self.state.seed, "order", epoch)
        share = replicated_share(ids, self.num_selected(), seed, self.ranks, self.table.mean)
        if self._repeats is not None:
            self._note_repeat(share)
        return share

    def whole_order(self) -> Tensor:
        """Returns the current epoch's ids of all processes, in order; see `Pruner.whole_order`."""
        own = self.order()  # begins epoch 0 if no epoch has begun
        if self.ranks.size == 1:
            return own
        subset, seed = self.current(), derive_seed(self.state.seed, "order", self.state.epoch or 0)
        order = functional.permutation(self.num_selected(), seed=seed, device=self.table.device)
        return order if subset is None else subset.ids[order]

    def _note_repeat(self, share: Share) -> None:
        """Remembers the id that comes again in a share, and its visits before the epoch.

        What is known of the same id stays: an order may be drawn again within an epoch, as in a
        run that was resumed.
        """
        assert self._repeats is not None
        again = share.again()
        if not len(again):
            self._repeats.ids.fill_(-1)
            self._visits_before.fill_(-1)
            return
        # An id of another rank is a repetition already when it comes first.
        visits = visits_of(self.table, again) if share.own else torch.full_like(again, -1)
        same = self._repeats.ids == again
        self._visits_before.copy_(torch.where(same, self._visits_before, visits))
        self._repeats.ids.copy_(again)

    def _mask_of(self, ids: Tensor) -> Tensor:
        return torch.zeros_like(self.table.last_non_finite).index_fill_(0, ids, True)

    def _nothing(self) -> Tensor:
        return torch.empty(0, dtype=torch.int64, device=self.table.device)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the order, which can be drawn again."""
        return {**self.__dict__, "_share": None}
