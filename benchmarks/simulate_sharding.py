# SPDX-License-Identifier: Apache-2.0
"""What a selection would take on up to 4096 ranks: a model, with its parameters stated.

    python benchmarks/billion.py --samples 10_000_000 --out series.json   # measured: one rank, few
    python benchmarks/simulate_sharding.py --measured series.json --out docs/sharding

Writes OUT.md, tables, and OUT.png. Nothing is measured here but what the first program measured.

The model: a rank's own work is a cost per sample, of each pass, times its samples; messages take
`latency + bytes / bandwidth` (the alpha-beta model; Hockney 1994). An all-reduce is the faster of a
ring, 2 (R - 1) messages of a R-th, and recursive doubling, log2 R messages of all (Thakur,
Rabenseifner & Gropp 2005); an all-to-all is R - 1 messages. Nothing overlaps.

Left out, so that the line of replicate must not be compared with the others: entering the visits,
which a sharded rank does when the epoch begins and a replicated one during the epoch; and of the
five all-to-alls of sharded scores the two that send counts, and one of the two that send ids and
values.

Three ways to select k of N on R ranks, and what each moves and keeps:

  replicate  every rank holds the table. An epoch begins with two all-reduces of it, 28 bytes a
             sample, a selection among all N on every rank, and an order of all k.
  plain      `sharding="shard"` on a GPU, and with small shards: visits go to their owners, 12
             bytes each; keys, three passes with an all-reduce of 16 or 8 KB each (six where scores
             tie, and always on a GPU), the list; then 8 bytes for every selected id to the rank
             that trains on it.
  one-read   `sharding="shard"` on the CPU: as plain, but a sample of the scores, 512 KB, brackets
             the threshold first, and one pass sorts out all but a few percent, which are searched.
             Not implemented on GPUs: there this says what it would save.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLES = (10**9, 10**10, 10**11)
RANKS = (1, 8, 64, 512, 4096)
KEEP = 0.3
DIGIT_BYTES = (16384, 16384, 8192)  # of the histograms of three rounds
RECORD_BYTES = 17 + 4  # a row of the table, and how often the sample was selected
WAYS = ("replicate", "plain", "one-read")
DRAWS = 1 << 16
ONE_READ_BYTES = 0.5  # a bit for each sample, and two copies of 1.5% of them, 12 bytes each


@dataclass(frozen=True)
class Machine:
    """Seconds per sample of each pass, and of a message.

    Attributes:
        name: What the tables call it.
        origin: Where the numbers are from.
        keys: Scores become keys.
        digit: One pass of a search, over keys.
        listing: The selected ids are written.
        sample: Of one read: all draws are made, and some of them looked up; per rank.
        sort_out: Of one read: the pass over the scores.
        candidates: Of one read: the search among what is left, per sample.
        chosen: Of one read: the selected ids are written.
        alone: A whole selection by one rank alone.
        walk: One position of a permutation.
        place: One id of a shared order: a walk, a sort by rank, a scattered write.
        rounds: All-reduces of a search.
        latency: Seconds until a message begins to arrive.
        bandwidth: Bytes per second, of one rank.
    """

    name: str
    origin: str
    keys: float
    digit: float
    listing: float
    sample: float
    sort_out: float
    candidates: float
    chosen: float
    alone: float
    walk: float
    place: float
    rounds: int
    latency: float
    bandwidth: float


def assumed_gpu() -> Machine:
    """Counted bytes over an assumed rate: nothing of it was measured."""
    rate = 3.0e12
    return Machine(
        name="GPU, assumed",
        origin="bytes counted per pass over 3.0 TB/s; 10 us and 50 GB/s per rank",
        keys=8 / rate,
        digit=4 / rate,
        listing=(4 + 8 * KEEP) / rate,
        sample=10e-6,
        sort_out=4.2 / rate,
        candidates=0.8 / rate,
        chosen=(0.2 + 8 * KEEP) / rate,
        alone=7.9 / rate,
        walk=8 / rate,
        place=100 / rate,
        rounds=6,
        latency=10e-6,
        bandwidth=50e9,
    )


def measured_cpu(row: dict[str, Any]) -> Machine:
    """From the one-rank row of billion.py."""
    n, plain = row["samples"], row["plain"]
    return Machine(
        name="CPU, measured",
        origin=f"one rank at N = {n:,}; 30 us and 12.5 GB/s per rank assumed",
        keys=plain["keys"] / n,
        digit=plain["search"] / plain["rounds"] / n,
        listing=plain["list"] / n,
        sample=row["sample"],
        sort_out=row["pass"] / n,
        candidates=row["search"] / n,
        chosen=row["list"] / n,
        alone=row["select_top_k_seconds"] / n,
        walk=row["walk"] / row["keep"],
        place=row["place"] / row["keep"],
        rounds=3,
        latency=30e-6,
        bandwidth=12.5e9,
    )


def all_reduce(size: float, ranks: int, m: Machine) -> float:
    """Seconds to add up `size` bytes."""
    if ranks == 1:
        return 0.0
    ring = 2 * (ranks - 1) * (m.latency + size / ranks / m.bandwidth)
    doubling = math.ceil(math.log2(ranks)) * (m.latency + size / m.bandwidth)
    return min(ring, doubling)


def all_to_all(size: float, ranks: int, m: Machine) -> float:
    """Seconds for every rank to send `size` bytes, in equal parts to all."""
    return (ranks - 1) * (m.latency + size / ranks / m.bandwidth)


def cost(way: str, samples: int, ranks: int, m: Machine) -> tuple[float, float]:
    """Seconds and bytes per rank of the beginning of an epoch that selects."""
    own, kept = samples / ranks, KEEP * samples / ranks
    if way == "replicate":
        seconds = all_reduce(8 * samples, ranks, m) + all_reduce(20 * samples, ranks, m)
        seconds += (m.alone + m.walk * KEEP) * samples
        return seconds, (RECORD_BYTES + (8 + 8) * KEEP) * samples  # subset, order
    route = all_to_all(12 * kept, ranks, m) + all_to_all(8 * kept, ranks, m) + m.place * kept
    if way == "plain":
        search = sum(all_reduce(size, ranks, m) for size in DIGIT_BYTES) * m.rounds / 3
        # A round that has nothing to find reads nothing.
        local = (m.keys + 3 * m.digit + m.listing) * own
        return search + local + route, (RECORD_BYTES + 4) * own + (16 + 16) * kept
    search = all_reduce(8 * DRAWS, ranks, m) + 3 * all_reduce(DIGIT_BYTES[0] + 8, ranks, m)
    local = m.sample + (m.sort_out + m.candidates + m.chosen) * own
    return search + local + route, (RECORD_BYTES + ONE_READ_BYTES) * own + (16 + 16) * kept


def seconds_text(seconds: float) -> str:
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3)):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def tables(machines: Sequence[Machine]) -> str:
    """Markdown: seconds and memory of each way."""
    lines = [
        "Left out: entering the visits, and three of the five all-to-alls of sharded scores. Do "
        "not read from these tables",
        "whether `replicate` is faster than the others. `plain` is what GPUs do, `one-read` what "
        "CPUs do.",
        "",
    ]
    for m in machines:
        lines += [
            f"**{m.name}** ({m.origin}; k = {KEEP} N)",
            "",
            "| N | ranks | " + " | ".join(WAYS) + " | GB per rank: " + " / ".join(WAYS) + " |",
            "|---|---|" + "---|" * (len(WAYS) + 1),
        ]
        for samples in SAMPLES:
            for ranks in RANKS:
                costs = {way: cost(way, samples, ranks, m) for way in WAYS}
                cells = [seconds_text(seconds) for seconds, _ in costs.values()]
                memory = " / ".join(f"{size / 1e9:.3g}" for _, size in costs.values())
                lines.append(f"| {samples:.0e} | {ranks} | {' | '.join(cells)} | {memory} |")
        lines += ["", saved_by_one_read(m), ""]
    return "\n".join(lines)


def saved_by_one_read(m: Machine) -> str:
    """What one read of the scores saves at most."""
    found = []
    for samples in SAMPLES:
        sizes = [2**power for power in range(13)]
        plain = {size: cost("plain", samples, size, m)[0] for size in sizes}
        saved = max(plain[s] / cost("one-read", samples, s, m)[0] for s in sizes[1:])
        found.append(
            f"- N = {samples:.0e}: an epoch begins up to {saved:.2f}x as fast with one read."
        )
    return "\n".join(found)


def series_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what was measured on few ranks of one machine."""
    lines = [
        "| ranks | one-read, seconds | sample | pass | search | list | GB per rank "
        "| plain, seconds | keys | search | list | GB per rank | exact |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row["ranks"])]
        for run, stages in (
            (row, ("seconds", "sample", "pass", "search", "list")),
            (row["plain"], ("seconds", "keys", "search", "list")),
        ):
            cells += [f"{run[name]:.3f}" for name in stages]
            cells.append(f"{run['peak_bytes_per_rank'] / 1e9:.2f}")
        cells.append("yes" if row["exact"] else "NO")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(machines: Sequence[Machine], rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(machines) + 1, figsize=(4.4 * (len(machines) + 1), 4.6))
    ranks = [2**power for power in range(13)]
    for axis, m in zip(axes, machines, strict=False):
        for way, style in zip(WAYS, (":", "-", "--"), strict=True):
            for samples, colour in zip(SAMPLES, ("C0", "C1", "C3"), strict=True):
                values = [cost(way, samples, size, m)[0] for size in ranks]
                label = f"{way}, N = {samples:.0e}" if axis is axes[0] else None
                axis.loglog(ranks, values, style, color=colour, label=label, lw=1.4)
        axis.set_title(f"Model: {m.name}", fontsize=10)
        axis.set_xlabel("ranks")
        axis.set_ylabel("seconds per selection")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=7)
    sizes = [row["ranks"] for row in rows]
    axes[-1].plot(sizes, [row["seconds"] for row in rows], "o--", label="one-read")
    axes[-1].plot(sizes, [row["plain"]["seconds"] for row in rows], "s-", label="plain")
    axes[-1].set_title(f"Measured: N = {rows[0]['samples']:.0e}, one machine", fontsize=10)
    axes[-1].set_xlabel("processes over gloo")
    axes[-1].set_ylim(bottom=0)
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path, required=True, help="what billion.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="without an ending")
    arguments = parser.parse_args()
    measured = json.loads(arguments.measured.read_text())
    rows = measured["rows"]
    alone = next(row for row in rows if row["ranks"] == 1)
    machines = (measured_cpu(alone), assumed_gpu())
    facts = measured["machine"]
    text = tables(machines)
    text += f"\nMeasured, N = {alone['samples']:,}, k = {alone['keep']:,}, {facts['cpu']}, "
    text += f"{facts['cores']} cores shared by all ranks, load {facts['load_average'][0]}:\n\n"
    text += series_table(rows) + "\n"
    arguments.out.with_suffix(".md").write_text(text)
    draw(machines, rows, arguments.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
