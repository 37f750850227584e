# SPDX-License-Identifier: Apache-2.0
"""The emulator itself: it must report every planted bug and nothing else, and fail as CUDA does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bug_matrix import (
    BUGS,
    SCHEDULES,
    SELECT_STEPS,
    Bug,
    Schedule,
    configure,
    run_bug,
    run_select,
)
from compiling import HERE, asan_environment, build
from emulator import Emulator, EmulatorError

SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE = 0, 1, 9, 719
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"seed{s.seed}")


# ---- planted bugs


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_reported_and_its_correct_twin_is_not(checked: Emulator, bug: Bug) -> None:
    for schedule in bug.schedules:
        report = run_bug(checked, bug.name, True, schedule).report
        assert re.search(bug.reported_as, report), (schedule, report)
    right = run_bug(checked, bug.name, False, SCHEDULES[0])
    for schedule in SCHEDULES:
        assert run_bug(checked, bug.name, False, schedule) == right, schedule
    assert right.report == ""


@pytest.mark.parametrize(
    "removed", range(1, len(SELECT_STEPS)), ids=lambda i: SELECT_STEPS[i].replace(" ", "_")
)
def test_select_without_one_step_is_reported(checked: Emulator, removed: int) -> None:
    for schedule in SCHEDULES:
        outcome, _ = run_select(checked, removed, schedule)
        assert "RACE" in outcome.report, (schedule, outcome.report)


@each_schedule
def test_complete_select_is_silent_and_right(emulator: Emulator, schedule: Schedule) -> None:
    outcome, answer = run_select(emulator, 0, schedule)
    assert outcome.report == ""
    assert outcome.result == (answer,)


def test_report_names_variable_lines_and_threads(checked: Emulator) -> None:
    report = run_bug(checked, "missing_second_barrier", True, Schedule()).report
    pattern = (
        r"^missing_second_barrier<true>: RACE, write after read, on tile at byte \d+: bugs\.cu:\d+ "
        r"after bugs\.cu:\d+ by block 0 thread \d+ \[block \(0,0,0\) thread \(\d+,0,0\)\]$"
    )
    assert re.search(pattern, report, re.MULTILINE), report
    lines = (HERE / "bugs.cu").read_text().split("\n")
    now, before = (int(n) for n in re.findall(r"bugs\.cu:(\d+)", report)[:2])
    assert "tile[threadIdx.x] = value" in lines[now - 1]
    assert "value += tile[" in lines[before - 1]


def test_out_of_bounds_report_says_how_far(checked: Emulator) -> None:
    report = run_bug(checked, "global_out_of_bounds", True, Schedule()).report
    assert "4-byte read at bugs.cu" in report
    assert "byte 4096 of in, which has 4096" in report


def test_neighbouring_bytes_are_no_race(checked: Emulator) -> None:
    n = 512
    small = checked.array(n, "bytes", np.uint8, initialised=False)
    halves = checked.array(n, "halves", np.uint16, initialised=False)
    checked.library.launch_write_bytes(checked.pointer(small), checked.pointer(halves), n)
    checked.check()
    np.testing.assert_array_equal(halves, np.arange(n) % 256)


def run_with_asan(name: str, bug: bool) -> subprocess.CompletedProcess[str]:
    """Launches a kernel of bugs.cu in a process of its own: AddressSanitizer ends the process."""
    environment = asan_environment()
    if environment is None:
        pytest.skip("the compiler has no libasan")
    library = build([HERE / "bugs.cu"], "asan")
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from bug_matrix import *; "
        f"emulator = Emulator({str(library)!r}); "
        f"print(run_bug(emulator, {name!r}, {bug}, Schedule()).report or 'silent')"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shared_out_of_bounds", "index 256 out of bounds"),
        ("dynamic_out_of_bounds", "AddressSanitizer: use-after-poison"),
        ("global_out_of_bounds", "AddressSanitizer: use-after-poison"),
        ("misaligned_vector", "misaligned address"),
    ],
)
def test_asan_build_finds_bad_addresses(name: str, message: str) -> None:
    buggy, correct = run_with_asan(name, True), run_with_asan(name, False)
    assert buggy.returncode != 0
    assert message in buggy.stderr
    assert "bugs.cu" in buggy.stderr
    assert (correct.returncode, correct.stdout.strip()) == (0, "silent"), correct.stderr


# ---- schedules


def arrival_order(emulator: Emulator, schedule: Schedule) -> tuple[tuple[int, ...], dict[str, int]]:
    configure(emulator, schedule)
    out = emulator.array(4 * 64, "out", np.int32, initialised=False)
    ticket = emulator.array(1, "ticket", np.int32)
    emulator.statistics()
    emulator.library.launch_arrival_order(emulator.pointer(out), emulator.pointer(ticket), 4, 64)
    emulator.check()
    return tuple(map(int, out)), emulator.statistics()


def test_a_seed_repeats_its_schedule_and_seeds_differ(emulator: Emulator) -> None:
    first = [arrival_order(emulator, schedule) for schedule in SCHEDULES]
    assert first == [arrival_order(emulator, schedule) for schedule in SCHEDULES]
    assert len({order for order, _ in first}) == len(SCHEDULES)


def test_block_order(emulator: Emulator) -> None:
    def first_block_of(schedule: Schedule) -> int:
        return arrival_order(emulator, schedule)[0].index(0) // 64

    assert first_block_of(Schedule(order=0, resident=1)) == 0
    assert first_block_of(Schedule(order=1, resident=1)) == 3
    random_order = {first_block_of(Schedule(seed=s, order=2, resident=1)) for s in range(1, 20)}
    assert random_order == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("blocks", "resident"), [(1, 1), (4, 4), (4, 64), (13, 16), (5, 4), (13, 1)]
)
def test_grid_barrier_needs_every_block_resident(
    emulator: Emulator, blocks: int, resident: int
) -> None:
    out, arrived = emulator.array(blocks, "out", np.int32), emulator.array(1, "arrived", np.int32)
    emulator.configure(resident=resident, multiprocessors=blocks)
    emulator.library.launch_grid_barrier(emulator.pointer(out), emulator.pointer(arrived))
    report = emulator.take_error()
    if blocks <= resident:
        assert report == ""
        assert out.all()
    else:
        assert f"LIVELOCK: the {resident} resident blocks" in report
        assert f"{blocks - resident} blocks have not started" in report


# ---- traffic


def sectors_per_minimum(
    emulator: Emulator, kernel: str, unique: bool = False
) -> tuple[float, float]:
    n = 8192
    source = emulator.array(np.arange(n, dtype=np.float32), "in")
    out = emulator.array(n, "out", np.float32, initialised=False)
    emulator.traffic()
    getattr(emulator.library, f"launch_{kernel}")(
        emulator.pointer(source), emulator.pointer(out), n
    )
    emulator.check()
    traffic = emulator.traffic()
    kind = "unique_sectors" if unique else "sectors"
    emulator.free(source, out)
    return traffic[f"{kind}_read"] * 32 / (4 * n), traffic[f"{kind}_written"] * 32 / (4 * n)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_traffic_of_copies(checked: Emulator, seed: int) -> None:
    checked.configure(seed=seed, order=seed)
    assert sectors_per_minimum(checked, "copy_coalesced") == (1, 1)
    assert sectors_per_minimum(checked, "copy_vectors") == (1, 1)
    assert sectors_per_minimum(checked, "copy_blocked") == (8, 8)
    assert sectors_per_minimum(checked, "copy_blocked", unique=True) == (1, 1)
    assert sectors_per_minimum(checked, "add_previous", unique=True) == (1, 1)
    assert (
        sectors_per_minimum(checked, "add_previous")[0] > 2
    )  # each warp asks for one sector twice, one more


def test_traffic_counts_requests_bytes_and_atomics(checked: Emulator) -> None:
    n = 1024
    source = checked.array(n, "in", np.float32)
    out = checked.array(n, "out", np.float32)
    checked.traffic()
    checked.library.launch_copy_vectors(checked.pointer(source), checked.pointer(out), n)
    traffic = checked.traffic()
    assert traffic["requests"] == 2 * n // 4 // 32
    assert traffic["bytes_read"] == traffic["bytes_written"] == 4 * n
    assert traffic["atomics"] == 0
    arrival_order(checked, Schedule())
    assert checked.traffic()["atomics"] == 4 * 64
    assert not any(checked.traffic().values())


# ---- errors


@pytest.mark.parametrize(
    "shape",
    [
        (0, 32, 1, 1, 0),
        (1, 0, 1, 1, 0),
        (1, 1025, 1, 1, 0),
        (1, 32, 64, 1, 0),
        (1, 1, 1, 65, 0),
        (1, 32, 1, 1, 1 << 18),
    ],
)
def test_invalid_launch_configuration(emulator: Emulator, shape: tuple[int, ...]) -> None:
    assert emulator.library.launch_shape(*shape) == INVALID_CONFIGURATION
    assert "INVALID LAUNCH" in emulator.take_error()
    assert emulator.library.launch_shape(1, 32, 1, 1, 0) == SUCCESS
    emulator.check()


def test_more_than_48_kb_of_shared_memory_needs_leave_on_each_device(emulator: Emulator) -> None:
    count = 50 * 1024 // 4
    out = emulator.array(count, "out", np.int32)
    launch = emulator.library.launch_dynamic_shared
    for multiprocessors in (3, 5):
        emulator.configure(multiprocessors=multiprocessors)
        assert launch(emulator.pointer(out), count) == INVALID_CONFIGURATION
        assert "INVALID LAUNCH" in emulator.take_error()
        assert emulator.library.allow_dynamic_shared() == SUCCESS
        assert launch(emulator.pointer(out), count) == SUCCESS
        emulator.check()


@pytest.mark.parametrize(
    "shape", [(1, 1024, 1, 1, 0), (3, 16, 64, 1, 227 * 1024), (1, 1, 1, 64, 0), (2, 33, 1, 1, 0)]
)
def test_largest_and_partial_blocks_are_valid(emulator: Emulator, shape: tuple[int, ...]) -> None:
    assert emulator.library.launch_shape(*shape) == SUCCESS
    emulator.check()


def test_a_failed_kernel_refuses_later_launches_until_somebody_looks(emulator: Emulator) -> None:
    out, ticket = emulator.array(64, "out", np.int32), emulator.array(1, "ticket", np.int32)
    pointers = emulator.pointer(out), emulator.pointer(ticket)
    assert emulator.library.launch_trap(70) == LAUNCH_FAILURE
    assert emulator.library.launch_arrival_order(*pointers, 1, 64) == LAUNCH_FAILURE
    assert emulator.library.set_bytes(pointers[0], 1, 4) == LAUNCH_FAILURE
    assert not out.any()
    with pytest.raises(
        EmulatorError, match=r"behaviour\.cu:\d+: __trap\(\) \[block \(1,0,0\) thread \(6,0,0\)\]"
    ):
        emulator.check()
    assert emulator.library.launch_arrival_order(*pointers, 1, 64) == SUCCESS
    emulator.check()
    assert out.any()


def test_a_race_does_not_stop_the_launch(checked: Emulator) -> None:
    outcome = run_bug(checked, "no_release_fence", True, Schedule())
    assert "RACE" in outcome.report
    assert outcome.result == run_bug(checked, "no_release_fence", False, Schedule()).result


def test_dynamic_shared_memory_is_bounded_by_the_launch(emulator: Emulator) -> None:
    out = emulator.array(1, "out", np.int32)
    assert emulator.library.allow_dynamic_shared() == SUCCESS
    emulator.library.launch_dynamic_shared(emulator.pointer(out), 56 * 1024)
    emulator.check()
    assert out[0] == 56 * 1024 - 1
    emulator.library.launch_dynamic_shared(emulator.pointer(out), 57 * 1024)
    assert "INVALID LAUNCH" in emulator.take_error()


def test_memset(checked: Emulator) -> None:
    out = checked.array(64, "out", np.int32, initialised=False)
    assert (out == np.int32(-0x34343435)).all()  # 0xCB bytes
    ticket = checked.array(1, "ticket", np.int32, initialised=False)
    pointers = checked.pointer(out), checked.pointer(ticket)
    checked.library.launch_arrival_order(*pointers, 1, 64)
    assert "UNINITIALISED read of ticket" in checked.take_error()
    assert checked.library.set_bytes(pointers[1], 0, 4) == SUCCESS
    checked.library.launch_arrival_order(*pointers, 1, 64)
    checked.check()
    np.testing.assert_array_equal(np.sort(out), np.arange(64))
    assert checked.library.set_bytes(pointers[1], 0, 5) == INVALID_VALUE
    assert "leaves the allocation" in checked.take_error()


def test_freed_memory_is_out_of_bounds(checked: Emulator) -> None:
    out, ticket = checked.array(64, "out", np.int32), checked.array(1, "ticket", np.int32)
    stale = checked.pointer(out)
    checked.free(out)
    checked.library.launch_arrival_order(stale, checked.pointer(ticket), 1, 64)
    assert "OUT OF BOUNDS" in checked.take_error()
    with pytest.raises(ValueError, match="freed before"):
        checked.free(ticket, ticket)


def test_host_memory_is_out_of_bounds(checked: Emulator) -> None:
    ticket = checked.array(1, "ticket", np.int32)
    host = np.zeros(64, np.int32)
    checked.library.launch_arrival_order(checked.pointer(host), checked.pointer(ticket), 1, 64)
    assert "OUT OF BOUNDS" in checked.take_error()


# ---- build and arrays


def test_bare_shared_memory_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "bare.cu"
    source.write_text(
        '#include "device/launch.h"\n__global__ void kernel() { __shared__ int x; x = 0; }\n'
    )
    with pytest.raises(RuntimeError, match="DYNPRUNE_SHARED"):
        build([source])


def test_host_code_beside_kernels_is_not_instrumented(tmp_path: Path) -> None:
    host = tmp_path / "host.cpp"
    host.write_text(
        "#include <thread>\n"
        'extern "C" int sum_in_thread(const int* p, int n) {\n'
        "  int sum = 0;\n"
        "  std::thread([&] { for (int i = 0; i < n; i++) sum += p[i]; }).join();\n"
        "  return sum;\n"
        "}\n"
    )
    library = build([host, HERE / "behaviour.cu"], "check", extra_flags=["-pthread"])
    assert library == build([host, HERE / "behaviour.cu"], "check", extra_flags=["-pthread"])
    with Emulator(library) as emulator:
        numbers = emulator.array(np.arange(10, dtype=np.int32), "numbers")
        assert emulator.library.sum_in_thread(emulator.pointer(numbers), 10) == 45


def test_arrays(checked: Emulator) -> None:
    copied = checked.array([[1, 2], [3, 4]], "copied", np.float64)
    assert copied.dtype == np.float64
    assert copied.tolist() == [[1, 2], [3, 4]]
    zeros = checked.array((2, 3), "zeros", np.int64)
    assert zeros.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert (checked.pointer(zeros).value or 1) % 256 == 0
    assert checked.array(0, "empty", np.int32).shape == (0,)
    assert checked.array(np.float32(5), "scalar").shape == ()
    assert checked.pointer(None).value is None
    with pytest.raises(TypeError, match="dtype"):
        checked.array(3)
