# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of CI, two at a time. `.ci/run` calls it once the machine has a compiler.

    .ci/run                 # all jobs but those that run by request only
    .ci/run lint docs       # these, and what they need first
    .ci/run --list          # names, targets, needs

A job is a target of make. It writes build/ci/NAME.log; a line tells its result and time. A failed
job skips those that need it. The ends of the failed jobs' logs are printed last. Needs the standard
library only: it runs before there is a .venv.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_toolkit import find

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "ci"
SLOTS = 2
LAST_LINES = 150
LIMIT_SECONDS = 3600.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A target of make. It takes `slots` of two, and starts after the jobs that it needs.

    It also waits for those of `after`, if they run, but whether they pass does not matter.
    """

    name: str
    make: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    slots: int = 1
    prepares: bool = False  # only makes what other jobs need
    by_request: bool = False  # runs only if it is named


# One of each generation. all-kernels, and the public workflow, compile for those between too.
KERNEL_ARCHS = "80 90 100 120"
# setuptools writes the metadata of the tree anew in this job, and tests of the project read it.
METADATA = ("wheel",)
# Where the kernels need nvcc's pip wheels, these come after the build: it is for the CPU then.
INSTALLS_NVCC = () if find("13")[0] else ("build",)
AFTER_NVCC = ("kernels",) if INSTALLS_NVCC else ()
# In the order in which they start. The kernels need no torch, so they compile beside the set-up.
# Of the others, what fails soonest comes first, then the longest.
JOBS = (
    Job("venv", ("venv",), slots=2, prepares=True),
    Job("tools", ("tools",), ("venv",), prepares=True),
    Job("kernels", ("kernels", "JOBS=1", f"ARCHS={KERNEL_ARCHS}"), ("venv",), INSTALLS_NVCC),
    Job("lint", ("lint",), ("tools",)),
    Job("build", ("build",), ("tools",), prepares=True),
    Job("wheel", ("wheel",), ("tools",), after=("build",)),
    Job("docs", ("docs",), ("build",), METADATA),
    Job("fast", ("test-fast",), ("build",), METADATA),
    Job("ptx", ("test-ptx",), ("build",), AFTER_NVCC),
    Job("emulator", ("test-emulator",), ("build",)),
    Job("slow", ("test-slow",), ("build",), METADATA),
    Job("distributed", ("test-distributed",), ("build",)),
    Job("all-kernels", ("kernels",), ("venv",), slots=2, by_request=True),
    Job("matrix", ("matrix", "CELLS=2.11 2.15"), ("wheel",)),
    Job("demo", ("demo",), ("build",), METADATA),
)
# Where this job fails, no other runs.
FIRST = "lint"


def chosen(names: Sequence[str], jobs: Sequence[Job] = JOBS) -> list[Job]:
    """The jobs of these names and what they need, in their order; no names: all by default."""
    by_name = {job.name: job for job in jobs}
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for needed in by_name[name].needs:
            want(needed)

    for name in names or [job.name for job in jobs if not job.by_request]:
        want(name)
    return [job for job in jobs if job.name in wanted]


def environment(job: Job, given: Mapping[str, str], alone: bool = False) -> dict[str, str]:
    """What a job runs with. Two jobs at once share the cores, so each has one thread."""
    # The job kernels compiles for other architectures, so the module needs only one.
    # PIP_COMPILE: each file of a package is compiled at its first import, not by pip.
    env = {"TORCH_CUDA_ARCH_LIST": "9.0", "PYTHONUNBUFFERED": "1", "PIP_COMPILE": "0"}
    if job.slots == 1 and not alone:
        env |= {"OMP_NUM_THREADS": "1", "MAX_JOBS": "1"}
    # make and pytest must not take over the settings of a make or a pytest around this script.
    left_out = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")
    return {**env, **{name: value for name, value in given.items() if name not in left_out}}


class Running:
    """A job's process, in a group of its own so that all of it can be ended."""

    def __init__(self, job: Job, command: Sequence[str], log: Path, alone: bool) -> None:
        self.job, self.log, self.begin = job, log, time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command],
                cwd=ROOT,
                env=environment(job, os.environ, alone),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def result(self, limit: float) -> str | None:
        """ "passed" or "FAILED (why)" of a job that has ended, None of one that goes on."""
        code = self.process.poll()
        if code is None and self.seconds() > limit:
            self.end()
            return f"FAILED (after the limit of {limit:.0f} s)"
        if code is None:
            return None
        return "passed" if code == 0 else f"FAILED (exit code {code})"

    def end(self) -> None:
        """Ends the process and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(timeout=5)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()


def run(
    jobs: Sequence[Job],
    logs: Path = LOGS,
    make: Sequence[str] = ("make",),
    limit: float = LIMIT_SECONDS,
) -> dict[str, str]:
    """Runs the jobs, and returns the result of each: passed, FAILED (why) or skipped (why)."""
    logs.mkdir(parents=True, exist_ok=True)
    results: dict[str, str] = {}
    waiting, running = list(jobs), list[Running]()
    alone = sum(not job.prepares for job in jobs) == 1  # nothing runs beside it
    begin = time.monotonic()

    def tell(job: Job, result: str, seconds: float) -> None:
        results[job.name] = result
        log = (
            "" if result.startswith("skipped") else os.path.relpath(logs / f"{job.name}.log", ROOT)
        )
        total = time.monotonic() - begin
        print(f"{job.name:12} {result:28} {seconds:6.0f} s   [{total:.0f} s]  {log}", flush=True)

    try:
        while waiting or running:
            for one in list(running):
                result = one.result(limit)
                if result is None and (reason := why_not(one.job, results)):
                    result = f"skipped ({reason})"
                if result is not None:
                    running.remove(one)
                    one.end()  # what it left running
                    tell(one.job, result, one.seconds())
            for job in list(waiting):
                if reason := why_not(job, results):
                    waiting.remove(job)
                    tell(job, f"skipped ({reason})", 0)
            for job in list(waiting):
                free = SLOTS - sum(one.job.slots for one in running)
                if job.slots > free:
                    break  # what is behind it waits, too: it is the order that was chosen
                pending = {one.name for one in waiting} | {one.job.name for one in running}
                if not pending & {*job.needs, *job.after}:
                    waiting.remove(job)
                    print(f"{job.name:12} begins: make {shlex.join(job.make)}", flush=True)
                    log = logs / f"{job.name}.log"
                    running.append(Running(job, [*make, *job.make], log, alone))
            time.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.end()
    return results


def why_not(job: Job, results: Mapping[str, str]) -> str:
    """Why a job cannot run any more, "" if it can."""
    wrong = {name for name, result in results.items() if result != "passed"}
    if FIRST in wrong:
        return f"{FIRST} did not pass"
    return next((f"{name} did not pass" for name in job.needs if name in wrong), "")


def last_lines(log: Path, number: int = LAST_LINES) -> str:
    """The end of a log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-number:])


