# SPDX-License-Identifier: Apache-2.0
"""What follows the epochs of a run, whoever holds the scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.late import about_late_warmup, about_no_scores
from dynprune_cuda._epochs.matching import check_total, matching_state
from dynprune_cuda._epochs.order import Share
from dynprune_cuda._epochs.resize import resized_config, smaller_config
from dynprune_cuda._epochs.state import STALE, EpochState, SavedState, Subset
from dynprune_cuda._epochs.strays import about_strays, visits_outside
from dynprune_cuda._schedule.schedule import Schedule
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.scores.table import ScoreTable, UpdateTarget


class Messages(NamedTuple):
    """What to warn of when an epoch begins."""

    unobserved: str | None  # once in a run
    lacking: str | None
    strays: str | None = None  # once in a run
    late: str | None = None  # once in a run

    def texts(self) -> list[str]:
        """Returns the messages that there are."""
        return [message for message in self if message is not None]


class Run(ABC):
    """Selections, orders, lengths, visits and states of a run.

    `ReplicatedRun` and `ShardedRun` differ in who holds the scores.

    Attributes:
        config: What the pruner was made with.
        ranks: The processes that train together.
        table: The scores that this process holds.
        state: Where the run is.
    """

    def __init__(self, config: Config, ranks: Ranks, table: ScoreTable) -> None:
        """Begins before the first epoch."""
        self.config, self.ranks, self.table = config, ranks, table
        memory = config.policy.initial_memory(len(table.count), table.device)
        self.state = EpochState.initial(config.seed, table.count, memory)
        self._preview: EpochState | None = None  # what epoch 0 selects, looked at before it began
        self._share: Share | None = None  # of the current epoch, once it was drawn
        self._observed = False  # any score at all
        # Visits outside the subset when the current, pruned epoch began, 0-d.
        self._outside: Tensor | None = None
        self._rescored = False  # in the current epoch, samples outside the subset on purpose
        self._strayed = False  # enough said of visits outside the subset
        self._unscheduled: int | None = 0  # rows observed before any set_epoch; None: enough said

    # ---- epochs

    @abstractmethod
    def entering(self, epoch: int) -> AbstractContextManager[list[str]]:
        """Prepares an epoch. Collective.

        Returns:
            A context manager that gives what to warn of, and begins the epoch if its block ends
            without an error. Nothing changes before.
        """

    def scheduled(self) -> None:
        """Notes that the epochs are set, so that no warning is needed."""
        self._unscheduled = None

    def current(self) -> Subset | None:
        """Returns the subset of the current epoch, None for all samples; begins nothing.

        Before the first epoch it is what epoch 0 would select at the first call.

        Raises:
            RuntimeError: Epoch 0 begins with a selection of several processes.
        """
        if self.schedule.phase(self.state.epoch or 0) != "pruned":
            return None
        if self.state.epoch is None and self._preview is None:
            self._check_first()
            self._look_for_scores(0)
            self._preview, _ = self._next_state(0)
        return self._shown.subset

    @property
    def schedule(self) -> Schedule:
        """When the run selects; its warm-up begins with the run's first epoch."""
        return self.schedule_of(self.state)

    def schedule_of(self, state: EpochState) -> Schedule:
        """Returns the schedule of a run in `state`."""
        return self.config.schedule.beginning_at(state.first_epoch)

    @property
    def _shown(self) -> EpochState:
        """The state, or what epoch 0 selects if it was read before the first epoch."""
        return self.state if self._preview is None else self._preview

    def order(self) -> Tensor:
        """Returns this process's ids of the current epoch, in order; see `Pruner.epoch_order`.

        Begins epoch 0 if no epoch has begun.
        """
        if self.state.epoch is None:
            if self.ranks.size == 1:
                self.current()
                self._begin(self._preview or self._next_state(0)[0])
                if not self._observed:  # else visits may wait in an outbox
                    self._outside = self._visits_outside(self.state)
                    self._rescored = False
            elif self.schedule.phase(0) == "pruned":
                self._check_first()
        if self._share is None:
            self._share = self._draw_share()
        return self._share.ids

    def whole_order(self) -> Tensor:
        """Returns the current epoch's ids of all processes, in order; see `Pruner.whole_order`."""
        if self.ranks.size > 1:
            raise RuntimeError(
                f"whole_order needs sharding='replicate' with {self.ranks.size} processes: a "
                "process knows its own share only, see epoch_order"
            )
        return self.order()

    def count(self, epoch: int) -> int:
        """Returns how many samples `epoch` trains on, in all processes together.

        Raises:
            ValueError: It is not known before the selection is made.
        """
        schedule, subset = self.schedule, self._shown.subset
        if schedule.phase(epoch) != "pruned":
            return self.config.num_samples
        start = schedule.period_start(epoch)
        if subset is not None and subset.epoch == start:
            return subset.total
        count = schedule.kept(start)
        if count is None:
            raise ValueError(
                f"epoch must be one whose selection was made, got {epoch}: {self.config.policy!r} "
                "decides at set_epoch how many samples it keeps, so schedule the learning rate by "
                "epochs"
            )
        return count

    def num_selected(self) -> int:
        """Returns how many samples the current epoch trains on; changes nothing."""
        if self.state.epoch is None and self.config.schedule.keep is None:
            subset = self.current()
            return self.config.num_samples if subset is None else subset.total
        return self.count(self.state.epoch or 0)

    def share_length(self, epoch: int | None, drop_last: bool) -> int:
        """Returns how many ids of an epoch each process gets; None is the current epoch."""
        count = self.num_selected() if epoch is None else self.count(epoch)
        return self.ranks.share_length(count, drop_last)

    def describe(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns what the host and what the device knows of the epoch and the selections."""
        state, epoch, num_selected = self.state, self.state.epoch or 0, self.num_selected()
        times = state.times_selected
        never = (times == 0).sum()
        always = ((times == state.num_selections) & (times > 0)).sum()
        known = {
            "epoch": epoch,
            "phase": self.schedule.phase(epoch),
            "num_selected": num_selected,
            "selected_fraction": num_selected / self.config.num_samples,
            "num_selections": state.num_selections,
        }
        tensors = {
            "turnover": state.turnover,
            "never_selected": never,
            "sometimes_selected": len(times) - never - always,
            "always_selected": always,
        }
        return known, tensors

    # ---- visits

    @property
    def is_direct(self) -> bool:
        """Whether the rows of the table are those of the ids, and no loss has a factor."""
        return False

    def factors(self, ids: Tensor) -> Tensor | None:
        """Returns what a policy that weighs multiplies the losses of `ids` by; None: nothing."""
        return None

    def update_target(self, ids: Tensor, *, grouped: bool = False) -> UpdateTarget:
        """Returns where a scored step writes the scores of a batch; nothing changes."""
        return self.table.update_target(self._scored(ids), grouped=grouped)

    def commit(self, target: UpdateTarget, ids: Tensor) -> str | None:
        """Accepts what a scored step wrote; returns what to warn of."""
        return self.note(ids)

    def observe(
        self, ids: Tensor, values: Tensor, correct: Tensor | None, alpha: float | None = None
    ) -> str | None:
        """Records values; returns what to warn of. `alpha` is that of `ScoreTable.update`."""
        self.table.update(self._scored(ids), values, correct, alpha)
        return self.note(ids)

    def _scored(self, ids: Tensor) -> Tensor:
        """Returns the ids whose scores count; visits of padding are -1."""
        return ids

    def note(self, ids: Tensor) -> str | None:
        """Notes that scores were recorded; returns what to warn of."""
        self._observed = True
        if self._unscheduled is not None:
            self._unscheduled += ids.shape[0]
            if self._unscheduled > 2 * self.config.num_samples:
                self._unscheduled = None
                return (
                    "more than two rows per sample were scored and set_epoch was never "
                    "called: nothing is being pruned or reshuffled; call "
                    "pruner.set_epoch(epoch) at the start of each epoch"
                )
        return None

    def _on_device(self, ids: Tensor) -> Tensor:
        return move_without_waiting("ids", ids.to(torch.int64), self.table.device)

    # ---- another number of samples

    def resized(self, num_samples: Any, groups: Any = None) -> Run:
        """Returns this run on another number of samples, before an epoch. Collective; waits.

        On an error nothing changes, but that visits may have been shared.

        Args:
            num_samples: Size of the training set.
            groups: The labels of all samples; of a policy with groups.
        """
        self.ranks.check_alone()
        made: list[Run] = []

        def make() -> dict[str, int]:
            functional.check_errors(self.table.device)
            made.append(self._fresh(resized_config(self.config, num_samples, groups)))
            return {"num_samples": made[0].config.num_samples, **self._place_of_resize()}

        self._observed = self.ranks.agree("resize", self.table.device, make, self._observed)
        self.ranks.check_settings(made[0].config.common(), self.table.device)
        self._share_visits()
        self._move_to(made[0])
        return made[0]

    def grown(self, state_dict: Mapping[str, Any]) -> Run:
        """Returns this run with a loaded state, which may be of fewer samples.

        Collective if `load_state_dict` is. On an error, nothing changes.
        """
        config = self._config_of(state_dict)
        if config is None:
            self.load_state_dict(state_dict)
            return self
        smaller, run = self._fresh(config), self._fresh(self.config)
        smaller.load_state_dict(state_dict)
        smaller._move_to(run)
        return run

    def _config_of(self, state_dict: Mapping[str, Any]) -> Config | None:
        """Returns what a state of fewer samples was saved with; None if it has as many."""
        return smaller_config(self.config, state_dict)

    def _place_of_resize(self) -> dict[str, int]:
        """Returns what all processes must agree about before they resize."""
        state = self.state
        return {
            "epoch": -1 if state.epoch is None else state.epoch,
            "num_selections": state.num_selections,
            "seed": state.seed,
        }

    def _fresh(self, config: Config) -> Run:
        """Returns a run of the same processes before its first epoch."""
        run = type(self)(config, self.ranks)  # type: ignore[call-arg]
        run.table.alpha = self.table.alpha
        return run

    def _move_to(self, run: Run) -> None:
        """Gives a fresh run of another size the rows that it has, and the rest of the state."""
        self._move_rows_to(run)
        run._observed, run._strayed = self._observed, self._strayed
        run._unscheduled = self._unscheduled

    @abstractmethod
    def _share_visits(self) -> None:
        """Records the visits that other processes have seen. Collective."""

    @abstractmethod
    def _move_rows_to(self, run: Run) -> None:
        """Gives a fresh run of another size the rows that it has, and the state."""

    # ---- saved states

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns all that decides how the run goes on."""

    @abstractmethod
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; on an error, nothing changes."""

    def settings(self) -> dict[str, Any]:
        """Returns the entries of a state that a loaded one must share, and the seed."""
        return self.config.settings(self.state.seed, self.table.alpha)

    def _reader(self, state: Any) -> StateReader:
        return matching_state(self.config, self.settings(), state)

    def _check_total(self, saved: SavedState, total: int) -> None:
        check_total(self.config.schedule, saved, total)

    def _adopt(self, columns: dict[str, Tensor], state: EpochState) -> None:
        """Takes over a loaded table and state, both checked."""
        self.table.take(columns)
        self.state, self._preview, self._share = state, None, None
        self._outside, self._rescored = self._visits_outside(state), False
        self._observed = self._has_scores()
        self._unscheduled = 0 if state.epoch is None else None

    # ---- what the two kinds of run have in common, and what they do in their own way

    def _check_first(self) -> None:
        if self.ranks.size > 1:
            raise RuntimeError(
                "set_epoch must be called first, by every process: epoch 0 begins with a "
                "selection, which they make together"
            )

    def _place(self, epoch: int) -> dict[str, int]:
        """Returns what all processes must agree about before they begin `epoch` together."""
        functional.check_errors(self.table.device)
        state, schedule = self.state, self.schedule
        start = schedule.period_start(epoch)
        kept = schedule.kept(start) if schedule.phase(epoch) == "pruned" else None
        return {
            "epoch": epoch,
            "the epoch before it": -1 if state.epoch is None else state.epoch,
            "the first epoch": state.first_epoch,
            "keep": -1 if kept is None else kept,
            "the epoch of the last selection": -1 if state.subset is None else state.subset.epoch,
            "num_selections": state.num_selections,
            "seed": state.seed,
        }

    def _next_state(self, epoch: int) -> tuple[EpochState, Messages]:
        """Returns the state of an epoch, and what to warn of; selects if due. Changes nothing."""
        state = self._entered(epoch)
        schedule = self.schedule_of(state)
        messages = Messages(None, None, self._strays())
        if state.first_epoch != self.state.first_epoch:
            late = about_late_warmup(epoch, schedule.warmup_epochs, self.config.policy)
            messages = messages._replace(late=late)
        if schedule.phase(epoch) == "pruned":
            start = schedule.period_start(epoch)
            if state.subset is None or self._is_due(epoch, start, state.subset):
                subset = self._select(start, self._selection_seed(start))
                unobserved, lacking = self._unobserved(epoch, start), self._about_lacking(subset)
                messages = messages._replace(unobserved=unobserved, lacking=lacking)
                chosen = self._mask_of(subset.ids)
                again = None
                if state.subset is not None:
                    again = self._overlap(chosen & self._mask_of(state.subset.ids))
                state = state.selected(subset, chosen, again, self._remembered(start, chosen))
            else:
                state = replace(state, subset=state.subset._replace(epoch=start))
        return replace(state, epoch=epoch), messages

    def _is_due(self, epoch: int, start: int, subset: Subset) -> bool:
        """Whether an epoch of the period from `start` needs another selection than `subset`."""
        if subset.epoch == STALE:
            return True
        return not self.config.policy.static and (epoch == start or start != subset.epoch)

    def _selection_seed(self, start: int) -> int:
        policy = self.config.policy
        number = 0 if policy.static or policy.coordinated else start
        return derive_seed(self.state.seed, "select", number)

    def _look_for_scores(self, epoch: int) -> None:
        """Notes scores that are in the table before a first, pruned epoch. Waits."""
        if self._observed or self.state.epoch is not None:
            return
        if self.config.policy.uses_scores and self.schedule.phase(epoch) == "pruned":
            self._observed = self._has_scores()

    def _has_scores(self) -> bool:
        """Whether the table has any value. Waits."""
        return bool(((self.table.count > 0) | (self.table.non_finite_count > 0)).any())

    def _entered(self, epoch: int) -> EpochState:
        """Returns the state with the warm-up moved to `epoch`, if it was missed; else unchanged.

        It was missed if the run begins behind it, and the policy needs scores, and there are none.
        """
        state, schedule = self.state, self.schedule
        if state.epoch is not None or self._observed or not self.config.policy.uses_scores:
            return state
        if schedule.warmup_epochs == 0 or schedule.phase(epoch) != "pruned":
            return state
        if self._unscheduled is None:  # epochs were set before a resize
            return state
        return replace(state, first_epoch=epoch)

    def _unobserved(self, epoch: int, start: int) -> str | None:
        """Returns a warning if the policy needs scores and there are none."""
        if epoch == 0 or self._observed or not self.config.policy.uses_scores:
            return None
        first = epoch if self.state.epoch is None else None
        return about_no_scores(start, self.config.policy, first)

    def _visits_outside(self, state: EpochState) -> Tensor | None:
        """Returns how often samples outside a pruned epoch's subset were visited so far, 0-d."""
        subset = state.subset
        if subset is None or self.schedule_of(state).phase(state.epoch or 0) != "pruned":
            return None
        return visits_outside(self.table, subset.ids, self._shard())

    def _strays(self) -> str | None:
        """Returns a warning of visits outside the subset in the epoch that ends. Waits."""
        if self._outside is None or self.state.epoch is None:
            return None
        outside = self._visits_outside(self.state)
        assert outside is not None  # as when the epoch began
        on_purpose = self.ranks.add_up_(torch.full_like(outside, int(self._rescored)))
        number = int(torch.where(on_purpose > 0, 0, self._overlap(outside - self._outside)))
        return None if self._strayed else about_strays(self.state.epoch, number)

    def rescored(self) -> None:
        """Notes that samples outside the subset are scored on purpose in the current epoch."""
        self._rescored = True

    def _shard(self) -> Shard:
        """Returns which samples the rows of the table are of."""
        return Shard(self.config.num_samples, 0, 1)

    def _about_lacking(self, subset: Subset) -> str | None:
        """Returns a warning if a process has nothing of its own to train on."""
        return None

    def _overlap(self, both: Tensor) -> Tensor:
        """Returns how many samples are set in all processes together, 0-d."""
        return both.sum()

    def _remembered(self, start: int, chosen: Tensor) -> Mapping[str, Tensor] | None:
        """Returns the policy's own columns after a selection; None if it has none."""
        return None

    @abstractmethod
    def all_ids(self) -> Tensor:
        """Returns the ids of all samples that this process knows of, ascending, int64."""

    @abstractmethod
    def _select(self, start: int, seed: int) -> Subset:
        """Selects for the period from `start`."""

    @abstractmethod
    def _begin(self, state: EpochState) -> None:
        """Makes a prepared state the current one; must not fail."""

    @abstractmethod
    def _draw_share(self) -> Share:
        """Draws what this process trains on in the current epoch."""

    @abstractmethod
    def _mask_of(self, ids: Tensor) -> Tensor:
        """Returns which rows of the table are in `ids`, bool [rows]."""
