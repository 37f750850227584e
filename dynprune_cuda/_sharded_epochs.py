# SPDX-License-Identifier: Apache-2.0
"""The part of a `Pruner` with `sharding="shard"` that differs: no process holds all samples.

Of the samples, each process holds its shard: their scores, their history, whether they are
selected. Selections go by `sharded`. The order of an epoch is the one that every process would draw
alone, over the canonical rank of the selected samples, which is their place in ascending order. The
owner of a sample finds its position in the order by the inverse of the permutation, and sends id
and position to the process that trains there: 8 bytes. Nobody holds the whole order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._arguments import as_int
from dynprune_cuda._epochs import Subset
from dynprune_cuda._ops import ops
from dynprune_cuda._resume import ResumableEpochs
from dynprune_cuda._schedule import derive_seed
from dynprune_cuda._shard_search import Shard, signed
from dynprune_cuda._shard_state import local_state, repeats_of, shared_state
from dynprune_cuda._shard_table import ShardedScoreTable
from dynprune_cuda.distributed import Ranks
from dynprune_cuda.policies.protocol import is_believed
from dynprune_cuda.scores import ScoreTable, move_without_waiting


def shard_of(num_samples: int, ranks: Ranks, policy: Any) -> Shard:
    """Returns the samples of this process.

    Raises:
        ValueError: `policy` cannot select from shards, or there are too few samples.
    """
    if not (is_believed(policy) and hasattr(policy, "select_shard")):
        raise ValueError(
            "sharding must be 'replicate' for groups, InfoBatch and policies of your own: only "
            "full, static, random_static, uniform, epsilon_greedy, ucb and weighted select from "
            f"shards, got 'shard' and {policy!r}"
        )
    shard = Shard(num_samples, ranks.rank, ranks.size)
    if (ranks.size - 1) * shard.piece >= num_samples:
        raise ValueError(
            f"sharding='shard' needs samples for every process, got {num_samples} samples for "
            f"{ranks.size} processes, in pieces of {shard.piece}"
        )
    return shard


def make_table(
    pruner: object,
    sharding: str,
    num_samples: int,
    ranks: Ranks,
    policy: Any,
    *,
    device: torch.device | str | int,
    track_forgetting: bool,
    **options: Any,
) -> ScoreTable:
    """Returns the table of a new pruner: whole, or this process's rows. Collective.

    What fails in one process is an error in all of them.

    Raises:
        RuntimeError: Another process failed.
        TypeError: `pruner` is of a user's own class, and shall be sharded.
        ValueError: As of `shard_of`, or it shall track forgetting events, too.
    """
    made: list[ScoreTable] = []

    def make() -> dict[str, int]:
        if sharding == "replicate":
            table = ScoreTable(
                num_samples, device=device, track_forgetting=track_forgetting, **options
            )
        else:
            if track_forgetting:
                raise ValueError(
                    "track_forgetting needs sharding='replicate', got sharding='shard'"
                )
            if not isinstance(pruner, ShardedEpochs):
                kind = type(pruner).__name__
                raise TypeError(f"sharding='shard' needs Pruner itself, not its subclass {kind}")
            shard = shard_of(num_samples, ranks, policy)
            table = ShardedScoreTable(shard, ranks, device=device, **options)
        made.append(table)
        return {}

    ranks.check_device(torch.device(device))
    ranks.meet("making the pruner", torch.device(device), make, False)
    return made[0]


class ShardedEpochs(ResumableEpochs):
    """Selections, orders and states of a pruner that holds its shard only."""

    table: ShardedScoreTable

    # Of the selection at hand: samples of all processes, and those of the ranks before.
    _total, _before = 0, 0
    # Ids that their process visited already and will visit again, from a loaded state.
    _visited_repeats: tuple[int, ...] = ()

    def set_epoch(self, epoch: int) -> None:
        """As `EpochSubsets.set_epoch`; routes what was seen to the samples' owners. Collective.

        Nothing changes on a process that raises, also if another one is lost on the way.
        """
        epoch = as_int("epoch", epoch, minimum=0)
        if epoch != self._epoch:
            self.ranks.check_alone()
            prepare = partial(self._place, epoch)
            observed = self.ranks.meet("set_epoch", self.device, prepare, self._observed)
            self._observed = self._observed or observed
            with self._visits_entered("set_epoch"):
                self._enter(epoch)
        self._unscheduled = None

    @contextmanager
    def _visits_entered(self, what: str) -> Iterator[None]:
        """Routes the waiting visits to their owners and enters them. Collective.

        They are entered in all processes or in none: if that, or the block, raises, this process
        takes back what it entered, and what waits goes on waiting.
        """
        rows, values = self.table.exchange()
        undo: list[tuple[Tensor, list[Tensor]]] = []

        def enter() -> dict[str, int]:
            undo.append(self.table.enter(rows, values))
            return {}

        try:
            self.ranks.meet(what, self.device, enter, False)
            yield
        except BaseException:
            for entered in undo:
                self.table.undo(*entered)
            raise
        self.table.forget_waiting()

    def _place(self, epoch: int) -> dict[str, int]:
        self._check_shard()
        self.table.check_ids()
        return super()._place(epoch)

    def _check_shard(self) -> None:
        """Raises RuntimeError if the rows are another process's, as of an unpickled pruner."""
        shard, ranks = self.table.shard, self.ranks
        if (shard.rank, shard.size) != (ranks.rank, ranks.size):
            raise RuntimeError(
                f"this pruner holds the scores of rank {shard.rank} of {shard.size}, and this is "
                f"rank {ranks.rank} of {ranks.size}: it was pickled by another process; make a new "
                "pruner, and load a state that every rank saved"
            )

    @property
    def selected(self) -> Tensor:
        """The sample ids of the current epoch that this process holds, ascending, int64."""
        subset = self._current()
        return self.table.shard.ids(self.device) if subset is None else subset.ids.clone()

    def is_selected(self, sample_ids: Tensor) -> Tensor:
        """Not with sharding='shard': this process does not know.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "is_selected needs sharding='replicate': a process knows of its own samples only, see "
            "selected"
        )

    def epoch_order(self) -> Tensor:
        """As `EpochSubsets.epoch_order`, bit for bit."""
        self._current()
        if self._order is None:
            self._take_order(self._drawn_order(self.epoch, None, self.num_samples, 0, self.seed))
        assert self._order is not None
        return self._order

    def _enter(self, epoch: int) -> None:
        """Makes `epoch` the current one: first all that may fail or asks others."""
        subset, history = self._subset, None
        total, before = self._total, self._before
        if self.schedule.phase(epoch) == "pruned":
            start = self.schedule.period_start(epoch)
            static = getattr(self.policy, "static", False)
            if subset is None or not (static or start == subset.epoch != epoch):
                subset = self._selection(start, 0 if static else start)
                counts = self.ranks.gather(subset.ids.new_full((1,), len(subset.ids)))
                sizes = counts.flatten().tolist()
                total, before = sum(sizes), sum(sizes[: self.ranks.rank])
                if total != self.schedule.kept(start):
                    raise RuntimeError(
                        f"{self.policy!r} selected {total} samples: a bug, please report"
                    )
                history = self._history(subset, total)
            subset = subset._replace(epoch=start)
            order = self._drawn_order(epoch, subset.ids, total, before, self.seed)
        else:
            order = self._drawn_order(epoch, None, self.num_samples, 0, self.seed)
        if history is not None:
            times, self.turnover = history
            self.times_selected += times
            self.num_selections += 1
        self._total, self._before, self._subset, self._epoch = total, before, subset, epoch
        self._visited_repeats = ()
        self._take_order(order)

    def _selection(self, start: int, number: int) -> Subset:
        count = self.schedule.kept(start)
        assert count is not None  # of the policies that select from shards
        self._warn_if_unobserved(start)
        policy: Any = self.policy
        seed = derive_seed(self.seed, "select", number)
        return Subset(start, policy.select_shard(self.table, count, seed=seed), None)

    def _history(self, subset: Subset, total: int) -> tuple[Tensor, Tensor]:
        """Returns what a selection adds to `times_selected`, and the turnover."""
        chosen, turnover = self._mask(subset), self.turnover
        if self._subset is not None:
            again = self.ranks.add_up_((chosen & self._mask(self._subset)).sum())
            turnover = 1.0 - again.double() / total
        return chosen, turnover

    def _drawn_order(
        self, epoch: int, ids: Tensor | None, total: int, before: int, seed: int
    ) -> Tensor:
        """Returns this process's share of an epoch's order. Collective if there are `ids`.

        Args:
            epoch: The epoch.
            ids: The selected ids that this process holds, ascending; None if all are selected.
            total: How many are selected in all processes.
            before: How many of them the ranks before this one hold.
            seed: The run's seed.
        """
        rank, size = self.ranks.rank, self.ranks.size
        seed = signed(derive_seed(seed, "order", epoch))
        if total < size:  # some process repeats an id of another one
            order = functional.permutation(total, seed=seed, device=self.device)
            if ids is not None:
                everything = torch.zeros_like(order)
                everything[before : before + len(ids)] = ids
                order = self.ranks.add_up_(everything)[order]
            return self.ranks.share(order)
        length = len(range(rank, total, size))
        if ids is None:
            part = (total, rank, size, length, False, None, seed)
            order = ops.permutation_part(self.table.mean[:0], *part)
        else:
            part = (total, before, 1, len(ids), True, None, seed)
            places = ops.permutation_part(self.table.mean[:0], *part)
            # Id and place in one word: both are below 2^32.
            words = (ids << 32) | (places // size)
            consumer, by_consumer = (places % size).to(torch.int32).sort(stable=True)
            counts = torch.bincount(consumer, minlength=size)
            (received,) = self.ranks.exchange([words[by_consumer]], counts)
            order = torch.empty_like(received)
            order[received & 0xFFFFFFFF] = (received >> 32) & 0xFFFFFFFF
        padded = length < self.ranks.share_length(total)
        return torch.cat([order, order[:1]]) if padded else order

    def _take_order(self, order: Tensor) -> None:
        """Makes an order the current one, and marks the id that is in it a second time."""
        self._order = order
        count, size = self.num_selected, self.ranks.size
        self._repeat.fill_(-1)
        if self.ranks.rank >= count % size > 0:
            # An id of another rank is a repetition already when it comes first.
            visited = len(order) == 1
            self._repeat.copy_(torch.cat([order[-1:], torch.full_like(order[-1:], int(visited))]))
            for sample_id in self._visited_repeats:
                self._repeat[1:] |= (order[-1:] == sample_id).long()

    def _without_repeat(self, ids: Tensor) -> Tensor:
        """Returns `ids`, int64 on `device`, with -1 for later visits of the repeated id."""
        if self.ranks.size == 1:
            return ids
        ids = move_without_waiting("ids", ids.to(torch.int64), self.device)
        found = (ids == self._repeat[:1]) & (ids >= 0)
        visited = self._repeat[1:] > 0
        later = found & (found.cumsum(0) + visited > 1)
        self._repeat[1:] = torch.where(found.any(), 1, self._repeat[1:])
        return torch.where(later, -1, ids)

    def _mask(self, subset: Subset | None) -> Tensor:
        """Returns which samples of this process are in `subset`, bool [len(shard)]."""
        mask = torch.zeros_like(self.table.last_non_finite)
        if subset is None:
            return mask
        return mask.index_fill_(0, self.table.shard.positions_of(subset.ids), True)

    def _ids_of(self, mask: Tensor) -> Tensor:
        return self.table.shard.ids_at(mask.nonzero().flatten())

    def _count(self, epoch: int) -> int:
        if self.schedule.phase(epoch) == "pruned":
            start = self.schedule.period_start(epoch)
            if self._subset is not None and self._subset.epoch == start:
                return self._total
            count = self.schedule.kept(start)
            assert count is not None
            return count
        return self.num_samples

    def state_dict(self) -> dict[str, Any]:
        """As `ResumableEpochs.state_dict`, in pieces. Collective: routes what was seen first.

        With several processes, the columns are DTensors, sharded along the samples, which
        `torch.distributed.checkpoint` saves, and loads into a pruner of any number of processes.
        In mid-epoch, go on with as many processes as before; at the end of an epoch, with any.
        """
        self.ranks.meet("state_dict", self.device, self._nothing_wrong, False)
        with self._visits_entered("state_dict"):
            repeats = self.ranks.gather(self._repeat).tolist()
        state = {**self._settings(), "table": self.table.state_dict(), **self._saved_subset()}
        state["repeat"] = sorted({one for one, visited in repeats if one >= 0 and visited > 0})
        return shared_state(state, self.table.shard, self.ranks)

    def _nothing_wrong(self) -> dict[str, int]:
        self._check_shard()
        self.table.check_ids()
        functional.check_errors(self.device)
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `ResumableEpochs.load_state_dict`. Collective.

        Takes what `state_dict` returned, in pieces or whole, and the state of a pruner with
        sharding="replicate" at the end of an epoch. Pieces must be those that this process saved,
        or loaded with `torch.distributed.checkpoint`.

        Raises:
            TypeError: As of `ResumableEpochs.load_state_dict`.
            ValueError: As there, or the pieces are another process's, or the processes load states
                that differ.
            RuntimeError: Another process failed.
        """
        columns: dict[str, Tensor] = {}
        attributes: dict[str, Any] = {}
        repeats: tuple[int, ...] = ()

        def check() -> dict[str, int]:
            nonlocal columns, attributes, repeats
            self._check_shard()
            own = local_state(state_dict, self.table.shard)
            if "repeat" in own:
                repeats = repeats_of(own["repeat"], self.num_samples)
                own["repeat"] = torch.full_like(self._repeat, -1)
            columns, attributes = self._checked(own)
            subset, epoch = attributes["_subset"], attributes["_epoch"]
            kept = None if subset is None else self.schedule.kept(subset.epoch)
            return {
                "epoch": -1 if epoch is None else epoch,
                "the epoch of the last selection": -1 if subset is None else subset.epoch,
                "num_selections": attributes["num_selections"],
                "seed": attributes["seed"],
                "keep": -1 if kept is None else kept,
            }

        self.ranks.meet("load_state_dict", self.device, check, False)
        subset, epoch = attributes["_subset"], attributes["_epoch"]
        size = torch.tensor([0 if subset is None else len(subset.ids)], device=self.device)
        counts = self.ranks.gather(size).flatten().tolist()
        total, before = sum(counts), sum(counts[: self.ranks.rank])
        self._check_total(attributes, total)
        order, seed = None, attributes["seed"]
        if epoch is not None:
            if subset is None or self.schedule.phase(epoch) != "pruned":
                order = self._drawn_order(epoch, None, self.num_samples, 0, seed)
            else:
                order = self._drawn_order(epoch, subset.ids, total, before, seed)
        # Nothing above has changed anything, and nothing below asks other processes.
        self._adopt(columns, attributes)
        self.table.forget_waiting()
        self._total, self._before, self._visited_repeats = total, before, repeats
        self._order = None
        if order is not None:
            self._take_order(order)

    def __getstate__(self) -> dict[str, Any]:
        """Keeps the order, which one process cannot draw alone."""
        return self.__dict__.copy()
