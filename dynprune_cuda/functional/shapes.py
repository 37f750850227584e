# SPDX-License-Identifier: Apache-2.0
"""The shapes of torch.nn.functional.cross_entropy as rows of logits, one target to a row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    FLOATING,
    INTEGER,
    WAY_OUT,
    as_int,
    check_dense,
    check_tensor,
)
from dynprune_cuda.functional.soft_targets import check_soft_shape, is_soft


class Rows(NamedTuple):
    """Logits and targets as the operators take them.

    Attributes:
        logits: [R, C], or a view [B, D, C] of any strides with R = B D.
        target: [R], or probabilities [R, C].
        shape: Of one value per row, as torch has it: that of class indices.
        groups: B, the size of the batch dimension.
        per_group: D, rows of an element of the batch.
    """

    logits: Tensor
    target: Tensor
    shape: tuple[int, ...]
    groups: int
    per_group: int

    def flat(self, name: str, values: Tensor, *, per_sample: bool = False) -> Tensor:
        """Returns one value per row, [R], from values in the shape of the targets.

        With `per_sample`, one for each element of the batch will do.
        """
        check_dense(name, values)
        if values.shape == self.shape:
            return values.flatten()
        if per_sample and values.shape == (self.groups,):
            return values[:, None].expand(-1, self.per_group).flatten()
        wanted = self._shapes() if per_sample else f"the shape of target, {self.shape},"
        raise ValueError(f"{name} must have {wanted} got {tuple(values.shape)}")

    def entries(self, ids: Tensor, name: str = "sample_ids") -> tuple[Tensor, int]:
        """Returns sample ids, 1-D, and how many rows each of them has."""
        check_dense(name, ids)
        if ids.shape == (self.groups,) and self.per_group != 1:
            return (ids, self.per_group) if self.per_group else (ids[:0], 1)
        if ids.shape == self.shape or ids.shape == (self.groups,):
            return ids.flatten(), 1
        raise ValueError(f"{name} must have {self._shapes()} got {tuple(ids.shape)}")

    def like_entries(self, name: str, values: Tensor | None, rows_per_id: int) -> Tensor | None:
        """Returns values in the shape of the sample ids, 1-D."""
        if values is None:
            return None
        check_dense(name, values)
        shape = self.shape if rows_per_id == 1 and self.per_group > 1 else (self.groups,)
        if values.shape not in (shape, self.shape if self.per_group == 1 else shape):
            raise ValueError(
                f"{name} must have the shape of the ids, {shape}, got {tuple(values.shape)}"
            )
        return values.flatten() if self.per_group else values.flatten()[:0]

    def _shapes(self) -> str:
        shapes = {(self.groups,): "one per sample", self.shape: "one per row"}
        return " or ".join(f"shape {shape}, {what}," for shape, what in shapes.items())


def is_plain(logits: Tensor, target: Tensor) -> bool:
    """Returns whether logits [B, C] with targets [B] can be taken as they are."""
    return logits.dim() == 2 and target.dim() == 1


def rows_of(logits: Tensor, target: Tensor, class_dim: int) -> Rows:
    """Returns the rows of logits of any shape that torch takes.

    Args:
        logits: [C], [B, C], [B, C, d1, ...], or with class_dim=-1 [B, d1, ..., C].
        target: The same without C, or probabilities in the shape of `logits`.
        class_dim: 1 or -1.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape or `class_dim` is wrong; names what to use instead.
    """
    check_tensor("logits", logits, FLOATING, WAY_OUT)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    check_dense("target", target)
    if type(class_dim) is not int or class_dim not in (1, -1):
        dim = as_int("class_dim", class_dim)
        raise ValueError(f"class_dim must be 1, as torch has it, or -1, the last, got {dim}")
    if logits.dim() == 0:
        raise ValueError(f"logits must have a dimension of classes, got a 0-d tensor; {WAY_OUT}")
    if is_soft(target):
        return _soft_rows(logits, target, class_dim)
    if logits.dim() == 1:
        if target.numel() != 1 or target.dim() > 1:
            raise ValueError(
                f"target must be 0-d with logits of shape {tuple(logits.shape)}, got shape "
                f"{tuple(target.shape)}; {WAY_OUT}"
            )
        return Rows(logits[None], target.reshape(1), (), 1, 1)
    last = logits.movedim(class_dim, -1)
    shape = tuple(last.shape[:-1])
    if target.shape != shape:
        hint = _hint_of_shape(logits, target, class_dim, shape)
        raise ValueError(
            f"target must have shape {shape} with logits of shape {tuple(logits.shape)} and "
            f"class_dim={class_dim}, got {tuple(target.shape)}{hint}; {WAY_OUT}"
        )
    if logits.dim() == 2:
        return Rows(logits, target, shape, shape[0], 1)
    number = math.prod(shape[1:])
    return Rows(last.flatten(1, -2), target.flatten(), shape, shape[0], number)


def _hint_of_shape(logits: Tensor, target: Tensor, class_dim: int, shape: tuple[int, ...]) -> str:
    """Returns what is probably meant, where a target's shape is not `shape`; or nothing."""
    if logits.dim() > 2 and class_dim == 1 and target.shape == logits.shape[:-1]:
        return ": if the classes are the last dimension, pass class_dim=-1"
    if logits.dim() > 2 and class_dim == -1 and target.shape == logits.shape[:1] + logits.shape[2:]:
        return ": if the classes are dimension 1, pass class_dim=1"
    if target.dim() > 1 and target.shape[1] == 1 and target[:, 0].shape == shape:
        return ": drop a dimension with target.squeeze(1)"
    if class_dim == -1 and logits.dim() == 3 and target.shape == (shape[0], shape[1] - 1):
        return ": if targets are the next tokens, pass logits[:, :-1]"
    return ""


