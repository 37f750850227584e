# SPDX-License-Identifier: Apache-2.0
"""`Pruner.resize` on two processes: the same run as on one, whoever holds the scores."""

import pytest
import ranks
import resize_ranks
import torch
from resize_ranks import EPOCHS, HOLDERS, POLICIES, SIZES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ranks.run_world(2, tmp_path_factory.mktemp("resize"), resize_ranks.work)


@pytest.fixture(scope="module", params=POLICIES)
def alone(request):
    """The policy's name, and what one process does."""
    return request.param, resize_ranks.run(POLICIES[request.param], process_group=False)


def ids_of_all(world, key, which, epoch):
    return sorted({i for results, _ in world for i in results[key][which][epoch]})


@pytest.mark.parametrize("holder", HOLDERS)
def test_two_processes_do_what_one_does(world, alone, holder):
    policy, (seen, turnover, times, mean, grown) = alone
    key = (policy, holder)
    for epoch, ids in enumerate(seen):
        assert ids_of_all(world, key, 0, epoch) == sorted(ids)
        assert len({len(results[key][0][epoch]) for results, _ in world}) == 1
    assert [results[key][1] for results, _ in world] == [turnover] * 2
    rows = [results[key][2:4] for results, _ in world]
    if holder == "replicate":
        wanted = [(times, mean)] * 2
    elif holder == "contiguous":
        wanted = list(zip(times.chunk(2), mean.chunk(2), strict=True))
    else:
        wanted = [(times[rank::2], mean[rank::2]) for rank in range(2)]
    for found, right in zip(rows, wanted, strict=True):
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    first, *later = (ids_of_all(world, key, 4, epoch) for epoch in range(EPOCHS))
    if holder == "replicate":  # its state lacks what the others had seen since set_epoch
        assert len(first) == len(grown[0]) and set(range(60, SIZES[0])) <= set(first)
    else:
        assert [first, *later] == [sorted(ids) for ids in grown]


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_error_of_one_is_one_of_all(world, holder):
    for rank, (_, errors) in enumerate(world):
        differ, failed = errors[holder, "differ"], errors[holder, "failed"]
        assert differ.startswith("ValueError: resize found ranks that differ: num_samples must be")
        if rank == 1:
            assert failed == "ValueError: num_samples must be at least 1, got 0"
        else:
            assert failed.startswith("RuntimeError: resize failed on rank [1]")
        if holder != "replicate":
            assert "num_samples must be the same" in errors[holder, "states"]
        assert errors[holder, "after"] == (60, 9)
        assert "sharding='shard' needs samples for every process" in errors["tiny"]
