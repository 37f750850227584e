# SPDX-License-Identifier: Apache-2.0
"""The planted bugs, and what each build of the emulator says about them.

`python tests/emulator/bug_matrix.py check fast` prints the matrix as a Markdown table;
test_emulator.py demands that the check build reports all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from compiling import HERE, Mode, build
from emulator import Emulator

SOURCES = (HERE / "bugs.cu", HERE / "select_bugs.cu")
NUM_ELEMENTS = 1024


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One way to run a kernel, as for Emulator.configure."""

    seed: int = 0
    order: int = 0
    resident: int = 64
    preempt: int = 0


SCHEDULES = (
    Schedule(),
    Schedule(order=1, resident=4),
    Schedule(seed=1, order=2, resident=1),
    Schedule(seed=2, order=0, resident=2, preempt=64),
    Schedule(seed=3, order=1, resident=7, preempt=8),
    Schedule(seed=4, order=2, resident=64, preempt=64),
    Schedule(seed=5, order=0, resident=64),
    Schedule(seed=6, order=1, resident=3, preempt=128),
)
# A livelock takes long to notice: three schedules are enough. For one of the two bugs, blocks must
# start in another order than blockIdx, few at a time.
LIVELOCK_SCHEDULES = tuple(s for s in SCHEDULES if s.order != 0 and s.resident < 64)[:3]


@dataclasses.dataclass(frozen=True)
class Bug:
    """A kernel of bugs.cu, and a pattern that its report must contain."""

    name: str
    reported_as: str
    schedules: tuple[Schedule, ...] = SCHEDULES


BUGS = (
    Bug("missing_barrier", "RACE"),
    Bug("missing_second_barrier", "RACE"),
    Bug("implicit_warp_sync", "RACE"),
    Bug("shuffle_as_barrier", "RACE"),
    Bug("divergent_barrier", "DIVERGENT BARRIER"),
    Bug("skipped_barrier", "threads of one block leave after different numbers of barriers"),
    Bug("barrier_within_warp", "DEADLOCK"),
    Bug("shared_out_of_bounds", "OUT OF BOUNDS"),
    Bug("dynamic_out_of_bounds", "OUT OF BOUNDS"),
    Bug("global_out_of_bounds", "OUT OF BOUNDS"),
    Bug("uninitialised_shared", "UNINITIALISED"),
    Bug("uninitialised_global", "UNINITIALISED"),
    Bug("misaligned_vector", "MISALIGNED"),
    Bug("full_mask_in_branch", "WARP OPERATION|DEADLOCK"),
    Bug("shuffle_outside_mask", "SHUFFLE"),
    Bug("caller_not_in_mask", "WARP OPERATION"),
    Bug("mixed_warp_operations", "DIVERGENT WARP OPERATION"),
    Bug("plain_counter", "RACE"),
    Bug("relaxed_message", "RACE"),
    Bug("flag_never_raised", "LIVELOCK", LIVELOCK_SCHEDULES),
    Bug("look_back_by_block_index", "LIVELOCK", LIVELOCK_SCHEDULES),
    Bug("no_release_fence", "RACE"),
    Bug("no_acquire_fence", "RACE"),
    Bug("block_fence_for_device", "RACE"),
    Bug("no_fence_in_block", "RACE"),
)

# The Steps of select_bugs.cu, in its order.
SELECT_STEPS = (
    "nothing",
    "barrier after clearing",
    "barrier after counting",
    "barrier before ticket",
    "release fence",
    "acquire fence",
    "barrier after ticket",
    "barrier before update",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run said, and what it computed."""

    report: str
    result: tuple[int, ...]


def configure(emulator: Emulator, schedule: Schedule) -> None:
    """Applies a schedule."""
    emulator.configure(**dataclasses.asdict(schedule))


def run_bug(emulator: Emulator, name: str, bug: bool, schedule: Schedule) -> Outcome:
    """Launches a kernel of bugs.cu on fresh memory."""
    configure(emulator, schedule)
    numbers = np.arange(NUM_ELEMENTS, dtype=np.int32) * 7 % 101 + 1
    source = emulator.array(numbers, "in")
    out = emulator.array(NUM_ELEMENTS, "out", np.int32, initialised=False)
    aux = emulator.array(NUM_ELEMENTS, "aux", np.int32)
    pointers = [emulator.pointer(a) for a in (source, out, aux)]
    emulator.library.launch_bug(name.encode(), bug, *pointers)
    outcome = Outcome(emulator.take_error(), (*map(int, out), *map(int, aux)))
    emulator.free_all()
    return outcome


def run_select(emulator: Emulator, removed: int, schedule: Schedule) -> tuple[Outcome, int]:
    """Launches select_bugs.cu without one of its steps; returns also the right answer."""
    configure(emulator, schedule)
    n, k, grid = 20011, 777, 7
    keys = np.random.default_rng(0).integers(0, 1 << 32, n, dtype=np.uint32)
    device_keys = emulator.array(keys, "keys")
    workspace = emulator.array(
        emulator.library.select_workspace_bytes() // 4, "state", np.uint32, initialised=False
    )
    pointers = emulator.pointer(device_keys), n, k, emulator.pointer(workspace)
    emulator.library.launch_select(removed, *pointers, grid)
    outcome = Outcome(emulator.take_error(), (int(workspace[0]),))
    emulator.free_all()
    return outcome, int(np.sort(keys)[k - 1])


def _cell(outcomes: Sequence[Outcome], expected: Sequence[tuple[int, ...]]) -> str:
    reported = sum(bool(o.report) for o in outcomes)
    wrong = sum(not o.report and o.result != e for o, e in zip(outcomes, expected, strict=True))
    text = f"{reported}/{len(outcomes)} reported" if reported else "-"
    return f"{text}, {wrong} wrong results" if wrong else text


def matrix(modes: Sequence[Mode]) -> str:
    """The whole table: rows are bugs, columns are builds."""
    libraries = {mode: Emulator(build(SOURCES, mode)) for mode in modes}
    rows = [["bug", *modes, "first report"], ["---"] * (len(modes) + 2)]
    for bug in BUGS:
        row, first = [bug.name], ""
        for emulator in libraries.values():
            expected = [run_bug(emulator, bug.name, False, s).result for s in bug.schedules]
            outcomes = [run_bug(emulator, bug.name, True, s) for s in bug.schedules]
            row.append(_cell(outcomes, expected))
            first = outcomes[0].report.split("\n")[0] or first
        rows.append([*row, first])
    for removed, step in enumerate(SELECT_STEPS):
        row, first = [f"select without {step}"], ""
        for emulator in libraries.values():
            runs = [run_select(emulator, removed, s) for s in SCHEDULES]
            outcomes = [outcome for outcome, _ in runs]
            row.append(_cell(outcomes, [(answer,) for _, answer in runs]))
            first = outcomes[0].report.split("\n")[0] or first
        rows.append([*row, first])
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows)


def main() -> None:
    """Prints the matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modes", nargs="*", default=["check"], help="check, fast")
    sys.stdout.write(matrix(parser.parse_args().modes) + "\n")


if __name__ == "__main__":
    main()
