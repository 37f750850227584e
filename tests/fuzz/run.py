# SPDX-License-Identifier: Apache-2.0
"""Runs any number of cases by hand: python -m tests.fuzz.run --cases 10000 --seed 7

A case is decided by the seed and its number: --first 1234 --cases 1 runs one again, --show prints
its script instead.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.fuzz.case import RECIPES, make_case
from tests.fuzz.worker import CASE_SECONDS, Finding, Plan, run_cases


def told(finding: Finding) -> str:
    """A finding for a reader, with a script that shows it."""
    title = f"{finding.outcome.kind}: {finding.case.recipe.name}"
    again = f"--seed {finding.seed} --first {finding.number} --cases 1"
    return "\n".join([f"=== {title}   [{again}]", finding.outcome.message, finding.case.script()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    parser.add_argument("--show", action="store_true", help="print the scripts, run nothing")
    parser.add_argument("--unlimited", action="store_true", help="no limit of memory")
    parser.add_argument("--case-seconds", type=int, default=CASE_SECONDS)
    parser.add_argument("--slowest", type=int, default=0, help="how many recipes to list by time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipes = [recipe for recipe in RECIPES if options.only in recipe.name]
    last = options.first + options.cases
    if options.show:
        for number in range(options.first, last):
            print(make_case(options.seed, number, recipes).script(), end="\n\n")
        return 0
    start = time.monotonic()
    plan = Plan(
        options.seed, recipes, limited=not options.unlimited, case_seconds=options.case_seconds
    )
    report = run_cases(plan, options.first, last)
    for finding in report.findings:
        print(told(finding), end="\n\n")
    for name, seconds in sorted(report.seconds.items(), key=lambda item: -item[1])[
        : options.slowest
    ]:
        print(f"{seconds:7.2f} s  {name}")
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(report.kinds.items()))
    print(f"{options.cases} cases in {time.monotonic() - start:.0f} s: {kinds}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
