# SPDX-License-Identifier: Apache-2.0
"""The figure of simulate_sharding.py: lines of the model, and measured points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.common.plots import plt
from benchmarks.sharding.model import Machine, epoch

SHOWN = (10**7, 10**9, 10**11)
SIZES = [2**power for power in range(13)]
COLOURS = {"replicate": "C1", "plain": "C0", "one-read": "C0"}


def draw_model(axis: Axes, m: Machine) -> None:
    """Seconds over ranks, two lines for each N, labelled with N at the left end."""
    method = "plain" if m.tree else "one-read"
    for samples in SHOWN:
        name = f"$10^{{{len(str(samples)) - 1}}}$"
        for line in ("replicate", method):
            values = [epoch(line, samples, size, m) for size in SIZES]
            axis.loglog(SIZES, values, color=COLOURS[line], lw=1.8)
            axis.annotate(
                name,
                (SIZES[0], values[0]),
                xytext=(-5, 0),
                textcoords="offset points",
                color=COLOURS[line],
                va="center",
                ha="right",
                fontsize=9,
            )
    axis.set_title(f"Model: {m.name}", fontsize=11)
    axis.set_xlabel("ranks")
    axis.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4096"])
    axis.minorticks_off()
    axis.set_xlim(left=0.3)
    axis.grid(alpha=0.3)


def draw_measured(axis: Axes, rows: Sequence[dict[str, Any]], m: Machine | None) -> None:
    """Points of whole epochs, and the model's lines for the same cores."""
    ranks = [row["ranks"] for row in rows]
    for name, method in (("replicate", "replicate"), ("shard", "one-read")):
        seconds = [row["epochs"][name]["seconds"] for row in rows]
        axis.plot(ranks, seconds, "o", color=COLOURS[method], ms=7)
        if m is not None:
            sizes = range(1, max(ranks) + 1)
            values = [epoch(method, rows[0]["samples"], size, m) for size in sizes]
            axis.plot(sizes, values, color=COLOURS[method], lw=1.8)
    axis.set_title(f"Measured (points) and model, N = {rows[0]['samples']:,}", fontsize=11)
    axis.set_xlabel(
        "processes on " + (f"{m.cores} core{'s' * (m.cores > 1)}" if m else "one machine")
    )
    axis.set_xticks(ranks)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


def draw(
    machines: Sequence[Machine], rows: Sequence[dict[str, Any]], here: Machine | None, path: Path
) -> None:
    """Writes the figure.

    Args:
        machines: Of the model's panels.
        rows: The measured rows.
        here: The model's machine for these rows, if there is one.
        path: Of a PNG file.
    """
    figure, axes = plt.subplots(1, len(machines) + 1, figsize=(4.6 * (len(machines) + 1), 4.4))
    for axis, m in zip(axes, machines, strict=False):
        draw_model(axis, m)
    axes[0].set_ylabel("seconds per epoch, of scores and selection")
    draw_measured(axes[-1], rows, here)
    names = {"replicate": "replicated scores", "plain": "sharded scores"}
    lines = [
        axes[0].plot([], [], color=COLOURS[method], lw=1.8, label=names[method])[0]
        for method in names
    ]
    figure.legend(handles=lines, loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
