# SPDX-License-Identifier: Apache-2.0
"""A run in which no process holds all scores.

Each process holds its shard: the scores, the history and the selection of its own samples.
Selections go by `sharded`, orders by `_epochs.order`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional, sharded
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.order import Share, local_share, moved_share
from dynprune_cuda._epochs.pieces import (
    checked_pieces,
    local_state,
    respread,
    saved_repeat,
    shared_state,
)
from dynprune_cuda._epochs.repeats import Repeats
from dynprune_cuda._epochs.resize import resized_state, stale, take_rows
from dynprune_cuda._epochs.run import Messages, Run
from dynprune_cuda._epochs.seal import check_seal, row_sums, sealed, total_sums
from dynprune_cuda._epochs.state import STALE, EpochState, SavedState, Subset, read_state
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.routing import moved_rows, to_owners
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.functional.ranking import FixedIds, Ranking, Uniform
from dynprune_cuda.functional.rules import RULES, SelectionRule, Trimmed
from dynprune_cuda.functional.tilted import Tilted
from dynprune_cuda.scores.sharded_table import RowsBefore, ShardedScoreTable
from dynprune_cuda.scores.table import UpdateTarget

KINDS_OF_RULES = (Ranking, Tilted, Trimmed, Uniform, FixedIds)


class ShardedRun(Run):
    """Each process holds the rows of its shard; an epoch begins by routing visits to the owners."""

    table: ShardedScoreTable

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Makes this process's rows, and begins before the first epoch.

        Raises:
            ValueError: There are too few samples for the processes.
        """
        shard = Shard(config.num_samples, ranks.rank, ranks.size, config.shard_layout)
        if not all(shard.sizes()):
            raise ValueError(
                f"sharding='shard' needs samples for every process, got {config.num_samples} "
                f"samples for {ranks.size} processes, in {shard.layout} pieces of {shard.piece}"
            )
        table = ShardedScoreTable(
            shard,
            ranks,
            device=config.device,
            alpha=config.alpha,
            first_visit=config.policy.first_visit,
            row_reduction=config.row_reduction,
        )
        super().__init__(config, ranks, table)
        self._repeats: Repeats | None = None  # of the current epoch's share
        # A share with its ids in order and their factors.
        self._sorted: tuple[Share, Tensor, Tensor | None] | None = None
        # Repeated ids of the current epoch that were visited before a state was loaded.
        self._visited: Tensor | None = None

    # ---- epochs

    def entering(self, epoch: int) -> AbstractContextManager[list[str]]:
        """Routes visits, selects if due and draws the order; the context manager begins the epoch.

        Nothing changes on a process that raises, also if another one is lost on the way.
        """
        self.ranks.check_alone()
        place = partial(self._place, epoch)
        self._look_for_scores(epoch)
        observed = self.ranks.agree("set_epoch", self.table.device, place, self._observed)
        self._observed = self._observed or observed
        before = self._enter_visits("set_epoch")
        try:
            state, messages = self._next_state(epoch)
            share = self._share_of(state)
            return self._beginning(before, state, messages, share, Repeats.of(share))
        except BaseException:
            self.table.restore(before)
            raise

    @contextmanager
    def _beginning(
        self,
        before: RowsBefore,
        state: EpochState,
        messages: Messages,
        share: Share,
        repeats: Repeats,
    ) -> Iterator[list[str]]:
        try:
            yield messages.texts()
            outside = self._visits_outside(state)
        except BaseException:
            self.table.restore(before)
            raise
        self.table.outbox.clear()
        self._observed = self._observed or messages.unobserved is not None
        self._strayed = self._strayed or messages.strays is not None
        self._begin(state)
        self._outside, self._rescored = outside, False
        self._share, self._repeats = share, repeats

    def _enter_visits(self, what: str) -> RowsBefore:
        """Routes the visits in the outbox to their owners, who enter them. Collective.

        If that fails on one rank, every rank rolls back and the outboxes stay full.

        Returns:
            What `table.restore` needs to take them back.
        """
        rows, values = self.table.exchange()
        entered: list[RowsBefore] = []

        def enter() -> dict[str, int]:
            entered.append(self.table.enter(rows, values))
            return {}

        try:
            self.ranks.agree(what, self.table.device, enter)
        except BaseException:
            for before in entered:
                self.table.restore(before)
            raise
        return entered[0]

    def _place(self, epoch: int) -> dict[str, int]:
        self._check_shard()
        self.table.outbox.check_ids()
        return super()._place(epoch)

    def _check_shard(self) -> None:
        """Raises RuntimeError if the rows are another process's, as of an unpickled pruner."""
        shard, ranks = self.table.shard, self.ranks
        if (shard.rank, shard.size) != (ranks.rank, ranks.size):
            raise RuntimeError(
                f"this pruner holds the scores of rank {shard.rank} of {shard.size}, and this is "
                f"rank {ranks.rank} of {ranks.size}: it was pickled by another process. Make a new "
                "pruner, and load a state that every rank saved"
            )

    # ---- lengths

    def share_length(self, epoch: int | None, drop_last: bool) -> int:
        """Returns how many ids of an epoch each process gets; None is the current epoch.

        With surplus="local": what the process with the most samples of the epoch has. With
        `drop_last` it is what the one with the fewest has, of those that have any.
        """
        if not self._stays:
            return super().share_length(epoch, drop_last)
        sizes = self._sizes_in(self.state.epoch or 0 if epoch is None else epoch)
        return min(filter(None, sizes)) if drop_last else max(sizes)

    @property
    def _stays(self) -> bool:
        """Whether processes train on their own samples only."""
        return self.config.surplus == "local" and self.ranks.size > 1

    def _sizes_in(self, epoch: int) -> Sequence[int]:
        """Returns how many samples each process holds of those that `epoch` trains on."""
        shard, subset, policy = self.table.shard, self._shown.subset, self.config.policy
        if self.count(epoch) == self.config.num_samples:
            return shard.sizes()
        start = self.schedule.period_start(epoch)
        static = policy.static and subset is not None and subset.epoch != STALE
        if subset is not None and (static or subset.epoch == start):
            return subset.sizes
        rule = policy.ranking(self.table) if policy.fixes_count else None
        if isinstance(rule, FixedIds):
            return shard.counts(rule.tensor)
        raise ValueError(
            f"epoch must be one whose selection was made, got {epoch}: with surplus='local' its "
            "length depends on where the selected samples are. Schedule the learning rate by epochs"
        )

    # ---- selections and orders

    def all_ids(self) -> Tensor:
        """Returns the ids of this process's samples, ascending, int64 [len(shard)]."""
        return self.table.shard.ids(self.table.device)

    def _select(self, start: int, seed: int) -> Subset:
        table, count = self.table, 0
        rules: list[SelectionRule] = []

        def rank() -> dict[str, int]:
            """Asks the policy, where an error reaches the other ranks."""
            nonlocal count
            kept = self.config.schedule.kept(start)
            assert kept is not None  # of policies that rank
            told = table.told(None, None, self.schedule.starting_point(start))
            count, rule = kept, self.config.policy.ranking(told)
            kinds = [isinstance(rule, kind) for kind in KINDS_OF_RULES]
            if not any(kinds):
                raise TypeError(
                    f"{self.config.policy!r} must return a {RULES} as its ranking, got "
                    f"{type(rule).__name__}"
                )
            if isinstance(rule, FixedIds) and count != rule.count(self.config.num_samples):
                raise ValueError(
                    f"keep must be the number of ids of {self.config.policy!r}, "
                    f"{len(rule.tensor)}, got {count}"
                )
            rules.append(rule)
            return {"keep": count, "the kind of ranking": kinds.index(True)}

        self.ranks.agree("set_epoch", table.device, rank)
        common: dict[str, Any] = {"shard": table.shard, "seed": seed, "process_group": self.ranks}
        factors: Tensor | None = None
        rule = rules[0]
        if self.config.policy.rescales:
            ids, factors = sharded.select_rescaled(rule, count, **common)
        else:
            ids = sharded.select(rule, count, device=table.device, **common)
        subset = Subset(start, ids, factors, self._sizes_of(ids))
        if subset.total != count:
            raise RuntimeError(
                f"{self.config.policy!r} selected {subset.total} samples: a bug, please report"
            )
        return subset

    def _sizes_of(self, ids: Tensor) -> tuple[int, ...]:
        """Returns how many ids each process has. Collective; waits, outside of steps."""
        own = torch.tensor([len(ids)], device=self.table.device)
        return tuple(self.ranks.gather(own).flatten().tolist())

    def _about_lacking(self, subset: Subset) -> str | None:
        if not self._stays or all(subset.sizes):
            return None
        without = [rank for rank, size in enumerate(subset.sizes) if not size]
        return (
            f"rank {without} holds none of the selected samples, and with surplus='local' "
            "trains on random others of its own, whose scores do not change. Keep more, or "
            "distribute the samples at random"
        )

    # ---- visits

    def factors(self, ids: Tensor) -> Tensor | None:
        """Returns the factors of the current epoch, float32 [batch]; None in a full epoch.

        They are 1 for rows without a sample, and for samples that others train on.
        """
        if not self.config.policy.rescales:
            return None
        if self._share is None:  # an epoch 0 that was not begun
            subset = self.current()
            known, factors = (None, None) if subset is None else (subset.ids, subset.factors)
        else:
            known, factors = self._sorted_share()
        if known is None or factors is None:
            return None
        ids = self._on_device(ids)
        places = torch.searchsorted(known, ids).clamp_(max=len(known) - 1)
        return torch.where(known[places] == ids, factors[places], 1.0)

    def _sorted_share(self) -> tuple[Tensor, Tensor | None]:
        """Returns the ids of the current share, ascending, and their factors."""
        share = self._share
        assert share is not None
        if self._sorted is None or self._sorted[0] is not share:
            ids, order = share.ids.sort()
            factors = None if share.factors is None else share.factors[order]
            self._sorted = (share, ids, factors)
        return self._sorted[1:]

    def _scored(self, ids: Tensor) -> Tensor:
        return self._repeats.without(self._on_device(ids)) if self._repeats else ids

    def commit(self, target: UpdateTarget, ids: Tensor) -> str | None:
        """Puts what a scored step wrote into the outbox; returns what to warn of."""
        self.table.commit(target)
        if self._repeats:
            columns = target.columns
            assert columns.last_non_finite is not None
            # Rows that were ignored have recorded nothing.
            counts = (columns.count > 0) | columns.last_non_finite
            self._repeats.mark(torch.where(counts, self._on_device(ids), -1))
        return self.note(ids)

    def observe(
        self, ids: Tensor, values: Tensor, correct: Tensor | None, alpha: float | None = None
    ) -> str | None:
        """Puts values into the outbox; returns what to warn of."""
        message = super().observe(ids, values, correct, alpha)
        if self._repeats:
            self._repeats.mark(self._on_device(ids))
        return message

    # ---- the parts of `Run` that differ

    def _overlap(self, both: Tensor) -> Tensor:
        return self.ranks.add_up_(both.sum())

    def _begin(self, state: EpochState) -> None:
        self.state, self._preview = state, None
        self._share, self._repeats, self._visited = None, None, None

    def _draw_share(self) -> Share:
        share = self._share_of(self.state)
        self._repeats = Repeats.of(share, self._visited)
        return share

    def _share_of(self, state: EpochState) -> Share:
        """Draws what this process trains on in a state's epoch. Collective in a pruned epoch."""
        shard, ranks = self.table.shard, self.ranks
        epoch, subset = state.epoch or 0, None
        if state.epoch is not None and self.schedule_of(state).phase(epoch) == "pruned":
            subset = state.subset
        if self._stays:
            seed = derive_seed(state.seed, "order", epoch, ranks.rank)
            if subset is None:
                return local_share(self.all_ids(), shard.sizes(), seed, shard)
            return local_share(subset.ids, subset.sizes, seed, shard, subset.factors)
        seed, like = derive_seed(state.seed, "order", epoch), self.table.mean[:0]
        if subset is None:
            return moved_share(None, (), seed, shard, ranks, like)
        return moved_share(subset.ids, subset.sizes, seed, shard, ranks, like, subset.factors)

    def _mask_of(self, ids: Tensor) -> Tensor:
        mask = torch.zeros_like(self.table.last_non_finite)
        return mask.index_fill_(0, self.table.shard.positions_of(ids), True)

    def _shard(self) -> Shard:
        return self.table.shard

    def _ids_of(self, mask: Tensor) -> Tensor:
        """Returns the ids of the rows that are set, ascending. Waits, when a state is loaded."""
        return self.table.shard.ids_at(mask.nonzero().flatten())

    # ---- another number of samples

    def _place_of_resize(self) -> dict[str, int]:
        self._check_shard()
        self.table.outbox.check_ids()
        return super()._place_of_resize()

    def _share_visits(self) -> None:
        self._enter_visits("resize")
        self.table.outbox.clear()

    def _config_of(self, state_dict: Mapping[str, Any]) -> Config | None:
        found: list[Config | None] = []

        def read() -> dict[str, int]:
            found.append(super(ShardedRun, self)._config_of(state_dict))
            config = self.config if found[0] is None else found[0]
            return {"num_samples": config.num_samples}

        self.ranks.agree("load_state_dict", self.table.device, read)
        return found[0]

    def _move_rows_to(self, run: Run) -> None:
        """Collective: where shards begin depends on the number of samples."""
        assert isinstance(run, ShardedRun)
        names, subset = list(self.table.column_types), self.state.subset
        chosen = self._mask_of(self.all_ids()[:0] if subset is None else subset.ids)
        columns = [getattr(self.table, name) for name in names]
        columns += [self.state.times_selected, chosen]
        if self.config.policy.rescales:
            factors = torch.zeros_like(self.table.mean)
            if subset is not None and subset.factors is not None:
                factors[self.table.shard.positions_of(subset.ids)] = subset.factors
            columns.append(factors)
        moved = moved_rows(columns, self.table.shard, run.table.shard, self.ranks)
        take_rows(run.table, dict(zip(names, moved, strict=False)))
        times, is_chosen, *weights = moved[len(names) :]
        rows = is_chosen.nonzero().flatten()  # waits: a resize is off the training path
        ids = run.table.shard.ids_at(rows)
        left = stale(ids, weights[0][rows] if weights else None, self._sizes_of(ids))
        run.state = resized_state(self.state, times, run.table.mean, left)

    # ---- saved states

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in pieces. Collective: routes what was observed first."""
        shard, ranks = self.table.shard, self.ranks
        ranks.agree("state_dict", self.table.device, self._sound)
        before = self._enter_visits("state_dict")
        try:
            nothing = self.all_ids()[:0]
            visited = nothing if self._repeats is None else self._repeats.visited_ids()
            (visited,) = to_owners([visited], shard, ranks)
            subset = self.state.subset
            chosen = self._mask_of(nothing if subset is None else subset.ids)
            saved = self.state.saved(chosen, self._mask_of(visited), self.config.policy.rescales)
            state = {**self.settings(), "table": self.table.state_dict(), **saved}
            pieces = shard.in_pieces()
            state = respread(state, shard, pieces, ranks)
            mine = row_sums(state, self.table, pieces)
            sums = total_sums(mine, shard.num_samples, ranks, self.table.mean)
            state = sealed(state, self.state.first_epoch, sums)
        except BaseException:
            self.table.restore(before)
            raise
        self.table.outbox.clear()
        return shared_state(state, pieces, ranks)

    def _sound(self) -> dict[str, int]:
        self._check_shard()
        self.table.outbox.check_ids()
        functional.check_errors(self.table.device)
        return {"epoch": self.state.epoch or 0}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a state in pieces or whole. Collective.

        Every rank checks all that may fail before the first change on any of them.
        """
        ranks, shard, device = self.ranks, self.table.shard, self.table.device
        pieces = shard.in_pieces()
        state: dict[str, Any] = {}
        columns: dict[str, Tensor] = {}
        read: list[tuple[SavedState, Tensor]] = []
        written: dict[str, Any] = {}  # as it was saved, with this process's rows
        mine: dict[str, int | None] = {}

        def take() -> dict[str, int]:
            nonlocal state, written, mine
            self._check_shard()
            StateReader("state_dict", state_dict)
            state = local_state(state_dict, pieces)
            self._reader(state)
            written = {**state, "repeat": saved_repeat(state, state_dict)}
            mine = row_sums(written, self.table, pieces)
            if shard != pieces:
                state = checked_pieces(self._reader(state), self.table, pieces)
            return {}

        def check() -> dict[str, int]:
            nonlocal columns
            reader = self._reader(state)
            visited = reader.tensor("repeat", torch.bool, (len(shard),), device)
            columns = self.table.checked("state_dict['table']", state["table"])
            saved = read_state(reader, len(shard), device, self.config.policy.rescales, {})
            read.append((saved, visited))
            start = saved.subset_epoch
            kept = self.config.schedule.kept(start) if start >= 0 else None
            return {
                "epoch": -1 if saved.epoch is None else saved.epoch,
                "the first epoch": saved.first_epoch,
                "the epoch of the last selection": start,
                "num_selections": saved.num_selections,
                "seed": saved.seed,
                "keep": -1 if kept is None else kept,
            }

        def intact() -> dict[str, int]:
            check_seal(self._reader(written), sums)
            return {}

        ranks.agree("load_state_dict", device, take)
        sums = total_sums(mine, shard.num_samples, ranks, self.table.mean)
        state = respread(state, pieces, shard, ranks)
        ranks.agree("load_state_dict", device, check)
        saved, visited = read[0]
        ids = self._ids_of(saved.chosen)
        sizes = self._sizes_of(ids)
        self._check_total(saved, sum(sizes))
        ranks.agree("load_state_dict", device, intact)
        loaded = saved.restored(ids, sizes)
        visited = self._own_repeats(self._ids_of(visited))
        share = None if loaded.epoch is None else self._share_of(loaded)
        repeats = None if share is None else Repeats.of(share, visited)
        # Nothing above has changed anything, and nothing below asks other processes.
        self._adopt(columns, loaded)
        self.table.outbox.clear()
        self._visited, self._share, self._repeats = visited, share, repeats

    def _own_repeats(self, visited: Tensor) -> Tensor:
        """Returns repeated ids that were visited where they are trained on. Collective."""
        if self._stays:
            return visited
        # At most one per process; more are of a state whose epoch is over for this pruner.
        places = visited.new_full((self.ranks.size,), -1)
        found = visited[: len(places)]
        places[: len(found)] = found
        return self.ranks.gather(places).flatten()
