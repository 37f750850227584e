# SPDX-License-Identifier: Apache-2.0
"""The parts of a selection in one read, against NumPy; whole selections are in test_sharded.py."""

import numpy as np
import pytest
import reference
import torch
from shard_ranks import SAMPLE, SEED, scores_of

from dynprune_cuda import functional, sharded
from dynprune_cuda._ops.contract import RankingKind
from dynprune_cuda.distributed import Ranks
from dynprune_cuda.distributed.shard import LAYOUTS
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.sharded import Shard, bracket_search
from dynprune_cuda.sharded.ranking import explore_like, keys_of

N, SIZE = 6000, 3
ops = torch.ops.dynprune_cuda


def rankings(kind, n=N):
    """One of each kind, of all samples."""
    x, variance = scores_of(kind, n), scores_of("levels", n).abs()
    count = torch.arange(n) % 5
    yield Ranking.by_score(x)
    yield Ranking.by_score(x.half())
    yield Ranking.by_ucb(x, variance, c=0.7)
    yield Ranking.by_ucb(x.bfloat16(), variance.bfloat16(), c=0.7, bonus="std")
    yield Ranking.by_ucb1(x, count, c=0.7, step=20.0)
    yield Ranking.by_ucb1(x, count.int(), c=0.7, step=20.0)
    yield Ranking.by_weight(x.abs().nan_to_num(1.0))
    yield Ranking.by_score_weight(x)
    yield Ranking.by_score_weight(x.half(), power=0.5)
    yield Ranking.by_weight(x.abs().nan_to_num(1.0), start=0.4)
    yield Ranking.by_score_weight(x, power=0.5, start=0.9)
    yield explore_like(Ranking.by_score(x))


def part_of(ranking, shard):
    """What a rank holds of a ranking of all samples."""
    rows = shard.ids()
    second = ranking.second if ranking.second is None else ranking.second[rows]
    return ranking._replace(values=ranking.values[rows], second=second)


def composites(ranking, ids):
    """Composite keys of samples that a ranking holds, by the plain search's keys, uint64."""
    if ranking.kind == RankingKind.EXPLORE:
        keys = reference.listed_id_hash(SEED, reference.EXPLORE, ids)
    else:
        whole = Shard(len(ranking.values), 0, 1)
        keys = keys_of(ranking, whole, SEED).numpy().view(np.uint32).astype(np.uint64)[ids]
    return (keys << np.uint64(32)) | reference.listed_id_hash(SEED, reference.TIE, ids)


def as_bools(bits, n):
    return np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")[:n].astype(bool)


def check_sorted_out(found, keys, excluded):
    """What is above the bracket, and what is in it; returns the bracket."""
    above, candidates, low, high = found[3].numpy().view(np.uint64)
    positions = found[2][: int(candidates)].numpy().view(np.uint32)
    np.testing.assert_array_equal(as_bools(found[0], len(keys)), (keys > high) & ~excluded)
    assert above == ((keys > high) & ~excluded).sum()
    inside = (keys >= low) & (keys <= high) & ~excluded
    np.testing.assert_array_equal(np.sort(positions), inside.nonzero()[0])
    words = found[1][: int(candidates)].numpy().view(np.uint64)
    np.testing.assert_array_equal(words, keys[positions] - low)
    return low, high


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["normal", "special"])
def test_the_parts_of_a_sample_add_up_to_that_of_one_process(kind, layout):
    draws = int(N ** (2 / 3))
    drawn = reference.listed_id_hash(SEED, SAMPLE, np.arange(draws)) * np.uint64(N) >> np.uint64(32)
    for ranking in rankings(kind):
        if ranking.kind == RankingKind.EXPLORE:
            continue
        shards = [Shard(N, rank, SIZE, layout) for rank in range(SIZE)]
        parts = [bracket_search.draw_sample(part_of(ranking, s), s, SEED) for s in shards]
        assert all((part == 0).sum() > draws / 2 for part in parts)
        expected = composites(ranking, drawn.astype(np.int64))
        np.testing.assert_array_equal(sum(parts).numpy().view(np.uint64), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["normal", "equal", "levels", "special"])
