# SPDX-License-Identifier: Apache-2.0
"""Emulators of the emulator's own kernels, and of the project's at several schedules."""

from collections.abc import Iterator

import pytest
from compiling import HERE, build
from emulator import Emulator
from kernels import LITTLE_SHARED_BYTES, SCHEDULES, Kernels, on_schedule
from ptx.session import (
    no_thread_runs_host_code,
    nvcc,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

__all__ = (  # the hooks and fixtures of ptx/session.py
    "no_thread_runs_host_code",
    "nvcc",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
)

UNCHECKED_SOURCES = tuple(
    HERE / f"{name}.cu" for name in ("select_bugs", "intrinsics", "behaviour")
)
CHECKED_SOURCES = (HERE / "bugs.cu", *UNCHECKED_SOURCES)


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
    return on_schedule()


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"schedule{s['seed']}")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The project's kernels at several schedules."""
    return on_schedule(**request.param)


# Selections on the chip at three of the schedules, others at three.
SELECTIONS = [("on_chip", SCHEDULES[i]) for i in (1, 2, 3)]
SELECTIONS += [("streaming", SCHEDULES[i]) for i in (0, 1, 3)]


@pytest.fixture(params=SELECTIONS, ids=lambda p: f"{p[0]}-schedule{p[1]['seed']}")
def selection_kernels(request: pytest.FixtureRequest) -> Kernels:
    """The project's kernels at several schedules; selections on the chip and not."""
    path, schedule = request.param
    if path == "streaming":
        return on_schedule(**schedule, shared_bytes=LITTLE_SHARED_BYTES)
    return on_schedule(**schedule)
