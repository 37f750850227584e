# SPDX-License-Identifier: Apache-2.0
"""Checks of one batch of sample ids and values, and its way to the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import FLOATING, check_dense


def check_ids(ids: Any, *, any_shape: bool = False) -> None:
    """Checks the type, dtype and shape of a batch of sample ids: 1-D, unless `any_shape`."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be a tensor, got {type(ids).__name__}")
    check_dense("ids", ids)
    dtype = ids.dtype
    if dtype == torch.int64 and (any_shape or ids.dim() == 1):
        return
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"ids must have an integer dtype, got {dtype}")
    if not any_shape and ids.dim() != 1:
        raise ValueError(f"ids must be 1-D, got shape {tuple(ids.shape)}")


def check_ids_and_values(ids: Any, values: Any, name: str = "values") -> None:
    """Checks the types, dtypes and lengths of one batch of sample ids and their values."""
    check_ids(ids)
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    check_dense(name, values)
    if values.dtype not in FLOATING:
        raise ValueError(
            f"{name} must have a floating-point dtype of 16 bits or more, got {values.dtype}"
        )
    if values.dim() != 1:
        way_out = "compute the loss with reduction='none'"
        if values.dim() > 1:
            way_out = (
                f"take a mean such as {name}.flatten(1).mean(1), or flatten {name} and pass "
                "ids.repeat_interleave(rows of a sample)"
            )
        raise ValueError(
            f"{name} must hold one value per sample in 1-D, got shape {tuple(values.shape)}; "
            f"{way_out}"
        )
    if ids.shape != values.shape:
        raise ValueError(
            f"ids and {name} must have the same length, got {len(ids)} ids and {len(values)} {name}"
        )


def is_readable(tensor: Tensor) -> bool:
    """Returns whether a tensor's values can be looked at without a wait, and outside of graphs."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def check_range(ids: Tensor, num_samples: int) -> None:
    """Checks that ids are those of samples, or -1 for none, where that takes no wait.

    Raises:
        IndexError: One is not.
    """
    if not is_readable(ids):
        return
    ids = ids.to(torch.int64)  # torch compares uint8 modulo 256
    outside = (ids < -1) | (ids >= num_samples)
    if bool(outside.any()):
        place = int(outside.nonzero()[0])  # on the CPU: no wait
        raise IndexError(
            f"ids[{place}] = {int(ids[place])} is out of range: expected 0 <= id < {num_samples}, "
            "or -1 for no sample; make the pruner with the length of the training set"
        )


def first_of_each(ids: Tensor) -> Tensor:
    """Returns ids, int64, with -1 in place of all but one that are equal; no wait."""
    ids = ids.to(torch.int64)  # -1 would be 255 of uint8
    order = ids.argsort(stable=True)
    ordered = ids[order]
    is_again = torch.zeros_like(ids, dtype=torch.bool)
    is_again[order[1:]] = ordered[1:] == ordered[:-1]
    return ids.masked_fill(is_again, -1)


def check_correct(correct: Any, ids: Tensor) -> None:
    """Checks the type, dtype and shape of a batch's correctness."""
    if not isinstance(correct, Tensor):
        raise TypeError(f"correct must be a tensor, got {type(correct).__name__}")
    check_dense("correct", correct)
    if correct.dtype != torch.bool or correct.shape != ids.shape:
        raise ValueError(
            f"correct must be bool of shape {tuple(ids.shape)}, got {correct.dtype} of shape "
            f"{tuple(correct.shape)}"
        )


def move_without_waiting(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to `device` in stream order; refuses the direction that would wait."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu":
        # Only from pinned memory is the copy asynchronous. The allocator of pinned memory keeps it
        # until the copy is done, although no reference to it is left here.
        pinned = tensor.pin_memory() if device.type == "cuda" else tensor
        return pinned.to(device, non_blocking=True)
    if device.type == "cpu":
        raise ValueError(
            f"{name} is on {tensor.device} and the score table on the CPU: make the table with "
            f"device='{tensor.device.type}', so that no step has to wait for {name}"
        )
    return tensor.to(device, non_blocking=True)
