# SPDX-License-Identifier: Apache-2.0
"""The schedules under which every kernel must give the same result and no report."""

from __future__ import annotations

import pytest
from kernels import Kernels, load

# Seed 0 runs threads in turn; the others are random, with preemption, in several block orders and
# grid sizes.
SCHEDULES = [
    {"seed": 0, "resident": 64, "order": 0, "preempt": 0, "multiprocessors": 4},
    {"seed": 1, "resident": 1, "order": 1, "preempt": 64, "multiprocessors": 1},
    {"seed": 2, "resident": 5, "order": 2, "preempt": 8, "multiprocessors": 2},
    {"seed": 3, "resident": 64, "order": 2, "preempt": 64, "multiprocessors": 7},
]


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"schedule{s['seed']}")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The kernels in the check build, under each schedule."""
    emulator = load("check")
    emulator.take_error()
    emulator.configure(**request.param)
    return Kernels(emulator)


@pytest.fixture
def kernels_in_turn() -> Kernels:
    """The kernels in the check build, threads in turn."""
    emulator = load("check")
    emulator.take_error()
    emulator.configure()
    return Kernels(emulator)
