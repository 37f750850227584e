# SPDX-License-Identifier: Apache-2.0
"""Selects from as many samples as the memory holds, in one process or several, and checks the set.

    python -m benchmarks.sharding.billion --samples 1_000_000_000 --keep 100_000_000 --ranks 1 \
        --threads 2 --selection-only
    python -m benchmarks.sharding.billion --samples 100_000_000 --keep 30_000_000 --ranks 1 2 4 8

Scores are float32, normal, the same for every number of ranks. Each rank makes those of its shard;
with several ranks they talk over gloo on this machine. Every round searches in one read of the
scores, as shards on the CPU do, and then by the plain search through keys, which GPUs, small shards
and brackets that miss are left to. A rank takes 4 bytes a sample for the scores, half a byte for
one read or 4 for keys, and 8 for every id that it selects.

Then, unless it is left out, whole epochs of a replicated and of a sharded `Pruner` run, which take
more memory (`epoch_costs`); one rank's costs are what `simulate_sharding.py` reckons with.

The check is exact and shares no code with the selection: every score above the least selected one
is selected, no other is, and of those equal to it the ones that the reference of the tests ranks
first by their hash.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.common.timing import machine, write_json
from benchmarks.sharding.epoch_costs import measure_epochs, peak_bytes
from dynprune_cuda import functional
from dynprune_cuda._ops import ops
from dynprune_cuda.distributed import Ranks, Shard
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.sharded import bracket_search
from dynprune_cuda.sharded.digit_search import find_thresholds, list_selected
from dynprune_cuda.sharded.ranking import keys_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
import reference

SEED = 7
BLOCK = 1 << 20  # scores drawn from one seed


def number(text: str) -> int:
    return int(text.replace("_", ""))


def make_scores(shard: Shard) -> Tensor:
    """The scores of a contiguous shard, whatever the number of ranks."""
    scores = torch.empty(len(shard))
    first, last = shard.first, shard.first + len(shard)
    for block in range(first // BLOCK, -(-last // BLOCK)):
        values = torch.randn(BLOCK, generator=torch.Generator().manual_seed(block))
        begin, end = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
        scores[begin - first : end - first] = values[begin - block * BLOCK : end - block * BLOCK]
    return scores


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def is_exact(scores: Tensor, ids: Tensor, k: int, shard: Shard, ranks: Ranks) -> bool:
    """Whether all ranks' ids are the k greatest scores, ties by the reference's hash."""
    positions = ids - shard.first
    ascending = bool((ids[1:] > ids[:-1]).all()) and len(ids) <= len(scores)
    chosen = scores[positions]
    least = chosen.min() if len(ids) else torch.tensor(float("inf"))
    if ranks.size > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    above, equal = scores > least, (scores == least).nonzero().flatten() + shard.first
    tied = ids[chosen == least]
    numbers = torch.stack([above.sum(), (chosen > least).sum(), torch.tensor(len(ids))])
    num_above, chosen_above, selected = ranks.add_up_(numbers).tolist()
    everyone: list[Any] = [(equal, tied)]
    if ranks.size > 1:
        everyone = [None] * ranks.size
        dist.all_gather_object(everyone, (equal, tied))
    candidates = torch.cat([one for one, _ in everyone]).numpy()
    hashes = reference.listed_id_hash(SEED, reference.TIE, candidates)
    first = set(candidates[np.argsort(hashes)[::-1][: k - num_above]].tolist())
    got = set(torch.cat([one for _, one in everyone]).tolist())
    return ascending and selected == k and chosen_above == num_above and got == first


def in_one_read(
    scores: Tensor, k: int, shard: Shard, ranks: Ranks
) -> tuple[Tensor, dict[str, float]]:
    """This rank's ids, and the seconds of the stages."""
    ranking = Ranking.by_score(scores)
    sample, draw_seconds = timed(
        lambda: ranks.add_up_(bracket_search.draw_sample(ranking, shard, SEED)),
    )
    part, pass_seconds = timed(
        lambda: bracket_search.find_bracketed(ranking, sample, None, k, shard, SEED, ranks)
    )
    if part is None:
        raise SystemExit("the bracket missed, which happens once in 10^8 times: try another size")
    (count, rounds), search_seconds = timed(lambda: bracket_search.search_candidates(part, ranks))
    ids, list_seconds = timed(lambda: bracket_search.list_marked(part.bits, count, shard))
    return ids, {
        "seconds": draw_seconds + pass_seconds + search_seconds + list_seconds,
        "sample": draw_seconds,
        "pass": pass_seconds,
        "search": search_seconds,
        "list": list_seconds,
        "rounds": rounds,
    }


def plainly(scores: Tensor, k: int, shard: Shard, ranks: Ranks) -> tuple[Tensor, dict[str, float]]:
    """The same by the plain search."""
    keys, key_seconds = timed(lambda: keys_of(Ranking.by_score(scores), shard, SEED))
    found, search_seconds = timed(lambda: find_thresholds(keys, k, 0, shard, SEED, ranks))
    ids, list_seconds = timed(lambda: list_selected(keys, found, int(found.count), shard, SEED))
    return ids, {
        "seconds": key_seconds + search_seconds + list_seconds,
        "keys": key_seconds,
        "search": search_seconds,
        "list": list_seconds,
        "rounds": found.rounds,
    }


