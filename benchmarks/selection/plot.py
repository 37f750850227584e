# SPDX-License-Identifier: Apache-2.0
"""The figure of bench_selection.py. Draws it again from a JSON file:

python -m benchmarks.selection.plot DIR/bench_selection.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.common.plots import COLOURS, plt, save, tidy
from benchmarks.common.timing import median_ms
from benchmarks.selection.report import Row, rival_seconds

OURS = COLOURS[4]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG with a panel for each part that was measured and has one."""
    panels = [
        (part, draw)
        for part, draw in {"ops": _sizes, "distributions": _bars, "shares": _shares}.items()
        if any(row["part"] == part for row in rows)
    ]
    if not panels:
        return
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.5), dpi=150, squeeze=False
    )
    for (part, draw), axis in zip(panels, axes[0], strict=True):
        draw(axis, [row for row in rows if row["part"] == part])
        tidy(axis, grid=None)
        axis.legend(frameon=False, fontsize=7)
    save(figure, path)


def _sizes(axis: Axes, rows: Sequence[Row]) -> None:
    _curves(axis, [row for row in rows if row["op"] == "select_top_k, ascending"], "num_samples")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("N")
    axis.set_ylabel("ms")
    axis.set_title(f"top-k, k = {rows[0]['keep']:.2g} N", loc="left", fontsize=10)


def _shares(axis: Axes, rows: Sequence[Row]) -> None:
    _curves(axis, rows, "keep")
    axis.set_yscale("log")
    axis.set_xlabel("k / N")
    axis.set_ylabel("ms")
    axis.set_title(f"top-k, N = {rows[0]['num_samples']:,}", loc="left", fontsize=10)


def _curves(axis: Axes, rows: Sequence[Row], key: str) -> None:
    """A line for our call, for each rival, and for the plain read if it was timed."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted(rows, key=lambda row: row[key]):
        reads = {"plain read": row["seconds"]["read"]} if "read" in row["seconds"] else {}
        for name, seconds in {
            "ours": row["seconds"]["ours"],
            **rival_seconds(row),
            **reads,
        }.items():
            xs, ys = lines.setdefault(name, ([], []))
            xs.append(row[key])
            ys.append(median_ms(seconds))
    others = iter([colour for colour in COLOURS if colour != OURS] * len(lines))
    for name, (xs, ys) in lines.items():
        style = "--" if name == "plain read" else "-"
        colour = OURS if name == "ours" else next(others)
        axis.plot(xs, ys, style, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)


def _bars(axis: Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    ours = [median_ms(row["seconds"]["ours"]) for row in rows]
    axis.barh([place + 0.2 for place in places], ours, 0.4, color=OURS, label="ours")
    others = [(place, rival_seconds(row).get("torch.topk")) for place, row in enumerate(rows)]
    known = [(place, median_ms(seconds)) for place, seconds in others if seconds]
    if known:
        axis.barh(
            [place - 0.2 for place, _ in known],
            [ms for _, ms in known],
            0.4,
            color=COLOURS[1],
            label="torch.topk",
        )
    axis.set_yticks(list(places), [row["scores"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    title = f"top-k by distribution, N = {rows[0]['num_samples']:,}"
    axis.set_title(title, loc="left", fontsize=10)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    plot(json.loads(source.read_text())["rows"], source.with_suffix(".png"))
