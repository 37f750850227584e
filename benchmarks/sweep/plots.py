# SPDX-License-Identifier: Apache-2.0
"""The figures of a sweep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.plots import COLOURS, plt, save, tidy
from benchmarks.common.records import Run, group_by
from benchmarks.training.methods import METHODS

__all__ = ["plot_curves", "plot_keeps", "style"]

LINES = {"full": "-", "short": "-", "static": "--", "dynamic": "-", "infobatch": "-"}


def style(method: str) -> dict[str, Any]:
    """Colour and line of a method: dashed for static ones, black and grey for full data."""
    kind = METHODS[method].kind
    if kind in ("full", "short"):
        colour = COLOURS[0 if kind == "full" else 1]
    else:
        static = kind == "static"
        alike = [name for name, other in METHODS.items() if (other.kind == "static") == static]
        alike = [name for name in alike if METHODS[name].kind not in ("full", "short", "host")]
        colour = COLOURS[2:][alike.index(method) % len(COLOURS[2:])]
    return {"color": colour, "linestyle": LINES[kind], "linewidth": 1.6}


def plot_curves(runs: Sequence[Run], path: Path, *, axis: str, title: str) -> None:
    """Test accuracy against "seconds" (static scoring first) or "samples", one panel per keep.

    A line is the mean over the seeds, a band their range.
    """
    keeps: list[float | None] = [*sorted({run.keep for run in runs if run.keep is not None})]
    keeps = keeps or [None]
    figure, panels = plt.subplots(
        1, len(keeps), figsize=(5.2 * len(keeps) + 1.5, 5), dpi=120, sharey=True, squeeze=False
    )
    ends = []
    for panel, keep in zip(panels[0], keeps, strict=True):
        here = [run for run in runs if run.keep in (keep, None)]
        for method, group in group_by(here, "method").items():
            looks = list(zip(*(run.evaluations for run in group), strict=False))
            before = statistics.fmean(run.static_seconds for run in group)
            before = before if axis == "seconds" else 0.0
            x = [before + statistics.fmean(getattr(look, axis) for look in each) for each in looks]
            values = [[100 * look.accuracy for look in each] for each in looks]
            mean = [statistics.fmean(each) for each in values]
            panel.plot(x, mean, label=METHODS[method].label, **style(method))
            low, high = ([pick(each) for each in values] for pick in (min, max))
            panel.fill_between(x, low, high, color=style(method)["color"], alpha=0.12, linewidth=0)
            ends.append(mean[-1])
        panel.set_title("" if keep is None else f"keep {keep:g}", loc="left", fontsize=11)
        panel.set_xlabel("seconds, static scoring first" if axis == "seconds" else "samples")
        if axis == "samples":
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.set_xlim(left=0)
        tidy(panel)
    panels[0][0].set_ylabel("test accuracy, %")
    panels[0][0].set_ylim(*_range(ends))
    _finish(figure, panels[0][-1], path, title)


def plot_keeps(runs: Sequence[Run], path: Path, *, title: str) -> None:
    """Accuracy at the end against keep: means, with bars of one standard deviation."""
    figure, panel = plt.subplots(figsize=(8, 5), dpi=120)
    keeps = sorted({run.keep for run in runs if run.keep is not None})
    ends = []
    for number, (method, group) in enumerate(group_by(runs, "method").items()):
        groups = group_by(group, "keep")
        points = [
            (keep, [100 * run.accuracy for run in groups.get(keep, groups.get(None, []))])
            for keep in keeps or [1.0]
        ]
        points = [(keep, values) for keep, values in points if values]
        mean = [statistics.fmean(values) for _, values in points]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        x = [keep + 0.002 * (number - 5) for keep, _ in points]  # bars beside, not on each other
        label = METHODS[method].label
        panel.errorbar(x, mean, spread, label=label, capsize=2, marker="o", ms=3, **style(method))
        ends += mean
    panel.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
    panel.set_xlabel("keep (share of the training set per epoch)")
    panel.set_ylabel("test accuracy at the end, %")
    panel.set_ylim(*_range(ends))
    tidy(panel)
    _finish(figure, panel, path, title)


def _range(ends: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis that separate the ends of all lines."""
    low, high = min(ends), max(ends)
    margin = max(1.0, 0.4 * (high - low))
    return max(0.0, math.floor(low - margin)), min(100.5, math.ceil(high + 0.25 * margin))


def _finish(figure: Figure, panel: Axes, path: Path, title: str) -> None:
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    save(figure, path)
