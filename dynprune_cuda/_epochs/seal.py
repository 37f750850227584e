# SPDX-License-Identifier: Apache-2.0
"""The checksum of a saved state, in its entry "version"; of states in pieces, that of the whole.

If the run began later than with epoch 0, without scores, its first epoch follows the checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.checksum import checksum, tensor_sum
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._epochs.pieces import BY_SAMPLE
from dynprune_cuda._epochs.state import STATE_VERSION, VERSIONS_BEFORE
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.scores.table import ScoreTable

Sums = Mapping[str, tuple[int, int]]  # of columns in pieces: rows in all processes, and their sum


def sealed(state: dict[str, Any], first_epoch: int = 0, sums: Sums | None = None) -> dict[str, Any]:
    """Returns a state whose version tells the checksum of everything else. Waits."""
    version = f"{STATE_VERSION}:{_checksum(state, first_epoch, sums)}"
    return {**state, "version": f"{version}:{first_epoch}" if first_epoch else version}


def check_seal(read: StateReader, sums: Sums | None = None) -> None:
    """Raises ValueError if a state does not hold what was saved. Waits."""
    written = read.sealed(VERSIONS_BEFORE, STATE_VERSION)
    if written is not None:
        read.intact(written, _checksum(read.state, read.first_epoch(), sums))


def row_sums(state: Mapping[str, Any], table: ScoreTable, shard: Shard) -> dict[str, int | None]:
    """Returns the sum of this process's rows of each column, None where there are no such rows.

    Args:
        state: A state with this process's rows.
        table: A table of the same columns.
        shard: Which samples the rows are of, in contiguous pieces.
    """
    columns = StateReader("state_dict['table']", state["table"]).state
    types = {f"table.{name}": dtype for name, dtype in table.column_types.items()} | BY_SAMPLE
    found: dict[str, int | None] = {}
    for name, dtype in types.items():
        inside = name.removeprefix("table.")
        rows = state.get(name) if inside == name else columns.get(inside)
        found[name] = None
        if isinstance(rows, Tensor) and rows.dtype == dtype and rows.shape == (len(shard),):
            found[name] = int(tensor_sum(rows, shard.first))
    return found


def total_sums(
    mine: Mapping[str, int | None], num_samples: int, ranks: Ranks, like: Tensor
) -> Sums:
    """Returns the sums of all processes' rows, by name. One collective; waits, for a saved state.

    Args:
        mine: As of `row_sums`.
        num_samples: How many samples all processes have.
        ranks: The processes.
        like: A tensor on the device that they can reach.
    """
    numbers = like.new_tensor([number or 0 for number in mine.values()], dtype=torch.int64)
    totals = ranks.add_up_(numbers).tolist()
    return {
        name: (num_samples, total)
        for (name, number), total in zip(mine.items(), totals, strict=True)
        if number is not None
    }


def _checksum(state: Mapping[str, Any], first_epoch: int, sums: Sums | None) -> str:
    contents = {name: state[name] for name in state if name != "version"}
    if first_epoch:
        contents["first_epoch"] = first_epoch
    return checksum(contents, sums)
