# SPDX-License-Identifier: Apache-2.0
"""Selections against the reference: the exact ids in the exact order, on every kind of scores."""

import random
import zlib

import numpy as np
import pytest
import reference
import torch

from dynprune_cuda import functional as F

SIZES = [0, 1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 2047, 2048, 2049, 20011]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SEED = 0x9E3779B97F4A7C15


def generator_for(*what):
    return torch.Generator().manual_seed(zlib.crc32(repr(what).encode()))


def counts(n):
    return sorted({k for k in (0, 1, n // 3, n - 1, n) if 0 <= k <= n})


def with_specials(values, specials, generator):
    where = torch.rand(len(values), generator=generator) < 0.2
    which = torch.randint(len(specials), (len(values),), generator=generator)
    return torch.where(where, torch.tensor(specials, dtype=values.dtype)[which], values)


def draw(kind, n, dtype=torch.float32):
    """[n] scores of a kind, on the CPU."""
    generator = generator_for(kind, n)
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    step = torch.randint(-300, 300, (n,), generator=generator).double()
    info = torch.finfo(dtype)
    if kind == "normal":
        return normal.to(dtype)
    if kind == "all equal":
        return torch.full((n,), 0.25, dtype=dtype)
    if kind == "99 % zeros":
        return torch.where(torch.rand(n, generator=generator) < 0.99, 0.0, normal).to(dtype)
    if kind == "four levels":
        return (step % 4 - 1).to(dtype)
    if kind == "ascending":
        return normal.sort().values.to(dtype)
    if kind == "descending":
        return normal.sort(descending=True).values.to(dtype)
    if kind == "subnormal":  # multiples of the smallest number
        return step.to(dtype) * (info.smallest_normal * info.eps)
    if kind == "zeros of both signs":
        return torch.where(step > 0, 0.0, -0.0).to(dtype)
    if kind == "infinities":
        return with_specials(normal.to(dtype), [np.inf, -np.inf, info.max, info.min], generator)
    if kind == "NaN":
        values = with_specials(normal.to(dtype), [np.nan, np.inf, -np.inf], generator)
        return torch.where(step % 7 == 0, -values.abs(), values)  # NaN of both signs
    if kind == "rounded to bfloat16":
        return normal.bfloat16().to(dtype)
    if kind == "one exponent":  # the leading digits are all the same
        return 1 + step.abs().to(dtype) * info.eps
    assert kind == "half range"
    return (torch.rand(n, generator=generator) * 131008 - 65504).to(dtype)


KINDS = [
    "normal",
    "all equal",
    "99 % zeros",
    "four levels",
    "ascending",
    "descending",
    "subnormal",
    "zeros of both signs",
    "infinities",
    "NaN",
    "rounded to bfloat16",
    "one exponent",
    "half range",
]

# Every selection as a function of one positive tensor, for what holds for all of them.
OPS = {
    "top_k": F.select_top_k,
    "epsilon_greedy": lambda t, k, **o: F.select_epsilon_greedy(t, k, 0.3, **o),
    "ucb": lambda t, k, **o: F.select_ucb(t, t, k, c=0.7, bonus="std", **o),
    "ucb1": lambda t, k, **o: F.select_ucb1(t, (t * 9).long(), k, step=50.0, **o),
    "uniform": lambda t, k, **o: F.select_uniform(len(t), k, device=t.device, **o),
    "weighted": F.select_weighted,
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def positive(n, device, levels=50):
    """Scores with many ties, so that the tie rule takes part."""
    return torch.randint(1, levels, (n,), generator=generator_for(n)).float().to(device) / levels


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_top_k_is_the_head_of_the_total_order(device, kind, dtype):
    for n in SIZES:
        scores = draw(kind, n, dtype)
        ranking = reference.ranked(reference.as_float64(scores), SEED)
        on_device = scores.to(device)
        for k in counts(n):
            for order in ("random", "ascending"):
                ids = F.select_top_k(on_device, k, seed=SEED, order=order)
                assert ids.dtype == torch.int64 and ids.device.type == device.type
                expected = reference.arranged(ranking[:k], SEED, order)
                np.testing.assert_array_equal(ids.cpu().numpy(), expected, f"N={n} k={k} {order}")


@pytest.mark.parametrize("epsilon", [0.0, 0.001, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["normal", "all equal", "99 % zeros", "NaN"])
def test_epsilon_greedy_is_the_greedy_part_and_a_draw_from_the_rest(device, kind, epsilon):
    for n in (0, 1, 2, 33, 257, 2049, 20011):
        scores = draw(kind, n)
        for k in counts(n):
            for order in ("random", "ascending"):
                ids = F.select_epsilon_greedy(scores.to(device), k, epsilon, seed=-3, order=order)
                values = reference.as_float64(scores)
                expected = reference.epsilon_greedy(values, k, epsilon, -3, order)
                np.testing.assert_array_equal(ids.cpu().numpy(), expected, f"N={n} k={k} {order}")


@pytest.mark.parametrize(
    ("k", "epsilon", "num_random"),
    # n_random = floor(epsilon k + 0.5): halves round up, as far as epsilon k is what it seems
    [
        (10, 0.05, 1),
        (10, 0.049, 0),
        (10, 0.25, 3),
        (10, 0.35, 4),
        (1, 0.5, 1),
        (1, 0.4999, 0),
        (7, 1.0, 7),
    ],
)
def test_epsilon_is_rounded_to_a_number_of_samples(device, k, epsilon, num_random):
    """The greedy part, k - n_random greatest scores, is intact; the others are not its tail."""
    n = 100_000
    scores = torch.arange(n, dtype=torch.float32, device=device).flip(0)
    ids = F.select_epsilon_greedy(scores, k, epsilon, seed=8).tolist()
    assert set(range(k - num_random)) <= set(ids)
    assert sum(i >= k for i in ids) == num_random  # of 1e5, hardly one within the next few


def test_epsilon_0_is_top_k_and_no_other_option_changes_it(device):
    scores = draw("four levels", 2049).to(device)
    for seed in range(5):
        a = F.select_epsilon_greedy(scores, 700, 0.0, seed=seed)
        assert torch.equal(a, F.select_top_k(scores, 700, seed=seed))


@pytest.mark.parametrize("threads", [2, 3, 8])
@every_op
def test_the_number_of_threads_changes_nothing(op, threads):
    n = 200_003
    scores = positive(n, "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            results.append(
                [
                    op(scores, k, seed=4, order=o)
                    for k in (n // 3, n)
                    for o in ("random", "ascending")
                ]
            )
    finally:
        torch.set_num_threads(before)
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_selections_from_many_samples_are_the_reference_s(device, kind):
    """Enough for several threads and blocks, and for methods that only pay at such sizes."""
    n = 200_003
    scores = draw(kind, n)
    values, on_device = reference.as_float64(scores), scores.to(device)
    ranking = reference.ranked(values, SEED)
    for k in (1, 1000, n // 3, n - 1):
        ids = F.select_top_k(on_device, k, seed=SEED).cpu().numpy()
        np.testing.assert_array_equal(ids, reference.arranged(ranking[:k], SEED, "random"))
    for k, epsilon in ((n // 3, 0.1), (n - 1, 0.5)):
        ids = F.select_epsilon_greedy(on_device, k, epsilon, seed=5).cpu().numpy()
        np.testing.assert_array_equal(ids, reference.epsilon_greedy(values, k, epsilon, 5))
    if kind in {"ascending", "99 % zeros", "all equal", "infinities"}:
        ids = F.select_weighted(on_device.abs(), n // 3, seed=5).cpu().numpy()
        np.testing.assert_array_equal(ids, reference.weighted(np.abs(values), n // 3, 5))


def test_a_large_permutation_is_the_reference_s(device):
    ids = F.permutation(200_003, seed=6, device=device).cpu().numpy()
    np.testing.assert_array_equal(ids, reference.uniform(200_003, 200_003, 6))


@pytest.mark.slow
def test_draws_that_only_the_last_bits_of_a_hash_decide(device):
    """The k-th and the next hash share 24 bits and more, so a boundary off by one shows."""
    n = 200_003
    scores = torch.zeros(n, device=device)
    for stream, epsilon in ((reference.TIE, 0.0), (reference.EXPLORE, 1.0)):
        hashes = reference.id_hash(3, stream, n)
        ranking = np.argsort(hashes)[::-1]
        descending = hashes[ranking]
        close = np.flatnonzero(descending[:-1] >> 8 == descending[1:] >> 8)[:40] + 1
        assert len(close) == 40
        for k in close.tolist():
            ids = F.select_epsilon_greedy(scores, k, epsilon, seed=3, order="ascending")
            np.testing.assert_array_equal(ids.cpu().numpy(), np.sort(ranking[:k]))


@every_op
def test_ids_are_distinct_in_range_and_the_same_again(device, op):
    for n in (0, 1, 33, 2049):
        scores = positive(n, device)
        for k in counts(n):
            ids = op(scores, k, seed=7)
            assert ids.shape == (k,) and ids.dtype == torch.int64 and ids.is_contiguous()
            values = ids.tolist()
            assert len(set(values)) == k and all(0 <= i < n for i in values)
            assert torch.equal(ids, op(scores, k, seed=7))
            assert torch.equal(ids, op(scores, k, seed=7, order="random"))


@every_op
def test_order_arranges_the_set_and_does_not_change_it(device, op):
    scores = positive(2049, device)
    for k in (1, 700, 2049):
        ascending = op(scores, k, seed=9, order="ascending")
        assert torch.equal(ascending, op(scores, k, seed=9).sort().values)
    assert not torch.equal(op(scores, 700, seed=9), op(scores, 700, seed=9, order="ascending"))


@every_op
def test_seeds_are_taken_modulo_2_to_64(device, op):
    scores = positive(300, device)
    for seed in (0, 5, -1, -(1 << 63), (1 << 63) + 11):
        ids = op(scores, 100, seed=seed)
        for same in (seed + (1 << 64), seed - (1 << 64), seed + (1 << 200)):
            assert torch.equal(ids, op(scores, 100, seed=same)), (seed, same)
        assert torch.equal(ids, op(scores, 100, seed=np.uint64(seed % (1 << 64))))


@every_op
def test_every_bit_of_the_seed_matters(device, op):
    scores = torch.ones(600, device=device)
    for order in ("random", "ascending"):
        seeds = [SEED ^ (1 << bit) for bit in range(64)] + [SEED]
        results = {tuple(op(scores, 200, seed=seed, order=order).tolist()) for seed in seeds}
        assert len(results) == 65


@every_op
def test_a_seed_tensor_means_the_same_as_its_value(device, op):
    scores = positive(300, device)
    for seed in (0, 77, -1, (1 << 63) - 1, -(1 << 63)):
        tensor = torch.tensor(seed, device=device)
        assert torch.equal(op(scores, 100, seed=tensor), op(scores, 100, seed=seed))
        assert tensor.item() == seed


@every_op
def test_inputs_keep_every_bit_and_no_global_generator_is_touched(device, op):
    scores = positive(2049, device)
    before = scores.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    on_gpu = torch.cuda.get_rng_state() if device.type == "cuda" else None
    op(scores, 700, seed=1)
    assert torch.equal(scores.view(torch.int32), before.view(torch.int32))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_array_equal(np.random.get_state()[1], states[2])
    assert on_gpu is None or torch.equal(torch.cuda.get_rng_state(), on_gpu)


def test_top_k_leaves_the_bits_of_nan_and_zeros_alone(device):
    scores = draw("NaN", 2049).to(device)
    scores[::5] = -0.0
    before = scores.clone()
    F.select_top_k(scores, 700)
    assert torch.equal(scores.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", [OPS[n] for n in ("top_k", "epsilon_greedy", "weighted")])
def test_strides_and_offsets_do_not_matter(device, op, dtype):
    n = 513
    dense = positive(n, device).to(dtype)
    filler = torch.full((2 * n + 5,), 7.0, dtype=dtype, device=device)
    for name, view in {
        "offset": filler.clone()[3 : 3 + n],
        "strided": filler.clone()[1 : 1 + 2 * n : 2],
        "column": torch.full((n, 3), 7.0, dtype=dtype, device=device)[:, 1],
    }.items():
        view.copy_(dense)
        for k in (0, 1, 171, n):
            assert torch.equal(op(view, k, seed=2), op(dense, k, seed=2)), name
    expanded = torch.ones(1, dtype=dtype, device=device).expand(n)
    assert torch.equal(op(expanded, 99, seed=2), op(expanded.contiguous(), 99, seed=2))


@every_op
def test_inputs_that_require_grad_are_accepted(device, op):
    scores = positive(257, device)
    ids = op(scores.clone().requires_grad_(), 86, seed=3)
    assert not ids.requires_grad and torch.equal(ids, op(scores, 86, seed=3))


def test_nan_ranks_above_infinity_whatever_its_bits(device):
    bits = [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF]
    scores = torch.full((200,), torch.inf)
    scores.view(torch.int32)[:4] = torch.tensor(bits).to(torch.int32)
    ids = F.select_top_k(scores.to(device), 4, order="ascending")
    assert ids.tolist() == [0, 1, 2, 3]
    assert {F.select_top_k(scores.to(device), 1, seed=s).item() for s in range(60)} == {0, 1, 2, 3}


def test_zeros_of_both_signs_are_one_tie(device):
    scores = torch.zeros(1000, device=device)
    negated = scores.clone()
    negated[::2] = -0.0
    for seed in range(5):
        ids = F.select_top_k(scores, 300, seed=seed)
        assert torch.equal(ids, F.select_top_k(negated, 300, seed=seed))
        assert torch.equal(ids, F.select_top_k(-scores, 300, seed=seed))


def test_the_set_depends_on_the_order_of_scores_only(device):
    """A monotone map of the scores, and another dtype that holds them, leave the ids alone."""
    scores = draw("four levels", 2049).to(device)
    ids = F.select_top_k(scores, 700, seed=5)
    for same in (scores * 3 - 8, scores.exp(), scores.half(), scores.bfloat16(), scores.double()):
        assert torch.equal(ids, F.select_top_k(same, 700, seed=5))


def test_a_smaller_subset_is_part_of_a_greater_one(device):
    scores = draw("four levels", 257).to(device)
    larger: set[int] = set()
    for k in range(258):
        smaller, larger = larger, set(F.select_top_k(scores, k, seed=5).tolist())
        assert smaller < larger or k == 0


def test_permutations_of_all_small_sizes_are_permutations(device):
    for n in range(601):
        ids = F.permutation(n, seed=n, device=device)
        assert torch.equal(ids.sort().values.cpu(), torch.arange(n)), n
        np.testing.assert_array_equal(ids.cpu().numpy(), reference.uniform(n, n, n))


def test_a_uniform_subset_is_the_prefix_of_the_permutation(device):
    for n in SIZES:
        whole = F.permutation(n, seed=SEED, device=device)
        for k in counts(n):
            ids = F.select_uniform(n, k, seed=SEED, device=device)
            assert torch.equal(ids, whole[:k])
            ascending = F.select_uniform(n, k, seed=SEED, device=device, order="ascending")
            assert torch.equal(ascending, whole[:k].sort().values)
        np.testing.assert_array_equal(whole.cpu().numpy(), reference.uniform(n, n, SEED))


def test_a_uniform_subset_of_billions_needs_no_memory_for_them(device):
    n = 1 << 32
    ids = F.select_uniform(n, 1000, seed=3, device=device).cpu().numpy()
    np.testing.assert_array_equal(ids, reference.uniform(n, 1000, 3))
    assert (ids >= 1 << 31).any() and len(set(ids.tolist())) == 1000


# On the CPU a random sample brackets the threshold. For these seeds it lies below the bracket (the
# first three) or above it, and the second attempt must find what the first could not.
@pytest.mark.parametrize("seed", [1047, 2927, 3120, 468, 4822, 6011])
def test_a_threshold_outside_its_bracket_is_found_all_the_same(device, seed):
    n, k = 8000, 2500
    scores = torch.arange(n, dtype=torch.float32, device=device)
    ids = F.select_top_k(scores, k, seed=seed, order="ascending")
    assert torch.equal(ids, torch.arange(n - k, n, device=device))


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU keeps all subnormals")
def test_flushing_subnormals_changes_no_subset():
    scores = torch.arange(1, 200_001) * 1e-44
    calls = [
        lambda: F.select_top_k(scores, 50_000, seed=1),
        lambda: F.select_weighted(scores, 50_000, seed=1),
        lambda: F.select_ucb(scores, scores, 50_000, seed=1),
    ]
    expected = [call() for call in calls]
    torch.set_flush_denormal(True)
    try:
        for call, ids in zip(calls, expected, strict=True):
            assert torch.equal(call(), ids)
    finally:
        torch.set_flush_denormal(False)
