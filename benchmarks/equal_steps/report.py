# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: paired differences to the baseline, setting by setting."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import markdown
from benchmarks.common.result_files import read_lines, write_text
from benchmarks.equal_steps.config import Difference, Experiment
from benchmarks.equal_steps.differences import Results, Runs, difference_text, paired
from benchmarks.equal_steps.goals import goals_table
from benchmarks.equal_steps.savings import steps_saved

__all__ = ["description", "write_report"]


def write_report(experiment: Experiment, out: Path) -> None:
    """Writes report.md beside the results that belong to the experiment."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    keys = {experiment.key(cell) for cell in experiment.cells}
    for entry in read_lines(out / "results.jsonl"):
        if entry["key"] in keys:
            found[entry["setting"]][entry["method"]][entry["seed"]] = entry
    if not found:
        return
    seconds = [
        run["cpu_seconds"]
        for results in found.values()
        for runs in results.values()
        for run in runs.values()
    ]
    notes = NOTES.format(
        baseline=experiment.baseline, number=len(seconds), hours=sum(seconds) / 3600
    )
    parts = [f"# {experiment.title}", notes]
    if experiment.fresh_from:
        parts.append(FRESH.format(first=experiment.fresh_from))
    if experiment.goals:
        parts += ["## Goals", goals_table(experiment, found)]
    if saved := steps_saved(experiment, found):
        parts += ["## Steps for the same accuracy", saved]
    for name in experiment.settings:
        if name in found:
            parts += [f"## {name}", description(experiment, name), _table(experiment, found[name])]
    if figure := _figure(experiment, found, out):
        parts.insert(parts.index(notes) + 1, figure)
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


def _figure(experiment: Experiment, found: Mapping[str, Results], out: Path) -> str:
    """Draws the differences of at least two seeds; returns the figure's line of the report."""
    differences: list[Difference] = []
    for setting in experiment.settings:
        runs = found.get(setting, {})
        for method in experiment.methods:
            if method != experiment.baseline:
                result = paired(runs.get(method, {}), runs.get(experiment.baseline, {}), "test")
                if result is not None and result[2] > 1:
                    differences.append((setting, method, *result))
    if not differences:
        return ""
    try:
        from benchmarks.equal_steps.plots import plot_differences
    except ImportError as error:
        return f"No figure: {error}."
    labels = {name: name for name in experiment.settings}
    plot_differences(experiment, differences, out / "differences.png", labels)
    return "![Differences to the baseline](differences.png)"


NOTES = """All runs of a setting take equally many steps, unless the method's name says otherwise.
The learning rate has one cycle over the run's own steps. Accuracies are those after the last step.
Differences to `{baseline}` are paired by seed: mean ± standard error (number of seeds). The Gini
coefficient tells how unevenly the visits are spread: 0 is evenly. The tilt tells how far `adaptive`
keeps to the harder half, in the mean over the run: 0 is a uniform draw. Seconds are those of the
training in the mean. Wall time depends on what else the machine did. {number} runs took {hours:.1f}
core-hours in all."""

FRESH = """The window of `adaptive`, and that it draws from a half, were chosen with seeds below
{first} in these settings, by their accuracy on test and validation samples. Their gains may be too
high. Nothing was chosen with the seeds from {first} on."""


def description(experiment: Experiment, name: str) -> str:
    """Returns a sentence on the data, the network and the budget of a setting."""
    setting = experiment.settings[name]
    parts = [
        f"{setting.data}, {setting.model}, {setting.budget:g} epochs' worth of steps",
        f"batches of {setting.batch_size}, learning rate {setting.lr:g}",
    ]
    if setting.label_noise:
        parts.append(f"{100 * setting.label_noise:g} % wrong training labels")
    if setting.imbalance > 1:
        parts.append(f"class sizes {setting.imbalance:g} : 1")
    return ", ".join(parts) + "."


def _table(experiment: Experiment, found: Results) -> str:
    tilted = any(run.get("tilt") is not None for runs in found.values() for run in runs.values())
    rows: list[Sequence[str]] = [
        (
            *("method", "test %", "difference", "validation difference", "training %", "Gini"),
            *(("tilt",) if tilted else ()),
            *("wall time, s", "CPU time, s"),
        )
    ]
    baseline = found.get(experiment.baseline, {})
    for name, method in experiment.methods.items():
        runs = found.get(name)
        if not runs:
            continue

        def mean(column: str, digits: int, runs: Runs = runs) -> str:
            """Of the seeds that have a number."""
            numbers = [run[column] for run in runs.values() if run.get(column) is not None]
            return f"{statistics.fmean(numbers):.{digits}f}" if numbers else ""

        def difference(column: str, name: str = name, runs: Runs = runs) -> str:
            if name == experiment.baseline:
                return ""
            return difference_text(paired(runs, baseline, column))

        rows.append(
            (
                *(method.label, mean("test", 2), difference("test"), difference("validation")),
                *(mean("train", 1), mean("gini", 2)),
                *((mean("tilt", 2),) if tilted else ()),
                *(mean("seconds", 0), mean("cpu_seconds", 0)),
            )
        )
    return markdown.table(rows)
