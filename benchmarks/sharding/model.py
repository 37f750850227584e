# SPDX-License-Identifier: Apache-2.0
"""A model of the time of one epoch on R ranks, with replicated or sharded scores, stage by stage.

The work of a rank is a cost per item and pass, times its items. A message takes
`latency + bytes / bandwidth` (the alpha-beta model; Hockney 1994). Each byte that is reduced takes
`reduce` seconds more. Nothing overlaps: messages, work and training run one after the other. The
fixed costs of calls count in the steps, where batches are small, and not elsewhere. Shares are
equal and shards contiguous.

The messages are those of the package and of the backends. gloo reduces around a ring. NCCL takes
the faster one of a ring and a tree. Both gather around a ring, where NCCL may do better. Both send
an all-to-all as R - 1 messages, which they post at once. One latency for each of them therefore is
an upper bound; `at_once` counts one latency in all.
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
ONE_READ_FROM = 1 << 18  # samples of a rank; for fewer the plain search is as fast
MERGED = 1 << 22  # rows of a replicated table in one collective
MEET_BYTES = 80  # that each rank sends to compare its state with the others
RECORD_BYTES = 17 + 4  # a row of the table, and how often the sample was selected
VISIT_BYTES = 16 + 175  # a visit that waits, and its memory while it is recorded: measured
# Per sample, to compare two selections: three masks, and int64 to sum one up on a CPU.
COMPARE_BYTES = 3 + 8
MERGE_BYTES = 68  # per row in a collective
METHODS = ("replicate", "plain", "one-read")
# Fields of `Machine` that epoch_costs.py measures.
MEASURED = (
    *("update", "repeat", "buffer", "pack", "enter", "merge", "ranking", "history"),
    *("checksum", "walk", "look_up", "reduce"),
)
STAGES = ("steps", "exchange", "enter", "selection", "order")


@dataclass(frozen=True)
class Machine:
    """Seconds per item of each pass, and of a message.

    Attributes:
        name: What the tables call it.
        origin: Where the numbers are from.
        update: In a step, replicated: the table is updated by a visit.
        repeat: In a step, replicated, on several ranks: a visit is compared with the padding.
        buffer: In a step, sharded: a visit is stored.
        pack: The stored visits are sorted for sending, per visit.
        enter: At the owner, the table is updated by a visit.
        merge: The work of a rank to make replicated tables equal, per sample.
        keys: Plain: a score becomes a key.
        digit: Plain: one pass of the search over the keys.
        listing: Plain: the selected ids are written, per sample.
        sample: One read: a random id is drawn by every rank, and its score read by the owner.
        sort_out: One read: the pass over the scores that keeps the candidates, per sample.
        candidates: One read: the search among the candidates, per sample.
        chosen: One read: the selected ids are written, per sample.
        alone: A whole selection by one rank that holds all scores, per sample.
        ranking: The table yields the scores to rank by, per sample.
        history: The history is updated by a selection, per sample.
        checksum: A selected id is added to the sum that replicated ranks compare.
        walk: One position of a permutation is computed.
        look_up: Replicated: one position of a rank's order becomes an id.
        place: One id of a shared order: a walk, a sort by rank, a scattered write.
        rounds: All-reduces of a search.
        reduce: One byte is added to another.
        latency: Seconds until a message begins to arrive.
        bandwidth: Bytes per second, of one rank.
        tree: Whether an all-reduce may go by a tree.
        at_once: Whether the messages of an all-to-all share one latency.
        cores: Cores that all ranks share, one thread each; 0 if each rank has its own.
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
        """The factor by which everything takes longer because ranks share cores."""
        return max(1.0, ranks / self.cores) if self.cores else 1.0


