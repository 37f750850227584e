# SPDX-License-Identifier: Apache-2.0
"""The part of a `Pruner` with `sharding="shard"` that differs: no process holds all samples.

Of the samples, each process holds its shard: their scores, their history, whether they are
selected. Selections go by `sharded`, orders by `_shard_order`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import as_int
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._epochs.order import Repeats, Share, local_share, moved_share, repeats_of
from dynprune_cuda._epochs.pieces import checked_pieces, local_state, respread, shared_state
from dynprune_cuda._epochs.replicated import Subset
from dynprune_cuda._epochs.resume import ResumableEpochs
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.distributed.routing import to_owners
from dynprune_cuda.policies.static_subset import StaticSubset
from dynprune_cuda.scores.sharded_table import ShardedScoreTable


class ShardedEpochs(ResumableEpochs):
    """Selections, orders and states of a pruner that holds its shard only."""

    table: ShardedScoreTable
    surplus: str

    _sizes: tuple[int, ...] = ()  # how many samples of the selection at hand each process holds
    _repeats: Repeats | None = None  # of the current epoch's order, once it is drawn
    # Ids that this process visited already and will visit again, from a loaded state.
    _visited: Tensor | None = None

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
        """As `EpochSubsets.epoch_order`, bit for bit; this process's samples if surplus="local"."""
        self._current()
        if self._order is None:
            share = self._drawn_share(self.epoch, None, (), self.seed)
            repeats = repeats_of(share, self._visited)
            self._order, self._repeats = share.ids, repeats
        assert self._order is not None
        return self._order

    def share_length(self, drop_last: bool = False) -> int:
        """As `EpochSubsets.share_length`.

        With surplus="local": what the process with the most samples of the epoch has, or, with
        `drop_last`, the one with the fewest, those without any left aside.
        """
        return self._length(self.epoch, drop_last)

    def _length(self, epoch: int, drop_last: bool) -> int:
        if not self._stays:
            return super()._length(epoch, drop_last)
        sizes = self._sizes_in(epoch)
        return min(filter(None, sizes)) if drop_last else max(sizes)

    @property
    def _stays(self) -> bool:
        """Whether processes train on their own samples only."""
        return self.surplus == "local" and self.ranks.size > 1

    def _sizes_in(self, epoch: int) -> Sequence[int]:
        """Returns how many samples each process holds of those that `epoch` trains on."""
        shard, subset = self.table.shard, self._subset
        if self._count(epoch) == self.num_samples:
            return shard.sizes()
        start = self.schedule.period_start(epoch)
        static = getattr(self.policy, "static", False)
        if subset is not None and (static or subset.epoch == start):
            return self._sizes
        if isinstance(self.policy, StaticSubset):
            return self.policy.sizes_in(shard)
        raise ValueError(
            f"epoch must be one whose selection was made, got {epoch}: with surplus='local' its "
            "length depends on where the selected samples are, so schedule the learning rate by "
            "epochs"
        )

    def _enter(self, epoch: int) -> None:
        """Makes `epoch` the current one: first all that may fail or asks others."""
        subset, sizes, history = self._subset, self._sizes, None
        ids = None
        if self.schedule.phase(epoch) == "pruned":
            start = self.schedule.period_start(epoch)
            static = getattr(self.policy, "static", False)
            if subset is None or not (static or start == subset.epoch != epoch):
                subset = self._selection(start, 0 if static else start)
                sizes = self._sizes_of(subset)
                if sum(sizes) != self.schedule.kept(start):
                    raise RuntimeError(
                        f"{self.policy!r} selected {sum(sizes)} samples: a bug, please report"
                    )
                self._warn_of_strangers(sizes)
                history = self._history(subset, sum(sizes))
            subset = subset._replace(epoch=start)
            ids = subset.ids
        share = self._drawn_share(epoch, ids, sizes, self.seed)
        repeats = repeats_of(share, None)
        if history is not None:
            times, self.turnover = history
            self.times_selected += times
            self.num_selections += 1
        self._sizes, self._subset, self._epoch = sizes, subset, epoch
        self._visited, self._order, self._repeats = None, share.ids, repeats

    def _sizes_of(self, subset: Subset | None) -> tuple[int, ...]:
        """Returns how many of the selected samples each process holds. Collective; waits."""
        own = torch.tensor([0 if subset is None else len(subset.ids)], device=self.device)
        return tuple(self.ranks.gather(own).flatten().tolist())

    def _warn_of_strangers(self, sizes: Sequence[int]) -> None:
        """Warns if a process trains on none of the selected samples, in all of them alike."""
        if self._stays and not all(sizes):
            without = [rank for rank, size in enumerate(sizes) if not size]
            warnings.warn(
                f"rank {without} holds none of the selected samples, and with surplus='local' "
                "fills up with others of its own, whose scores do not change",
                RuntimeWarning,
                stacklevel=4,
            )

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

    def _drawn_share(
        self, epoch: int, ids: Tensor | None, sizes: Sequence[int], seed: int
    ) -> Share:
        """Returns what this process trains on in an epoch. Collective if there are `ids`.

        Args:
            epoch: The epoch.
            ids: The selected ids that this process holds, ascending; None if all are selected.
            sizes: How many selected ids each process holds.
            seed: The run's seed.
        """
        shard, ranks = self.table.shard, self.ranks
        if self._stays:
            if ids is None:
                ids, sizes = shard.ids(self.device), shard.sizes()
            return local_share(ids, sizes, derive_seed(seed, "order", epoch, ranks.rank), shard)
        seed = derive_seed(seed, "order", epoch)
        return moved_share(ids, sizes, seed, shard, ranks, self.table.mean[:0])

    def _without_repeat(self, ids: Tensor) -> Tensor:
        """Returns the ids whose scores count: visits of padding are -1."""
        if not self._repeats:
            return ids
        return self._repeats.without(self._moved(ids))

    def _note_visits(self, ids: Tensor) -> None:
        if self._repeats:
            self._repeats.note(self._moved(ids))

    def _moved(self, ids: Tensor) -> Tensor:
        return move_without_waiting("ids", ids.to(torch.int64), self.device)

    def _mask(self, subset: Subset | None) -> Tensor:
        return self._mask_of(
            self.table.shard.ids(self.device)[:0] if subset is None else subset.ids
        )

    def _mask_of(self, ids: Tensor) -> Tensor:
        """Returns which samples of this process are in `ids`, bool [len(shard)]."""
        mask = torch.zeros_like(self.table.last_non_finite)
        return mask.index_fill_(0, self.table.shard.positions_of(ids), True)

    def _ids_of(self, mask: Tensor) -> Tensor:
        return self.table.shard.ids_at(mask.nonzero().flatten())

    def _count(self, epoch: int) -> int:
        if self.schedule.phase(epoch) == "pruned":
            start = self.schedule.period_start(epoch)
            if self._subset is not None and self._subset.epoch == start:
                return sum(self._sizes)
            count = self.schedule.kept(start)
            assert count is not None
            return count
        return self.num_samples

    def state_dict(self) -> dict[str, Any]:
        """As `ResumableEpochs.state_dict`, in pieces. Collective: routes what was seen first.

        With several processes, the columns are DTensors, sharded along the samples, which
        `torch.distributed.checkpoint` saves, and loads into a pruner of any number of processes.
        They do not tell the layout of the shards. In mid-epoch, go on with as many processes as
        before, and the same `surplus` and `shard_layout`; at the end of an epoch, with any.
        """
        shard, ranks = self.table.shard, self.ranks
        ranks.meet("state_dict", self.device, self._nothing_wrong, False)
        with self._visits_entered("state_dict"):
            state = {**self._settings(), "table": self.table.state_dict(), **self._saved_subset()}
            visited = shard.ids(self.device)[:0]
            if self._repeats is not None:
                visited = self._repeats.visited()
            (visited,) = to_owners([visited], shard, ranks)
            state["repeat"] = self._mask_of(visited)
            state = respread(state, shard, shard.in_pieces(), ranks)
        return shared_state(state, shard.in_pieces(), ranks)

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
        ranks, shard = self.ranks, self.table.shard
        pieces = shard.in_pieces()
        state: dict[str, Any] = {}
        columns: dict[str, Tensor] = {}
        attributes: dict[str, Any] = {}
        visited = torch.empty(0)

        def take() -> dict[str, int]:
            nonlocal state
            self._check_shard()
            state = local_state(state_dict, pieces)
            if shard != pieces:
                state = checked_pieces(self._reader(state), self.table, pieces)
            return {}

        def check() -> dict[str, int]:
            nonlocal columns, attributes, visited
            size = (len(shard),)
            visited = self._reader(state).tensor("repeat", torch.bool, size, self.device)
            columns, attributes = self._checked({**state, "repeat": self._repeat})
            subset, epoch = attributes["_subset"], attributes["_epoch"]
            kept = None if subset is None else self.schedule.kept(subset.epoch)
            return {
                "epoch": -1 if epoch is None else epoch,
                "the epoch of the last selection": -1 if subset is None else subset.epoch,
                "num_selections": attributes["num_selections"],
                "seed": attributes["seed"],
                "keep": -1 if kept is None else kept,
            }

        ranks.meet("load_state_dict", self.device, take, False)
        state = respread(state, pieces, shard, ranks)
        ranks.meet("load_state_dict", self.device, check, False)
        sizes = self._sizes_of(attributes["_subset"])
        self._check_total(attributes, sum(sizes))
        visited = self._own_repeats(self._ids_of(visited))
        share = self._loaded_share(attributes, sizes)
        repeats = None if share is None else repeats_of(share, visited)
        # Nothing above has changed anything, and nothing below asks other processes.
        self._adopt(columns, attributes)
        self.table.forget_waiting()
        self._sizes, self._visited, self._repeats = sizes, visited, repeats
        if share is not None:
            self._order = share.ids

    def _loaded_share(self, attributes: dict[str, Any], sizes: Sequence[int]) -> Share | None:
        """Draws the share of a state's epoch, None if none has begun. Collective."""
        subset, epoch = attributes["_subset"], attributes["_epoch"]
        if epoch is None:
            return None
        pruned = subset is not None and self.schedule.phase(epoch) == "pruned"
        ids = subset.ids if pruned else None
        return self._drawn_share(epoch, ids, sizes, attributes["seed"])

    def _own_repeats(self, visited: Tensor) -> Tensor:
        """Returns repeated ids that were visited where they are trained on. Collective."""
        if self._stays:
            return visited
        # One of a process at most; more are of a state whose epoch is over for this pruner.
        places = visited.new_full((self.ranks.size,), -1)
        found = visited[: len(places)]
        places[: len(found)] = found
        return self.ranks.gather(places).flatten()

    def __getstate__(self) -> dict[str, Any]:
        """Keeps the order, which one process cannot draw alone."""
        return self.__dict__.copy()