def report(results: Mapping[str, str], seconds: float, logs: Path = LOGS) -> int:
    """Prints the ends of the failed jobs' logs, then one line; returns the exit code."""
    failed = [name for name, result in results.items() if result.startswith("FAILED")]
    skipped = [name for name, result in results.items() if result.startswith("skipped")]
    for name in failed:
        print(f"\n==> the end of {name}.log\n{last_lines(logs / f'{name}.log')}")
    if failed or skipped:
        print(f"\n==> failed: {', '.join(failed)}; skipped: {', '.join(skipped) or 'none'}", end="")
    else:
        print(f"\n==> all passed: {', '.join(results)}", end="")
    print(f"   [{seconds:.0f} s]")
    return int(bool(failed or skipped))


def listing(jobs: Iterable[Job]) -> str:
    """A line for each job."""
    return "\n".join(
        f"{job.name:12} make {shlex.join(job.make):42} needs: {', '.join(job.needs) or 'nothing'}"
        + ("; by request only" if job.by_request else "")
        for job in jobs
    )


def main(arguments: Sequence[str] | None = None) -> int:
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="print the jobs and run none")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.jobs if name not in names]:
        parser.error(f"there is no job {unknown[0]!r}; jobs are {', '.join(names)}")
    if options.list:
        print(listing(JOBS))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the jobs are ended, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    begin = time.monotonic()
    results = run(chosen(options.jobs))
    return report(results, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
