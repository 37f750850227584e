# SPDX-License-Identifier: Apache-2.0
"""Were the goals of an experiment reached?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.common import markdown
from benchmarks.equal_steps.config import Experiment, Goal
from benchmarks.equal_steps.differences import Found, difference_text, paired
from benchmarks.equal_steps.savings import Saving, saving

__all__ = ["goals_table"]

UNDECIDED = "one seed: not decided"


def goals_table(experiment: Experiment, found: Found) -> str:
    """One row for each goal and setting: reached, missed, or not run.

    With `Experiment.fresh_from`, the same again for the seeds that nothing was chosen with.
    """
    head, fresh = ["goal", "setting", "all seeds", "verdict"], experiment.fresh_from
    if fresh:
        head += [f"seeds from {fresh} on", "verdict"]
    rows: list[Sequence[str]] = [head]
    for goal in experiment.goals:
        for setting in goal.settings:
            row = [goal.text, setting, *_judged(experiment, found, goal, setting)]
            if fresh:
                row += _judged(experiment, _since(found, fresh), goal, setting)
            rows.append(row)
    return markdown.table(rows)


def _since(found: Found, first: int) -> Found:
    """The runs whose seeds are at least `first`."""
    return {
        setting: {
            method: {seed: run for seed, run in runs.items() if seed >= first}
            for method, runs in results.items()
        }
        for setting, results in found.items()
    }


def _judged(experiment: Experiment, found: Found, goal: Goal, setting: str) -> tuple[str, str]:
    """What was found, and whether it is enough."""
    if goal.times is not None:
        saved = saving(experiment, found, setting, goal.method)
        if saved is None:
            return "", "not run"
        return f"{saved} times ({saved.seeds})", _verdict_of_times(goal.times, saved)
    runs = found.get(setting, {})
    result = paired(runs.get(goal.method, {}), runs.get(experiment.baseline, {}), "test")
    if result is None:
        return "", "not run"
    mean, error, number = result
    if number == 1:
        return difference_text(result), UNDECIDED
    reached = mean >= -error if goal.least is None else mean >= goal.least
    return difference_text(result), _word(reached)


def _verdict_of_times(least: float, saved: Saving) -> str:
    if saved.seeds == 1:
        return UNDECIDED
    if math.isinf(saved.needed) and saved.largest / saved.budget < least:
        return "no run on full data was long enough"
    return _word(saved.times >= least)


def _word(reached: bool) -> str:
    return "reached" if reached else "**missed**"
