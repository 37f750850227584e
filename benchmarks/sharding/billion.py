# SPDX-License-Identifier: Apache-2.0
"""Selects from as many samples as fit into memory, on one or several ranks, and checks the result.

    python -m benchmarks.sharding.billion --samples 1_000_000_000 --keep 100_000_000 --ranks 1 \
        --threads 2 --selection-only
    python -m benchmarks.sharding.billion --samples 100_000_000 --keep 30_000_000 --ranks 1 2 4 8

Scores are float32 and normal, and the same for every number of ranks. Each rank makes the scores of
its shard; ranks communicate over gloo on this machine. Each round runs two searches. The first
reads the scores once, as shards on a CPU do. The second is the plain search through keys, for GPUs,
small shards and missed brackets. A rank stores 4 bytes per sample for the scores, and 8
per selected id. The first search needs half a byte per sample more, the second 4 for keys.

Afterwards whole epochs of a replicated and of a sharded `Pruner` run, which take more memory
(epoch_costs.py); --selection-only leaves them out. The costs of one rank are the input of
simulate_sharding.py. exact.py checks each selection.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common.arguments import positive_int
from benchmarks.common.machine_info import machine_info
from benchmarks.common.memory import peak_bytes
from benchmarks.common.result_files import write_measurements
from benchmarks.common.timing import timed
from benchmarks.sharding.epoch_costs import measure_epochs
from benchmarks.sharding.exact import is_exact
from benchmarks.sharding.processes import run_ranks
from benchmarks.sharding.stages import SEARCHES, SEED, Ranks, Seconds, Shard, order_costs
from dynprune_cuda import functional

BLOCK = 1 << 20  # scores from one seed
STAGES = {"one-read": ("sample", "pass", "search", "list"), "plain": ("keys", "search", "list")}


def make_scores(shard: Shard) -> Tensor:
    """The scores of a contiguous shard, the same for every number of ranks."""
    scores = torch.empty(len(shard))
    first, last = shard.first, shard.first + len(shard)
    for block in range(first // BLOCK, -(-last // BLOCK)):
        values = torch.randn(BLOCK, generator=torch.Generator().manual_seed(block))
        begin, end = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
        scores[begin - first : end - first] = values[begin - block * BLOCK : end - block * BLOCK]
    return scores


def select(rank: int, size: int, samples: int, k: int, rounds: int) -> dict[str, Any]:
    """The seconds, memory and verdict of one rank."""
    ranks, shard = Ranks(None, rank, size), Shard(samples, rank, size)
    scores = make_scores(shard)
    result: dict[str, Any] = {"with_scores_bytes": peak_bytes(), "peak_bytes": {}}
    runs: dict[str, list[Seconds]] = {method: [] for method in SEARCHES}
    equal = True
    for _ in range(rounds):
        found = []
        for method, search in SEARCHES.items():
            dist.barrier()
            ids, run = search(scores, k, shard, ranks)
            runs[method].append(run)
            found.append(ids)
            result["peak_bytes"].setdefault(method, peak_bytes())  # of the first round
        equal = equal and torch.equal(*found)
    result |= {"runs": runs, "exact": equal and is_exact(scores, ids, k, shard, ranks)}
    if size == 1:
        del ids, found
        result |= order_costs(scores, k)
        _, result["select_top_k_seconds"] = timed(
            lambda: functional.select_top_k(scores, k, seed=SEED, order="ascending")
        )
    return result


def measure(size: int, samples: int, k: int, rounds: int, threads: int) -> dict[str, Any]:
    """A row: of each search, the median round; its slowest rank counts."""
    results = run_ranks(select, size, threads, (samples, k, rounds))
    return {
        "ranks": size,
        "samples": samples,
        "keep": k,
        **median_round(results, "one-read"),
        "plain": median_round(results, "plain"),
        "with_scores_bytes_per_rank": max(r["with_scores_bytes"] for r in results),
        "exact": all(r["exact"] for r in results),
        **{name: results[0].get(name) for name in ("walk", "place", "select_top_k_seconds")},
    }


def median_round(results: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """The slowest rank's stages in the median round, the seconds of all rounds, the peak memory."""
    runs = [result["runs"][method] for result in results]
    by_round = [max(run[i]["seconds"] for run in runs) for i in range(len(runs[0]))]
    middle = sorted(range(len(by_round)), key=by_round.__getitem__)[len(by_round) // 2]
    slowest = max((run[middle] for run in runs), key=lambda run: float(run["seconds"]))
    peak = max(result["peak_bytes"][method] for result in results)
    return {**slowest, "all_rounds": by_round, "peak_bytes_per_rank": peak}


def print_selection(row: Mapping[str, Any]) -> None:
    for method, run in (("one-read", row), ("plain", row["plain"])):
        parts = ", ".join(f"{stage} {run[stage]:.3f}" for stage in STAGES[method])
        memory = f"{run['rounds']} rounds, {run['peak_bytes_per_rank'] / 1e9:.2f} GB per rank"
        print(f"{row['ranks']:5d}  {method:9s} {run['seconds']:7.3f}  {parts}; {memory}")
    if row["select_top_k_seconds"]:
        print(f"       select_top_k alone  {row['select_top_k_seconds']:.3f}")


def print_epochs(row: Mapping[str, Any]) -> None:
    for method, run in row["epochs"].items():
        parts = f"epoch: steps {run['steps']:.3f}, begin {run['begin']:.3f}"
        memory = f"{run['bytes_per_rank'] / 1e9:.2f} GB per rank"
        print(f"{row['ranks']:5d}  {method:9s} {run['seconds']:7.3f}  {parts}; {memory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--samples", type=positive_int, default=10_000_000)
    parser.add_argument("--keep", type=positive_int, default=3_000_000)
    parser.add_argument("--ranks", type=positive_int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--threads", type=positive_int, default=1, help="of each rank")
    parser.add_argument("--selection-only", action="store_true", help="no epochs of a Pruner")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    series = []
    print("ranks  method    seconds  stages")
    for size in arguments.ranks:
        task = (size, arguments.samples, arguments.keep, arguments.rounds, arguments.threads)
        row = measure(*task)
        series.append(row)
        print_selection(row)
        if not row["exact"]:
            raise SystemExit("the selection is not exact")
        if not arguments.selection_only:
            row |= measure_epochs(*task)
            print_epochs(row)
    if arguments.out is not None:
        machine = machine_info(torch.device("cpu")) | {"threads": arguments.threads}
        machine["cores_used"] = len(os.sched_getaffinity(0))
        write_measurements(arguments.out, machine, series)


if __name__ == "__main__":
    main()
