# SPDX-License-Identifier: Apache-2.0
"""Opcodes that move data, jump or order threads do what PTX says of them."""

from __future__ import annotations

import numpy as np
import pytest
from bug_matrix import SCHEDULES
from emulator import Array, EmulatorError
from ptx.access_texts import (
    ATOMIC_PREFIXES,
    CARRIED,
    LOADS,
    MEMORY_WORDS,
    MESSAGE,
    NEIGHBOUR,
    ORDERED,
    REDUCTIONS,
    SHUFFLES,
    SPECIAL,
    STORES,
    UPDATES,
    atomic_forms,
    load_forms,
    offset,
    store_forms,
    texts,
)
from ptx.opcode_kernels import OpcodeKernels, opcodes_of
from ptx.opcodes import OPERATIONS
from ptx.parser import TYPE_BYTES
from ptx.references import wrap
from ptx.twins import TARGETS, kernels_of
from ptx.writer import SPECIAL_REGISTERS


@pytest.fixture(scope="module")
def opcodes() -> OpcodeKernels:
    return OpcodeKernels(texts())


def random_words(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 1 << 64, count, dtype=np.uint64)


def extended(data: bytes, t: str) -> int:
    return int.from_bytes(data, "little", signed=t.startswith("s")) & (2**64 - 1)


@pytest.mark.parametrize("prefix", LOADS)
def test_loads(opcodes: OpcodeKernels, prefix: str) -> None:
    memory = random_words(MEMORY_WORDS)
    memory |= np.uint64(0x8080808080808080) * (np.arange(MEMORY_WORDS) % 2 == 0)
    value = 0x7FC3_9A81_0B7E_F2D5
    expected = []
    for i, (n, t, _) in enumerate(load_forms(prefix)):
        data = value.to_bytes(8, "little") if prefix == "ld.param" else memory.tobytes()
        at = 0 if prefix == "ld.param" else offset(i)
        size = TYPE_BYTES[t]
        expected += [extended(data[at + k * size : at + (k + 1) * size], t) for k in range(n)]
    last = value if prefix == "ld.param" else None
    got = opcodes.run(
        f"loads_{prefix}".replace(".", "_"),
        [memory],
        threads=1,
        out_words=len(expected),
        last=last,
    )
    np.testing.assert_array_equal(got, np.array(expected, np.uint64))


@pytest.mark.parametrize("prefix", STORES)
def test_stores(opcodes: OpcodeKernels, prefix: str) -> None:
    words = random_words(MEMORY_WORDS)
    forms = store_forms(prefix)
    expected = np.zeros((len(forms), 16), np.uint8)
    for i, (n, t, _) in enumerate(forms):
        size = TYPE_BYTES[t]
        for k in range(n):
            low = words[k : k + 1].view(np.uint8)[:size]
            expected[i, k * size : (k + 1) * size] = low
    got = opcodes.run(
        f"stores_{prefix}".replace(".", "_"), [words], threads=1, out_words=2 * len(forms)
    )
    np.testing.assert_array_equal(got, expected.reshape(-1).view(np.uint64))


@pytest.mark.parametrize("prefix", ATOMIC_PREFIXES)
def test_atomics(opcodes: OpcodeKernels, prefix: str) -> None:
    threads = 64
    inputs = [random_words(threads, seed) for seed in range(3)]
    for x in inputs[1:]:
        x[::4] = inputs[0][::4]  # so that some are equal
    inputs[0][1::8] = 0
    forms = atomic_forms(prefix)
    got = opcodes.run(
        f"atomics_{prefix}".replace(".", "_"), inputs, out_words=2 * threads * len(forms)
    )
    results = got.reshape(len(forms), 2, threads)
    for i, (op, t, name) in enumerate(forms):
        kind = {"f32": np.float32, "f64": np.float64}.get(t)
        size = TYPE_BYTES[t]
        for thread in range(threads):
            raw = [x[thread : thread + 1].view(np.uint8)[:size] for x in inputs]
            if kind is not None:
                old, b, c = (r.view(kind)[0] for r in raw)
                with np.errstate(all="ignore"):
                    new = UPDATES[op](old, b, c)
                found = results[i, 1, thread : thread + 1].view(np.uint8)[:size].view(kind)[0]
                assert found == new or (np.isnan(found) and np.isnan(new)), name
                expected_old = raw[0].tobytes()
            else:
                old, b, c = (wrap(int.from_bytes(r.tobytes(), "little"), t) for r in raw)
                new = UPDATES[op](old, b, c) & ((1 << 8 * size) - 1)
                assert int(results[i, 1, thread]) & ((1 << 8 * size) - 1) == new, name
                expected_old = raw[0].tobytes()
            assert results[i, 0, thread].tobytes()[:size] == expected_old, name


