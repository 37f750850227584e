# SPDX-License-Identifier: Apache-2.0
"""Whole epochs of a `Pruner`, replicated and sharded, and what their parts cost one rank.

`billion.py` runs it. An epoch here is: the scores of k samples are entered batch by batch, as
training would, and the next epoch begins with a selection. Nothing is trained.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dynprune_cuda import Pruner, distributed, functional
from dynprune_cuda._epochs.repeats import Repeats
from dynprune_cuda.distributed import Shard
from dynprune_cuda.policies import EpsilonGreedy
from dynprune_cuda.scores.merge import merge_tables

SEED = 7
BATCH = 512
WAYS = ("replicate", "shard")
SENDERS = 8  # whose visits reach an owner, where one rank stands for one of several
CHECKED = 1 << 18  # visits that are timed where all batches cost the same
MESSAGE_BYTES = 1 << 25


def middle(function: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_pruner(way: str, samples: int, k: int, rank: int) -> Pruner:
    """A pruner whose samples all have a score, in its first epoch."""
    greedy = EpsilonGreedy(0.0)  # the highest mean scores
    options = {"policy": greedy, "period": 1, "warmup_epochs": 0, "sharding": way, "seed": SEED}
    pruner = Pruner(samples, keep=k, **options)
    generator = torch.Generator().manual_seed(rank if way == "shard" else 0)
    pruner.table.mean.normal_(generator=generator)
    pruner.table.count.fill_(1)
    pruner.set_epoch(0)
    return pruner


def enter_visits(pruner: Pruner, values: Tensor) -> None:
    """The steps of an epoch, without the training."""
    batches = zip(pruner.epoch_order().split(BATCH), values.split(BATCH), strict=True)
    for ids, scores in batches:
        pruner.observe(ids, scores)


def begin_epoch(pruner: Pruner, epoch: int) -> None:
    pruner.set_epoch(epoch)
    pruner.epoch_order()


def run_epochs(pruner: Pruner, rounds: int) -> list[dict[str, float]]:
    """Seconds of this rank, epoch by epoch."""
    runs = []
    for number in range(1, rounds + 1):
        values = torch.randn(len(pruner.epoch_order()))
        dist.barrier()
        steps = middle(partial(enter_visits, pruner, values), 1)
        dist.barrier()
        begin = middle(partial(begin_epoch, pruner, number), 1)
        runs.append({"seconds": steps + begin, "steps": steps, "begin": begin})
    return runs


def replicated_costs(pruner: Pruner, rounds: int) -> dict[str, float]:
    """Seconds per item of what a rank of several does with a whole table."""
    run, table = pruner._run, pruner.table
    state, repeats = run.state, Repeats(torch.full((1,), -1))
    subset = state.subset
    assert subset is not None
    n, k = pruner.num_samples, len(subset.ids)
    batches = pruner.epoch_order()[:CHECKED].split(BATCH)

    def count_once() -> None:
        for ids in batches:
            repeats.without(ids)
            repeats.note(ids)

    def history() -> None:
        chosen = run._mask_of(subset.ids)
        state.selected(subset, chosen, (chosen & run._mask_of(subset.ids)).sum())

    def order() -> None:
        run._share = None
        pruner.epoch_order()

    walk = middle(lambda: functional.permutation(k, seed=SEED), rounds)
    return {
        "repeat": middle(count_once, rounds) / min(CHECKED, k),
        "merge": middle(lambda: merge_tables(table, pruner.ranks), rounds) / n,
        "ranking": middle(table.ranking_mean, rounds) / n,
        "history": middle(history, rounds) / n,
        "checksum": middle(lambda: distributed.checksum(subset.ids, None), rounds) / k,
        "walk": walk / k,
        "look_up": max(0.0, middle(order, rounds) - walk) / k,
    }


def sharded_costs(pruner: Pruner, rounds: int) -> dict[str, float]:
    """Seconds per visit of sending what waits, and of entering what arrives."""
    table = pruner.table
    shard = Shard(pruner.num_samples, 0, SENDERS)
    values = torch.randn(len(pruner.epoch_order()))
    packed, entered = [], []

    def pack() -> tuple[Tensor, Tensor]:
        ids, scores = table.outbox.visits()
        torch.bincount(shard.owner_of(ids), minlength=SENDERS)
        return ids, scores

    for _ in range(rounds):
        enter_visits(pruner, values)
        packed.append(middle(pack, 1))
        ids, scores = table.outbox.visits()
        table.outbox.clear()
        # By sender, and of each by rising id.
        rows = torch.cat([ids[first::SENDERS] for first in range(SENDERS)])
        scores = torch.cat([scores[first::SENDERS] for first in range(SENDERS)])
        entered.append(middle(partial(table.enter, rows, scores), 1))
    return {
        "pack": statistics.median(packed) / len(ids),
        "enter": statistics.median(entered) / len(ids),
    }


def message_seconds(rounds: int) -> dict[str, float]:
    """Of an all-reduce between the ranks at hand: of 8 bytes, and of MESSAGE_BYTES."""
    small, large = torch.zeros(1), torch.zeros(MESSAGE_BYTES // 4)
    return {
        "small_seconds": middle(lambda: dist.all_reduce(small), 100),
        "large_seconds": middle(lambda: dist.all_reduce(large), rounds),
        "large_bytes": MESSAGE_BYTES,
    }


def work(
    rank: int, size: int, folder: str, way: str, samples: int, k: int, rounds: int, threads: int
) -> None:
    """One process; writes its seconds and memory."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    before = peak_bytes()
    pruner = make_pruner(way, samples, k, rank)
    runs = run_epochs(pruner, rounds)
    result: dict[str, Any] = {"runs": runs, "bytes": peak_bytes() - before}
    if size == 1:
        steps = statistics.median(run["steps"] for run in runs) / k
        if way == "shard":
            result["costs"] = {"buffer": steps, **sharded_costs(pruner, rounds)}
        else:
            numbers = torch.ones(MESSAGE_BYTES // 8, dtype=torch.int64)
            add = middle(lambda: numbers.add_(numbers), rounds) / MESSAGE_BYTES
            result["costs"] = {"update": steps, "reduce": add, **replicated_costs(pruner, rounds)}
    if size == 2 and way == "replicate":
        result["network"] = message_seconds(rounds)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def measure_epochs(size: int, samples: int, k: int, rounds: int, threads: int) -> dict[str, Any]:
    """Runs `size` processes; the median epoch of each way, in which the slowest rank counts."""
    found: dict[str, Any] = {"epochs": {}, "costs": {}}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (size, folder, way, samples, k, rounds, threads)
            mp.start_processes(work, arguments, nprocs=size, start_method="spawn")
            results = [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(size)]
        by_round = [
            {name: max(r["runs"][i][name] for r in results) for name in ("steps", "begin")}
            for i in range(rounds)
        ]
        by_round.sort(key=lambda run: run["steps"] + run["begin"])
        median = by_round[rounds // 2]
        found["epochs"][way] = {
            **median,
            "seconds": median["steps"] + median["begin"],
            "bytes_per_rank": max(r["bytes"] for r in results),
        }
        found["costs"] |= results[0].get("costs", {})
        found |= {name: results[0][name] for name in ("network",) if name in results[0]}
    return found
