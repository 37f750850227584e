# SPDX-License-Identifier: Apache-2.0
"""The tests of the kernels notice small changes of nvcc's code.

Each change is planted in one kernel's PTX; all other kernels are the host compiler's. The kernel's
test must fail at some schedule with the change, and at none without. No change may make a loop
endless: the emulator would not notice, unless the loop polls.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import test_row_kernels as row_kernels
import test_scoring_kernels as scoring
import test_selection_kernels as selection
import test_shard_kernels as shards
import torch
from emulator import EmulatorError
from kernels import SCHEDULES, Kernels, load, on_schedule
from ptx.twins import Twin, Twins, kernels_of
from steps import check_step

from dynprune_cuda._ops.contract import RowReduction

pytestmark = pytest.mark.usefixtures("nvcc")
TARGET = "90"


def uniform(kernels: Kernels) -> None:
    selection.test_uniform_and_permutation_equal_cpu(kernels, 2049)


def updates(kernels: Kernels) -> None:
    row_kernels.test_updates_equal_cpu(kernels, torch.int32, RowReduction.SUM)


def ids_out_of_range(kernels: Kernels) -> None:
    row_kernels.test_ids_out_of_range_are_skipped_and_recorded(kernels)


def cross_entropy(dtype: torch.dtype, classes: int) -> Callable[[Kernels], None]:
    return lambda kernels: scoring.test_cross_entropy_equals_cpu(kernels, classes, dtype)


def step(kernels: Kernels) -> None:
    check_step(kernels, 41, 10, torch.float64, reduction="mean")


def ucb(kernels: Kernels) -> None:
    selection.test_ucb_equals_cpu(kernels, "variance", torch.float32)


def digits(kernels: Kernels) -> None:
    shards.test_a_search_over_three_shards_equals_the_cpu_selection(
        shards.ShardKernels(kernels), "levels", 0.3
    )


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a kernel's PTX.

    Args:
        what: its name.
        kernel: matches the mangled name of one kernel.
        old: matches what is changed: the first place, or all.
        new: what stands there instead.
        test: runs the kernel and compares.
        everywhere: all places are changed.
    """

    what: str
    kernel: str
    old: str
    new: str
    test: Callable[[Kernels], None]
    everywhere: bool = False


UNIFORM = r"shuffle_kernelINS0_8Identity"
CLAIM, APPLY, TAKE = r"claim_kernel", r"apply_kernel", r"take_errors_kernel"
FORWARD, BACKWARD = r"forward_kernelINS0_7TeamRowIfLi8E", r"backward_kernelINS0_7TeamRowIfLi8E"
STEP = r"[0-9]step_kernelINS0_13StagedTeamRowIdLi8E"
DIGITS = r"digit_counts_kernel"
UCB = r"select_on_chip_kernelINS_10UcbRankingIfLNS_8UcbBonusE0E"
FLOATS = cross_entropy(torch.float32, 10)
SWAPPED = r"(sub\.rn\.f32\s+\S+) (\S+), (\S+);", r"\1 \3, \2;"
LOADED_ONLY = r"atom\.global\.exch\.b64\s+(\S+) (\S+), 0;", r"ld.global.u64 \1 \2;"
CHANGES = (
    Change("a multiplier", UNIFORM, r"-4658895280553007687", "-4658895280553007685", uniform),
    Change("a shift", UNIFORM, r"(shr\.u64\s+\S+ \S+) 30;", r"\1 29;", uniform),
    Change("a narrow store", UNIFORM, r"st\.global\.u64", "st.global.u32", uniform),
    Change("a dropped guard of a jump", APPLY, r"@%p\d+ bra", "bra", updates),
    Change("a jump that is left out", CLAIM, r"@%p\d+ bra[^;]*;", "", ids_out_of_range),
    Change("another comparison", UNIFORM, r"setp\.ge\.s64", "setp.gt.s64", uniform),
    Change("operands in another order", APPLY, *SWAPPED, updates, everywhere=True),
    Change(
        "no atomic exchange", TAKE, *LOADED_ONLY, row_kernels.test_taking_errors_clears_the_counts
    ),
    Change("a missing barrier", DIGITS, r"bar\.sync\s+0;", "", digits),
    Change("missing fences", STEP, r"membar\.gl;", "", step, everywhere=True),
    Change(
        "a sum of fewer lanes", APPLY, r"shfl\.sync\.bfly", "shfl.sync.up", updates, everywhere=True
    ),
    Change("missing fences of an update", APPLY, r"membar\.gl;", "", updates, everywhere=True),
    Change("a constant", FORWARD, r"0f3FB8AA3B", "0f3FB8AB00", FLOATS, everywhere=True),
    Change("other shuffles", FORWARD, r"shfl\.sync\.bfly", "shfl.sync.up", FLOATS, everywhere=True),
    Change("a sign", BACKWARD, r"sub\.f32", "add.f32", FLOATS, everywhere=True),
    Change("a missing barrier on the chip", UCB, r"bar\.sync\s+0;", "", ucb),
    Change("another rounding", APPLY, r"add\.rn\.f32", "add.rz.f32", updates, everywhere=True),
)


def original(change: Change) -> Twin:
    found = [twin for name, twin in kernels_of(TARGET).items() if re.search(change.kernel, name)]
    assert len(found) == 1, f"{len(found)} kernels match {change.kernel}"
    return found[0]


@contextmanager
def in_place(twin: Twin) -> Iterator[None]:
    """The twin runs instead of its kernel; other kernels stay the host compiler's."""
    twins = Twins(load("check"), "check", {twin.kernel: twin})
    try:
        yield
        assert twins.threads()[twin.kernel] > 0
    finally:
        twins.remove()


def first_failure(test: Callable[[Kernels], None]) -> str:
    """What goes wrong at the first schedule where something does; empty if nothing does."""
    for schedule in SCHEDULES:
        try:
            test(on_schedule(**schedule))
        except (AssertionError, EmulatorError) as error:
            return f"schedule {schedule['seed']}: {type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.what.replace(" ", "_"))
def test_a_change_is_noticed(change: Change) -> None:
    twin = original(change)
    text, places = re.subn(change.old, change.new, twin.text, count=0 if change.everywhere else 1)
    assert places > 0, "nothing to change: has the kernel another form now?"
    with in_place(Twin(twin.kernel, text)):
        assert first_failure(change.test) != ""


@pytest.mark.parametrize(
    "change",
    {(c.kernel, c.test): c for c in CHANGES}.values(),
    ids=lambda c: c.what.replace(" ", "_"),
)
def test_the_unchanged_kernel_passes(change: Change) -> None:
    with in_place(original(change)):
        assert first_failure(change.test) == ""


def test_threads_on_the_host_compilers_code_are_counted() -> None:
    emulator = load("check")
    emulator.library.emulator_host_threads()
    change = CHANGES[0]
    with in_place(original(change)):
        uniform(on_schedule())
        # Its kernels are two, of which one is in place.
        some = emulator.library.emulator_host_threads()
    uniform(on_schedule())
    assert 0 < some < emulator.library.emulator_host_threads()