def shuffled(mode: str, values: Array, b: Array, c: Array) -> list[int]:
    """PTX ISA 9.7.9.6, a lane at a time."""
    result = []
    for lane in range(32):
        b_value, c_value, segment = int(b[lane]) & 31, int(c[lane]) & 31, int(c[lane]) >> 8 & 31
        most = (lane & segment) | (c_value & ~segment)
        least = lane & segment
        source = {
            "up": lane - b_value,
            "down": lane + b_value,
            "bfly": lane ^ b_value,
            "idx": least | (b_value & ~segment),
        }[mode]
        good = source >= most if mode == "up" else source <= most
        result.append(int(values[source if good else lane]) | int(good) << 32)
    return result


@pytest.mark.parametrize("mode", SHUFFLES)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffles(opcodes: OpcodeKernels, mode: str, width: int) -> None:
    values = random_words(64) & np.uint64(0xFFFFFFFF)
    rng = np.random.default_rng(width)
    for schedule in ({}, {"seed": 3, "preempt": 64}):
        b = rng.integers(0, 32, 64).astype(np.uint64)
        c = np.full(64, (32 - width) << 8 | (0 if mode == "up" else 31), np.uint64)
        got = opcodes.run(f"shuffle_{mode}", [values, b, c], **schedule)
        expected = [
            x
            for w in (0, 32)
            for x in shuffled(mode, values[w : w + 32], b[w : w + 32], c[w : w + 32])
        ]
        np.testing.assert_array_equal(got, np.array(expected, np.uint64))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(opcodes: OpcodeKernels, name: str) -> None:
    rng = np.random.default_rng(0)
    for odd in (0.0, 0.02, 0.5, 1.0):
        values = random_words(64, 5) & np.uint64(0xFFFFFFFE) | (rng.random(64) < odd).astype(
            np.uint64
        )
        got = opcodes.run(f"reduce_{name}".replace(".", "_"), [values], seed=2, preempt=16)
        numbers = [int(v) for v in values]
        groups = [numbers] if name.startswith("bar") else [numbers[:32], numbers[32:]]
        expected = [wrap(int(REDUCTIONS[name](g)), "u32") for g in groups for _ in g]
        np.testing.assert_array_equal(got, np.array(expected, np.uint64))


@pytest.mark.parametrize("t", ["b32", "b64"])
def test_matches(opcodes: OpcodeKernels, t: str) -> None:
    high = np.random.default_rng(0).integers(0, 3, 64).astype(np.uint64) << np.uint64(32)
    values = np.random.default_rng(1).integers(0, 4, 64).astype(np.uint64) | high
    seen = values if t == "b64" else values & np.uint64(0xFFFFFFFF)
    warps = seen.reshape(2, 32)
    expected = [sum(1 << j for j in range(32) if w[j] == w[i]) for w in warps for i in range(32)]
    got = opcodes.run(f"match_{t}", [values], seed=4)
    np.testing.assert_array_equal(got, np.array(expected, np.uint64))


