# SPDX-License-Identifier: Apache-2.0
"""Whether to shard the scores on up to 4096 ranks: a model, with its parameters stated.

    python -m benchmarks.sharding.billion --samples 10_000_000 --out series.json
    python -m benchmarks.sharding.simulate_sharding --measured series.json --out docs/sharding_model

Writes OUT.md, tables, and OUT.png. Nothing is measured here but what the first program measured;
the model and its assumptions are in `sharding_model.py`. It compares three ways to prune:

  replicate  every rank holds the table, and enters what it sees in the steps. An epoch begins with
             two all-reduces of the table, 28 bytes a sample, a selection among all N on every rank,
             and an order of all k.
  plain      `sharding="shard"` on a GPU, and with small shards: visits wait, then go to their
             owners, 12 bytes each, and are entered there; keys, three passes with an all-reduce of
             16 or 8 KB each (six where scores tie, and always on a GPU), the list; then 8 bytes for
             every selected id to the rank that trains on it.
  one-read   `sharding="shard"` on the CPU, from 262,144 samples per rank on: as plain, but a sample
             of the scores, 512 KB, brackets the threshold first, and one pass sorts out all but a
             few percent, which are searched. Not implemented on GPUs: there this says what it
             would save.

What is compared is an epoch: the scores of its k visits, from the steps to the tables, and the
beginning of the next one. Each rank makes k / R visits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sharding import model as sharding_model
from benchmarks.sharding.model import (
    KEEP,
    STAGES,
    WAYS,
    Machine,
    assumed_gpu,
    epoch,
    measured_cpu,
    memory,
    stages,
    with_cross_entropy,
)
from benchmarks.sharding.plot import draw

SAMPLES = (10**9, 10**10, 10**11)
SMALLER = (10**6, 10**7, 10**8)
RANKS = (1, 8, 64, 512, 4096)
SIZES = tuple(2**power for power in range(1, 13))  # where ranges of ranks begin and end
PERIOD = 10  # of a Pruner, unless it is told otherwise
GPU_BYTES = (24e9, 80e9)
ASSUMED = {"latency": 30e-6, "bandwidth": 12.5e9}


def sharded_way(m: Machine) -> str:
    """What `sharding="shard"` does on such a machine."""
    return "plain" if m.tree else "one-read"


def where(wins: Callable[[int], bool]) -> str:
    """For which of SIZES something holds, in words."""
    won = [size for size in SIZES if wins(size)]
    if not won:
        return "never"
    first, last = SIZES.index(won[0]), SIZES.index(won[-1])
    if last - first + 1 > len(won):  # with a gap
        return ", ".join(map(str, won))
    if won[-1] == SIZES[-1]:
        return f"from {won[0]}"
    return f"at {won[0]}" if len(won) == 1 else f"{won[0]} to {won[-1]}"


def sharding_wins(samples: int, m: Machine, **options: Any) -> str:
    """On how many ranks an epoch is faster with sharded scores."""
    way = sharded_way(m)
    return where(
        lambda ranks: (
            epoch(way, samples, ranks, m, **options)
            < epoch("replicate", samples, ranks, m, **options)
        )
    )


def one_read_wins(samples: int, m: Machine) -> str:
    """On how many ranks one read searches faster, and by how much of the time at the most."""
    ratios = {
        ranks: sharding_model.search("plain", samples, ranks, m)
        / sharding_model.search("one-read", samples, ranks, m)
        for ranks in SIZES
    }
    found = where(lambda ranks: ratios[ranks] > 1)
    return found if found == "never" else f"{found}, up to {max(ratios.values()):.1f}x"


def ranks_that_fit(samples: int, limit: float) -> str:
    """From how many ranks on sharded scores take less than `limit` bytes, warm-up included."""
    for ranks in (1, *SIZES):
        if memory("plain", samples, ranks, visited=1.0) < limit:
            return str(ranks)
    return f"> {SIZES[-1]}"


def winners(m: Machine) -> str:
    """Markdown: what wins where, and what that hangs on."""
    overlapped = dataclasses.replace(m, at_once=True)
    questions: dict[str, Callable[[int], str]] = {
        "sharding faster": lambda n: sharding_wins(n, m),
        "without the steps": lambda n: sharding_wins(n, m, steps=False),
        f"selecting every {PERIOD}th epoch": lambda n: sharding_wins(n, m, period=PERIOD),
        "all-to-alls at once": lambda n: sharding_wins(n, overlapped),
    }
    if m.tree:
        questions["with `cross_entropy`"] = lambda n: sharding_wins(n, with_cross_entropy(m))
    questions["one read faster than plain search"] = lambda n: one_read_wins(n, m)
    lines = [f"**{m.name}**", "", f"| N | {' | '.join(questions)} |"]
    lines.append("|---" * (len(questions) + 1) + "|")
    for samples in (*SMALLER, *SAMPLES):
        answers = " | ".join(answer(samples) for answer in questions.values())
        lines.append(f"| {samples:.0e} | {answers} |")
    return "\n".join(lines)


def memory_table() -> str:
    """Markdown: where memory decides."""
    names = " or ".join(f"{limit / 1e9:.0f} GB" for limit in GPU_BYTES)
    lines = [
        f"| N | replicate, GB per rank | fits {names} | sharded: fits {names} from, ranks |",
        "|---|---|---|---|",
    ]
    for samples in (*SMALLER, *SAMPLES):
        whole = memory("replicate", samples, 64)
        fits = " / ".join("yes" if whole < limit else "no" for limit in GPU_BYTES)
        ranks = " / ".join(ranks_that_fit(samples, limit) for limit in GPU_BYTES)
        lines.append(f"| {samples:.0e} | {whole / 1e9:.3g} | {fits} | {ranks} |")
    return "\n".join(lines)


def seconds_text(seconds: float) -> str:
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3)):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def long_table(m: Machine) -> str:
    """Markdown: seconds and memory of each way."""
    lines = [
        "| N | ranks | " + " | ".join(WAYS) + " | GB per rank: replicate / sharded |",
        "|---|---|" + "---|" * (len(WAYS) + 1),
    ]
    for samples in SAMPLES:
        for ranks in RANKS:
            cells = [seconds_text(epoch(way, samples, ranks, m)) for way in WAYS]
            sizes = [memory(way, samples, ranks) / 1e9 for way in WAYS[:2]]
            text = " / ".join(f"{size:.3g}" for size in sizes)
            lines.append(f"| {samples:.0e} | {ranks} | {' | '.join(cells)} | {text} |")
    return "\n".join(lines)


def stage_table(m: Machine, samples: int = SAMPLES[0]) -> str:
    """Markdown: where the time goes."""
    lines = [
        f"| N = {samples:.0e}, ranks | way | " + " | ".join(STAGES) + " |",
        "|---|---|" + "---|" * len(STAGES),
    ]
    for ranks in RANKS[1:]:
        for way in ("replicate", sharded_way(m)):
            cells = [seconds_text(s) if s else "" for s in stages(way, samples, ranks, m).values()]
            lines.append(f"| {ranks} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parameters(m: Machine) -> str:
    """Markdown: the numbers that the model starts from, in ns and B/ns."""
    skipped = ("name", "origin", "rounds", "latency", "bandwidth", "tree", "at_once", "cores")
    costs = {f.name: getattr(m, f.name) for f in dataclasses.fields(m) if f.name not in skipped}
    text = ", ".join(f"{name} {seconds * 1e9:.3g}" for name, seconds in costs.items())
    return f"{m.name}: {m.origin}; {m.rounds} rounds. Nanoseconds per item: {text}."


def tables(machines: Sequence[Machine]) -> str:
    """Markdown: all that the model says."""
    lines = [
        f"Written by `benchmarks/sharding/simulate_sharding.py`; k = {KEEP} N. "
        "Nothing here ran on a GPU or on several machines: a model",
        "from one rank's costs, see `benchmarks/sharding/model.py`. Ranks are powers of two, from "
        "2 to 4096.",
        "",
        "## What wins where",
        "For which numbers of ranks sharded scores add less time to an epoch than replicated ones: "
        "its visits are entered, by",
        "`observe`, and the next epoch begins, with a selection. The columns after it change one "
        "thing each. Sharded ranks search",
        "as they do: plainly on a GPU, in one read on a CPU. The last column is of the search "
        "alone, on a GPU what it would save.",
        "",
    ]
    for m in machines:
        lines += [winners(m), ""]
    lines += [
        "**Memory**: at the most, for scores and selections, counted as on a CPU, where sums over "
        "masks take 8 bytes a sample;",
        "sharded after an epoch that visited everything.",
        "",
        memory_table(),
        "",
        "## Seconds per epoch that selects",
        "",
    ]
    for m in machines:
        lines += [f"**{m.name}**", "", long_table(m), "", stage_table(m), ""]
    lines += ["## Parameters", *(f"- {parameters(m)}" for m in machines), ""]
    return "\n".join(lines)


def epoch_table(rows: Sequence[dict[str, Any]], m: Machine | None) -> str:
    """Markdown: whole epochs of few ranks of one machine, and what the model says of them."""
    lines = [
        "| ranks | replicate, seconds: steps + begin | model | GB | model "
        "| sharded, seconds: steps + begin | model | GB | model |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row["ranks"])]
        for name, way in (("replicate", "replicate"), ("shard", "one-read")):
            run, place = row["epochs"][name], (way, row["samples"], row["ranks"])
            cells.append(f"{run['seconds']:.2f}: {run['steps']:.2f} + {run['begin']:.2f}")
            cells.append(f"{epoch(*place, m):.2f}" if m else "")
            cells += [f"{run['bytes_per_rank'] / 1e9:.2f}", f"{memory(*place) / 1e9:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def series_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: selections of few ranks of one machine."""
    lines = [
        "| ranks | one-read, seconds | sample | pass | search | list | GB per rank "
        "| plain, seconds | keys | search | list | GB per rank | exact |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row["ranks"])]
        for run, names in (
            (row, ("seconds", "sample", "pass", "search", "list")),
            (row["plain"], ("seconds", "keys", "search", "list")),
        ):
            cells += [f"{run[name]:.3f}" for name in names]
            cells.append(f"{run['peak_bytes_per_rank'] / 1e9:.2f}")
        cells.append("yes" if row["exact"] else "NO")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_network(row: dict[str, Any], reduce: float, cores: int) -> dict[str, float]:
    """Latency and bandwidth of two ranks, as if each had a core: from all-reduces around a ring.

    It is two messages of half of the bytes, and half of them are added.
    """
    found, sharing = row["network"], max(1.0, 2 / cores)
    latency = found["small_seconds"] / 2 / sharing
    size = found["large_bytes"]
    seconds = found["large_seconds"] / sharing - 2 * latency - reduce * size / 2
    return {"latency": latency, "bandwidth": size / max(seconds, 1e-9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path, required=True, help="what billion.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="without an ending")
    parser.add_argument("--billion", type=Path, help="of one rank with as many samples as fit")
    arguments = parser.parse_args()
    measured = json.loads(arguments.measured.read_text())
    rows, facts = measured["rows"], measured["machine"]
    by_ranks = {row["ranks"]: row for row in rows}
    alone, cores = by_ranks[1], facts["cores_used"]
    machines = (measured_cpu(alone, ASSUMED), assumed_gpu())
    here = None
    if 2 in by_ranks:
        network = measured_network(by_ranks[2], alone["costs"]["reduce"], cores)
        here = measured_cpu(alone, network, cores)
    text = tables(machines) + (f"- {parameters(here)}\n" if here else "")
    text += f"""
## Measured
N = {alone["samples"]:,}, k = {alone["keep"]:,}, {facts["cpu"]}, threads per rank: \
{facts["threads"]}, all ranks on {cores} core{"s" * (cores > 1)}, load {facts["load_average"][0]}.
Whole epochs of a `Pruner`; the model's ranks share as many cores.

{epoch_table(rows, here)}

Selections alone:

{series_table(rows)}
"""
    if arguments.billion:
        large = json.loads(arguments.billion.read_text())
        row, threads = large["rows"][0], large["machine"]["threads"]
        text += f"\nN = {row['samples']:,}, k = {row['keep']:,}, {threads} threads; `select_top_k` "
        text += f"{row['select_top_k_seconds']:.2f} s:\n\n{series_table(large['rows'])}\n"
    arguments.out.with_suffix(".md").write_text(text)
    draw(machines, rows, here, arguments.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
