# SPDX-License-Identifier: Apache-2.0
"""What CUDA's intrinsics compute, against scalar references, in random groups and schedules."""

from __future__ import annotations

import numpy as np
import pytest
from bug_matrix import SCHEDULES, Schedule, configure
from emulator import Array, Emulator

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"seed{s.seed}")


def random_groups(rng: np.random.Generator, warps: int) -> tuple[Array, Array]:
    """Each warp in up to three groups: each lane's mask, and a random lane of its group."""
    group = rng.integers(0, rng.integers(1, 4), (warps, 32))
    same = group[:, :, None] == group[:, None, :]
    masks = (same * (1 << np.arange(32, dtype=np.uint64))).sum(2).astype(np.uint32)
    sources = np.argmax(same * rng.random((warps, 32, 32)), axis=2).astype(np.int32)
    return masks, sources


def warp_groups_reference(values: Array, masks: Array, sources: Array) -> Array:
    """The rows of warp_groups, one lane at a time."""
    rows = []
    for warp, lane in np.ndindex(values.shape):
        lanes = [i for i in range(32) if int(masks[warp, lane]) >> i & 1]
        v = values[warp].astype(object)
        s = [int(x) for x in values[warp].view(np.int32)]
        own = v[lane]
        group = [v[i] for i in lanes]
        signed = [s[i] for i in lanes]
        equal_top = all(x >> 31 == own >> 31 for x in group)
        shuffled = v[sources[warp, lane]]
        rows.append(
            [
                sum(1 << i for i in lanes if v[i] & 1),
                any(x % 16 == 0 for x in group),
                all(x % 16 != 0 for x in group),
                sum(1 << i for i in lanes if v[i] % 4 == own % 4),
                int(masks[warp, lane]) if equal_top else 0,
                equal_top,
                sum(group),
                min(group),
                max(group),
                sum(signed),
                min(signed),
                max(signed),
                int(np.bitwise_and.reduce(np.array(group, np.uint32) | np.uint32(0xFFFF))),
                int(np.bitwise_or.reduce(np.array(group, np.uint32) & np.uint32(0xFFFF))),
                int(np.bitwise_xor.reduce(np.array(group, np.uint32))),
                shuffled,
                shuffled,
                shuffled,
                1,
            ]
        )
    return np.array([[int(x) & 0xFFFFFFFF for x in row] for row in rows], np.uint32).T


@each_schedule
def test_warp_operations_of_random_groups(emulator: Emulator, schedule: Schedule) -> None:
    configure(emulator, schedule)
    blocks, threads = 2, 96
    warps = blocks * threads // 32
    rng = np.random.default_rng(schedule.seed)
    values = rng.integers(0, 1 << 32, (warps, 32), dtype=np.uint32)
    values[0] = values[0, 0]  # all equal
    masks, sources = random_groups(rng, warps)
    expected = warp_groups_reference(values, masks, sources)
    arrays = [
        emulator.array(a.reshape(-1), n)
        for a, n in ((values, "values"), (masks, "masks"), (sources, "sources"))
    ]
    out = emulator.array(expected.shape, "out", np.uint32, initialised=False)
    status = emulator.library.launch_warp_groups(
        *(emulator.pointer(a) for a in (*arrays, out)), blocks, threads
    )
    emulator.check()
    assert status == 0
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("distance", [0, 1, 3, 5, 8, 16, 31])
def test_shuffles(emulator: Emulator, width: int, distance: int) -> None:
    configure(emulator, Schedule(seed=distance))
    blocks, threads = 2, 64
    values = np.random.default_rng(0).integers(0, 1 << 32, blocks * threads, dtype=np.uint32)
    values &= np.uint32(0xBFFFFFFF)  # no NaN: a float copy may quieten it
    device_values = emulator.array(values, "values")
    out = emulator.array((5, blocks * threads), "out", np.uint32, initialised=False)
    pointers = emulator.pointer(device_values), distance, width, emulator.pointer(out)
    emulator.library.launch_shuffles(*pointers, blocks, threads)
    emulator.check()
    lane = np.arange(32)
    begin = lane // width * width
    sources = {
        "idx": begin + distance % width,
        "up": np.where(lane - distance < begin, lane, lane - distance),
        "down": np.where(lane + distance >= begin + width, lane, lane + distance),
        "xor": np.where(lane ^ distance >= begin + width, lane, lane ^ distance),
    }
    rows = [values.reshape(-1, 32)[:, source].reshape(-1) for source in sources.values()]
    np.testing.assert_array_equal(out, [*rows, rows[-1]])


