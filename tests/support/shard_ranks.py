# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_sharded.py` does; the results come back to be compared there."""

import math
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from ranks import message
from reference import listed_id_hash

from dynprune_cuda import functional, sharded
from dynprune_cuda.distributed.shard import LAYOUTS
from dynprune_cuda.sharded import Shard, bracket_search

SEED = 2**63 + 5
SAMPLE = 6  # the stream of kSample in csrc/shared/hash.h


def scores_of(kind, n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    if kind == "equal":
        return torch.full_like(x, 2.5)
    if kind == "mostly_zero":
        x = torch.where(x < 2, 0.0, x)
        x[::7] = -0.0
    elif kind == "levels":
        x = (x * 2).round()
    elif kind == "special":
        x[::2], x[::3], x[::5], x[::11] = math.inf, math.nan, -math.inf, 1e-45
    elif kind == "all_nan":
        x[:] = math.nan
    return x


MISLED = ("below", "above", "apart")
KINDS = ("normal", "equal", "mostly_zero", "levels", "special", "all_nan")


def misled(way, n, seed):
    """Scores of which the sample that brackets the threshold tells nothing about the others."""
    draws = np.arange(int(n ** (2 / 3)))
    sampled = torch.from_numpy(np.unique(listed_id_hash(seed, SAMPLE, draws) * n >> 32).astype(int))
    x = scores_of("normal", n)
    if way == "apart":  # all others lie in the bracket: more candidates than there is room for
        x = x / 1e6 + 0.5
        x[sampled] = torch.linspace(-1, 2, len(sampled))
    else:
        x[sampled] += 20 if way == "above" else -20
    return x


def own(tensor, shard):
    """This rank's rows of a tensor of all samples."""
    return tensor[shard.ids()]


def calls(kind, n, k):
    """(name, what one process selects, what a rank calls) of every op."""
    x = scores_of(kind, n)
    variance = scores_of("levels", n).abs()
    count = torch.arange(n, dtype=torch.int32) % 4
    weights = x.nan_to_num(math.inf, math.inf, 0.0).clamp(min=0)
    same = {"seed": SEED}
    whole = {**same, "order": "ascending"}
    half, brain = x.half(), x.bfloat16()
    yield (
        "top_k",
        functional.select_top_k(x, k, **whole),
        lambda s: sharded.select_top_k(own(x, s), k, shard=s, **same),
    )
    yield (
        "top_k of float16",
        functional.select_top_k(half, k, **whole),
        lambda s: sharded.select_top_k(own(half, s), k, shard=s, **same),
    )
    for epsilon in (0.0, 0.3, 1.0):
        yield (
            f"epsilon {epsilon}",
            functional.select_epsilon_greedy(x, k, epsilon, **whole),
            lambda s, e=epsilon: sharded.select_epsilon_greedy(own(x, s), k, e, shard=s, **same),
        )
    for bonus in ("variance", "std"):
        yield (
            f"ucb {bonus}",
            functional.select_ucb(x, variance, k, c=0.7, bonus=bonus, **whole),
            lambda s, b=bonus: sharded.select_ucb(
                own(x, s), own(variance, s), k, c=0.7, bonus=b, shard=s, **same
            ),
        )
    yield (
        "ucb1",
        functional.select_ucb1(x, count, k, step=50, **whole),
        lambda s: sharded.select_ucb1(own(x, s), own(count, s), k, step=50, shard=s, **same),
    )
    for name, w in (("weighted", weights), ("weighted bfloat16", brain.abs().nan_to_num(1.0))):
        yield (
            name,
            functional.select_weighted(w, k, **whole),
            lambda s, w=w: sharded.select_weighted(own(w, s), k, shard=s, **same),
        )
    for power in (0.5, 1.0):
        rule = functional.Ranking.by_score_weight(x, power=power)
        yield (
            f"score weight {power}",
            functional.select(rule, n, k, **whole),
            lambda s, rule=rule: sharded.select(
                rule._replace(values=own(rule.values, s)), k, shard=s, **same
            ),
        )
    yield (
        "uniform",
        functional.select_uniform(n, k, **whole),
        lambda s: sharded.select_uniform(k, shard=s, **same),
    )


def selections(rank, size):
    """Compares each op's ids with this rank's part of the single-process selection."""
    wrong, number = [], 0
    cases = [(1000, kind, 333, LAYOUTS) for kind in KINDS]
    cases += [(1000, "levels", k, LAYOUTS[:1]) for k in (1, 999, 1000)]
    for n in (1, 2, 7):  # some ranks hold nothing
        cases += [(n, "special", k, LAYOUTS[k % 2 :][:1]) for k in {0, 1, n // 2, n}]
    for n, kind, k, layouts in cases:
        for name, expected, call in calls(kind, n, k):
            for layout in layouts:
                shard = Shard(n, rank, size, layout)
                mine = expected[shard.owner_of(expected) == rank]
                number += 1
                if not torch.equal(call(shard), mine):
                    wrong.append((n, kind, k, name, layout))
    return number, wrong


@contextmanager
def reading_once():
    """Has even the smallest shards try one read; gives the list of what came of it."""
    least, select, found = bracket_search.MIN_SAMPLES, bracket_search.select, []

    def watched(*arguments):
        found.append(select(*arguments))
        return found[-1]

    bracket_search.MIN_SAMPLES, bracket_search.select = 0, watched
    try:
        yield found
    finally:
        bracket_search.MIN_SAMPLES, bracket_search.select = least, select


def in_one_read(rank, size):
    """As `selections`, by one read of few samples; and which calls had to search again."""
    wrong, missed, number = [], [], 0
    n, k = 6000, 2000
    kinds = KINDS[size % 2 :: 2]
    cases = [(n, kind, k, LAYOUTS[at % 2]) for at, kind in enumerate((*kinds, kinds[0]))]
    cases += [(n, "levels", 5, "strided")] if size < 4 else [(n, "normal", n, "contiguous")]
    cases += [(7, "special", 3, "contiguous")]  # a sample that tells nothing

    def compare(name, expected, select, shard):
        nonlocal number
        number += 1
        with reading_once() as found:
            ids = select(shard)
        if not torch.equal(ids, expected[shard.owner_of(expected) == rank]):
            wrong.append(name)
        if any(ids is None for ids in found):
            missed.append(name)

    for n, kind, k, layout in cases:
        for op, expected, call in calls(kind, n, k):
            compare((n, kind, k, op, layout), expected, call, Shard(n, rank, size, layout))
    # For these seeds the threshold of a search is not in its bracket.
    lost = [(f"sample {way}", misled(way, 6000, SEED), 2000, 0.0, SEED) for way in MISLED]
    lost += [(f"seed {s}", torch.arange(8000.0), 3125, 0.2, s) for s in (1047, 468)]
    lost += [(f"hashes of seed {s}", torch.zeros(6000), 600, 1.0, s) for s in (135, 536)]
    for name, x, k, epsilon, seed in lost:
        expected = functional.select_epsilon_greedy(x, k, epsilon, seed=seed, order="ascending")

        def call(shard, x=x, k=k, epsilon=epsilon, seed=seed):
            return sharded.select_epsilon_greedy(own(x, shard), k, epsilon, shard=shard, seed=seed)

        compare(name, expected, call, Shard(len(x), rank, size, "strided"))
    return number, wrong, missed


def traffic(rank, size):
    """Bytes that all-reduces of a selection move, by kind of scores: independent of n."""
    moved = {}
    real = dist.all_reduce

    def counted(tensor, *arguments):
        moved[key] += tensor.numel() * tensor.element_size()
        return real(tensor, *arguments)

    dist.all_reduce = counted
    try:
        for n in (1000, 20_000):
            for kind in ("normal", "equal", "levels"):
                for epsilon in (0.0, 0.3):
                    key = (n, kind, epsilon)
                    moved[key] = 0
                    shard = Shard(n, rank, size)
                    x = own(scores_of(kind, n), shard)
                    sharded.select_epsilon_greedy(x, n // 3, epsilon, shard=shard)
        key = "in one read"
        moved[key] = 0
        with reading_once():
            sharded.select_top_k(own(scores_of("normal", n), shard), n // 3, shard=shard)
    finally:
        dist.all_reduce = real
    return moved


def errors(rank, size):
    """What is wrong on one rank is an error on all of them, and the next call works."""
    last = rank == size - 1
    shard = Shard(24, rank, size)
    x = torch.ones(len(shard))
    bad = torch.full_like(x, -1.0) if last else x

    def weighted_in_one_read():
        with reading_once():
            return message(lambda: sharded.select_weighted(bad, 7, shard=shard))

    def top_k(scores=x, k=7, shard=shard, **more):
        return message(lambda: sharded.select_top_k(scores, k, shard=shard, **more))

    return {
        "k": top_k(k=7 + last),
        "k out of range": top_k(k=25),
        "seed": top_k(seed=3 + last),
        "float64": top_k(x.double()),
        "length": top_k(torch.ones(len(shard) + last)),
        "no tensor": top_k([1.0] if last else x),
        "shard": top_k(shard=Shard(24, 0, size)),
        "weight": message(lambda: sharded.select_weighted(bad, 7, shard=shard)),
        "weight in one read": weighted_in_one_read(),
        "epsilon": message(lambda: sharded.select_epsilon_greedy(x, 7, 1.0 + last, shard=shard)),
        "after": len(sharded.select_top_k(x, 24, shard=shard)),
    }


SCENARIOS = (selections, in_one_read, traffic)


def work(rank, size, folder):
    """One process of a world."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "no score was observed", RuntimeWarning)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    scenarios = SCENARIOS + ((errors,) if size > 1 else ())
    torch.save(
        {scenario.__name__: scenario(rank, size) for scenario in scenarios},
        Path(folder) / f"{rank}.pt",
    )
    dist.destroy_process_group()
