# SPDX-License-Identifier: Apache-2.0
"""The stages of a selection and of an epoch, timed one by one.

This is the only file here that uses private parts of the package.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.timing import median_seconds, timed
from dynprune_cuda import Pruner, distributed, functional
from dynprune_cuda._epochs.repeats import Repeats
from dynprune_cuda._ops import ops
from dynprune_cuda.distributed import Ranks, Shard
from dynprune_cuda.functional import Ranking
from dynprune_cuda.scores.merge import merge_tables
from dynprune_cuda.sharded import bracket_search
from dynprune_cuda.sharded.digit_search import find_thresholds, list_selected
from dynprune_cuda.sharded.ranking import keys_of

__all__ = [
    "BATCH",
    "SEARCHES",
    "SEED",
    "Ranks",
    "Seconds",
    "Shard",
    "order_costs",
    "record_visits",
    "replicated_costs",
    "sharded_costs",
]

SEED = 7
BATCH = 512
SENDERS = 8  # ranks that send visits to an owner, where one process measures the costs of several
CHECKED = 1 << 18  # visits to time, where all batches cost the same

Seconds = dict[str, float]


def one_read_search(scores: Tensor, k: int, shard: Shard, ranks: Ranks) -> tuple[Tensor, Seconds]:
    """This rank's ids by the search in one read of the scores, and the seconds of its stages."""
    ranking = Ranking.by_score(scores)
    sample, draw_seconds = timed(
        lambda: ranks.add_up_(bracket_search.draw_sample(ranking, shard, SEED))
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


def plain_search(scores: Tensor, k: int, shard: Shard, ranks: Ranks) -> tuple[Tensor, Seconds]:
    """The same by the plain search through keys."""
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


Search = Callable[[Tensor, int, Shard, Ranks], tuple[Tensor, Seconds]]
SEARCHES: dict[str, Search] = {"one-read": one_read_search, "plain": plain_search}


def order_costs(scores: Tensor, k: int) -> Seconds:
    """Seconds of one rank's permutation of k ids, and of all that the order of an epoch takes."""
    place = (scores[:0], k, 0, 1, k, True, None, SEED)
    places, walk = timed(lambda: ops.permutation_part(*place))
    _, seconds = timed(lambda: _arrange(places))
    return {"walk": walk, "place": walk + seconds}


def _arrange(places: Tensor, size: int = 8) -> Tensor:
    """What a rank does with its ids for the order of an epoch, besides sending them."""
    words = (places << 32) | (places // size)
    _, by_consumer = (places % size).to(torch.int32).sort(stable=True)
    sent = words[by_consumer]
    order = torch.empty_like(sent)
    order[sent >> 32] = sent & 0xFFFFFFFF
    return order


def record_visits(pruner: Pruner, values: Tensor) -> None:
    """The score updates of an epoch, without the training."""
    batches = zip(pruner.epoch_order().split(BATCH), values.split(BATCH), strict=True)
    for ids, scores in batches:
        pruner.observe(ids, scores)


def replicated_costs(pruner: Pruner, rounds: int) -> Seconds:
    """Seconds per item of the passes of a rank that holds a whole table."""
    run, table = pruner._run, pruner.table
    state, subset, repeats = run.state, run.current(), Repeats(torch.full((1,), -1))
    assert subset is not None
    n, k = pruner.num_samples, len(subset.ids)
    batches = pruner.epoch_order()[:CHECKED].split(BATCH)

    def count_once() -> None:
        for ids in batches:
            repeats.without(ids)
            repeats.mark(ids)

    def history() -> None:
        chosen = run._mask_of(subset.ids)
        state.selected(subset, chosen, (chosen & run._mask_of(subset.ids)).sum())

    def order() -> None:
        run._share = None
        pruner.epoch_order()

    walk = median_seconds(lambda: functional.permutation(k, seed=SEED), rounds)
    return {
        "repeat": median_seconds(count_once, rounds) / min(CHECKED, k),
        "merge": median_seconds(lambda: merge_tables(table, pruner.ranks), rounds) / n,
        "ranking": median_seconds(table.ranking_mean, rounds) / n,
        "history": median_seconds(history, rounds) / n,
        "checksum": median_seconds(lambda: distributed.checksum(subset.ids, None), rounds) / k,
        "walk": walk / k,
        "look_up": max(0.0, median_seconds(order, rounds) - walk) / k,
    }


def sharded_costs(pruner: Pruner, rounds: int) -> Seconds:
    """Seconds per visit of packing the visits that wait, and of recording those that arrive."""
    table: Any = pruner.table
    shard = Shard(pruner.num_samples, 0, SENDERS)
    values = torch.randn(len(pruner.epoch_order()))
    packed, entered = [], []

    def pack() -> tuple[Tensor, Tensor]:
        ids, scores = table.outbox.visits()
        torch.bincount(shard.owner_of(ids), minlength=SENDERS)
        return ids, scores

    for _ in range(rounds):
        record_visits(pruner, values)
        (ids, scores), seconds = timed(pack)
        packed.append(seconds)
        table.outbox.clear()
        # By sender; the visits of each sender by rising id.
        rows = torch.cat([ids[first::SENDERS] for first in range(SENDERS)])
        scores = torch.cat([scores[first::SENDERS] for first in range(SENDERS)])
        entered.append(median_seconds(partial(table.enter, rows, scores), 1))
    return {
        "pack": statistics.median(packed) / len(ids),
        "enter": statistics.median(entered) / len(ids),
    }