def test_samples_are_sorted_out_by_one_bracket(kind, layout):
    """That of all ranks, which the threshold lies in; some samples do not take part."""
    wanted = 1500
    for ranking in rankings(kind):
        keys = composites(ranking, np.arange(N))
        draws = (
            None
            if ranking.kind == RankingKind.EXPLORE
            else bracket_search.draw_sample(ranking, Shard(N, 0, 1), SEED)
        )
        brackets = set()
        for excluded in (np.zeros(N, dtype=bool), np.arange(N) % 7 == 0):
            for rank in range(SIZE):
                shard = Shard(N, rank, SIZE, layout)
                rows, place = shard.ids().numpy(), (shard.first, shard.stride, SEED - 2**64)
                bits = np.zeros(-(-len(rows) // 64) * 64, dtype=bool)
                bits[: len(rows)] = excluded[rows]
                packed = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int64))
                found = ops.shard_bracket(
                    *part_of(ranking, shard).arguments(),
                    draws,
                    packed,
                    N,
                    wanted,
                    len(rows),
                    *place,
                )
                brackets.add(check_sorted_out(found, keys[rows], excluded[rows]))
        ((low, high),) = brackets
        assert low <= np.sort(keys)[-wanted] <= high
        assert ((keys >= low) & (keys <= high)).sum() < N / bracket_search.ROOM


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_up_to_the_last_of_32_bits(layout):
    size = 1 << 19
    shard = Shard(1 << 32, size - 1, size, layout)
    ids = shard.ids().numpy()
    assert ids[-1] == 2**32 - 1 and len(ids) == 8192
    x = torch.zeros(len(shard))
    keys = np.uint64(2**63) | reference.listed_id_hash(SEED, reference.TIE, ids)
    draws = torch.from_numpy(keys[::20].view(np.int64).copy())
    place = (shard.first, shard.stride, SEED - 2**64)
    found = ops.shard_bracket(
        *Ranking.by_score(x).arguments(), draws, None, 1 << 32, 1 << 31, len(x), *place
    )
    low, high = check_sorted_out(found, keys, np.zeros(len(keys), dtype=bool))
    assert 0 < found[3][0] < 8192 and low < high
    listed = bracket_search.list_marked(found[0], int(found[3][0]), shard)
    np.testing.assert_array_equal(listed.numpy(), ids[keys > high])


