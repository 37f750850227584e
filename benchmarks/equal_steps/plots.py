# SPDX-License-Identifier: Apache-2.0
"""The figure of an experiment: differences to the baseline, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.plots import COLOURS, plt, save, tidy
from benchmarks.equal_steps.config import Difference, Experiment

__all__ = ["plot_differences"]

WORST = -2.0  # points; what is further left is written as a number


def plot_differences(
    experiment: Experiment, differences: Sequence[Difference], path: Path, labels: Mapping[str, str]
) -> None:
    """Draws one line for each method of each setting.

    Args:
        experiment: Gives the title and the baseline.
        differences: In the order from above.
        path: Of the PNG.
        labels: What to call each setting.
    """
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * len(differences)), dpi=150)
    names, last, shown = [], "", 0
    for line, (setting, method, mean, error, number) in enumerate(differences):
        colour = COLOURS[2] if method.startswith("default") else COLOURS[1]
        if mean < WORST:
            axes.text(WORST, -line, f" {mean:+.1f}", va="center", fontsize=8, color=colour)
        else:
            axes.errorbar(mean, -line, xerr=error, fmt="o", color=colour, markersize=4, capsize=2)
        label = experiment.methods[method].label
        if setting != last:
            label = f"{labels[setting]}:  {label}"
        names.append(f"{label} ({number})" if setting != last or number != shown else label)
        if setting != last and line:
            axes.axhline(0.5 - line, color="#dddddd", linewidth=0.8)
        last, shown = setting, number
    axes.axvline(0, color=COLOURS[0], linewidth=1)
    axes.set_yticks([-line for line in range(len(names))], names, fontsize=7)
    ends = [
        WORST if mean < WORST else mean if math.isnan(error) else mean - error  # NaN: one seed
        for _, _, mean, error, _ in differences
    ]
    axes.set_xlim(left=min(ends) - 0.1)
    axes.set_xlabel(
        f"points of test accuracy above {experiment.methods[experiment.baseline].label}"
    )
    axes.set_title(experiment.title, loc="left", fontsize=10)
    tidy(axes, grid="x")
    save(figure, path, note="mean and standard error of paired seeds; in brackets their number")
