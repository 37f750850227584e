# SPDX-License-Identifier: Apache-2.0
"""The selection kernels on the emulator choose what the CPU ops choose, id for id."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from emulator import EmulatorError
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
    load,
)
from torch import Tensor

from dynprune_cuda import functional as F

SIZES = [1, 2, 31, 32, 33, 255, 2047, 2048, 2049, 9001]
DTYPES = list(SCALAR_TYPES)


def counts_for(n: int) -> list[int]:
    return sorted({1, n // 3, n - 1, n} - {0})


def make_scores(kind: str, n: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    if kind == "equal":
        x = torch.full_like(x, 2.5)
    elif kind == "mostly_zero":
        x = torch.where(torch.rand(n, generator=generator) < 0.01, x.abs(), 0.0).double()
        x[::7] = -0.0
    elif kind == "levels":
        x = (x * 2).round()
    elif kind == "special":
        x[::2] = math.inf
        x[::3] = math.nan
        x[::5] = -math.inf
        x[::11] = 5e-324 if dtype == torch.float64 else 1e-45
    elif kind == "clustered":
        x = 2.3 + x * 1e-4
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind", ["normal", "equal", "mostly_zero", "levels", "special", "clustered"]
)
def test_top_k_equals_cpu(selection_kernels: Kernels, kind: str, dtype: torch.dtype) -> None:
    for n, k in [(33, 11), (2049, 683), (5000, 4999)]:
        x = make_scores(kind, n, dtype)
        ids = selection_kernels.select(Ranking(SCORE, x), num_samples=n, k=k, seed=n)
        assert torch.equal(ids, F.select_top_k(x, k, seed=n))


@pytest.mark.parametrize("n", SIZES)
def test_top_k_equals_cpu_at_every_size(selection_kernels: Kernels, n: int) -> None:
    x = make_scores("levels", n, torch.float32)
    for k in counts_for(n):
        for order in ("random", "ascending"):
            ids = selection_kernels.select(
                Ranking(SCORE, x), num_samples=n, k=k, seed=-3, order=order
            )
            assert torch.equal(ids, F.select_top_k(x, k, seed=-3, order=order))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
def test_epsilon_greedy_equals_cpu(selection_kernels: Kernels, epsilon: float) -> None:
    for n, k in [(1, 1), (33, 20), (4099, 1300)]:
        x = make_scores("levels", n, torch.float32)
        num_random = math.floor(epsilon * k + 0.5)
        ids = selection_kernels.select(
            Ranking(SCORE, x), num_samples=n, k=k, num_random=num_random, seed=2**63
        )
        assert torch.equal(ids, F.select_epsilon_greedy(x, k, epsilon, seed=2**63))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bonus", ["variance", "std"])
def test_ucb_equals_cpu(selection_kernels: Kernels, bonus: str, dtype: torch.dtype) -> None:
    n, k = 3001, 1000
    mean, variance = make_scores("normal", n, dtype), make_scores("normal", n + 1, dtype)[:n].abs()
    mean[::9] = math.nan
    kind = UCB_STD if bonus == "std" else UCB_VARIANCE
    ranking = Ranking(kind, mean, variance, c=0.7)
    ids = selection_kernels.select(ranking, num_samples=n, k=k, seed=5)
    assert torch.equal(ids, F.select_ucb(mean, variance, k, c=0.7, bonus=bonus, seed=5))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_ucb1_equals_cpu(selection_kernels: Kernels, dtype: torch.dtype) -> None:
    n, k = 2500, 700
    mean = make_scores("normal", n, torch.float32)
    count = torch.arange(n, dtype=dtype) % 5
    ranking = Ranking(UCB1, mean, count, c=1.5, log_step=math.log(777))
    ids = selection_kernels.select(ranking, num_samples=n, k=k, seed=6)
    assert torch.equal(ids, F.select_ucb1(mean, count, k, c=1.5, step=777, seed=6))


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_by_scores_equal_cpu(
    selection_kernels: Kernels, dtype: torch.dtype, power: float
) -> None:
    n = 2200
    scores = make_scores("normal", n, dtype)
    scores[1::17] = math.inf
    scores[2::19] = torch.finfo(dtype).tiny / 4
    scores[3::29] = math.nan
    kind = SCORE_WEIGHT if power == 1.0 else SCORE_WEIGHT_SQRT
    for k, start in ((5, 0.0), (600, 0.25), (2000, 0.999)):
        ranking = F.Ranking.by_score_weight(scores, power=power, start=start)
        described = Ranking(kind, scores, c=ranking.c)
        ids = selection_kernels.select(described, num_samples=n, k=k, seed=k)
        assert torch.equal(ids, F.select(ranking, n, k, seed=k, order="random"))
        assert not selection_kernels.errors.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weighted_equals_cpu(selection_kernels: Kernels, dtype: torch.dtype) -> None:
    n = 2200
    weights = make_scores("normal", n, dtype).abs()
    weights[::3] = 0
    weights[1::17] = math.inf
    weights[2::19] = torch.finfo(dtype).tiny / 4
    weights[4::23] = torch.finfo(dtype).max
    for k, start in ((5, 0.0), (600, 0.75), (2000, 0.001)):
        ranking = F.Ranking.by_weight(weights, start=start)
        described = Ranking(WEIGHT, weights, c=ranking.c)
        ids = selection_kernels.select(described, num_samples=n, k=k, seed=k)
        assert torch.equal(ids, F.select(ranking, n, k, seed=k, order="random"))
        assert not selection_kernels.errors.any()


def test_bad_weights_are_counted_and_never_chosen_before_good_ones(
    selection_kernels: Kernels,
) -> None:
    weights = torch.ones(1000)
    weights[7] = -1.0
    weights[500] = math.nan
    ids = selection_kernels.select(
        Ranking(WEIGHT, weights), num_samples=1000, k=998, order="ascending"
    )
    assert sorted({7, 500} & set(ids.tolist())) == []
    count, example = selection_kernels.errors[2]
    assert count == 2 and example in (7, 500)


@pytest.mark.parametrize("n", SIZES)
def test_uniform_and_permutation_equal_cpu(kernels: Kernels, n: int) -> None:
    for k in counts_for(n):
        for order in ("random", "ascending"):
            ids = kernels.select(None, num_samples=n, k=k, seed=k, order=order)
            assert torch.equal(ids, F.select_uniform(n, k, seed=k, order=order))


def test_seed_in_device_memory_equals_seed_by_value(selection_kernels: Kernels) -> None:
    x = make_scores("levels", 3000, torch.float32)
    for ranking in (Ranking(SCORE, x), None):
        request = {"num_samples": 3000, "k": 900, "seed": -77}
        by_value = selection_kernels.select(ranking, **request)
        assert torch.equal(
            selection_kernels.select(ranking, **request, seed_in_memory=True), by_value
        )


def test_a_larger_selection_under_the_checker(kernels_in_turn: Kernels) -> None:
    n, k = 200_003, 66_667
    x = make_scores("levels", n, torch.float32)
    ids = kernels_in_turn.select(Ranking(SCORE, x), num_samples=n, k=k, seed=1)
    assert torch.equal(ids, F.select_top_k(x, k, seed=1))


@pytest.mark.parametrize("kind", ["normal", "equal"])
def test_a_million_scores_in_the_fast_build(kind: str) -> None:
    emulator = load("fast")
    emulator.configure(multiprocessors=16)
    n = 1 << 20
    x = make_scores(kind, n, torch.float32)
    ids = Kernels(emulator).select(Ranking(SCORE, x), num_samples=n, k=n // 3, seed=8)
    assert torch.equal(ids, F.select_top_k(x, n // 3, seed=8))


@pytest.mark.parametrize(
    ("kind", "dtype"), [(UCB_STD, torch.float64), (UCB_VARIANCE, torch.float64), (EXPLORE, None)]
)
def test_rankings_without_a_kernel_are_refused(
    kernels_in_turn: Kernels, kind: int, dtype: torch.dtype | None
) -> None:
    x = torch.rand(10, dtype=dtype)
    with pytest.raises(AssertionError, match="select returned error 1"):
        kernels_in_turn.select(Ranking(kind, x, x), num_samples=10, k=3)


def test_scores_shorter_than_claimed_are_reported(kernels_in_turn: Kernels) -> None:
    """The harness itself: a kernel that reads past its input does not pass unseen."""
    x = make_scores("normal", 1000, torch.float32)
    with pytest.raises(EmulatorError, match="OUT OF BOUNDS"):
        kernels_in_turn.select(Ranking(SCORE, x), num_samples=1001, k=10)


# ---- arithmetic beyond what memory holds


@pytest.mark.parametrize("n", [2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**32 + 1, 10**12, 2**62 + 1])
def test_permutation_is_invertible_at_sizes_beyond_memory(n: int) -> None:
    library = load("check").library
    generator = np.random.default_rng(0)
    positions = {0, 1, n - 2, n - 1, *map(int, generator.integers(0, n, 300))}
    elements = set()
    for position in positions:
        element = library.permutation_at(n, 99, position)
        assert 0 <= element < n
        assert library.permutation_position_of(n, 99, element) == position
        elements.add(element)
    assert len(elements) == len(positions)


def test_tie_hash_uses_all_32_bits_of_an_id() -> None:
    library = load("check").library
    ids = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    assert len({library.tie_hash_of(1, i) for i in ids}) == len(ids)


def test_exponential_draws_are_accurate_over_the_whole_range() -> None:
    library = load("check").library
    generator = np.random.default_rng(0)
    hashes = [
        0,
        1,
        2**31 - 1,
        2**31,
        2**32 - 2,
        2**32 - 1,
        *map(int, generator.integers(0, 2**32, 3000)),
    ]
    for h in hashes:
        u = (2 * h + 1) / 2**33
        exact = -math.log1p(u - 1) if u > 0.5 else -math.log(u)
        assert library.exponential_of(h) == pytest.approx(exact, rel=3e-7)


def test_16_bit_conversions_agree_with_torch() -> None:
    library = load("check").library
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        values = bits.view(dtype)
        widened = torch.tensor([getattr(library, f"widen_{name}")(int(b) & 0xFFFF) for b in bits])
        assert torch.equal(widened.nan_to_num(7.0), values.float().nan_to_num(7.0))
        x = values.float()
        x = torch.cat([x, x * (1 + 2.0**-12), x * (1 + 2.0**-9), x * 0.7, x.abs().sqrt()])
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:40_000]]
        narrowed = [getattr(library, f"narrow_{name}")(float(v)) for v in x]
        result = torch.tensor(narrowed, dtype=torch.int32).to(torch.int16).view(dtype)
        assert torch.equal(result.float().nan_to_num(7.0), x.to(dtype).float().nan_to_num(7.0))