def assumed_gpu() -> Machine:
    """Bytes per item over an assumed rate, and the small kernels of the steps; not measured.

    The kernels are those of `Pruner.observe`; `with_cross_entropy` has more. A random access counts
    as 32 bytes. `merge`, `pack` and `enter` count the torch calls that merge replicated tables,
    pack the visits of a sharded one, and record them. A sort of 8-byte keys counts as 256 bytes.
    """
    rate, launch = 3.0e12, LAUNCH
    return Machine(
        name="GPU, assumed",
        origin="bytes counted per pass over 3.0 TB/s. A batch has 1, 13 and 14 kernels (update, "
        "repeat, buffer) of 4 us each. 10 us and 50 GB/s per rank, rings and trees",
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
    """The same with visits stored by `Pruner.cross_entropy`: 25 kernels per batch, not 14."""
    return replace(gpu, buffer=gpu.buffer + 11 * LAUNCH / BATCH)


def measured_cpu(row: dict[str, Any], network: dict[str, float], cores: int = 0) -> Machine:
    """A machine from the one-rank row of billion.py.

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
    """Seconds of an all-reduce of `size` bytes: around a ring, or up and down a tree."""
    if ranks == 1:
        return 0.0
    added = m.reduce * size
    ring = 2 * (ranks - 1) * (m.latency + size / ranks / m.bandwidth) + added * (ranks - 1) / ranks
    tree = 2 * (math.ceil(math.log2(ranks)) * m.latency + size / m.bandwidth) + 2 * added
    return min(ring, tree) if m.tree else ring


def gather(size: float, ranks: int, m: Machine) -> float:
    """Seconds until every rank has `size` bytes of every other one."""
    return (ranks - 1) * (m.latency + size / m.bandwidth)


def all_to_all(size: float, ranks: int, m: Machine) -> float:
    """Seconds until every rank has sent `size` bytes, in equal parts to all."""
    waits = min(1, ranks - 1) if m.at_once else ranks - 1
    return waits * m.latency + (ranks - 1) * size / ranks / m.bandwidth


def routed(sizes: tuple[float, ...], ranks: int, m: Machine) -> float:
    """Seconds of all-to-alls of these bytes, and of the counts before them."""
    return sum(all_to_all(size, ranks, m) for size in (8 * ranks, *sizes))


def merged(samples: int, ranks: int, m: Machine) -> float:
    """Seconds to make replicated tables equal: messages and work."""
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
    """Size of the sample that brackets the threshold of one read."""
    return min(MAX_DRAWS, int(samples ** (2 / 3)))


def search(method: str, samples: int, ranks: int, m: Machine) -> float:
    """Seconds of a sharded search and its list."""
    own = samples / ranks
    if method == "one-read" and own >= ONE_READ_FROM:
        sent = all_reduce(8 * draws(samples), ranks, m)
        sent += 3 * all_reduce(DIGIT_BYTES[0] + 8, ranks, m)
        return sent + m.sample * draws(samples) + (m.sort_out + m.candidates + m.chosen) * own
    sent = sum(all_reduce(size, ranks, m) for size in DIGIT_BYTES) * m.rounds / 3
    # Rounds beyond the third read no keys, because they have nothing to find.
    return sent + (m.keys + 3 * m.digit + m.listing) * own


def stages(
    method: str, samples: int, ranks: int, m: Machine, *, visited: float = KEEP, period: int = 1
) -> dict[str, float]:
    """Seconds per rank of one epoch's scores and of the beginning of the next, by stage.

    Args:
        method: One of METHODS.
        samples: Of all ranks.
        ranks: How many.
        m: The machine.
        visited: The share of the samples that the epoch visits.
        period: Epochs between selections, over which their time is spread.
    """
    kept, visits = KEEP * samples, visited * samples / ranks
    if method == "replicate":
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
        selection = search(method, samples, ranks, m) + (m.ranking + m.history) * samples / ranks
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
    method: str, samples: int, ranks: int, m: Machine, *, steps: bool = True, **options: Any
) -> float:
    """Seconds per rank of all stages, or of those after the steps."""
    found = stages(method, samples, ranks, m, **options)
    return sum(found.values()) - (0.0 if steps else found["steps"])


def memory(method: str, samples: int, ranks: int, visited: float = KEEP) -> float:
    """Greatest number of bytes per rank, for scores and selections, when an epoch begins."""
    kept, visits = KEEP * samples, visited * samples / ranks
    if method == "replicate":  # the old subset, the new one, the old order
        merging = MERGE_BYTES * min(samples, MERGED) * (ranks > 1)
        table = RECORD_BYTES * samples + 8 * kept + 8 * kept / ranks
        return table + max(merging, COMPARE_BYTES * samples + 8 * kept)
    return RECORD_BYTES * samples / ranks + 16 * kept / ranks + VISIT_BYTES * visits
