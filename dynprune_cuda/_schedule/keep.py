# SPDX-License-Identifier: Apache-2.0
"""How many samples an epoch keeps: a fraction, a count, one per epoch, or a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from dynprune_cuda._checks.arguments import as_int, check_dense

# What `Pruner` takes as `keep`: one number, one per epoch, or a function of the epoch.
Keep: TypeAlias = float | Sequence[float] | Callable[[int], float]


def resolve_plan(keep: Any, num_samples: int) -> int | tuple[int, ...] | Callable[[int], float]:
    """Checks `keep` as far as it is known: numbers become counts, a function stays one."""
    if callable(keep):
        function: Callable[[int], float] = keep
        return function
    if hasattr(keep, "tolist") and getattr(keep, "ndim", 0) == 1:
        keep = keep.tolist()
    if isinstance(keep, list | tuple):
        if not keep:
            raise ValueError("keep must have at least one entry, got none")
        return tuple(
            resolve_keep(value, num_samples, f"keep[{epoch}]") for epoch, value in enumerate(keep)
        )
    return resolve_keep(keep, num_samples)


def resolve_keep(keep: Any, num_samples: int, name: str = "keep") -> int:
    """Returns how many of `num_samples` samples `keep`, a fraction or a count, selects."""
    if getattr(keep, "ndim", None) == 0 and hasattr(keep, "item"):
        if isinstance(keep, Tensor):
            check_dense(name, keep)
        try:
            keep = keep.item()  # of NumPy and torch, whose bools and floats both have __index__
        except RuntimeError:  # of a tensor on the device meta
            raise TypeError(
                f"{name} must be a float (fraction) or an int (count), got a tensor without values"
            ) from None
    if isinstance(keep, bool) or not (hasattr(keep, "__float__") or hasattr(keep, "__index__")):
        raise TypeError(
            f"{name} must be a float (fraction) or an int (count), got {keep!r} of type "
            f"{type(keep).__name__}"
        )
    if hasattr(keep, "__index__"):
        count = as_int(name, keep)
        if not 1 <= count <= num_samples:
            raise ValueError(
                f"{name} as a count must be from 1 to num_samples={num_samples}, got {count}"
            )
        return count
    fraction = float(keep)
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"{name} as a fraction must be in (0, 1], got {keep!r}")
    return max(1, math.floor(fraction * num_samples + 0.5))
