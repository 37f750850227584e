# SPDX-License-Identifier: Apache-2.0
"""Parts of csrc/device apart from the kernels that use them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from compiling import CSRC, HERE, build
from emulator import Array, Emulator


@pytest.fixture(scope="module")
def parts() -> Iterator[Emulator]:
    with Emulator(build([HERE / "device_parts.cu"], "check", include_dirs=(CSRC,))) as emulator:
        yield emulator


def search_twice(parts: Emulator, words: Array, ranks: tuple[int, int], enough: int) -> Array:
    """Low and bits of both intervals, together and one by one; passes together and one by one."""
    out = parts.array(10, "out", np.uint64)
    given = parts.array(words.astype(np.uint64), "words")
    parts.library.search_twice(
        parts.pointer(given),
        len(words),
        *(ctypes.c_uint64(rank) for rank in (*ranks, enough)),
        parts.pointer(out),
    )
    parts.check()
    result = out.copy()
    parts.free(out, given)
    return result


@pytest.mark.parametrize("enough", [0, 8])
@pytest.mark.parametrize("kind", ["random", "clustered", "equal halves"])
def test_two_searches_in_the_passes_of_the_longer(parts: Emulator, kind: str, enough: int) -> None:
    rng = np.random.default_rng(5)
    words = rng.integers(0, 2**64, 3000, dtype=np.uint64, endpoint=False)
    if kind == "clustered":
        words = words >> np.uint64(24)
    elif kind == "equal halves":
        words = words >> np.uint64(63) << np.uint64(40) | np.arange(3000, dtype=np.uint64)
    for ranks in [(1000, 900), (1, 3000), (500, 500), (0, 1200), (1200, 0), (0, 0)]:
        result = search_twice(parts, words, ranks, enough)
        assert np.array_equal(result[:4], result[4:8])
        together, one_by_one = (int(passes) for passes in result[8:])
        assert together < one_by_one or 0 in ranks
        descending = np.sort(words)[::-1]
        for rank, low, bits in zip(ranks, result[0:4:2], result[1:4:2], strict=True):
            if rank > 0:
                assert int(low) <= int(descending[rank - 1]) < int(low) + 2 ** int(bits)


def test_a_cache_asks_until_it_is_answered_once(parts: Emulator) -> None:
    asked = ctypes.c_int()

    def ask(key: int, answer: int) -> tuple[int, int]:
        got = parts.library.ask_cache(key, answer, ctypes.byref(asked))
        return got, asked.value

    assert ask(1, 7) == (7, 1)
    assert ask(1, 8) == (7, 1)
    assert ask(2, 0) == (0, 2), "another key is another question"
    assert ask(2, 5) == (0, 2)
    assert ask(3, -1) == (-1, 3)
    assert ask(3, 4) == (4, 4), "an error is not remembered"


def test_what_blocks_add_to_has_cache_lines_of_its_own(parts: Emulator) -> None:
    lines = (ctypes.c_int * 16)()
    count = parts.library.select_state_lines(lines)
    read, added_to = lines[:3], lines[3:count]
    assert len(added_to) == len(set(added_to)) == 4
    assert not set(read) & set(added_to)
