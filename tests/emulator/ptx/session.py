# SPDX-License-Identifier: Apache-2.0
"""`pytest tests/emulator --ptx=90`: the tests of the kernels, run on what nvcc makes of them.

The hooks are the conftest's. Every thread of every launch must run a twin: a test fails if one
thread ran the host compiler's version.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterator

import kernels
import pytest
from ptx.twins import TARGETS, kernels_of

# A kernel may belong to a value of each of three parameters: of tests with few cases, all are kept.
FEW_CASES = 36
# Tests that launch the project's kernels.
FILES = (
    "test_binary_kernels",
    "test_large_selection",
    "test_row_kernels",
    "test_scoring_accuracy",
    "test_scoring_kernels",
    "test_selection_kernels",
    "test_shard_kernels",
    "test_soft_kernels",
    "test_wide_step",
)


class Coverage:
    """At which schedules each twin has run."""

    def __init__(self) -> None:
        self.schedules: dict[str, set[tuple[object, ...]]] = defaultdict(set)
        self.threads: dict[str, int] = defaultdict(int)

    def note(self) -> None:
        """Called after each test: who has run since the last call."""
        emulator = kernels.load("check")
        twins = emulator.twins
        assert twins is not None
        for name, threads in twins.threads().items():
            if threads > self.threads[name]:
                self.threads[name] = threads
                self.schedules[name].add(emulator.schedule)

    def behind(self, least: int) -> list[str]:
        """Kernels that ran at fewer schedules; not those that do nothing.

        What another target has too is left to that target's run.
        """
        twins = kernels.load("check").twins
        assert twins is not None and kernels.target is not None
        elsewhere = {} if kernels.target == TARGETS[-1] else kernels_of(TARGETS[-1])
        own = kernels_of(kernels.target)
        names = [n for n in twins.working if n not in elsewhere or elsewhere[n] != own[n]]
        return [name for name in names if len(self.schedules.get(name, ())) < least]


COVERAGE = pytest.StashKey[Coverage]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ptx", "the project's kernels as nvcc compiles them")
    group.addoption("--nvcc", action="store_true", help="run also what needs nvcc without --ptx")
    group.addoption("--ptx", help="the target: 80 or 90; only the tests of kernels are run")
    group.addoption(
        "--ptx-strength",
        type=int,
        choices=(1, 2),
        help="fewer cases of each test: every value of a parameter, or every pair of two",
    )
    group.addoption(
        "--ptx-least", type=int, default=0, help="schedules that each kernel must run at"
    )


def pytest_configure(config: pytest.Config) -> None:
    kernels.target = config.getoption("ptx", None)  # unknown where tests/emulator is not named
    kernels.check_only = config.getoption("ptx_strength", None) is not None
    config.stash[COVERAGE] = Coverage()


def combinations(item: pytest.Item, strength: int) -> frozenset[tuple[tuple[str, str], ...]]:
    """The values of a case's parameters, so many at a time."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    values = sorted((name, repr(value)) for name, value in parameters.items())
    return frozenset(itertools.combinations(values, min(strength, len(values))))


def covering(cases: list[pytest.Item], strength: int) -> list[pytest.Item]:
    """Few cases that have every combination of values which the cases have."""
    if len(cases) <= FEW_CASES and all(len(combinations(item, 1)) > strength for item in cases):
        return cases
    # By a hash of the name: of equals, the choice should not prefer the first values.
    left = sorted(cases, key=lambda item: zlib.crc32(item.nodeid.encode()))
    missing = set().union(*(combinations(item, strength) for item in left))
    chosen = []
    while missing:
        best = max(left, key=lambda item: len(missing & combinations(item, strength)))
        chosen.append(best)
        missing -= combinations(best, strength)
    return chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if kernels.target is None:
        return
    strength = config.getoption("ptx_strength")
    functions: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        name = item.nodeid.split("[")[0]
        if item.path.stem in FILES:
            functions[name].append(item)
    kept: set[pytest.Item] = set()
    for cases in functions.values():
        kept.update(covering(cases, strength) if strength else cases)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture
def nvcc(request: pytest.FixtureRequest) -> None:
    """Skips a test that runs nvcc, for which wheels may have to be installed, unless wanted."""
    if not request.config.getoption("nvcc", False):
        pytest.skip("runs nvcc: make test-ptx")


@pytest.fixture(autouse=True)
def no_thread_runs_host_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test in which a thread ran what the host compiler made of a kernel."""
    yield
    if kernels.target is None:
        return
    request.config.stash[COVERAGE].note()
    for emulator in kernels.loaded():
        assert emulator.library.emulator_host_threads() == 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    least = session.config.getoption("ptx_least", 0)
    if kernels.target is not None and session.config.stash[COVERAGE].behind(least):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if kernels.target is None:
        return
    coverage, least = config.stash[COVERAGE], config.getoption("ptx_least")
    counts = sorted(len(schedules) for schedules in coverage.schedules.values())
    median = counts[len(counts) // 2] if counts else 0
    write = terminalreporter.write_line
    write(
        f"compute_{kernels.target}: {len(counts)} kernels ran, "
        f"{sum(coverage.threads.values()):,} threads, each kernel at {min(counts, default=0)} "
        f"schedules or more, half of them at {median}"
    )
    for name in coverage.behind(least):
        write(f"ran at {len(coverage.schedules.get(name, ()))} schedules: {name}", red=True)