def test_digits_make_up_a_word():
    for width in range(1, 65):
        digits = bracket_search.digits(width)
        assert sum(bits for _, bits in digits) == width and len(digits) == -(-width // 11)
        assert [shift for shift, _ in digits] == [
            sum(bits for _, bits in digits[place + 1 :]) for place in range(len(digits))
        ]


def test_histograms_of_candidates_lead_to_the_threshold():
    """Whatever the width of a bracket is, and however many of its words are wanted."""
    generator = np.random.default_rng(3)
    for width in (64, 56, 55, 43, 20, 11, 10, 1):
        words = np.unique(generator.integers(0, 2**width, 500, dtype=np.uint64, endpoint=False))
        generator.shuffle(words)
        tensor = torch.from_numpy(words.view(np.int64))
        first = np.bincount((words >> np.uint64(max(0, width - 11))).astype(int), minlength=1 << 11)
        own = torch.from_numpy(first[: 1 << min(width, 11)])
        for missing in {0, 1, len(words) // 3 + 1, len(words)}:
            bits, positions = torch.zeros(8, dtype=torch.int64), torch.arange(len(words)).int()
            part = bracket_search.Bracketed(bits, tensor, positions, 5, missing, width, own, own)
            count, rounds = bracket_search.search_candidates(part, Ranks())
            assert count == 5 + missing and (rounds > 0) == (missing > 0)
            chosen = np.argsort(as_bools(bits, len(words)), kind="stable")[len(words) - missing :]
            assert as_bools(bits, 512).sum() == missing
            np.testing.assert_array_equal(
                np.sort(words[chosen]), np.sort(words)[len(words) - missing :]
            )


@pytest.mark.parametrize("threads", [1, 2])
def test_large_shards_on_the_cpu_are_read_once(threads, monkeypatch):
    before, found = torch.get_num_threads(), []
    real = bracket_search.select
    monkeypatch.setattr(
        bracket_search, "select", lambda *arguments: found.append(real(*arguments)) or found[-1]
    )
    torch.set_num_threads(threads)
    try:
        for n in (bracket_search.MIN_SAMPLES, bracket_search.MIN_SAMPLES + 77):
            x = scores_of("levels", n)
            for epsilon in (0.0, 0.3):
                expected = functional.select_epsilon_greedy(
                    x, n // 3, epsilon, seed=3, order="ascending"
                )
                ids = sharded.select_epsilon_greedy(
                    x, n // 3, epsilon, seed=3, shard=Shard(n, 0, 1)
                )
                assert torch.equal(ids, expected)
                assert found.pop() is ids
    finally:
        torch.set_num_threads(before)


def test_small_shards_and_gpus_make_the_plain_search():
    from torch._subclasses.fake_tensor import FakeTensorMode

    least = bracket_search.MIN_SAMPLES
    on_cpu = Ranking.by_score(torch.empty(0))
    assert bracket_search.is_faster(on_cpu, Shard(2 * least, 0, 2))
    assert not bracket_search.is_faster(on_cpu, Shard(2 * least - 2, 0, 2))
    with FakeTensorMode():
        assert not bracket_search.is_faster(
            Ranking.by_score(torch.empty(0, device="cuda")), Shard(2 * least, 0, 2)
        )


S, R = torch.rand(9), torch.arange(9)
RANKED = {"values": S, "second": None, "ranking": 0, "c": 0.0, "log_step": 0.0, "num_samples": 9}
PLACE = {"first": 0, "stride": 1, "seed": 0}
SORTED = {"sample": R, "excluded": None, "wanted": 3, "capacity": 9}
RIGHT = {
    "shard_sample": {**RANKED, **PLACE, "size": 9},
    "shard_bracket": {**RANKED, **PLACE, **SORTED},
    "shard_candidate_counts": {"words": R, "state": R[:2], "shift": 0, "bits": 11},
    "shard_add_candidates_": {"bits": R[:1], "words": R, "positions": R.int(), "state": R[:2]},
    "shard_list": {"bits": R[:1], "k": 0, "count": 64, "first": 0, "stride": 1},
}
WRONG = {
    "shard_sample": [
        *({"values": S.double()}, {"values": -S - 1, "ranking": 4}, {"ranking": 8}),
        *({"ranking": 5}, {"ranking": 1}, {"second": S}, {"second": S[:5], "ranking": 1}),
        *({"second": S.half(), "ranking": 2}, {"second": S, "ranking": 3}, {"first": 1 << 32}),
        {"values": S.half(), "second": R, "ranking": 3},
        *({"num_samples": 0}, {"size": -1}, {"size": 1 << 40}, {"stride": 0}),
    ],
    "shard_bracket": [
        *({"sample": None}, {"sample": R.int()}, {"sample": R[::2]}, {"ranking": 5}),
        *({"excluded": R[:2]}, {"wanted": 0}, {"wanted": 10}, {"num_samples": 1 << 40}),
        *({"capacity": -1}, {"capacity": 10}),
    ],
    "shard_candidate_counts": [
        *({"words": R.int()}, {"state": R[:1]}, {"bits": 0}, {"bits": 12}),
        *({"shift": -1}, {"shift": 54}),
    ],
    "shard_add_candidates_": [
        *({"bits": R[:1].int()}, {"words": S}, {"positions": R}, {"positions": R[:2].int()}),
        *({"positions": R.int() + 60}, {"positions": R.int() - 1}, {"state": R[:1]}),
    ],
    "shard_list": [
        *({"k": 1}, {"k": 65}, {"k": -1}, {"count": 65}, {"bits": R[:1].int()}, {"stride": 0}),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_direct_calls_with_wrong_arguments_raise(name):
    def call(**changed):
        arguments = {**RIGHT[name], **changed}
        if "positions" in arguments:
            arguments["bits"] = arguments["bits"].clone()
        return getattr(ops, name)(**arguments)

    call()
    for changed in WRONG[name]:
        with pytest.raises(RuntimeError, match=r"must|is for|need|is negative"):
            call(**changed)
