# SPDX-License-Identifier: Apache-2.0
"""The results of train.py: a table, a figure and the raw numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.common.plots import COLOURS, plt, save, tidy
from benchmarks.common.records import Run, group_by
from benchmarks.common.result_files import write_json

__all__ = ["accuracy_text", "make_notes", "make_table", "plot", "two_sigma", "write_runs"]


def make_table(runs: Sequence[Run], reference: str = "full") -> str:
    """One row per method, means over seeds; the speed-up is relative to the method `reference`."""
    groups = group_by(runs, "method")
    reference_seconds = _mean_seconds(groups[reference]) if reference in groups else None
    rows = [("method", "accuracy %", "samples", "seconds", "speed-up")]
    for group in groups.values():
        seconds = _mean_seconds(group)
        speed_up = f"{reference_seconds / seconds:.1f}x" if reference_seconds else "-"
        samples = round(statistics.fmean(run.samples for run in group))
        rows.append(
            (group[0].label, accuracy_text(group), f"{samples:,}", f"{seconds:.1f}", speed_up)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def make_notes(runs: Sequence[Run], *, num_test: int, note: str = "") -> str:
    """What a reader must know before comparing two rows."""
    num_seeds = len({run.seed for run in runs})
    seeds = "one seed" if num_seeds == 1 else f"mean ± standard deviation over {num_seeds} seeds"
    sigma = two_sigma(runs, num_test)
    lines = [
        f"accuracy: after the last epoch, on {num_test:,} test images, {seeds}.",
        f"  Differences below {sigma:.1f} points are within the test set's sampling error, as if",
        "  each row had images of its own; all rows share them, which mostly makes it smaller.",
        "seconds: wall-clock training with loading, scoring and selection; evaluation excluded.",
        "full data uses the same loop and loader, and torch's own loss, which scores nothing; the",
        "  learning rate of every row has the same shape, stretched over the row's own steps.",
    ]
    return "\n".join([*lines, f"data: {note}."] if note else lines)


def two_sigma(runs: Sequence[Run], num_test: int) -> float:
    """Twice the standard deviation of the difference of two accuracies, in points.

    It assumes independent test sets. On one test set the errors are correlated, and the deviation
    is mostly smaller.
    """
    rate = statistics.fmean(run.accuracy for run in runs)
    return 200 * math.sqrt(2 * rate * (1 - rate) / num_test)


def plot(runs: Sequence[Run], path: Path, *, title: str, note: str = "") -> None:
    """Writes a PNG of test accuracy against samples processed.

    With several seeds, a line is their mean and the band around it their range.
    """
    groups = group_by(runs, "method")
    figure, axes = plt.subplots(figsize=(9, 5), dpi=150)
    ends = []
    for group, colour in zip(groups.values(), cycle(COLOURS), strict=False):
        looks = list(zip(*(run.evaluations for run in group), strict=True))
        samples = [statistics.fmean(look.samples for look in each) for each in looks]
        accuracies = [[100 * look.accuracy for look in each] for each in looks]
        mean = [statistics.fmean(values) for values in accuracies]
        label = f"{group[0].label}: {mean[-1]:.1f} %"
        axes.plot(samples, mean, color=colour, linewidth=1.8, marker="o", markersize=3, label=label)
        if len(group) > 1:
            low, high = ([pick(values) for values in accuracies] for pick in (min, max))
            axes.fill_between(samples, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((samples[-1], mean[-1]))

    # Accuracies that end close together need a cut axis; its label says so.
    worst = min(mean for _, mean in ends)
    bottom = max(0.0, math.floor(100 - max(4 * (100 - worst), 1)))
    top = 100 + 0.02 * (100 - bottom)
    axes.set_ylim(bottom, top)
    axes.set_xlim(0, 1.02 * max(end[0] for end in ends))
    axes.legend(loc="lower right", frameon=False, fontsize=9, title="accuracy at the end")
    axes.set_xlabel("training samples processed")
    axes.set_ylabel("test accuracy, %" + (f" (axis starts at {bottom:.0f})" if bottom else ""))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(title, loc="left", fontsize=11)
    tidy(axes)
    seeds = max(len(group) for group in groups.values())
    spans = f"line: mean of {seeds} seeds, band: their range" if seeds > 1 else "one seed"
    save(figure, path, note=f"{spans}; {note}" if note else spans)


def write_runs(path: Path, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
    """Writes the setting and every epoch of every run as JSON."""
    write_json(path, {"setting": dict(setting), "runs": [asdict(run) for run in runs]})


def accuracy_text(group: Sequence[Run]) -> str:
    """Mean accuracy in %, with the standard deviation if there are several runs."""
    values = [100 * run.accuracy for run in group]
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _mean_seconds(group: Sequence[Run]) -> float:
    return statistics.fmean(run.seconds for run in group)
