# SPDX-License-Identifier: Apache-2.0
"""How many steps full data needs for the accuracy of a method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.common import markdown
from benchmarks.equal_steps.config import Experiment
from benchmarks.equal_steps.differences import Found, standard_error

__all__ = ["Saving", "saving", "steps_saved"]

Curve = list[tuple[float, float]]  # budgets, rising, and accuracies


@dataclass(frozen=True)
class Saving:
    """What full data must cost to reach a method's accuracy.

    Attributes:
        budget: Of the setting, in epochs' worth of steps.
        full: Mean accuracy of full data with this budget, in %.
        own: That of the method.
        needed: The budget at which full data has the method's accuracy. 0: less than the least
            budget that was run. Infinite: more than the largest.
        error: Standard error of `times` over the seeds, each with its own curve. NaN if one of
            them leaves the curve, or if there is one seed.
        largest: The largest budget that was run.
        seeds: How many seeds have all of the runs.
    """

    budget: float
    full: float
    own: float
    needed: float
    error: float
    largest: float
    seeds: int

    @property
    def times(self) -> float:
        """How many times as many steps full data needs."""
        return self.needed / self.budget

    def __str__(self) -> str:
        """The factor, for a table."""
        if not self.needed:
            return "less than the least budget"
        if math.isinf(self.needed):
            return f"more than {self.largest / self.budget:.2f}"
        return f"{self.times:.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


def saving(experiment: Experiment, found: Found, setting: str, method: str) -> Saving | None:
    """Interpolates the runs on full data, linearly in the logarithm of the budget.

    The factor is that of the mean accuracies over the seeds that have all runs.

    Returns:
        None if `setting` is none of `Experiment.steps`, or if runs are missing.
    """
    full = {
        name: found.get(name, {}).get(experiment.baseline, {}) for name in experiment.steps.settings
    }
    full = {name: runs for name, runs in full.items() if runs}
    runs = found.get(setting, {}).get(method, {})
    seeds = sorted(set(runs).intersection(*full.values()))
    if len(full) < 2 or setting not in full or not seeds:
        return None
    curves: dict[int, Curve] = {
        seed: sorted(
            (experiment.settings[name].budget, own[seed]["test"]) for name, own in full.items()
        )
        for seed in seeds
    }
    mean: Curve = [
        (points[0][0], statistics.fmean(accuracy for _, accuracy in points))
        for points in zip(*curves.values(), strict=True)
    ]
    budget = experiment.settings[setting].budget
    own = statistics.fmean(runs[seed]["test"] for seed in seeds)
    needed = [budget_for(runs[seed]["test"], curves[seed]) for seed in seeds]
    on_curve = all(0 < one < math.inf for one in needed)
    return Saving(
        budget,
        dict(mean)[budget],
        own,
        budget_for(own, mean),
        standard_error([one / budget for one in needed]) if on_curve else math.nan,
        mean[-1][0],
        len(seeds),
    )


def budget_for(accuracy: float, curve: Curve) -> float:
    """The least budget at which the curve reaches an accuracy; 0 if below it, infinite if never."""
    if accuracy < curve[0][1]:
        return 0.0
    for (budget, low), (next_budget, high) in pairwise(curve):
        if accuracy <= low:
            return budget
        if accuracy <= high:
            part = (accuracy - low) / (high - low)
            return budget * math.exp(part * math.log(next_budget / budget))
    return math.inf


def steps_saved(experiment: Experiment, found: Found) -> str:
    """One row for each budget with runs of the method of `Experiment.steps`."""
    plan = experiment.steps
    rows: list[Sequence[str]] = [
        (
            "epochs' worth of steps",
            "full data, %",
            "method, %",
            "full data needs",
            "times as many",
            "seeds",
        )
    ]
    for name in plan.settings:
        one = saving(experiment, found, name, plan.method)
        if one is None:
            continue
        needed = f"{one.needed:.1f}"
        if math.isinf(one.needed):
            needed = f"more than {one.largest:g}"
        elif not one.needed:
            needed = "less than the least budget"
        numbers = (f"{one.budget:g}", f"{one.full:.2f}", f"{one.own:.2f}")
        rows.append((*numbers, needed, str(one), str(one.seeds)))
    if len(rows) == 1:
        return ""
    return f"{experiment.methods[plan.method].label}.\n\n{markdown.table(rows)}"