def test_bit_functions(emulator: Emulator) -> None:
    blocks, threads = 4, 256
    rng = np.random.default_rng(0)
    a = rng.integers(0, 1 << 32, blocks * threads, dtype=np.uint32) >> rng.integers(
        0, 32, blocks * threads, np.uint32
    )
    b = rng.integers(0, 1 << 32, blocks * threads, dtype=np.uint32)
    a[:3], b[:3] = (0, 1, 0xFFFFFFFF), (0, 0, 0xFFFFFFFF)
    a &= np.uint32(0xBFFFFFFF)  # no NaN
    out = emulator.array((18, a.size), "out", np.uint32, initialised=False)
    inputs = emulator.array(a, "a"), emulator.array(b, "b")
    emulator.library.launch_bit_functions(*map(emulator.pointer, (*inputs, out)), blocks, threads)
    emulator.check()

    def reference(x: int, y: int) -> list[int]:
        wide = x << 32 | y
        twisted = y << 32 | x  # funnel shifts take the low word first
        signed = [v - (1 << 32) if v >> 31 else v for v in (x, y)]
        return [
            x.bit_count(),
            wide.bit_count(),
            32 - x.bit_length(),
            64 - wide.bit_length(),
            (x & -x).bit_length(),
            (wide & -wide).bit_length(),
            int(f"{x:032b}"[::-1], 2),
            int(f"{wide:064b}"[::-1], 2),
            x * y >> 32,
            signed[0] * signed[1] >> 32,
            wide * wide >> 96,
            twisted << (y & 31) >> 32,
            twisted >> (y & 31),
            x,
            x,
            x,
            min(x, y),
            max(signed),
        ]

    expected = [
        [v & 0xFFFFFFFF for v in reference(int(x), int(y))] for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_array_equal(out, np.array(expected, np.uint32).T)


def test_float_functions(emulator: Emulator) -> None:
    blocks, threads = 4, 256
    rng = np.random.default_rng(0)
    a = np.exp(rng.uniform(-8, 3, blocks * threads)).astype(np.float32)
    b = np.exp(rng.uniform(-8, 3, blocks * threads)).astype(np.float32)
    out = emulator.array((18, a.size), "out", np.float32, initialised=False)
    inputs = emulator.array(a, "a"), emulator.array(b, "b")
    emulator.library.launch_float_functions(*map(emulator.pointer, (*inputs, out)), blocks, threads)
    emulator.check()
    product = a * b
    # What rounding the product lost: exact in double, and zero if a "fused" operation rounds twice.
    lost = (a.astype(np.float64) * b - product).astype(np.float32)
    exact = [
        a + b,
        a - b,
        product,
        a / b,
        np.sqrt(a),
        lost,
        0 * a,
        a,
        a,
        a,
        np.minimum(a, b),
        np.maximum(a, b),
    ]
    np.testing.assert_array_equal(out[: len(exact)], exact)
    close = [np.exp(-a), np.log(a), np.exp2(-a), np.log1p(a), 1 / np.sqrt(a), a]
    np.testing.assert_allclose(out[len(exact) :], close, rtol=4e-7, atol=1e-7)
    assert np.count_nonzero(lost) > a.size // 2


def test_double_functions(emulator: Emulator) -> None:
    blocks, threads = 2, 256
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.uniform(-8, 3, (2, blocks * threads)))
    out = emulator.array((6, a.size), "out", np.float64, initialised=False)
    inputs = emulator.array(a, "a"), emulator.array(b, "b")
    emulator.library.launch_double_functions(
        *map(emulator.pointer, (*inputs, out)), blocks, threads
    )
    emulator.check()
    np.testing.assert_array_equal(out[:5], [a + b, a - b, a * b, a / b, np.sqrt(a)])
    lost = [exact_product_error(float(x), float(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(out[5], lost)


def exact_product_error(x: float, y: float) -> float:
    (xn, xd), (yn, yd), (pn, pd) = (v.as_integer_ratio() for v in (x, y, x * y))
    return (xn * yn * pd - pn * xd * yd) / (xd * yd * pd)


@each_schedule
def test_block_votes_and_three_dimensional_blocks(emulator: Emulator, schedule: Schedule) -> None:
    configure(emulator, schedule)
    x, y, z = 8, 4, 8
    rng = np.random.default_rng(schedule.seed)
    values = rng.integers(0, 2, x * y * z, dtype=np.uint32)
    values |= 2  # one vote is unanimous with even seeds
    values[7] &= 0xFFFFFFFD | 2 * (schedule.seed % 2 == 0)
    values[9] |= 4 * (schedule.seed % 3 == 0)
    out = emulator.array((4, values.size), "out", np.uint32, initialised=False)
    device_values = emulator.array(values, "values")
    emulator.library.launch_block_votes(
        emulator.pointer(device_values), emulator.pointer(out), x, y, z
    )
    emulator.check()
    assert (out[0] == np.count_nonzero(values & 1)).all()
    assert (out[1] == (schedule.seed % 2 == 0)).all()
    assert (out[2] == (schedule.seed % 3 == 0)).all()
    t = np.arange(values.size)
    np.testing.assert_array_equal(out[3], t % x | t // x % y << 8 | t // (x * y) << 16)


ATOMICS = np.dtype(
    [
        ("sum_int", np.int32),
        ("min_int", np.int32),
        ("max_int", np.int32),
        ("sum_unsigned", np.uint32),
        ("and_unsigned", np.uint32),
        ("or_unsigned", np.uint32),
        ("xor_unsigned", np.uint32),
        ("inc_unsigned", np.uint32),
        ("sum_wide", np.uint64),
        ("max_wide", np.uint64),
        ("cas_wide", np.uint64),
        ("sum_float", np.float32),
        ("sum_double", np.float64),
    ],
    align=True,
)


@each_schedule
def test_atomics(emulator: Emulator, schedule: Schedule) -> None:
    configure(emulator, schedule)
    blocks, threads = 3, 96
    n = blocks * threads
    values = np.random.default_rng(schedule.seed).integers(0, 1 << 32, n, dtype=np.uint32)
    start = np.zeros(1, ATOMICS)
    start["and_unsigned"] = 0xFFFFFFFF
    results = emulator.array(start.view(np.uint8), "results")
    tickets = emulator.array(n, "tickets", np.uint32, initialised=False)
    device_values = emulator.array(values, "values")
    emulator.library.launch_atomics(
        *map(emulator.pointer, (device_values, results, tickets)), blocks, threads
    )
    emulator.check()
    signed, wide = values.view(np.int32), values.astype(np.uint64)
    expected = {
        "sum_int": signed.sum(dtype=np.int32),
        "min_int": min(0, signed.min()),
        "max_int": max(0, signed.max()),
        "sum_unsigned": -int(values.sum(dtype=np.int64)) % (1 << 32),
        "and_unsigned": np.bitwise_and.reduce(values | np.uint32(0xFF)),
        "or_unsigned": np.bitwise_or.reduce(values & np.uint32(0xFF00)),
        "xor_unsigned": np.bitwise_xor.reduce(values),
        "inc_unsigned": n % 100,
        "sum_wide": n,
        "max_wide": (wide << np.uint64(20)).max(),
        "cas_wide": wide.sum(),
        "sum_float": (values % 16).sum(),
        "sum_double": wide.sum(),
    }
    got = results.view(ATOMICS)[0]
    assert {name: int(got[name]) for name in expected} == {
        name: int(value) for name, value in expected.items()
    }
    np.testing.assert_array_equal(np.sort(tickets), np.arange(n))
