# SPDX-License-Identifier: Apache-2.0
"""Rows of the batches of all ranks, dealt out to them in equal numbers without waiting."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import check_dense
from dynprune_cuda.distributed.ranks import Ranks


def check_dealt(name: str, values: Tensor, device: torch.device, num_rows: int | None) -> None:
    """Raises unless `values` [num_rows, ...] is a tensor on `device` and without a gradient."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(values).__name__}")
    check_dense(name, values)
    if values.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, which is not passed on: give the inputs of the "
            "model, not its results"
        )
    if values.device != device:
        raise ValueError(f"{name} must be on {device}, got {values.device}")
    if values.dim() == 0 or (num_rows is not None and len(values) != num_rows):
        rows = "rows" if num_rows is None else f"{num_rows} rows, as the batch"
        raise ValueError(f"{name} must have {rows}, got shape {tuple(values.shape)}")


def deal_rows(values: Tensor, rows: Tensor, ranks: Ranks) -> Tensor:
    """Returns this rank's part of the rows that were chosen from the batches of all ranks.

    Rank r gets the rows that `rows[r * k : (r + 1) * k]` names. Collective; does not wait: each
    rank sends k rows to each other one, whatever was chosen. Those that are not its own are ignored
    there. So R ranks send R * k rows each.

    Args:
        values: This rank's batch, [B, ...], of any dtype; the same shape and dtype on every rank.
        rows: Positions in the concatenated batches, below R * B, int64 [R * k], on the device of
            `values`; the same on every rank.
        ranks: All processes.

    Returns:
        [k, ...].
    """
    if ranks.size == 1:
        return values.index_select(0, rows)
    num_rows, k = len(values), len(rows) // ranks.size
    own = (rows - ranks.rank * num_rows).clamp_(0, num_rows - 1)
    sent = values.index_select(0, own)
    received = ranks.transpose(sent).view(ranks.size, k, *values.shape[1:])
    slots = torch.arange(k, device=rows.device)
    owners = rows[ranks.rank * k : (ranks.rank + 1) * k] // num_rows
    return received[owners, slots]
