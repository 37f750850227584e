# SPDX-License-Identifier: Apache-2.0
"""States of a run whose samples are spread over processes: saved in pieces, loaded by rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune_cuda._shard_search import Shard
from dynprune_cuda.distributed import Ranks

BY_SAMPLE = ("subset", "times_selected")  # besides the table's columns


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
        return DTensor.from_local(
            rows,
            mesh,
            [ShardedAlong(0)],
            run_check=False,
            shape=torch.Size([shard.num_samples]),
            stride=(1,),
        )

    table = {name: in_pieces(column) for name, column in state["table"].items()}
    return {**state, "table": table, **{name: in_pieces(state[name]) for name in BY_SAMPLE}}


def local_state(state: Any, shard: Shard) -> dict[str, Any]:
    """Returns a state with this process's rows, of one in pieces or of a whole one.

    What has the wrong type or shape stays as it is: who reads the state complains.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state).__name__}")
    own = dict(state)
    for name in BY_SAMPLE:
        if name in own:
            own[name] = _rows(own[name], shard)
    if isinstance(own.get("table"), Mapping):
        own["table"] = {name: _rows(column, shard) for name, column in own["table"].items()}
    return own


def _rows(column: Any, shard: Shard) -> Any:
    if not isinstance(column, Tensor) or tuple(column.shape) != (shard.num_samples,):
        return column
    local = getattr(column, "to_local", None)
    if local is not None:
        return local()
    return column[shard.first : shard.first + len(shard)]
