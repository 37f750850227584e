# SPDX-License-Identifier: Apache-2.0
"""The kernels of a sharded selection on the emulator do what the CPU ops do, bit for bit."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64, c_uint64
from typing import Any

import numpy as np
import pytest
import torch
from emulator import Array, EmulatorError
from kernels import (
    EXPLORE,
    SCALAR_TYPES,
    SCORE,
    SCORE_WEIGHT,
    SCORE_WEIGHT_SQRT,
    UCB1,
    UCB_STD,
    UCB_VARIANCE,
    WEIGHT,
    Kernels,
    Ranking,
)
from test_selection_kernels import make_scores
from torch import Tensor

from dynprune_cuda import functional as F
from dynprune_cuda.sharded.digit_search import KEY_ROUNDS, advance, digit

ops = torch.ops.dynprune_cuda
SEED = -9
SEED_WORD = c_uint64(SEED % 2**64)


class ShardArgument(ctypes.Structure):
    _fields_ = (("count", c_int64), ("first", c_int64), ("stride", c_int64))


class ShardKernels:
    """The launchers, as functions of tensors."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.emulator = kernels.emulator

    def _given(self, tensor: Tensor | None, name: str) -> ctypes.c_void_p | None:
        return None if tensor is None else self.kernels._input(tensor, name)

    def _filled(self, op: str, shape: tuple[int, ...], dtype: Any, call: Any) -> Tensor:
        """Runs a launcher that fills an array: call(pointer, errors) gives its arguments."""
        with self.kernels._launch() as errors:
            out = self.emulator.array(shape, "out", dtype, initialised=False)
            self.kernels._call(op, *call(self.emulator.pointer(out), errors))
            return torch.from_numpy(out.copy())

    def keys(self, ranking: Ranking, shard: ShardArgument) -> Tensor:
        def call(out: ctypes.c_void_p, errors: Array) -> list[Any]:
            spec, records = self.kernels.spec(ranking), self.emulator.pointer(errors)
            return [ctypes.byref(spec), ctypes.byref(shard), SEED_WORD, out, records]

        return self._filled("shard_keys", (shard.count,), np.int32, call)

    def digit_counts(
        self,
        keys: Tensor,
        shard: ShardArgument,
        state: Tensor,
        number: int,
        greedy: Tensor | None = None,
        explore: bool = False,
    ) -> Tensor:
        bins = 1 << (10 if number % 3 == 2 else 11)

        def call(out: ctypes.c_void_p, _: Array) -> list[Any]:
            words = [self._given(keys, "keys"), ctypes.byref(shard), self._given(greedy, "greedy")]
            return [*words, int(explore), self._given(state, "state"), number, SEED_WORD, out]

        return self._filled("shard_digit_counts", (bins,), np.int64, call)

    def positions(
        self,
        keys: Tensor,
        shard: ShardArgument,
        greedy: Tensor | None,
        random: Tensor | None,
        k: int,
    ) -> Tensor:
        def call(out: ctypes.c_void_p, _: Array) -> list[Any]:
            size = self.emulator.library.emulated_shard_positions_workspace_bytes(len(keys))
            workspace = self.emulator.array((size,), "workspace", np.uint8, initialised=False)
            words = [self._given(keys, "keys"), ctypes.byref(shard)]
            limits = [self._given(greedy, "greedy"), self._given(random, "random")]
            return [*words, *limits, SEED_WORD, c_int64(k), out, self.emulator.pointer(workspace)]

        return self._filled("shard_positions", (k,), np.int64, call)

    def permutation_part(self, n: int, part: ShardArgument, inverse: bool) -> Tensor:
        def call(out: ctypes.c_void_p, _: Array) -> list[Any]:
            return [c_int64(n), ctypes.byref(part), int(inverse), SEED_WORD, out]

        return self._filled("permutation_part", (part.count,), np.int64, call)


def score_keys(scores: Tensor) -> Tensor:
    keys: Tensor = ops.shard_keys(*Ranking(SCORE, scores).arguments(), 0, 1, None, SEED)
    return keys


@pytest.fixture
def shards(kernels: Kernels) -> ShardKernels:
    return ShardKernels(kernels)


KEY_DTYPES = [dtype for dtype in SCALAR_TYPES if dtype != torch.float64]


@pytest.mark.parametrize("dtype", KEY_DTYPES, ids=str)
def test_keys_equal_cpu(shards: ShardKernels, dtype: torch.dtype) -> None:
    n = 1031
    x, y = make_scores("special", n, dtype), make_scores("normal", n, dtype).abs()
    weights = y.clone()
    weights[::3], weights[1::17] = 0, math.inf
    for ranking in (
        Ranking(SCORE, x),
        Ranking(UCB_VARIANCE, x, y, 0.7),
        Ranking(UCB_STD, x, y, 0.7),
        Ranking(WEIGHT, weights),
        Ranking(SCORE_WEIGHT, weights),
        Ranking(SCORE_WEIGHT_SQRT, weights),
        Ranking(WEIGHT, weights, c=0.5),
        Ranking(SCORE_WEIGHT_SQRT, weights, c=0.125),
    ):
        assert_keys_equal_cpu(shards, ranking)
    assert not shards.kernels.errors.any()