def _soft_rows(logits: Tensor, target: Tensor, class_dim: int) -> Rows:
    """Returns the rows of logits with probabilities: both [R, C], copied if classes are apart."""
    check_soft_shape(logits, target)
    if logits.dim() == 1:
        return Rows(logits[None], target[None], (), 1, 1)
    if logits.dim() == 2:
        return Rows(logits, target, tuple(logits.shape[:1]), len(logits), 1)
    last = logits.movedim(class_dim, -1)
    shape = tuple(last.shape[:-1])
    return Rows(
        last.flatten(0, -2),
        target.movedim(class_dim, -1).flatten(0, -2),
        shape,
        shape[0],
        math.prod(shape[1:]),
    )


def places_of_rows(cu_seqlens: Tensor, num_sequences: int, num_rows: int) -> Tensor:
    """Returns the sequence of every row of packed sequences, without waiting for a GPU.

    Args:
        cu_seqlens: Where the sequences begin, and where the last one ends, ascending: any integer
            dtype [num_sequences + 1]. Rows outside belong to none.
        num_sequences: How many there are.
        num_rows: How many rows.

    Returns:
        int64 [num_rows] on the device of `cu_seqlens`; `num_sequences` for rows of none.

    Raises:
        TypeError: `cu_seqlens` is no tensor.
        ValueError: Its dtype or shape is wrong, or, on the CPU, its values.
    """
    check_tensor("cu_seqlens", cu_seqlens, INTEGER)
    if cu_seqlens.shape != (num_sequences + 1,):
        raise ValueError(
            f"cu_seqlens must have shape ({num_sequences + 1},), one more than the sample ids, got "
            f"{tuple(cu_seqlens.shape)}"
        )
    ends = cu_seqlens.to(torch.int64)
    if ends.device.type == "cpu" and not torch.compiler.is_compiling():
        sound = bool((ends.diff() >= 0).all()) and ends[0] >= 0 and ends[-1] <= num_rows
        if not sound:
            raise ValueError(
                f"cu_seqlens must ascend from at least 0 to at most {num_rows}, the number of "
                f"rows, got {cu_seqlens.tolist()}"
            )
    rows = torch.arange(num_rows, device=ends.device)
    places = torch.bucketize(rows, ends[1:], right=True)
    return torch.where(rows < ends[0], num_sequences, places)


def per_row(ids: Tensor, values: Tensor) -> Tensor:
    """Returns sample ids in the shape of values [B, d1, ...] from one per row or [B]."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be a tensor, got {type(ids).__name__}")
    if ids.shape == values.shape[:1]:
        ids = ids.view(-1, *(1,) * (values.dim() - 1)).expand(values.shape)
    if ids.shape != values.shape:
        raise ValueError(
            f"ids must have shape {tuple(values.shape[:1])} or {tuple(values.shape)}, as the "
            f"scores, got {tuple(ids.shape)}"
        )
    return ids


def own_keys(ids: Tensor) -> Tensor:
    """Returns sample ids [S] with another negative number for each negative one."""
    return torch.where(ids < 0, -2 - torch.arange(len(ids), device=ids.device), ids)


def at_places(values: Tensor, places: Tensor, elsewhere: float) -> Tensor:
    """Returns the values of the sequences, [S], for their rows [R]; `elsewhere` for others."""
    return torch.cat([values, values.new_full((1,), elsewhere)])[places]
