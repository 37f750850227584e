# SPDX-License-Identifier: Apache-2.0
"""What the emulator answers for functions that a GPU computes only nearly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from kernels import EXP2_ERRORS, Kernels, on_schedule


def powers_of_2(kernels: Kernels) -> Callable[[float], float]:
    exp2 = kernels.library.emulator_exp2
    exp2.restype, exp2.argtypes = ctypes.c_float, (ctypes.c_float,)
    return exp2


@pytest.mark.parametrize(("name", "ulps"), [("above", 2), ("below", -2), ("mixed", 0)])
def test_powers_of_2_are_as_wrong_as_documented(name: str, ulps: int) -> None:
    exp2 = powers_of_2(on_schedule(**EXP2_ERRORS[name]))
    x = np.random.default_rng(0).uniform(-125, 30, 2000).astype(np.float32)
    x[:3] = 0, 1, -1
    exact = np.exp2(x.astype(np.float64))
    unit = np.exp2(np.floor(np.log2(exact)) - 23)
    errors = (np.array([exp2(v) for v in x]) - exact) / unit
    assert np.abs(errors).min() > 0.5 and np.abs(errors).max() <= 2
    signs = np.sign(errors)
    assert np.all(signs == np.sign(ulps)) if ulps else 0.4 < np.mean(signs > 0) < 0.6
    assert exp2(float("-inf")) == exp2(-127.0) == 0 and np.isnan(exp2(float("nan")))


def test_they_are_right_unless_told_not_to_be() -> None:
    exp2 = powers_of_2(on_schedule())
    assert [exp2(float(n)) for n in range(-126, 128)] == [2.0**n for n in range(-126, 128)]
