# SPDX-License-Identifier: Apache-2.0
"""Where a run is: one frozen object, replaced as a whole, and its saved form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_INT64
from dynprune_cuda._checks.saved_state import StateReader

MAX_SELECTIONS = torch.iinfo(torch.int32).max  # times_selected counts in int32
# Grows with every change of what a state holds. From 3 on, "version" ends with a checksum: an entry
# of its own would keep torch.distributed.checkpoint from loading what earlier versions saved.
STATE_VERSION = 3
VERSIONS_BEFORE = (2,)
STALE = -1  # `Subset.epoch` of a selection from a training set of another size
ENTRIES = (
    "epoch",
    "subset_epoch",
    "subset",
    "num_selections",
    "times_selected",
    "turnover",
    "repeat",
)


class Subset(NamedTuple):
    """What one selection gave.

    Attributes:
        epoch: First epoch of the period that it serves; `STALE` if it serves none any more.
        ids: Ascending sample ids that this process knows of, int64.
        factors: What the losses of `ids` are multiplied by, float32 [len(ids)], of a policy that
            weighs or rescales; or None.
        sizes: How many samples each holder has: one entry for replicated scores, one per rank for
            sharded ones.
    """

    epoch: int
    ids: Tensor
    factors: Tensor | None
    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many samples are selected, in all processes together."""
        return sum(self.sizes)


@dataclass(frozen=True, eq=False)
class EpochState:
    """Where a run is, and what its selections were so far.

    Attributes:
        seed: The seed of the run, in [0, 2**64).
        epoch: The current epoch; None before the first one began.
        subset: The last selection; None before the first.
        num_selections: How many selections there were.
        times_selected: How many selections chose each sample, int32 [rows].
        turnover: Share of the last selection that the one before had not chosen, 0-d float64; NaN
            before the second selection.
        memory: The policy's own columns by name, [rows] each.
        first_epoch: Where the warm-up begins, see `Schedule`.
    """

    seed: int
    epoch: int | None
    subset: Subset | None
    num_selections: int
    times_selected: Tensor
    turnover: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    first_epoch: int = 0

    @classmethod
    def initial(cls, seed: int, like: Tensor, memory: Mapping[str, Tensor]) -> EpochState:
        """Returns the state before the first epoch of a table with rows like those of `like`."""
        nothing = torch.full((), float("nan"), dtype=torch.float64, device=like.device)
        times = torch.zeros_like(like, dtype=torch.int32)
        return cls(seed, None, None, 0, times, nothing, memory)

    def selected(
        self,
        subset: Subset,
        chosen: Tensor,
        again: Tensor | None,
        memory: Mapping[str, Tensor] | None = None,
    ) -> EpochState:
        """Returns the state after one more selection.

        Args:
            subset: What it gave.
            chosen: Which rows it chose, bool [rows].
            again: How many samples the selection before chose, too, 0-d; None if it is the first.
            memory: The policy's own columns after it; None if they stay.
        """
        return replace(
            self,
            subset=subset,
            num_selections=self.num_selections + 1,
            times_selected=self.times_selected + chosen,
            turnover=self.turnover if again is None else 1.0 - again.double() / subset.total,
            memory=self.memory if memory is None else memory,
        )

    def saved(self, chosen: Tensor, repeat: Tensor, has_factors: bool) -> dict[str, Any]:
        """Returns the entries of a saved state, but for `first_epoch`: the seal holds it.

        Their keys and shapes are those of every run made alike, whatever it has selected so far.
        `torch.distributed.checkpoint` loads into a state of the same shape.

        Args:
            chosen: Which rows the subset has, bool [rows].
            repeat: What tells which repeated ids were visited.
            has_factors: Whether the policy multiplies losses by factors.
        """
        subset = self.subset
        state: dict[str, Any] = {
            "epoch": -1 if self.epoch is None else self.epoch,
            "subset_epoch": -1 if subset is None else subset.epoch,
            "subset": chosen,
            "num_selections": self.num_selections,
            "times_selected": self.times_selected.clone(),
            "turnover": self.turnover.clone(),
            "repeat": repeat,
        }
        if has_factors:
            weights = chosen.float()
            if subset is not None:
                assert subset.factors is not None
                weights[chosen] = subset.factors  # waits; both are in the order of the samples
            state["weights"] = weights
        if self.memory:
            state["memory"] = {name: column.clone() for name, column in self.memory.items()}
        return state


class SavedState(NamedTuple):
    """What the entries of a saved state say, checked; the sizes of the subset are not known yet."""

    epoch: int | None
    subset_epoch: int  # -1 without a subset
    chosen: Tensor
    weights: Tensor | None
    num_selections: int
    times_selected: Tensor
    turnover: Tensor
    seed: int
    memory: Mapping[str, Tensor]
    first_epoch: int

    def restored(self, ids: Tensor, sizes: tuple[int, ...]) -> EpochState:
        """Returns the state, with the ids of the chosen rows and the sizes of their holders."""
        subset = None
        if sum(sizes):
            factors = None if self.weights is None else self.weights[self.chosen]
            subset = Subset(self.subset_epoch, ids, factors, sizes)
        return EpochState(
            self.seed,
            self.epoch,
            subset,
            self.num_selections,
            self.times_selected,
            self.turnover,
            self.memory,
            self.first_epoch,
        )


def read_state(
    read: StateReader,
    rows: int,
    device: torch.device,
    has_factors: bool,
    memory: Mapping[str, torch.dtype],
) -> SavedState:
    """Reads the entries of `EpochState.saved`, but for "repeat".

    Args:
        read: A reader of a state that has all entries.
        rows: How many samples this process knows of.
        device: Where the tensors go.
        has_factors: Whether the policy multiplies losses by factors.
        memory: The policy's own columns: dtypes by name.

    Raises:
        TypeError: An entry has the wrong type.
        ValueError: An entry is damaged.
    """
    seed = read.integer("seed", 0, 2**64 - 1)
    epoch = read.integer("epoch", -1, MAX_INT64)
    start = read.integer("subset_epoch", -1, MAX_INT64)
    chosen = read.tensor("subset", torch.bool, (rows,), device)
    selections = read.integer("num_selections", 0, MAX_SELECTIONS)
    times = read.tensor("times_selected", torch.int32, (rows,), device)
    turnover = read.tensor("turnover", torch.float64, (), device)
    weights = None
    if has_factors:
        weights = read.tensor("weights", torch.float32, (rows,), device)
        fits = weights.isfinite() & (weights >= 0) & ((weights > 0) == chosen)
        read.sound("weights", fits.all(), "it contradicts the subset")
    read.sound(
        "times_selected", ((times >= 0) & (times <= selections)).all(), "a number is out of range"
    )
    read.sound("turnover", ~((turnover < 0) | (turnover > 1)), "it is outside [0, 1]")
    columns: dict[str, Tensor] = {}
    if memory:
        reader = StateReader(f"{read.name}['memory']", read.state["memory"])
        reader.has(memory)
        for name, dtype in memory.items():
            columns[name] = reader.tensor(name, dtype, (rows,), device)
    return SavedState(
        epoch if epoch >= 0 else None,
        start,
        chosen,
        weights,
        selections,
        times,
        turnover,
        seed,
        columns,
        read.first_epoch(),
    )
