# SPDX-License-Identifier: Apache-2.0
"""What this version knows of other processes: how to refuse them."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def check_single_process(process_group: Any, sharding: Any) -> None:
    """Refuses what this version cannot do yet, before it would silently do something else."""
    if process_group is not None and process_group is not False:
        raise ValueError(
            f"process_group must be None or False in this version, got {process_group!r}"
        )
    if sharding != "replicate":
        raise ValueError(f"sharding must be 'replicate' in this version, got {sharding!r}")
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and process_group is None:
        raise RuntimeError(
            f"torch.distributed runs {dist.get_world_size()} processes, and multi-process training "
            "is not supported yet in this version; process_group=False makes a pruner that knows "
            "its own process only"
        )
