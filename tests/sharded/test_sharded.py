# SPDX-License-Identifier: Apache-2.0
"""Sharded selections over real processes: the set that a single process selects, id for id."""

import pytest
import ranks
import shard_ranks
import torch
import torch.distributed as dist

from dynprune_cuda import functional, sharded
from dynprune_cuda.distributed import Ranks
from dynprune_cuda.distributed.shard import LAYOUTS
from dynprune_cuda.sharded import Shard
from dynprune_cuda.sharded.digit_search import find_thresholds

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")


@pytest.fixture(
    scope="module", params=[pytest.param(size, marks=pytest.mark.slow) for size in (1, 2, 3, 4, 8)]
)
def world(request, tmp_path_factory):
    """What each rank of a world found: one dict per rank, by scenario."""
    folder = tmp_path_factory.mktemp(f"shards{request.param}")
    return ranks.run_world(request.param, folder, shard_ranks.work)


def test_every_world_selects_what_one_process_selects(world):
    """All ops, ties, all-equal scores, NaN, k from 0 to n, both layouts, ranks without samples."""
    for rank in world:
        number, wrong = rank["selections"]
        assert wrong == []
        assert number > 250


def test_one_read_selects_the_same(world):
    """Also where it is of no use, and all ranks make the plain search after it."""
    for rank in world:
        number, wrong, missed = rank["in_one_read"]
        assert wrong == []
        assert number > 60
        assert missed == world[0]["in_one_read"][2]
        assert missed[-7:] == [
            *("sample below", "sample above", "sample apart"),
            *("seed 1047", "seed 468", "hashes of seed 135", "hashes of seed 536"),
        ]
        too_few = [name for name in missed if name[0] == 7]
        assert len(too_few) == 12
        # Counts that repeat: one rank has all candidates, more than it has room for.
        on_one_rank = [name for name in missed if "ucb1" in name and name[0] != 7]
        assert len(on_one_rank) <= (len(world) % 2 == 0) * 2
        assert len(missed) == 7 + len(too_few) + len(on_one_rank)


def test_the_traffic_depends_on_ties_only(world):
    size = len(world)
    for rank in world:
        once = rank["traffic"].pop("in one read")
        sample = 8 * int(20_000 ** (2 / 3))
        assert size == 1 or sample + 16_408 <= once <= sample + 24 + 3 * 16_384
        for (n, kind, epsilon), moved in rank["traffic"].items():
            greedy = 40_960 if kind == "normal" else 81_920
            expected = greedy + 40_960 * (epsilon > 0)
            # Fewer if an early digit settles it, as with few samples.
            assert moved <= expected * (size > 1), (n, kind, epsilon)
            if kind == "equal" and size > 1:
                assert moved >= 40_960 + 2048 * 8


def test_errors_are_raised_on_every_rank(world):
    if len(world) == 1:
        pytest.skip("a single rank agrees with itself")
    last = len(world) - 1
    for number, rank in enumerate(world):
        found = rank["errors"]
        assert found["k"].startswith("ValueError: the selection found ranks that differ: k must be")
        assert "seed must be the same" in found["seed"]
        assert found["k out of range"] == "ValueError: k must be at most 24, got 25"
        assert found["float64"].startswith("ValueError: scores must have dtype float32, float16")
        own = {
            "length": "ValueError: scores must have one element for each of this rank's",
            "no tensor": "TypeError: scores must be a torch.Tensor, got list",
            "weight": "ValueError: weights[0] is negative or NaN",
            "weight in one read": "ValueError: weights[0] is negative or NaN",
            "epsilon": "ValueError: epsilon must be in [0, 1], got 2.0",
        }
        failed = f"RuntimeError: the selection failed on rank [{last}], whose own error tells why"
        for name, text in own.items():
            assert found[name].startswith(text if number == last else failed), name
        others = f"failed on rank {list(range(1, last + 1))}"
        assert ("got rank 0 of" if number else others) in found["shard"]
        assert found["after"] == len(Shard(24, number, last + 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 5, 8, 9, 100])
def test_shards_partition_the_ids(n, size, layout):
    shards = [Shard(n, rank, size, layout) for rank in range(size)]
    assert torch.cat([s.ids() for s in shards]).sort().values.tolist() == list(range(n))
    for rank, shard in enumerate(shards):
        ids = shard.ids()
        assert len(ids) == len(shard)
        assert (shard.owner_of(ids) == rank).all()
        assert torch.equal(shard.positions_of(ids), torch.arange(len(shard)))
        assert torch.equal(shard.ids_at(torch.arange(len(shard))), ids)


def test_contiguous_shards_are_those_of_torch_chunk():
    for n in (1, 5, 8, 9, 100):
        for size in (1, 2, 3, 4, 8):
            pieces = [piece.tolist() for piece in torch.arange(n).chunk(size)]
            pieces += [[]] * (size - len(pieces))
            assert [Shard(n, rank, size).ids().tolist() for rank in range(size)] == pieces


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1, 0, 1), ValueError, "num_samples must be at least 0"),
        ((2**32 + 1, 0, 1), ValueError, "num_samples must be at most 4294967296"),
        ((5, 2, 2), ValueError, "rank must be at most 1, got 2"),
        ((5, 0, 0), ValueError, "size must be at least 1"),
        ((5, 0.5, 1), TypeError, "rank must be an int"),
        ((5, 0, 1, "blocks"), ValueError, "layout must be one of 'contiguous', 'strided'"),
    ],
)
def test_wrong_shards_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        Shard(*arguments)


def test_without_a_group_one_process_holds_everything():
    x = torch.randn(500)
    shard = Shard(500, 0, 1, "strided")
    expected = functional.select_top_k(x, 100, seed=4, order="ascending")
    assert torch.equal(sharded.select_top_k(x, 100, shard=shard, seed=4), expected)
    with pytest.raises(ValueError, match="shard must be that of rank 0 of 1, got rank 0 of 2"):
        sharded.select_top_k(x[:250], 100, shard=Shard(500, 0, 2))


def test_a_search_waits_for_no_gpu():
    """All six rounds on tensors that cannot be read: nothing asks for a value."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        keys = torch.empty(100, dtype=torch.int32, device="cuda")
        found = find_thresholds(keys, 30, 10, Shard(100, 0, 1), 0, Ranks())
        assert found.rounds == 9 and found.count.is_cuda
        assert found.greedy is not None and found.greedy.is_cuda and found.random is not None
