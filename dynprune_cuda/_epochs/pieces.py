# SPDX-License-Identifier: Apache-2.0
"""States of a run whose samples are spread over processes: saved in pieces, loaded by rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.routing import moved_rows
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.scores.table import ScoreTable

# Columns besides the table's. "repeat": visited in this epoch, where the sample comes again.
# "weights": of a policy that multiplies losses by factors.
BY_SAMPLE = {
    "subset": torch.bool,
    "times_selected": torch.int32,
    "repeat": torch.bool,
    "weights": torch.float32,
}
# Attribute of a DTensor that tells which rank's rows it holds. An unpickled DTensor gives every
# rank the rows of the one that pickled it. torch.save keeps the attribute, and so does
# torch.distributed.checkpoint, which loads into each rank's own.
ROWS_OF = "_dynprune_rank"


def shared_state(state: dict[str, Any], shard: Shard, ranks: Ranks) -> dict[str, Any]:
    """Returns a state whose columns are DTensors, sharded along the samples.

    Args:
        state: The state, with this process's rows.
        shard: Which samples these are.
        ranks: The processes; of a single one, the rows are all there are.
    """
    if ranks.size == 1:
        return state
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as ShardedAlong

    device = state["subset"].device.type
    group = dist.group.WORLD if ranks.group is None else ranks.group
    assert group is not None
    mesh = DeviceMesh.from_group(group, device)

    def in_pieces(rows: Tensor) -> Tensor:
        column = DTensor.from_local(
            rows,
            mesh,
            [ShardedAlong(0)],
            run_check=False,
            shape=torch.Size([shard.num_samples]),
            stride=(1,),
        )
        setattr(column, ROWS_OF, ranks.rank)
        return column

    table = {name: in_pieces(column) for name, column in state["table"].items()}
    return {**state, "table": table, **{name: in_pieces(state[name]) for name in _columns(state)}}


def local_state(state: Any, shard: Shard) -> dict[str, Any]:
    """Returns a state with this process's rows, of one in pieces or of a whole one.

    Repeats of a pruner with replicated scores count for nothing: its epoch must be at its end.
    What has the wrong type or shape stays as it is: who reads the state complains.

    Raises:
        TypeError: `state` is no mapping.
        ValueError: Its pieces are another rank's, or do not tell the rank.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state).__name__}")
    own = dict(state)
    repeat = own.get("repeat")
    if isinstance(repeat, Tensor) and repeat.dtype == torch.int64:
        own["repeat"] = torch.zeros(len(shard), dtype=torch.bool, device=repeat.device)
    for name in _columns(own):
        own[name] = _rows(name, own[name], shard)
    if isinstance(own.get("table"), Mapping):
        table = own["table"].items()
        own["table"] = {name: _rows(name, column, shard) for name, column in table}
    return own


def saved_repeat(own: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """Returns a state's repeats: `own` of `local_state` has lost those of replicated scores."""
    repeat = state["repeat"]
    replicated = isinstance(repeat, Tensor) and repeat.dtype == torch.int64
    return repeat if replicated else own["repeat"]


def checked_pieces(read: StateReader, table: ScoreTable, shard: Shard) -> dict[str, Any]:
    """Returns a state whose rows are ready to be sent: copies of the right types and lengths.

    Args:
        read: A reader of a state as of `local_state`, with all entries.
        table: A table of the same columns, on the device.
        shard: Which samples the rows are of.
    """
    columns = StateReader("state_dict['table']", read.state["table"])
    columns.has(table.column_types)

    def rows(reader: StateReader, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        return {
            name: reader.tensor(name, dtype, (len(shard),), table.device)
            for name, dtype in types.items()
        }

    own = rows(read, _columns(read.state))
    return {**read.state, "table": rows(columns, table.column_types), **own}


def respread(state: dict[str, Any], source: Shard, target: Shard, ranks: Ranks) -> dict[str, Any]:
    """Returns a state with the rows of `target` in place of those of `source`. Collective."""
    if source == target:
        return state
    columns = {**state["table"], **{name: state[name] for name in _columns(state)}}
    moved = moved_rows(list(columns.values()), source, target, ranks)
    rows = dict(zip(columns, moved, strict=True))
    by_sample = {name: rows.pop(name) for name in _columns(state)}
    return {**state, "table": rows, **by_sample}


def _columns(state: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """Returns the columns of a state besides the table's."""
    return {name: dtype for name, dtype in BY_SAMPLE.items() if name in state}


def _rows(name: Any, column: Any, shard: Shard) -> Any:
    if not isinstance(column, Tensor) or tuple(column.shape) != (shard.num_samples,):
        return column
    local = getattr(column, "to_local", None)
    if local is not None:
        rank = getattr(column, ROWS_OF, None)
        if rank != shard.rank:
            whose = "rows without a rank" if rank is None else f"those of rank {rank}"
            raise ValueError(
                f"state_dict's {name!r} must hold the rows of rank {shard.rank}, got {whose}: save "
                "and load with torch.distributed.checkpoint, or let every rank save its state and "
                "load it again"
            )
        return local()
    return column[shard.first : shard.first + len(shard)]
