# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: paired differences to the baseline, setting by setting."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import markdown
from benchmarks.common.result_files import read_lines, write_text
from benchmarks.equal_steps.config import Difference, Experiment, Goal

__all__ = ["description", "goals_table", "paired", "steps_saved", "write_report"]

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by method and seed


def write_report(experiment: Experiment, out: Path) -> None:
    """Writes report.md beside the results that belong to the experiment."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    keys = {experiment.key(cell) for cell in experiment.cells}
    for entry in read_lines(out / "results.jsonl"):
        if entry["key"] in keys:
            found[entry["setting"]][entry["method"]][entry["seed"]] = entry
    if not found:
        return
    parts = [f"# {experiment.title}", NOTES.format(baseline=experiment.baseline)]
    if experiment.goals:
        parts += ["## Goals", goals_table(experiment, found)]
    if saved := steps_saved(experiment, found):
        parts += ["## Steps for the same accuracy", saved]
    for name in experiment.settings:
        if name in found:
            parts += [f"## {name}", description(experiment, name), _table(experiment, found[name])]
    if figure := _figure(experiment, found, out):
        parts.insert(2, figure)
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
Differences to `{baseline}` are paired by seed: mean ± standard error (number of seeds). Methods are
chosen by the validation column only. The Gini coefficient tells how unevenly the visits are spread:
0 is evenly."""


def goals_table(experiment: Experiment, found: Mapping[str, Results]) -> str:
    """One row for each goal and setting: reached, missed, or not run."""
    rows: list[Sequence[str]] = [("goal", "setting", "difference", "verdict")]
    for goal in experiment.goals:
        for setting in goal.settings:
            runs = found.get(setting, {})
            result = paired(runs.get(goal.method, {}), runs.get(experiment.baseline, {}), "test")
            verdict = "not run" if result is None else _verdict(goal, *result)
            rows.append((goal.text, setting, _text(result), verdict))
    return markdown.table(rows)


def _verdict(goal: Goal, mean: float, error: float, number: int) -> str:
    if number == 1:
        return "one seed: not decided"
    reached = mean >= -error if goal.least is None else mean >= goal.least
    return "reached" if reached else "**missed**"


def steps_saved(experiment: Experiment, found: Mapping[str, Results]) -> str:
    """What full data must cost to reach a method's accuracy, interpolated between its runs.

    Means over the seeds that all of these settings have; linear in the logarithm of the budget.
    """
    plan = experiment.steps
    full = {name: found.get(name, {}).get(experiment.baseline, {}) for name in plan.settings}
    full = {name: runs for name, runs in full.items() if runs}
    seeds = set.intersection(*(set(runs) for runs in full.values())) if full else set()
    if len(full) < 2 or not seeds:
        return ""
    curve = sorted(
        (experiment.settings[name].budget, statistics.fmean(runs[seed]["test"] for seed in seeds))
        for name, runs in full.items()
    )
    rows: list[Sequence[str]] = [
        ("epochs' worth of steps", "full data, %", "method, %", "full data needs", "times as many")
    ]
    for name in plan.settings:
        runs = found.get(name, {}).get(plan.method, {})
        if name not in full or not seeds <= set(runs):
            continue
        budget = experiment.settings[name].budget
        own = statistics.fmean(runs[seed]["test"] for seed in seeds)
        needed = _budget_for(own, curve)
        beyond = f"more than {curve[-1][0]:g}"
        rows.append(
            (
                f"{budget:g}",
                f"{dict(curve)[budget]:.2f}",
                f"{own:.2f}",
                beyond if needed is None else f"{needed:.1f}",
                "" if needed is None else f"{needed / budget:.2f}",
            )
        )
    label = experiment.methods[plan.method].label
    return f"{label}; {len(seeds)} seeds.\n\n{markdown.table(rows)}" if len(rows) > 1 else ""


def _budget_for(accuracy: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The least budget at which the curve reaches an accuracy; None if it never does."""
    if accuracy <= curve[0][1]:
        return curve[0][0]
    for (budget, low), (next_budget, high) in pairwise(curve):
        if low < accuracy <= high:
            part = (accuracy - low) / (high - low)
            return budget * math.exp(part * math.log(next_budget / budget))
    return None


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
    rows: list[Sequence[str]] = [
        ("method", "test %", "difference", "validation difference", "training %", "Gini", "s")
    ]
    baseline = found.get(experiment.baseline, {})
    for name, method in experiment.methods.items():
        runs = found.get(name)
        if not runs:
            continue

        def mean(column: str, runs: Mapping[int, Mapping[str, Any]] = runs) -> float:
            return statistics.fmean(run[column] for run in runs.values())

        own = name == experiment.baseline
        rows.append(
            (
                method.label,
                f"{mean('test'):.2f}",
                "" if own else _difference(runs, baseline, "test"),
                "" if own else _difference(runs, baseline, "validation"),
                f"{mean('train'):.1f}",
                f"{mean('gini'):.2f}",
                f"{mean('cpu_seconds'):.0f}",
            )
        )
    return markdown.table(rows)


def paired(
    runs: Mapping[int, Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]], column: str
) -> tuple[float, float, int] | None:
    """Mean paired difference, its standard error (NaN for one seed), and the number of seeds."""
    differences = [
        runs[seed][column] - baseline[seed][column]
        for seed in sorted(runs.keys() & baseline.keys())
        if runs[seed][column] is not None and baseline[seed][column] is not None
    ]
    if not differences:
        return None
    number = len(differences)
    error = statistics.stdev(differences) / math.sqrt(number) if number > 1 else math.nan
    return statistics.fmean(differences), error, number


def _difference(
    runs: Mapping[int, Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]], column: str
) -> str:
    return _text(paired(runs, baseline, column))


def _text(result: tuple[float, float, int] | None) -> str:
    if result is None:
        return ""
    mean, error, number = result
    spread = "" if math.isnan(error) else f" ± {error:.2f}"
    return f"{mean:+.2f}{spread} ({number})"