def test_moves(opcodes: OpcodeKernels) -> None:
    words = random_words(64)
    words[0] = 0x7F812345_7F812345  # a signalling NaN: moving it does not change it
    low, high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    halves = (low & np.uint64(0xFFFF)) << np.uint64(16) | low >> np.uint64(16)
    lanes = np.arange(64, dtype=np.uint64) % 32
    constant = lambda x: np.full(64, x, np.uint64)  # noqa: E731
    expected = [
        low << np.uint64(32) | high,
        halves,
        low,
        low,
        low & np.uint64(0xFFFF),
        constant(2**32 - 7),
        words,
        constant(0x3FC00000),
        constant(0xBFF8 << 48),
        words,
        words,
        constant(0),
        lanes,
        constant(1),
    ]
    got = opcodes.run("moves", [words], out_words=64 * len(expected), grid=64)
    np.testing.assert_array_equal(got.reshape(-1, 64)[:12], expected[:12])
    warp = opcodes.run("moves", [words[:1].repeat(64)], out_words=64 * len(expected), grid=2)
    np.testing.assert_array_equal(warp.reshape(-1, 64)[12:], expected[12:])


def test_special_registers(opcodes: OpcodeKernels) -> None:
    assert set(SPECIAL_REGISTERS) == {*SPECIAL, "%envreg1", "%envreg2"}
    got = opcodes.run("specials", threads=128, grid=2, out_words=128 * len(SPECIAL))
    for row, (name, value) in zip(got.reshape(-1, 128), SPECIAL.items(), strict=True):
        assert row.tolist() == [value(i) for i in range(128)], name


def test_jumps(opcodes: OpcodeKernels) -> None:
    numbers = np.arange(1, 65, dtype=np.uint64)
    steps = []
    for number in range(1, 65):
        count = 0
        while number > 1:
            number, count = (number // 2 if number % 2 == 0 else 3 * number + 1), count + 1
        steps.append(count if count > 10 else 77)
    np.testing.assert_array_equal(opcodes.run("steps", [numbers]), np.array(steps, np.uint64))


def test_a_trap_is_reported_with_its_line(opcodes: OpcodeKernels) -> None:
    line = texts()["trap"][: texts()["trap"].index("trap;")].count("\n") + 1
    with pytest.raises(EmulatorError, match=rf"trap\.ptx:{line}: __trap.*thread \(5,0,0\)"):
        opcodes.run("trap", threads=64)


def test_only_cooperative_launches_have_a_workspace(opcodes: OpcodeKernels) -> None:
    assert not opcodes.run("workspace", threads=64).any()
    got = opcodes.run("workspace", threads=64, cluster=0)
    assert got[0] != 0 and len(set(got.tolist())) == 1


@pytest.mark.parametrize("name", ORDERED)
def test_order(opcodes: OpcodeKernels, name: str) -> None:
    """With it the right answer and no report, without it a race."""
    form = ORDERED[name][0]
    launch = {"threads": 64} if form is CARRIED else {"threads": 128, "grid": 2}
    if form is NEIGHBOUR:
        launch["cluster"] = 2
    thread = np.arange(launch["threads"])
    expected = {
        CARRIED: thread ^ (1 if "warp" in name else 32),
        MESSAGE: np.where(thread == 64, 41, 0),
        NEIGHBOUR: 1 - thread // 64,
    }[form]
    if form is NEIGHBOUR:  # one thread of each block: the others would race
        launch["threads"], expected = 2, np.array([1, 0])
    reported = 0
    for s in SCHEDULES:
        schedule = {"seed": s.seed, "order": s.order, "resident": s.resident, "preempt": s.preempt}
        got = opcodes.run(f"ordered_{name}", **launch, **schedule)
        np.testing.assert_array_equal(got, expected.astype(np.uint64))
        try:
            opcodes.run(f"unordered_{name}", **launch, **schedule)
        except EmulatorError as error:
            reported += (
                "RACE" in str(error) or "UNINITIALISED" in str(error) or "CLUSTER" in str(error)
            )
    assert reported == len(SCHEDULES)


def test_parameters_of_other_sizes_are_reported(opcodes: OpcodeKernels) -> None:
    with pytest.raises(EmulatorError, match="parameters of other sizes"):
        opcodes.run("trap", threads=1, parameter_bytes=4)


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("target", TARGETS)
def test_every_opcode_that_nvcc_writes_is_tested(target: str) -> None:
    tested = set(OPERATIONS).union(*map(opcodes_of, texts().values()))
    written = set().union(*(opcodes_of(twin.text) for twin in kernels_of(target).values()))
    assert written - tested == set()
