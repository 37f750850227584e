# SPDX-License-Identifier: Apache-2.0
"""What launchers ask of the runtime API, and tell it: once for each device, nothing a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from binary_kernels import BinaryKernels
from kernels import SCORE, Kernels, Ranking, on_schedule
from steps import check_step, make_columns, make_logits
from test_selection_kernels import make_scores

_shared_bytes = itertools.count(160 * 1024, step=16)


def new_device(**schedule: int) -> dict[str, int]:
    """A device that nothing has run on in this process."""
    return {"shared_bytes": next(_shared_bytes), **schedule}


def select(kernels: Kernels) -> None:
    x = make_scores("normal", 9001, torch.float32)
    kernels.select(Ranking(SCORE, x), num_samples=len(x), k=3000, seed=1)


def select_uniform(kernels: Kernels) -> None:
    kernels.select(None, num_samples=9001, k=3000, seed=1)


def step(kernels: Kernels) -> None:
    check_step(kernels, 2, 20_000, torch.float32)  # 80 KB a row


def soft_step(kernels: Kernels) -> None:
    check_step(kernels, 2, 9000, torch.float32, probabilities=torch.float32)  # 72 KB


def binary_step(kernels: Kernels) -> None:
    logits = make_logits(3, 50, torch.float32)
    target = torch.zeros_like(logits)
    BinaryKernels(kernels).step(logits, target, torch.arange(3), make_columns(3))


def wide_step(kernels: Kernels) -> None:
    check_step(kernels, 2, 50_001, torch.bfloat16)


def soft_forward(kernels: Kernels) -> None:
    logits = make_logits(2, 9000, torch.float32)
    kernels.scored_cross_entropy(logits, logits.softmax(1))


CALLS: dict[str, tuple[Callable[[Kernels], None], dict[str, int]]] = {
    "selection on the chip": (select, {}),
    "streaming selection": (select, {"refuse_cooperative": 1}),
    "uniform selection": (select_uniform, {}),
    "step": (step, {}),
    "step with probabilities": (soft_step, {}),
    "step in a cluster": (wide_step, {"multiprocessors": 16}),
    "step in a grid": (wide_step, {"multiprocessors": 16, "max_cluster": 0}),
    "probabilities": (soft_forward, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_step_asks_nothing(name: str) -> None:
    call, schedule = CALLS[name]
    kernels = on_schedule(**new_device(**schedule))
    kernels.emulator.statistics()
    call(kernels)
    assert kernels.emulator.statistics()["driver_calls"] > 0
    for _ in range(2):
        call(kernels)
        assert kernels.emulator.statistics()["driver_calls"] == 0


def test_several_labels_ask_nothing_at_all() -> None:
    kernels = on_schedule(**new_device())
    kernels.emulator.statistics()
    binary_step(kernels)
    assert kernels.emulator.statistics()["driver_calls"] == 0


@pytest.mark.parametrize("call", [step, soft_step, wide_step, select])
def test_each_device_is_asked_and_told(call: Callable[[Kernels], None]) -> None:
    """A kernel has no leave on one device because it has it on another; a device that comes back
    keeps what it was told."""
    first, second = new_device(multiprocessors=16), new_device(multiprocessors=9)
    counts = []
    for device in (first, second, first, second):
        kernels = on_schedule(**device)
        kernels.emulator.statistics()
        call(kernels)
        counts.append(kernels.emulator.statistics()["driver_calls"])
    assert counts[0] == counts[1] > 0 == counts[2] == counts[3]
