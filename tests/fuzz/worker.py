# SPDX-License-Identifier: Apache-2.0
"""Runs cases in forked processes, so that none ends with a segmentation fault or a hang."""

from __future__ import annotations

import ast
import faulthandler
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import torch

from tests.fuzz.case import RECIPES, Case, make_case
from tests.fuzz.judge import Outcome, run_case
from tests.fuzz.recipe import Recipe

CASE_SECONDS = 60  # of one case; 2^32 samples in ascending order take 10
BATCH_CASES = 200
BATCH_SECONDS = 300
MEMORY = 3 << 30  # more than a process has at its start

Mend = Callable[[dict[str, Any]], None]


class Finding(NamedTuple):
    """A case whose outcome is wrong."""

    seed: int
    number: int
    case: Case
    outcome: Outcome


class Report(NamedTuple):
    """What became of a number of cases: how many of each kind, and which were wrong."""

    kinds: dict[str, int]
    findings: list[Finding]
    seconds: dict[str, float]  # by recipe


class Plan(NamedTuple):
    """What to run.

    Attributes:
        seed: Of the cases.
        recipes: The cases' recipes, in their order; None: all.
        mend: Plants a fault; see `run_case`.
        limited: Whether to limit the memory; sanitizers take address space without end.
        case_seconds: Of one case.
    """

    seed: int
    recipes: list[Recipe] | None = None
    mend: Mend | None = None
    limited: bool = True
    case_seconds: int = CASE_SECONDS


def run_cases(plan: Plan, first: int, last: int) -> Report:
    """Runs the cases from `first` to `last - 1`, each batch in a process of its own."""
    report = Report({}, [], {})
    number = first
    while number < last:
        number = _run_batch(plan, number, min(number + BATCH_CASES, last), report)
    return report


def _run_batch(plan: Plan, first: int, last: int, report: Report) -> int:
    """Runs a batch as far as its process lives; returns the number of the next case."""
    started, began = first - 1, time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        child = _Child(lambda send: _work(plan, first, last, send), errors)
        for kind, message in child.lines(BATCH_SECONDS):
            if kind == "start":
                started, began = int(message), time.monotonic()
            else:
                outcome = Outcome(kind, message)
                _enter(plan, started, outcome, time.monotonic() - began, report)
        status = child.wait()
        if status == 0:
            return last
        told = _written(errors)
    is_late = status == -signal.SIGKILL or "Timeout (" in told
    outcome = Outcome("hang" if is_late else "crash", f"exit status {status}\n{told}")
    _enter(plan, max(started, first), outcome, time.monotonic() - began, report)
    return max(started, first) + 1


def _enter(plan: Plan, number: int, outcome: Outcome, seconds: float, report: Report) -> None:
    report.kinds[outcome.kind] = report.kinds.get(outcome.kind, 0) + 1
    recipes = RECIPES if plan.recipes is None else plan.recipes
    name = recipes[number % len(recipes)].name
    report.seconds[name] = report.seconds.get(name, 0.0) + seconds
    if not outcome.is_right:
        case = make_case(plan.seed, number, plan.recipes)
        report.findings.append(Finding(plan.seed, number, *shortened(plan, case, outcome)))


def shortened(plan: Plan, case: Case, outcome: Outcome) -> tuple[Case, Outcome]:
    """The case with as few malformed arguments as show a wrong outcome of the same kind."""
    for name in list(case.malformed):
        if len(case.malformed) == 1:
            break
        fewer = case.without(name)
        found = alone(plan, fewer)
        if found.kind == outcome.kind:
            case, outcome = fewer, found
    return case, outcome


def alone(plan: Plan, case: Case) -> Outcome:
    """What becomes of a case in a process of its own."""
    found: list[Outcome] = []
    with tempfile.TemporaryFile("w+") as errors:
        child = _Child(lambda send: _work_one(plan, case, send), errors)
        found += [Outcome(*line) for line in child.lines(BATCH_SECONDS)]
        status = child.wait()
        if status == 0:
            return found[0]
        told = _written(errors)
    is_late = status == -signal.SIGKILL or "Timeout (" in told
    return Outcome("hang" if is_late else "crash", f"exit status {status}\n{told}")


def _written(errors: IO[str]) -> str:
    """Returns the end of what a process wrote, without the long list of its modules."""
    errors.seek(0)
    text = errors.read()
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith("Extension modules")
    )[-6000:]


# ---- in the processes

Send = Callable[[str, str], None]


def _work(plan: Plan, first: int, last: int, send: Send) -> None:
    _prepare(plan)
    for number in range(first, last):
        send("start", str(number))
        faulthandler.dump_traceback_later(plan.case_seconds, exit=True, file=2)
        outcome = run_case(make_case(plan.seed, number, plan.recipes), plan.mend)
        faulthandler.cancel_dump_traceback_later()
        send(*outcome)


def _work_one(plan: Plan, case: Case, send: Send) -> None:
    _prepare(plan)
    faulthandler.dump_traceback_later(plan.case_seconds, exit=True, file=2)
    send(*run_case(case, plan.mend))


def _prepare(plan: Plan) -> None:
    faulthandler.enable(2)
    os.chdir(tempfile.gettempdir())  # some cases write files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    if plan.limited:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


class _Child:
    """A forked process that sends pairs of strings, and whose stderr goes to a file."""

    def __init__(self, work: Callable[[Send], None], errors: IO[str]) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(reading)
                os.dup2(errors.fileno(), 2)
                # What a case prints goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

                def send(kind: str, message: str) -> None:
                    os.write(writing, f"{kind}\t{message!a}\n".encode())

                work(send)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        self._pipe = reading

    def lines(self, seconds: float) -> Iterator[tuple[str, str]]:
        """Yields what it sends until it ends; kills it if that takes too long."""
        end, rest = time.monotonic() + seconds, b""
        while True:
            ready, _, _ = select.select([self._pipe], [], [], max(end - time.monotonic(), 0))
            if not ready:
                os.kill(self._pid, signal.SIGKILL)
                break
            if not (piece := os.read(self._pipe, 1 << 16)):
                break
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                kind, message = line.decode().split("\t", 1)
                yield kind, str(ast.literal_eval(message))
        os.close(self._pipe)

    def wait(self) -> int:
        """Returns the exit status; negative for a signal."""
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)
