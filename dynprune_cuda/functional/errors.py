# SPDX-License-Identifier: Apache-2.0
"""Errors in the data of CUDA tensors, which kernels remember on the device."""

from __future__ import annotations

import torch

from dynprune_cuda._checks.arguments import empty_on
from dynprune_cuda._ops import ops


def check_errors(device: torch.device | str | int) -> None:
    """Raises what kernels on `device` found wrong with their data; waits for the device.

    Args:
        device: The device whose errors are read.

    Raises:
        TypeError: `device` is none.
        IndexError: For targets or sample ids out of range.
        ValueError: For negative or NaN weights, for targets that are no probabilities, or a
            `device` that torch cannot use.
    """
    place = empty_on("device", device)
    if not place.is_cuda:
        return  # CPU ops raise at once
    records = ops.take_errors(place).cpu()
    (targets, target), (ids, sample_id), (weights, weight_id), (rows, _) = records.tolist()
    out_of_range, invalid = [], []
    if targets:
        out_of_range.append(
            f"{targets} targets were out of range, for example {target}: a target must be at least "
            "0 and below the number of classes, or ignore_index"
        )
    if ids:
        out_of_range.append(
            f"{ids} sample ids were out of range, for example {sample_id}: an id must be at least "
            "0 and below the number of samples, that of the score table"
        )
    if weights:
        invalid.append(
            f"{weights} weights were negative or NaN, as weights[{weight_id}]: weights must be at "
            "least 0"
        )
    if rows:
        value = records[3, 1].view(torch.float64).item()
        invalid.append(
            f"{rows} samples had targets outside [0, 1], for example {value}: class indices belong "
            "to cross_entropy"
        )
    message = f"on {place.device}: " + "; ".join(out_of_range + invalid)
    if out_of_range:
        raise IndexError(message)
    if invalid:
        raise ValueError(message)
