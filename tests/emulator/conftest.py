# SPDX-License-Identifier: Apache-2.0
"""Emulators of the emulator's own kernels, and of the project's at several schedules."""

from collections.abc import Iterator

import pytest
from emulator import HERE, Emulator, build
from kernels import Kernels, load

UNCHECKED_SOURCES = tuple(
    HERE / f"{name}.cu" for name in ("select_bugs", "intrinsics", "behaviour")
)
CHECKED_SOURCES = (HERE / "bugs.cu", *UNCHECKED_SOURCES)

# Seed 0 runs threads in turn; the others are random, with preemption, in several block orders and
# grid sizes. One lets a single block be resident at a time.
SCHEDULES = [
    {"seed": 0, "resident": 64, "order": 0, "preempt": 0, "multiprocessors": 4},
    {"seed": 1, "resident": 1, "order": 1, "preempt": 64, "multiprocessors": 1},
    {"seed": 2, "resident": 5, "order": 2, "preempt": 8, "multiprocessors": 2},
    {"seed": 3, "resident": 64, "order": 2, "preempt": 64, "multiprocessors": 7},
]


@pytest.fixture
def checked() -> Iterator[Emulator]:
    """The emulator's own kernels, check build."""
    with Emulator(build(CHECKED_SOURCES, "check")) as emulator:
        yield emulator


@pytest.fixture(params=["check", "fast"])
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """The emulator's own kernels, both builds that run inside Python."""
    sources = CHECKED_SOURCES if request.param == "check" else UNCHECKED_SOURCES
    with Emulator(build(sources, request.param)) as emulator:
        yield emulator


@pytest.fixture
def kernels_in_turn() -> Kernels:
    """The project's kernels, threads and blocks one after the other."""
    emulator = load("check")
    emulator.take_error()
    emulator.configure()
    return Kernels(emulator)


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"schedule{s['seed']}")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The project's kernels at several schedules."""
    emulator = load("check")
    emulator.take_error()
    emulator.configure(**request.param)
    return Kernels(emulator)
