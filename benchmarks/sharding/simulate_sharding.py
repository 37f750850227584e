# SPDX-License-Identifier: Apache-2.0
"""Whether to shard the scores on up to 4096 ranks: a model, with its parameters stated.

    python -m benchmarks.sharding.billion --samples 10_000_000 --out series.json
    python -m benchmarks.sharding.simulate_sharding --measured series.json --out PATH

The program writes tables to OUT.md and a figure to OUT.png. All measurements are those of
billion.py; the model and its assumptions are in model.py. It compares three methods:

  replicate  Every rank holds the table, and updates it in the steps. An epoch begins with two
             all-reduces of the table, 28 bytes per sample. Then every rank selects among all N, and
             orders all k.
  plain      `sharding="shard"` on a GPU, and with small shards. Visits are stored, then sent to
             their owners, 12 bytes each, which update the table. Keys are made and searched in
             three passes, each with an all-reduce of 16 or 8 KB. With ties, and always on a GPU,
             there are six. Each selected id is sent to its consumer, 8 bytes.
  one-read   `sharding="shard"` on a CPU, from 262,144 samples per rank on. It differs from plain in
             the search. A sample of the scores, 512 KB, brackets the threshold. One pass leaves a
             few percent as candidates, which are searched. GPUs do not have it; the model says what
             it would save there.

The compared time is that of one epoch: recording the scores of its k visits, and the beginning of
the next epoch. Each rank makes k / R visits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.sharding.model import Machine, assumed_gpu, measured_cpu
from benchmarks.sharding.plot import draw
from benchmarks.sharding.tables import epoch_table, parameters, series_table, tables

ASSUMED = {"latency": 30e-6, "bandwidth": 12.5e9}


def measured_network(row: dict[str, Any], reduce: float, cores: int) -> dict[str, float]:
    """Latency and bandwidth between two ranks with a core each, from measured all-reduces.

    A ring of two ranks sends two messages of half the bytes, and reduces half the bytes.
    """
    found, sharing = row["network"], max(1.0, 2 / cores)
    latency = found["small_seconds"] / 2 / sharing
    size = found["large_bytes"]
    seconds = found["large_seconds"] / sharing - 2 * latency - reduce * size / 2
    return {"latency": latency, "bandwidth": size / max(seconds, 1e-9)}


def measured_text(measured: dict[str, Any], here: Machine | None) -> str:
    """Markdown: the measured series beside the model."""
    rows, machine = measured["rows"], measured["machine"]
    cores, load = machine["cores_used"], machine["load_average"][0]
    return f"""
## Measured

N = {rows[0]["samples"]:,}, k = {rows[0]["keep"]:,}, {machine["cpu"]}, threads per rank: \
{machine["threads"]}, all ranks on {cores} core{"s" * (cores > 1)}, load {load}.
Whole epochs of a `Pruner`; the model's ranks share as many cores.

{epoch_table(rows, here)}

Selections alone:

{series_table(rows)}
"""


def billion_text(large: dict[str, Any]) -> str:
    """Markdown: the measured selection of one rank with many samples."""
    row, threads = large["rows"][0], large["machine"]["threads"]
    return (
        f"\nN = {row['samples']:,}, k = {row['keep']:,}, {threads} threads; `select_top_k` "
        f"{row['select_top_k_seconds']:.2f} s:\n\n{series_table(large['rows'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--measured", type=Path, required=True, help="a file of billion.py --out")
    parser.add_argument("--out", type=Path, required=True, help="path without an ending")
    parser.add_argument("--billion", type=Path, help="a file of billion.py --out for one rank")
    arguments = parser.parse_args()
    measured = json.loads(arguments.measured.read_text())
    by_ranks = {row["ranks"]: row for row in measured["rows"]}
    alone, cores = by_ranks[1], measured["machine"]["cores_used"]
    machines = (measured_cpu(alone, ASSUMED), assumed_gpu())
    here = None
    if 2 in by_ranks:
        network = measured_network(by_ranks[2], alone["costs"]["reduce"], cores)
        here = measured_cpu(alone, network, cores)
    text = tables(machines) + "\n" + parameters([*machines, here] if here else machines)
    text += measured_text(measured, here)
    if arguments.billion:
        text += billion_text(json.loads(arguments.billion.read_text()))
    arguments.out.with_suffix(".md").write_text(text)
    draw(machines, measured["rows"], here, arguments.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
