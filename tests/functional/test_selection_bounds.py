# SPDX-License-Identifier: Apache-2.0
"""Selections that compute what they rank by: UCB, UCB1 and weights."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import reference
import torch

from dynprune_cuda import functional as F

SIZES = [0, 1, 2, 33, 257, 2049, 20011]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def normal(n, seed, dtype=torch.float32):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same_ids(ids, expected):
    np.testing.assert_array_equal(ids.cpu().numpy(), expected)


def test_the_reference_rounds_a_fused_multiply_add_once():
    """Against Fractions, with sums that lie next to a tie or cancel."""
    a, b, c = normal(3000, 1).numpy(), normal(3000, 2).numpy(), normal(3000, 3).numpy()
    c[1000:] = -(a * b)[1000:] * np.float32(1 + 2**-20)
    c[2000:] = np.ldexp(c[2000:], np.arange(1000) % 60 - 30).astype(np.float32)
    got = reference.fma32(a, b, c)
    for x, y, z, value in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert value == reference.round_to_float32(exact)
    assert (got != a * b + c).any()


@pytest.mark.parametrize("bonus", ["variance", "std"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ucb_ranks_by_mean_plus_bonus(device, dtype, bonus):
    for n, c in itertools.product(SIZES, (1.0, 0.0, -0.3, 0.1)):
        mean, variance = normal(n, 1, dtype), normal(n, 2, dtype).abs()
        bound = reference.ucb_bound(mean, variance, c, bonus)
        for k, order in ((n // 3, "random"), (n, "random"), (n // 2, "ascending")):
            options = {"seed": 5, "order": order}
            ids = F.select_ucb(mean.to(device), variance.to(device), k, c=c, bonus=bonus, **options)
            assert_same_ids(ids, reference.top_k(bound, k, **options))


def test_ucb_s_defaults_are_the_variance_with_weight_1(device):
    mean, variance = normal(500, 1).to(device), normal(500, 2).abs().to(device) * 9
    ids = F.select_ucb(mean, variance, 100)
    assert torch.equal(ids, F.select_ucb(mean, variance, 100, c=1.0, bonus="variance"))
    assert torch.equal(ids, F.select_top_k(mean + variance, 100))


def test_ucb_with_special_values(device):
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38, 1.5, -2.0]
    pairs = torch.tensor(list(itertools.product(special, special)))
    mean, variance = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    for bonus, c in itertools.product(("variance", "std"), (1.0, 0.0, -2.0)):
        bound = reference.ucb_bound(mean, variance, c, bonus)  # root of a negative number: NaN
        for k in range(0, 101, 7):
            ids = F.select_ucb(mean.to(device), variance.to(device), k, c=c, bonus=bonus, seed=k)
            assert_same_ids(ids, reference.top_k(bound, k, k))


@pytest.mark.parametrize("bonus", ["variance", "std"])
def test_ucb_is_one_fused_multiply_add(device, bonus):
    """(1 + u)(1 - u) is 1 in float32 and 1 - u^2 exactly; minus 1, a fused sum is below zero."""
    u = 2.0**-13
    spread = (1 - u) if bonus == "variance" else (1 - u) ** 2
    variance = torch.tensor([spread, 1.0, 1.0])
    c = 1 + u
    mean = torch.tensor([-1.0, -c, -1.0 - 2 * u])  # bounds -u^2 (unfused 0), 0, -u
    assert float(np.float32(c) * np.float32(1 - u)) == 1.0
    for seed in range(20):
        ids = F.select_ucb(mean.to(device), variance.to(device), 1, c=c, bonus=bonus, seed=seed)
        assert ids.tolist() == [1]
        ids = F.select_ucb(mean.to(device), variance.to(device), 2, c=c, bonus=bonus, seed=seed)
        assert sorted(ids.tolist()) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_ucb1_ranks_by_mean_plus_root_of_log_step_over_count(device, dtype):
    for n, c, step in itertools.product(SIZES, (1.0, 2**0.5, 0.0), (1, 2.5, 1e9)):
        mean = normal(n, 3)
        count = torch.randint(0, 40, (n,), generator=torch.Generator().manual_seed(n)).to(dtype)
        bound = reference.ucb1_bound(mean, count, c, step)
        for k in (n // 3, n):
            ids = F.select_ucb1(mean.to(device), count.to(device), k, c=c, step=step, seed=5)
            assert_same_ids(ids, reference.top_k(bound, k, 5))


def test_ucb1_ranks_samples_without_a_visit_first(device):
    mean = torch.tensor([1e30, torch.inf, -1e30, -torch.inf, 5.0], device=device)
    count = torch.tensor([1, 1, 0, 0, 10**9], device=device)
    for seed in range(10):
        options = {"step": 100, "seed": seed, "order": "ascending"}
        assert F.select_ucb1(mean, count, 2, **options).tolist() == [2, 3]
        assert F.select_ucb1(mean, count, 3, **options).tolist() == [1, 2, 3]


def test_ucb1_counts_beyond_32_bits(device):
    """More than 2^31 visits are not few, negative or none."""
    mean = torch.zeros(4, device=device)
    count = torch.tensor([2**33, 2**32, 2**31 + 7, 2**40], device=device)
    picks = [set(F.select_ucb1(mean, count, k, step=1e12).tolist()) for k in (1, 2, 3)]
    assert picks == [{2}, {1, 2}, {0, 1, 2}]


def test_both_tensors_of_a_bound_may_be_strided(device):
    mean, variance = normal(700, 1).to(device), normal(700, 2).abs().to(device)
    count = torch.arange(700, device=device) % 9
    pair = torch.stack([mean, variance], dim=1)
    counts = torch.stack([count, -count], dim=1)
    assert torch.equal(F.select_ucb(*pair.T, 99), F.select_ucb(mean, variance, 99))
    assert torch.equal(
        F.select_ucb1(pair[:, 0], counts[:, 0], 99, step=50),
        F.select_ucb1(mean, count, 99, step=50),
    )


def weights_of(kind, n, dtype):
    generator = torch.Generator().manual_seed(n)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    info = torch.finfo(dtype)
    if kind == "uniform":
        return uniform.to(dtype)
    if kind == "equal":
        return torch.full((n,), 3.0, dtype=dtype)
    if kind == "99 % zeros":
        return torch.where(uniform < 0.99, 0.0, uniform).to(dtype)
    if kind == "subnormal":
        return (uniform * 1000).floor().to(dtype) * (info.smallest_normal * info.eps)
    if kind == "huge":
        return ((uniform / 2 + 0.5) * info.max).to(dtype)
    if kind == "infinite and zero":
        mixed = torch.where(uniform < 0.2, torch.inf, uniform)
        return torch.where(uniform > 0.7, -0.0, mixed).to(dtype)
    assert kind == "every exponent"
    span = np.log2(info.max) - np.log2(info.smallest_normal * info.eps)
    return torch.exp2(np.log2(info.max) - span * uniform).to(dtype)


KINDS = ["uniform", "equal", "99 % zeros", "subnormal", "huge", "infinite and zero"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "every exponent"])
def test_weighted_takes_the_greatest_quotients(device, kind, dtype):
    for n in SIZES:
        weights = weights_of(kind, n, dtype)
        ranking = reference.weighted_ranking(reference.as_float64(weights), 12)
        for k in {0, min(1, n), n // 3, n}:
            for order in ("random", "ascending"):
                ids = F.select_weighted(weights.to(device), k, seed=12, order=order)
                assert_same_ids(ids, reference.arranged(ranking[:k], 12, order))


def test_the_draws_are_exponential_to_float32():
    """E against -log(u) in float64, at random hashes and at both ends."""
    ends = np.arange(1000, dtype=np.uint64)
    middle = reference.id_hash(3, reference.WEIGHT, 50_000)
    hashes = np.concatenate([ends, middle, np.uint64(0xFFFFFFFF) - ends])
    u = (hashes.astype(np.float64) + 0.5) * 2.0**-32
    exact = np.where(u > 0.5, -np.log1p(-(1 - u)), -np.log(u))
    np.testing.assert_allclose(reference.exponential(hashes).astype(np.float64), exact, rtol=2.7e-7)


def test_weighted_agrees_with_exponentials_in_float64(device):
    """Derived without the float32 series: only samples at the threshold may differ."""
    n, k = 20011, 5000
    weights = weights_of("uniform", n, torch.float32)
    u = (reference.id_hash(4, reference.WEIGHT, n).astype(np.float64) + 0.5) * 2.0**-32
    quotient = reference.as_float64(weights) / -np.log(u)
    threshold = np.sort(quotient)[-k]
    chosen = np.zeros(n, dtype=bool)
    chosen[F.select_weighted(weights.to(device), k, seed=4).cpu().numpy()] = True
    clear = np.abs(quotient / threshold - 1) > 1e-6
    assert clear.sum() >= n - 2
    np.testing.assert_array_equal(chosen[clear], (quotient >= threshold)[clear])


def test_no_two_draws_near_zero_are_equal():
    """Small draws compete for the first places, so no bit of their hashes may be lost."""
    steps = np.arange(1 << 18, dtype=np.uint64)
    for first in (0, 1 << 20, (1 << 23) - (1 << 18)):
        draws = reference.exponential(np.uint64(0xFFFFFFFF - first) - steps)
        assert (np.diff(draws) > 0).all()
        assert first != 0 or draws[0] == np.float32(2.0**-33)


def test_weighted_takes_more_samples_than_torch_multinomial(device):
    """More than 2^24, of which a few thousand have a weight, the last ones among them."""
    n, k = (1 << 24) + 1001, 1500
    generator = np.random.default_rng(1)
    ids = np.unique(np.append(generator.integers(0, n, 4000), np.arange(1 << 24, n)))
    values = generator.random(len(ids), dtype=np.float32) + np.float32(0.5)
    weights = torch.zeros(n, device=device)
    weights[torch.from_numpy(ids).to(device)] = torch.from_numpy(values).to(device)
    draws = reference.exponential(reference.listed_id_hash(8, reference.WEIGHT, ids))
    expected = np.sort(ids[np.argsort(values / draws)[::-1][:k]])
    chosen = F.select_weighted(weights, k, seed=8, order="ascending").cpu().numpy()
    np.testing.assert_array_equal(chosen, expected)
    assert (expected > 1 << 24).any()


def test_zero_weights_only_fill_up_and_at_random(device):
    weights = torch.zeros(1000, device=device)
    weights[100:200] = torch.linspace(1e-45, 1e30, 100, device=device)
    weights[500:] = -0.0
    fillers = set()
    for seed in range(20):
        ids = set(F.select_weighted(weights, 60, seed=seed).tolist())
        assert ids <= set(range(100, 200))
        ids = set(F.select_weighted(weights, 110, seed=seed).tolist())
        assert len(ids) == 110 and set(range(100, 200)) <= ids
        fillers |= ids - set(range(100, 200))
    assert len(fillers) > 150  # 20 draws of 10 out of 900: 181 expected
    assert min(fillers) < 100 and max(fillers) > 900


def test_infinite_weights_come_first_and_at_random(device):
    weights = torch.full((500,), 3e38, device=device)
    weights[:50] = torch.inf
    picked = set()
    for seed in range(20):
        ids = set(F.select_weighted(weights, 10, seed=seed).tolist())
        assert ids <= set(range(50))
        picked |= ids
        assert set(range(50)) <= set(F.select_weighted(weights, 60, seed=seed).tolist())
    assert len(picked) > 40


def test_only_ratios_of_weights_count(device):
    """A power of two scales every quotient exactly, down to subnormal weights and up to the end."""
    weights = torch.randint(1, 1 << 12, (2000,), generator=torch.Generator().manual_seed(1)).float()
    ids = F.select_weighted(weights.to(device), 500, seed=6)
    for power in (-149, -140, -126, -60, 60, 115):
        scaled = weights * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)
        assert torch.equal(ids, F.select_weighted(scaled.to(device), 500, seed=6)), power
    for power in (-1074, 0, 1000):
        scaled = torch.from_numpy(np.ldexp(weights.double().numpy(), power))
        assert torch.equal(ids, F.select_weighted(scaled.to(device), 500, seed=6)), power


def test_a_weight_far_above_all_others_is_taken(device):
    weights = torch.full((1000,), 1e-45)
    weights[[3, 500]] = torch.tensor([3e38, 1e30])
    for seed in range(50):
        ids = F.select_weighted(weights.to(device), 2, seed=seed)
        assert sorted(ids.tolist()) == [3, 500]
