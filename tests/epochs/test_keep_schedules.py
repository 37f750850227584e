# SPDX-License-Identifier: Apache-2.0
"""schedules: their values, and runs that follow them."""

import copy
import math
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynprune_cuda import Pruner, schedules
from dynprune_cuda.schedules import growing, oscillating, shrinking

N = 100
fractions = st.floats(1e-6, 1.0)
curves = st.sampled_from(["linear", "cosine"])


def values(keep, epochs):
    return [round(keep(epoch), 12) for epoch in range(epochs)]


def test_linear_values():
    assert values(growing(0.2, 1.0, 5), 7) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert values(shrinking(1.0, 0.2, 5), 7) == [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    assert values(growing(0.5, 1.0, 2, first_epoch=2), 5) == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert values(oscillating(0.2, 1.0, 4), 9) == [1.0, 0.6, 0.2, 0.6] * 2 + [1.0]
    assert values(oscillating(0.2, 0.5, 3), 4) == [0.5, 0.3, 0.3, 0.5]
    assert values(oscillating(0.2, 1.0, 2, first_epoch=1), 5) == [1.0, 1.0, 0.2, 1.0, 0.2]


def test_cosine_values():
    half = math.sqrt(0.5) / 2  # (1 - cos(pi / 4)) / 2 = 0.5 - half
    assert values(growing(0.5, 1.0, 5, curve="cosine"), 6) == [
        pytest.approx(0.5 + 0.5 * part) for part in (0, 0.5 - half, 0.5, 0.5 + half, 1, 1)
    ]
    wave = oscillating(0.2, 0.8, 8, curve="cosine")
    for epoch in range(20):
        assert wave(epoch) == pytest.approx(0.5 + 0.3 * math.cos(2 * math.pi * epoch / 8))


@given(a=fractions, b=fractions, epochs=st.integers(2, 40), curve=curves)
@example(a=1.0000000000000002e-06, b=1e-06, epochs=8, curve="linear")
def test_ramps_are_monotonic_and_end_exactly(a, b, epochs, curve):
    low, high = sorted((a, b))
    up = [growing(low, high, epochs, curve=curve)(epoch) for epoch in range(epochs + 3)]
    assert up == sorted(up) and up[0] == low and up[epochs - 1 :] == [high] * 4
    down = [shrinking(high, low, epochs, curve=curve)(epoch) for epoch in range(epochs + 3)]
    assert down == sorted(down, reverse=True) and down[0] == high and down[-1] == low
    wave = [oscillating(low, high, epochs, curve=curve)(epoch) for epoch in range(2 * epochs)]
    assert wave[:epochs] == wave[epochs:] and max(wave) == wave[0] == high and min(wave) >= low
    assert wave[1:epochs] == wave[epochs - 1 : 0 : -1]


@pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")
@pytest.mark.parametrize(
    ("keep", "period", "sizes"),
    [
        (growing(0.2, 1.0, 5, first_epoch=1), 1, [100, 20, 40, 60, 80, 100, 100]),
        (growing(0.2, 1.0, 5, first_epoch=1), 2, [100, 20, 20, 60, 60, 100, 100]),
        (shrinking(1.0, 0.5, 3), 1, [100, 75, 50, 50, 50, 50, 50]),
        (oscillating(0.4, 1.0, 4), 1, [100, 70, 40, 70, 100, 70, 40]),
    ],
)
def test_a_run_follows_them(device, keep, period, sizes):
    pruner = Pruner(N, keep, period=period, device=device)
    assert pruner.total_steps(7, 8) == sum(math.ceil(size / 8) for size in sizes)
    for epoch, size in enumerate(sizes):
        pruner.set_epoch(epoch)
        assert pruner.num_selected == len(pruner.selected) == size
    assert repr(keep) in repr(pruner)


@pytest.mark.parametrize(
    "keep", [growing(0.2, 1.0, 5), oscillating(0.2, 0.5, 3, curve="cosine", first_epoch=2)]
)
def test_copies_are_equal(keep):
    for clone in (copy.deepcopy(keep), pickle.loads(pickle.dumps(keep))):
        assert clone == keep and repr(clone) == repr(keep)
        assert values(clone, 9) == values(keep, 9)
    assert pickle.loads(pickle.dumps(Pruner(N, keep))).schedule.keep == keep


def test_reprs_say_how_to_make_them():
    for keep in (growing(0.2, 1, 5), oscillating(0.2, 0.5, 3, curve="cosine")):
        assert eval(repr(keep), vars(schedules)) == keep
    assert repr(growing(0.2, 1, 5)) == (
        "Ramp(start=0.2, end=1.0, epochs=5, curve='linear', first_epoch=0)"
    )


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (growing, (0.0, 1.0, 5), ValueError, r"start must be in \(0, 1\], got 0.0"),
        (growing, (0.5, 1.5, 5), ValueError, r"end must be in \(0, 1\], got 1.5"),
        (growing, ("a", 1.0, 5), TypeError, "start must be a number, got 'a'"),
        (growing, (0.5, True, 5), TypeError, "end must be a number, got True"),
        (growing, (0.5, 1.0, 1), ValueError, "epochs must be at least 2, got 1"),
        (growing, (0.5, 1.0, 5.0), TypeError, "epochs must be an int, got 5.0"),
        (growing, (1.0, 0.5, 5), ValueError, "end must be at least start=1.0, got 0.5; use shr"),
        (shrinking, (0.5, 1.0, 5), ValueError, "end must be at most start=0.5, got 1.0; use gro"),
        (oscillating, (0.5, 0.4, 5), ValueError, "low must be at most high=0.4, got 0.5"),
        (oscillating, (0.5, 1.0, 1), ValueError, "cycle must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_named(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(*arguments)


@pytest.mark.parametrize("make", [growing, oscillating])
def test_bad_options_are_named(make):
    with pytest.raises(ValueError, match="curve must be one of 'linear', 'cosine', got 'step'"):
        make(0.5, 1.0, 5, curve="step")
    with pytest.raises(ValueError, match="first_epoch must be at least 0, got -1"):
        make(0.5, 1.0, 5, first_epoch=-1)
