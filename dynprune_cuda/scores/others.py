# SPDX-License-Identifier: Apache-2.0
"""The rows that are not among some rows."""

from __future__ import annotations

import torch
from torch import Tensor


def other_ids(ids: Tensor, num_samples: int) -> Tensor:
    """Returns the ids that are not in `ids`, without waiting: how many they are is known.

    Args:
        ids: Distinct ids, int64 [n], from 0 to `num_samples - 1`.
        num_samples: How many ids there are.

    Returns:
        int64 [num_samples - n], ascending, on the device of `ids`.
    """
    is_open = torch.ones(num_samples, dtype=torch.bool, device=ids.device)
    is_open.index_fill_(0, ids, False)
    size = num_samples - len(ids)
    # The others all land in the slot behind the last, which is cut off.
    slots = torch.where(is_open, is_open.cumsum(0) - 1, size)
    found = torch.empty(size + 1, dtype=torch.int64, device=ids.device)
    return found.scatter_(0, slots, torch.arange(num_samples, device=ids.device))[:size]