def share_out(places: Tensor, size: int = 8) -> Tensor:
    """What a rank does with its ids besides sending them, when an epoch is put into order."""
    words = (places << 32) | (places // size)
    _, by_consumer = (places % size).to(torch.int32).sort(stable=True)
    sent = words[by_consumer]
    order = torch.empty_like(sent)
    order[sent >> 32] = sent & 0xFFFFFFFF
    return order


def select(
    rank: int, size: int, folder: str, samples: int, k: int, rounds: int, threads: int
) -> None:
    """One process; writes its seconds, memory and verdict."""
    ranks = Ranks()
    torch.set_num_threads(threads)
    if size > 1:
        store = dist.FileStore(f"{folder}/store", size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        ranks = Ranks(None, rank, size)
    shard = Shard(samples, rank, size)
    scores = make_scores(shard)
    before, peaks = peak_bytes(), []
    runs: dict[str, list[dict[str, float]]] = {"one-read": [], "plain": []}
    equal = True
    for _ in range(rounds):
        found = []
        for way, search in (("one-read", in_one_read), ("plain", plainly)):
            if size > 1:
                dist.barrier()
            ids, run = search(scores, k, shard, ranks)
            runs[way].append(run)
            found.append(ids)
            peaks.append(peak_bytes())
        equal = equal and torch.equal(*found)
    result = {"runs": runs, "with_scores_bytes": before, "selected": len(ids)}
    result["peak_bytes"] = {"one-read": peaks[0], "plain": peaks[1]}  # of the first of each
    result["exact"] = equal and is_exact(scores, ids, k, shard, ranks)
    if size == 1:
        del ids, found
        place = (scores[:0], k, 0, 1, k, True, None, SEED)
        places, result["walk"] = timed(lambda: ops.permutation_part(*place))
        _, seconds = timed(lambda: share_out(places))
        result["place"] = result["walk"] + seconds
        del places
        _, result["select_top_k_seconds"] = timed(
            lambda: functional.select_top_k(scores, k, seed=SEED, order="ascending")
        )
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    if size > 1:
        dist.destroy_process_group()


def measure(size: int, samples: int, k: int, rounds: int, threads: int) -> dict[str, Any]:
    """Runs `size` processes; of each way the median round, in which the slowest rank counts."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, folder, samples, k, rounds, threads)
        mp.start_processes(select, arguments, nprocs=size, start_method="spawn")
        results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]

    def of_way(way: str) -> dict[str, Any]:
        runs = [r["runs"][way] for r in results]
        by_round = [max(run[i]["seconds"] for run in runs) for i in range(rounds)]
        middle = sorted(range(rounds), key=by_round.__getitem__)[rounds // 2]
        slowest = max((run[middle] for run in runs), key=lambda run: run["seconds"])
        peak = max(r["peak_bytes"][way] for r in results)
        return {**slowest, "all_rounds": by_round, "peak_bytes_per_rank": peak}

    return {
        "ranks": size,
        "samples": samples,
        "keep": k,
        **of_way("one-read"),
        "plain": of_way("plain"),
        "with_scores_bytes_per_rank": max(r["with_scores_bytes"] for r in results),
        "exact": all(r["exact"] for r in results),
        "walk": results[0].get("walk"),
        "place": results[0].get("place"),
        "select_top_k_seconds": results[0].get("select_top_k_seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=number, default=10_000_000)
    parser.add_argument("--keep", type=number, default=3_000_000)
    parser.add_argument("--ranks", type=number, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=number, default=3)
    parser.add_argument("--threads", type=number, default=1, help="of each rank")
    parser.add_argument("--selection-only", action="store_true", help="no epochs of a Pruner")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    series = []
    print("ranks  way       seconds  stages")
    for size in arguments.ranks:
        task = (size, arguments.samples, arguments.keep, arguments.rounds, arguments.threads)
        m = measure(*task)
        series.append(m)
        for way, run, stages in (
            ("one-read", m, ("sample", "pass", "search", "list")),
            ("plain", m["plain"], ("keys", "search", "list")),
        ):
            parts = ", ".join(f"{stage} {run[stage]:.3f}" for stage in stages)
            memory = f"{run['rounds']} rounds, {run['peak_bytes_per_rank'] / 1e9:.2f} GB per rank"
            print(f"{size:5d}  {way:8s}  {run['seconds']:7.3f}  {parts}; {memory}")
        if m["select_top_k_seconds"]:
            print(f"       select_top_k alone  {m['select_top_k_seconds']:.3f}")
        if not m["exact"]:
            raise SystemExit("the selection is not exact")
        if not arguments.selection_only:
            m |= measure_epochs(*task)
            for way, run in m["epochs"].items():
                parts = f"epoch: steps {run['steps']:.3f}, begin {run['begin']:.3f}"
                memory = f"{run['bytes_per_rank'] / 1e9:.2f} GB per rank"
                print(f"{size:5d}  {way:9s} {run['seconds']:7.3f}  {parts}; {memory}")
    if arguments.out is not None:
        facts = machine(torch.device("cpu")) | {"threads": arguments.threads}
        facts["cores_used"] = len(os.sched_getaffinity(0))
        write_json(arguments.out, facts, series)


if __name__ == "__main__":
    main()