def assert_keys_equal_cpu(shards: ShardKernels, ranking: Ranking) -> None:
    first, stride = 5, 3
    shard = ShardArgument(len(ranking.values), first, stride)
    expected = ops.shard_keys(*ranking.arguments(), first, stride, None, SEED)
    assert torch.equal(shards.keys(ranking, shard), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_ucb1_keys_equal_cpu(shards: ShardKernels, dtype: torch.dtype) -> None:
    mean, count = make_scores("special", 300, torch.float32), torch.arange(300, dtype=dtype) % 4
    assert_keys_equal_cpu(shards, Ranking(UCB1, mean, count, 1.5, 2.5))


def test_bad_weights_are_recorded_by_their_ids(shards: ShardKernels) -> None:
    weights = torch.ones(100)
    weights[7] = math.nan
    keys = shards.keys(Ranking(WEIGHT, weights), ShardArgument(100, 4, 5))
    assert keys[7] == 0 and shards.kernels.errors[2].tolist() == [1, 4 + 7 * 5]


@pytest.mark.parametrize("kind", [SCORE, WEIGHT, EXPLORE])
def test_rankings_without_keys_are_refused(shards: ShardKernels, kind: int) -> None:
    x = torch.rand(10, dtype=torch.float32 if kind == EXPLORE else torch.float64)
    with pytest.raises(AssertionError, match="shard_keys returned error 1"):
        shards.keys(Ranking(kind, x), ShardArgument(10, 0, 1))


@pytest.mark.parametrize("kind", ["normal", "equal", "levels", "special"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_a_search_over_three_shards_equals_the_cpu_selection(
    shards: ShardKernels, kind: str, epsilon: float
) -> None:
    """Counts of every round equal the CPU's; the positions are those of the whole selection."""
    n, k, size = 4999, 1700, 3
    x = make_scores(kind, n, torch.float32)
    num_random = math.floor(epsilon * k + 0.5)
    parts = [ShardArgument(len(x[r::size]), r, size) for r in range(size)]
    keys = [score_keys(x[r::size]) for r in range(size)]
    taken = [0] * size

    def search(wanted: int, explore: bool, greedy: Tensor | None) -> Tensor:
        state = torch.tensor([0, wanted])
        for number in range(KEY_ROUNDS if explore else 2 * KEY_ROUNDS):
            own = [
                shards.digit_counts(*pair, state, number, greedy, explore)
                for pair in zip(keys, parts, strict=True)
            ]
            for r, counts in enumerate(own):
                place = (number, r, size, None, SEED)
                assert torch.equal(
                    counts, ops.shard_digit_counts(keys[r], state, greedy, explore, *place)
                )
            steps = [advance(state, sum(own), counts, digit(number)) for counts in own]
            for r, (_, more) in enumerate(steps):
                taken[r] += int(more)
            state = steps[0][0]
        assert state[1] == 0
        return state

    greedy = search(k - num_random, False, None) if num_random < k else None
    random = search(num_random, True, greedy) if num_random else None
    found = [
        shards.positions(keys[r], parts[r], greedy, random, taken[r]) * size + r
        for r in range(size)
    ]
    expected = F.select_epsilon_greedy(x, k, epsilon, seed=SEED, order="ascending")
    assert torch.equal(torch.cat(found).sort().values, expected)


@pytest.mark.parametrize("n", [0, 1, 31, 4095, 4097])
def test_shards_of_awkward_sizes(shards: ShardKernels, n: int) -> None:
    keys = score_keys(make_scores("levels", max(n, 1), torch.float32)[:n])
    shard, state = ShardArgument(n, 1000, 1), torch.tensor([0, 3])
    counts = shards.digit_counts(keys, shard, state, 0)
    assert counts.sum() == n
    everything = torch.tensor([0, 0])
    assert torch.equal(shards.positions(keys, shard, everything, None, n), torch.arange(n))
    assert not shards.digit_counts(keys, shard, everything, 1).any()  # the search is over


@pytest.mark.parametrize("n", [1, 7, 64, 65, 3001])
def test_parts_of_a_permutation_equal_the_whole(shards: ShardKernels, n: int) -> None:
    whole = F.permutation(n, seed=SEED)
    for first, stride in ((0, 1), (0, 3), (2, 3)):
        count = len(range(first, n, stride))
        part = ShardArgument(count, first, stride)
        got = shards.permutation_part(n, part, False)
        assert torch.equal(got, whole[first::stride])
        assert torch.equal(
            got, ops.permutation_part(whole, n, first, stride, count, False, None, SEED)
        )
        back = shards.permutation_part(n, part, True)
        assert whole[back].tolist() == list(range(first, n, stride))
        assert torch.equal(
            back, ops.permutation_part(whole, n, first, stride, count, True, None, SEED)
        )


def test_keys_shorter_than_claimed_are_reported(kernels_in_turn: Kernels) -> None:
    keys = torch.zeros(100, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="OUT OF BOUNDS"):
        ShardKernels(kernels_in_turn).digit_counts(
            keys, ShardArgument(101, 0, 1), torch.tensor([0, 3]), 0
        )
