# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: paired differences to the baseline, setting by setting."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import markdown
from benchmarks.common.result_files import read_lines, write_text
from benchmarks.equal_steps.config import Experiment

__all__ = ["paired", "write_report"]

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
    for name in experiment.settings:
        if name in found:
            parts += [f"## {name}", _description(experiment, name), _table(experiment, found[name])]
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


NOTES = """All runs of a setting take equally many steps, unless the method's name says otherwise.
The learning rate has one cycle over the run's own steps. Accuracies are those after the last step.
Differences to `{baseline}` are paired by seed: mean ± standard error (number of seeds). Methods are
chosen by the validation column only. The Gini coefficient tells how unevenly the visits are spread:
0 is evenly."""


def _description(experiment: Experiment, name: str) -> str:
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
    result = paired(runs, baseline, column)
    if result is None:
        return ""
    mean, error, number = result
    spread = "" if math.isnan(error) else f" ± {error:.2f}"
    return f"{mean:+.2f}{spread} ({number})"
