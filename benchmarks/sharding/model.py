# SPDX-License-Identifier: Apache-2.0
"""What one epoch of pruning takes on R ranks: replicated or sharded scores, counted stage by stage.

A rank's own work is a cost per item, of each pass, times its items; a message takes
`latency + bytes / bandwidth` (the alpha-beta model; Hockney 1994), and bytes that are added up
`reduce` seconds each on top. Nothing overlaps: neither messages with each other, nor work with
messages, nor either with training. Fixed costs of calls are left out at the beginning of an epoch,
and counted in the steps, where batches are small. Shares are equal, and shards contiguous.

The messages are those that the package and the backends send: gloo adds up around a ring, NCCL
around a ring or in a tree, whichever is faster; both gather small things around a ring (NCCL may
do better); and both send an all-to-all as R - 1 messages. They post all of these at once, so
counting one latency each is the most that it can take; `at_once` counts one latency in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

KEEP = 0.3
BATCH = 512
LAUNCH = 4e-6  # of a small kernel, on a GPU
DIGIT_BYTES = (16384, 16384, 8192)  # of the histograms of three rounds
MAX_DRAWS = 1 << 16
ONE_READ_FROM = 1 << 18  # samples of a rank; among fewer the plain search takes no longer
MERGED = 1 << 22  # rows of a replicated table in one collective
MEET_BYTES = 80  # that each rank sends where they compare notes
RECORD_BYTES = 17 + 4  # a row of the table, and how often the sample was selected
VISIT_BYTES = 16 + 175  # a visit that waits, and what it takes while it is entered: measured
# Of each sample, when two selections are compared: three masks, and int64 to sum one up on a CPU.
COMPARE_BYTES = 3 + 8
MERGE_BYTES = 68  # of each row in a collective
WAYS = ("replicate", "plain", "one-read")
# Of `Machine`, by epoch_costs.py:
MEASURED = ("update", "repeat", "buffer", "pack", "enter", "merge", "ranking", "history")
MEASURED += ("checksum", "walk", "look_up", "reduce")
STAGES = ("steps", "exchange", "enter", "selection", "order")


@dataclass(frozen=True)
class Machine:
    """Seconds per item of each pass, and of a message.

    Attributes:
        name: What the tables call it.
        origin: Where the numbers are from.
        update: In a step, replicated: a visit enters the table.
        repeat: In a step, replicated, with several ranks: a visit is compared with the padding.
        buffer: In a step, sharded: a visit is kept.
        pack: The visits that wait are sorted for sending, per visit.
        enter: At the owner, a visit enters the table.
        merge: A rank's own work when replicated tables are made equal, per sample.
        keys: Scores become keys.
        digit: One pass of a search, over keys.
        listing: The selected ids are written.
        sample: Of one read: a draw, which every rank makes, and looks up if the sample is its own.
        sort_out: Of one read: the pass over the scores.
        candidates: Of one read: the search among what is left, per sample.
        chosen: Of one read: the selected ids are written.
        alone: A whole selection by one rank alone, per sample.
        ranking: The scores to rank by are made from the table, per sample.
        history: A selection is entered into the history, per sample.
        checksum: A selected id goes into the sum that replicated ranks compare.
        walk: One position of a permutation.
        look_up: Replicated: one place of a rank's order becomes an id.
        place: One id of a shared order: a walk, a sort by rank, a scattered write.
        rounds: All-reduces of a search.
        reduce: A byte is added to another one.
        latency: Seconds until a message begins to arrive.
        bandwidth: Bytes per second, of one rank.
        tree: Whether an all-reduce may go by a tree.
        at_once: Whether the messages of an all-to-all share one latency.
        cores: That all ranks share, one thread each; 0: every rank has its own.
    """

    name: str
    origin: str
    update: float
    repeat: float
    buffer: float
    pack: float
    enter: float
    merge: float
    keys: float
    digit: float
    listing: float
    sample: float
    sort_out: float
    candidates: float
    chosen: float
    alone: float
    ranking: float
    history: float
    checksum: float
    walk: float
    look_up: float
    place: float
    rounds: int
    reduce: float
    latency: float
    bandwidth: float
    tree: bool
    at_once: bool = False
    cores: int = 0

    def sharing(self, ranks: int) -> float:
        """How many times as long everything takes because ranks share cores."""
        return max(1.0, ranks / self.cores) if self.cores else 1.0


def assumed_gpu() -> Machine:
    """Counted bytes over an assumed rate, and small kernels in the steps: nothing was measured.

    The kernels are those of `Pruner.observe`; `with_cross_entropy` has more. A random access counts
    as 32 bytes. `merge`, `pack` and `enter` are the torch calls of `Ranks.merge`,
    `ShardedScoreTable._outgoing` and `.enter`, a sort of 8-byte keys as 256 bytes.
    """
    rate, launch = 3.0e12, LAUNCH
    return Machine(
        name="GPU, assumed",
        origin="bytes counted per pass over 3.0 TB/s, 4 us for each of 1, 13 and 14 kernels a "
        "batch (update, repeat, buffer); 10 us and 50 GB/s per rank, rings and trees",
        update=330 / rate + launch / BATCH,
        repeat=100 / rate + 13 * launch / BATCH,
        buffer=150 / rate + 14 * launch / BATCH,
        pack=450 / rate,
        enter=1200 / rate,
        merge=240 / rate,
        keys=8 / rate,
        digit=4 / rate,
        listing=(4 + 8 * KEEP) / rate,
        sample=10e-6 / MAX_DRAWS,
        sort_out=4.2 / rate,
        candidates=0.8 / rate,
        chosen=(0.2 + 8 * KEEP) / rate,
        alone=7.9 / rate,
        ranking=9 / rate,
        history=35 / rate,
        checksum=136 / rate,
        walk=8 / rate,
        look_up=64 / rate,
        place=100 / rate,
        rounds=6,
        reduce=3 / rate,
        latency=10e-6,
        bandwidth=50e9,
        tree=True,
    )


def with_cross_entropy(gpu: Machine) -> Machine:
    """The same if visits are kept by `Pruner.cross_entropy`: 25 kernels a batch, not 14."""
    return replace(gpu, buffer=gpu.buffer + 11 * LAUNCH / BATCH)


def measured_cpu(row: dict[str, Any], network: dict[str, float], cores: int = 0) -> Machine:
    """From the one-rank row of billion.py.

    Args:
        row: The row.
        network: Latency and bandwidth: assumed, or measured between two ranks.
        cores: As in `Machine`.
    """
    n, plain, costs = row["samples"], row["plain"], row["costs"]
    return Machine(
        name="CPU, this machine" if cores else "CPU, measured",
        origin=f"one rank of one thread at N = {n:,}; {network['latency'] * 1e6:.3g} us and "
        f"{network['bandwidth'] / 1e9:.3g} GB/s per rank "
        f"{'measured between two' if cores else 'assumed, rings only'}",
        **{name: costs[name] for name in MEASURED},
        keys=plain["keys"] / n,
        digit=plain["search"] / plain["rounds"] / n,
        listing=plain["list"] / n,
        sample=row["sample"] / draws(n),
        sort_out=row["pass"] / n,
        candidates=row["search"] / n,
        chosen=row["list"] / n,
        alone=row["select_top_k_seconds"] / n,
        place=row["place"] / row["keep"],
        rounds=3,
        latency=network["latency"],
        bandwidth=network["bandwidth"],
        tree=False,
        cores=cores,
    )


def all_reduce(size: float, ranks: int, m: Machine) -> float:
    """Seconds to add up `size` bytes: around a ring, or up and down a tree."""
    if ranks == 1:
        return 0.0
    added = m.reduce * size
    ring = 2 * (ranks - 1) * (m.latency + size / ranks / m.bandwidth) + added * (ranks - 1) / ranks
    tree = 2 * (math.ceil(math.log2(ranks)) * m.latency + size / m.bandwidth) + 2 * added
    return min(ring, tree) if m.tree else ring


def gather(size: float, ranks: int, m: Machine) -> float:
    """Seconds for every rank to get `size` bytes of every other one."""
    return (ranks - 1) * (m.latency + size / m.bandwidth)


def all_to_all(size: float, ranks: int, m: Machine) -> float:
    """Seconds for every rank to send `size` bytes, in equal parts to all."""
    waits = min(1, ranks - 1) if m.at_once else ranks - 1
    return waits * m.latency + (ranks - 1) * size / ranks / m.bandwidth


def routed(sizes: tuple[float, ...], ranks: int, m: Machine) -> float:
    """Seconds of all-to-alls of these bytes, and of the counts that go first."""
    return sum(all_to_all(size, ranks, m) for size in (8 * ranks, *sizes))


def merged(samples: int, ranks: int, m: Machine) -> float:
    """Seconds to make replicated tables equal: messages and own work."""
    if ranks == 1:
        return 0.0
    whole, rest = divmod(samples, MERGED)
    pieces = ((MERGED, whole), (rest, int(rest > 0)))
    sent = sum(
        times * (all_reduce(8 * rows, ranks, m) + all_reduce(20 * rows, ranks, m))
        for rows, times in pieces
    )
    return sent + m.merge * samples


def draws(samples: int) -> int:
    """Scores in the sample that one read begins with."""
    return min(MAX_DRAWS, int(samples ** (2 / 3)))


def search(way: str, samples: int, ranks: int, m: Machine) -> float:
    """Seconds of a sharded search and its list."""
    own = samples / ranks
    if way == "one-read" and own >= ONE_READ_FROM:
        sent = all_reduce(8 * draws(samples), ranks, m)
        sent += 3 * all_reduce(DIGIT_BYTES[0] + 8, ranks, m)
        return sent + m.sample * draws(samples) + (m.sort_out + m.candidates + m.chosen) * own
    sent = sum(all_reduce(size, ranks, m) for size in DIGIT_BYTES) * m.rounds / 3
    # A round that has nothing to find reads nothing.
    return sent + (m.keys + 3 * m.digit + m.listing) * own


def stages(
    way: str, samples: int, ranks: int, m: Machine, *, visited: float = KEEP, period: int = 1
) -> dict[str, float]:
    """Seconds per rank of one epoch's scores and of the beginning of the next, by stage.

    Args:
        way: One of WAYS.
        samples: Of all ranks.
        ranks: How many.
        m: The machine.
        visited: The share of the samples that the epoch visits.
        period: Epochs between selections, over which their time is spread.
    """
    kept, visits = KEEP * samples, visited * samples / ranks
    if way == "replicate":
        several = ranks > 1
        selection = (m.alone + m.ranking + m.history) * samples
        selection += several * m.checksum * kept + gather(MEET_BYTES, ranks, m)
        found = {
            "steps": (m.update + several * m.repeat) * visits,
            "exchange": gather(MEET_BYTES, ranks, m) + merged(samples, ranks, m),
            "enter": 0.0,
            "selection": selection / period,
            "order": m.walk * kept + m.look_up * kept / ranks,
        }
    else:
        selection = search(way, samples, ranks, m) + (m.ranking + m.history) * samples / ranks
        selection += gather(MEET_BYTES, ranks, m) + gather(8, ranks, m) + all_reduce(8, ranks, m)
        sent = routed((8 * visits, 4 * visits), ranks, m)
        found = {
            "steps": m.buffer * visits,
            "exchange": 2 * gather(MEET_BYTES, ranks, m) + m.pack * visits + sent,
            "enter": m.enter * visits,
            "selection": selection / period,
            "order": m.place * kept / ranks + routed((8 * kept / ranks,), ranks, m),
        }
    return {stage: seconds * m.sharing(ranks) for stage, seconds in found.items()}


def epoch(
    way: str, samples: int, ranks: int, m: Machine, *, steps: bool = True, **options: Any
) -> float:
    """Seconds per rank of all stages, or of those after the steps."""
    found = stages(way, samples, ranks, m, **options)
    return sum(found.values()) - (0.0 if steps else found["steps"])


def memory(way: str, samples: int, ranks: int, visited: float = KEEP) -> float:
    """Bytes per rank at the most, for scores and selections, when an epoch begins."""
    kept, visits = KEEP * samples, visited * samples / ranks
    if way == "replicate":  # the old subset, the new one, the old order
        merging = MERGE_BYTES * min(samples, MERGED) * (ranks > 1)
        table = RECORD_BYTES * samples + 8 * kept + 8 * kept / ranks
        return table + max(merging, COMPARE_BYTES * samples + 8 * kept)
    return RECORD_BYTES * samples / ranks + 16 * kept / ranks + VISIT_BYTES * visits
