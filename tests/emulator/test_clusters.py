# SPDX-License-Identifier: Apache-2.0
"""Clusters on the emulator: who sees whose shared memory, and which mistakes it reports."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from bug_matrix import SCHEDULES, Schedule, configure
from compiling import HERE, Mode, build
from emulator import Emulator

NOTHING, FIRST_SYNC, SECOND_BUFFER, LAST_SYNC, NEIGHBOUR = range(5)
INVALID_CONFIGURATION = 9


@pytest.fixture(params=["check", "fast"])
def clusters(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    mode: Mode = request.param
    with Emulator(build([HERE / "clusters.cu"], mode)) as emulator:
        yield emulator


@pytest.fixture
def checked() -> Iterator[Emulator]:
    with Emulator(build([HERE / "clusters.cu"], "check")) as emulator:
        yield emulator


def ring(emulator: Emulator, removed: int, num_clusters: int, size: int, rounds: int) -> list[int]:
    out = emulator.array(num_clusters * size, "out", np.int32)
    emulator.library.launch_ring(removed, len(out), size, rounds, emulator.pointer(out))
    return [int(v) for v in out]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_blocks_of_a_cluster_exchange_values(clusters: Emulator, schedule: Schedule) -> None:
    """More blocks in a cluster than may be resident, too: they come and go together."""
    configure(clusters, schedule)
    for size in (2, 4, 8):
        got = ring(clusters, NOTHING, 5, size, 3)
        clusters.check()
        assert got == [c * size + (r + 3) % size for c in range(5) for r in range(size)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    ("removed", "pattern"),
    [(FIRST_SYNC, "RACE|UNINITIALISED|CLUSTER"), (SECOND_BUFFER, "RACE"), (NEIGHBOUR, "CLUSTER")],
)
def test_mistakes_are_reported(
    checked: Emulator, removed: int, pattern: str, schedule: Schedule
) -> None:
    configure(checked, schedule)
    ring(checked, removed, 3, 4, 3)
    report = checked.take_error()
    assert any(word in report for word in pattern.split("|")), report


def test_a_block_that_leaves_before_its_shared_memory_is_read_is_reported(
    checked: Emulator,
) -> None:
    """In turn, threads of the first block read their neighbours' memory first."""
    reports = []
    for schedule in SCHEDULES:
        configure(checked, schedule)
        ring(checked, LAST_SYNC, 3, 4, 1)
        reports.append(checked.take_error())
    assert any("has left the kernel" in r or "OUT OF BOUNDS" in r for r in reports)


def test_launches_that_no_device_takes(clusters: Emulator) -> None:
    out = clusters.array(16, "out", np.int32)
    pointer = clusters.pointer(out)
    assert clusters.library.launch_ring(NOTHING, 10, 4, 1, pointer) == INVALID_CONFIGURATION
    assert "clusters of 4" in clusters.take_error()
    assert clusters.library.launch_ring(NOTHING, 16, 16, 1, pointer) == INVALID_CONFIGURATION
    assert clusters.take_error()
    clusters.library.launch_sync_only()
    assert "not launched in clusters" in clusters.take_error()


def test_devices_without_clusters_run_none(clusters: Emulator) -> None:
    for max_cluster, expected in ((0, [0, 0, 0]), (4, [8, 4, 0]), (8, [8, 4, 2])):
        clusters.configure(multiprocessors=16, max_cluster=max_cluster)
        assert [clusters.library.resident_rings(size) for size in (2, 4, 8)] == expected
