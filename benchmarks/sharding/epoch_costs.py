# SPDX-License-Identifier: Apache-2.0
"""Whole epochs of a `Pruner`, replicated and sharded, and the costs of their parts on one rank.

billion.py runs it. An epoch records the scores of k samples batch by batch, as training would, and
begins the next epoch with a selection. No model is trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common.memory import peak_bytes
from benchmarks.common.timing import median_seconds
from benchmarks.sharding.processes import run_ranks
from benchmarks.sharding.stages import (
    SEED,
    Seconds,
    record_visits,
    replicated_costs,
    sharded_costs,
)
from dynprune_cuda import Pruner
from dynprune_cuda.policies import EpsilonGreedy

__all__ = ["measure_epochs"]

METHODS = ("replicate", "shard")
MESSAGE_BYTES = 1 << 25


def make_pruner(method: str, samples: int, k: int, rank: int) -> Pruner:
    """A pruner in its first epoch; all samples have a score."""
    pruner = Pruner(
        samples,
        keep=k,
        policy=EpsilonGreedy(0.0),  # the highest mean scores
        period=1,
        warmup_epochs=0,
        sharding=method,
        seed=SEED,
    )
    generator = torch.Generator().manual_seed(rank if method == "shard" else 0)
    pruner.table.mean.normal_(generator=generator)
    pruner.table.count.fill_(1)
    pruner.set_epoch(0)
    return pruner


def begin_epoch(pruner: Pruner, epoch: int) -> None:
    pruner.set_epoch(epoch)
    pruner.epoch_order()


def run_epochs(pruner: Pruner, rounds: int) -> list[Seconds]:
    """Seconds of this rank, epoch by epoch."""
    runs = []
    for number in range(1, rounds + 1):
        values = torch.randn(len(pruner.epoch_order()))
        dist.barrier()
        steps = median_seconds(partial(record_visits, pruner, values), 1)
        dist.barrier()
        begin = median_seconds(partial(begin_epoch, pruner, number), 1)
        runs.append({"seconds": steps + begin, "steps": steps, "begin": begin})
    return runs


def message_seconds(rounds: int) -> Seconds:
    """Seconds of an all-reduce between the ranks, of 4 bytes and of MESSAGE_BYTES."""
    small, large = torch.zeros(1), torch.zeros(MESSAGE_BYTES // 4)
    return {
        "small_seconds": median_seconds(lambda: dist.all_reduce(small), 100),
        "large_seconds": median_seconds(lambda: dist.all_reduce(large), rounds),
        "large_bytes": MESSAGE_BYTES,
    }


def costs_of_one_rank(pruner: Pruner, method: str, steps: float, rounds: int) -> Seconds:
    """Seconds per item of every pass of this method; `steps` are those per visit."""
    if method == "shard":
        return {"buffer": steps, **sharded_costs(pruner, rounds)}
    numbers = torch.ones(MESSAGE_BYTES // 8, dtype=torch.int64)
    add = median_seconds(lambda: numbers.add_(numbers), rounds) / MESSAGE_BYTES
    return {"update": steps, "reduce": add, **replicated_costs(pruner, rounds)}


def work(rank: int, size: int, method: str, samples: int, k: int, rounds: int) -> dict[str, Any]:
    """The seconds and memory of one rank."""
    before = peak_bytes()
    pruner = make_pruner(method, samples, k, rank)
    runs = run_epochs(pruner, rounds)
    result: dict[str, Any] = {"runs": runs, "bytes": peak_bytes() - before}
    if size == 1:
        steps = statistics.median(run["steps"] for run in runs) / k
        result["costs"] = costs_of_one_rank(pruner, method, steps, rounds)
    if size == 2 and method == "replicate":
        result["network"] = message_seconds(rounds)
    return result


def median_epoch(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median epoch, in which the slowest rank counts, and the memory of a rank."""
    by_round: list[Seconds] = [
        {name: max(result["runs"][i][name] for result in results) for name in ("steps", "begin")}
        for i in range(len(results[0]["runs"]))
    ]
    by_round.sort(key=lambda run: run["steps"] + run["begin"])
    median = by_round[len(by_round) // 2]
    return {
        **median,
        "seconds": median["steps"] + median["begin"],
        "bytes_per_rank": max(result["bytes"] for result in results),
    }


def measure_epochs(size: int, samples: int, k: int, rounds: int, threads: int) -> dict[str, Any]:
    """The median epoch of each method on `size` ranks; the costs, if there is one rank."""
    found: dict[str, Any] = {"epochs": {}, "costs": {}}
    for method in METHODS:
        results = run_ranks(work, size, threads, (method, samples, k, rounds))
        found["epochs"][method] = median_epoch(results)
        found["costs"] |= results[0].get("costs", {})
        found |= {name: results[0][name] for name in ("network",) if name in results[0]}
    return found
