# SPDX-License-Identifier: Apache-2.0
"""Runs a function as the ranks of a process group on this machine."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

__all__ = ["run_ranks"]

RankFunction = Callable[..., dict[str, Any]]  # of rank, size and the arguments


def run_ranks(
    function: RankFunction, size: int, threads: int, arguments: Sequence[Any]
) -> list[dict[str, Any]]:
    """What `function(rank, size, *arguments)` returns in each of `size` processes, by rank.

    The processes form a group over gloo. Each has `threads` threads. Results pass through JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = (function, size, threads, folder, tuple(arguments))
        start_processes(_run_rank, task, nprocs=size, start_method="spawn")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def _run_rank(
    rank: int, function: RankFunction, size: int, threads: int, folder: str, arguments: tuple[Any]
) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    result = function(rank, size, *arguments)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
