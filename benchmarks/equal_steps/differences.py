# SPDX-License-Identifier: Apache-2.0
"""Differences of a method's runs to those of the baseline, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

__all__ = ["Found", "Results", "Runs", "difference_text", "paired"]

Runs = Mapping[int, Mapping[str, Any]]  # by seed
Results = Mapping[str, Runs]  # by method
Found = Mapping[str, Results]  # by setting


def paired(runs: Runs, baseline: Runs, column: str) -> tuple[float, float, int] | None:
    """Mean paired difference, its standard error (NaN for one seed), and the number of seeds."""
    differences = [
        runs[seed][column] - baseline[seed][column]
        for seed in sorted(runs.keys() & baseline.keys())
        if runs[seed][column] is not None and baseline[seed][column] is not None
    ]
    if not differences:
        return None
    return statistics.fmean(differences), standard_error(differences), len(differences)


def standard_error(values: list[float]) -> float:
    """Of the mean of some values; NaN for one."""
    number = len(values)
    return statistics.stdev(values) / math.sqrt(number) if number > 1 else math.nan


def difference_text(result: tuple[float, float, int] | None) -> str:
    """What `paired` returned, for a table."""
    if result is None:
        return ""
    mean, error, number = result
    spread = "" if math.isnan(error) else f" ± {error:.2f}"
    return f"{mean:+.2f}{spread} ({number})"
