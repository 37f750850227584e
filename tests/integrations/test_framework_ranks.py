# SPDX-License-Identifier: Apache-2.0
"""The frameworks in two processes started by torchrun: each sample is trained on exactly once."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from paths import ROOT

from dynprune_cuda import Pruner

for name in ("lightning", "transformers", "accelerate"):
    pytest.importorskip(name)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]
N, BATCH, EPOCHS = 61, 4, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What each rank found, by framework."""
    folder = tmp_path_factory.mktemp("frameworks")
    script = ROOT / "tests" / "support" / "framework_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["accelerate", "fsdp", "lightning", "transformers"])
def test_every_sample_is_trained_on_exactly_once(world, name):
    ranks = [rank[name][0] for rank in world]
    visits = torch.zeros(N, dtype=torch.int32)
    for epoch in range(EPOCHS):
        shares = [[b for number, b in seen if number == epoch] for seen, *_ in ranks]
        assert len({tuple(map(len, batches)) for batches in shares}) == 1
        first, second = ([i for batch in batches for i in batch] for batches in shares)
        k = N if epoch == 0 else 24
        assert len(first) == len(second) == -(-k // 2)
        # An odd number: the shorter share repeats its first sample.
        own = second if k % 2 == 0 else second[:-1]
        assert second == own + own[:1] * (k % 2)
        assert len(set(first + own)) == k
        visits[first + own] += epoch > 0
    (_, chosen, table, weights), (_, other_chosen, other_table, other_weights) = ranks
    assert torch.equal(visits, chosen) and torch.equal(chosen, other_chosen)
    assert all(torch.equal(table[column], other_table[column]) for column in table)
    assert table["count"].sum() == N + (EPOCHS - 1) * 24
    assert all(map(torch.equal, weights, other_weights))


def test_accelerates_own_preparation_would_divide_again(world):
    for rank in world:
        halved, share = rank["accelerate"][1]
        assert share == Pruner(N, 0.4, period=1).steps_per_epoch(2 * BATCH, epoch=EPOCHS) == 3
        assert halved == 2


def test_a_stream_is_divided_once(world):
    parts, again = ([rank["accelerate"][2][way] for rank in world] for way in (0, 1))
    selected = world[0]["accelerate"][3]
    assert sorted(parts[0] + parts[1]) == selected == world[1]["accelerate"][3]
    assert len(parts[0]) == len(parts[1]) == 12
    assert set(again[0] + again[1]) < set(selected)  # what the helper is for


def test_parameters_in_shards_are_trained_as_whole_ones(world):
    """FSDP2 and its checkpoints, through Accelerate."""
    for rank, found in enumerate(world):
        (seen, _, table, weights), (parts, again) = found["fsdp"]
        plain_seen, _, plain_table, plain_weights = found["accelerate"][0]
        assert parts == [1, 1]  # of two rows each
        assert seen == plain_seen
        torch.testing.assert_close(table, plain_table)
        torch.testing.assert_close(weights, plain_weights)
        _, _, restored, loaded = again
        assert all(map(torch.equal, weights, loaded))
        assert all(torch.equal(restored[name], table[name]) for name in table), rank


@pytest.mark.parametrize("accumulate", [1, 2])
def test_tokens_of_all_processes_divide_the_loss(world, tmp_path, accumulate):
    """The Trainer counts `num_items_in_batch` over the processes, and undoes DDP's mean itself."""
    import token_training

    items, lengths, table, weights = token_training.train(tmp_path, 1, accumulate)
    assert lengths == [48, 36]  # InfoBatch drops samples, and weighs others
    ranks = [rank["tokens"][accumulate] for rank in world]
    for its_items, its_lengths, its_table, its_weights in ranks:
        assert its_items == items and its_lengths == lengths
        torch.testing.assert_close(its_table, table, rtol=1e-4, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(its_weights, weights, rtol=1e-4, atol=1e-5)


def test_timms_loader_is_divided_once(world):
    pytest.importorskip("timm.task")
    (first, table, weights), (second, other_table, other_weights) = (rank["timm"] for rank in world)
    visits = torch.zeros(41, dtype=torch.int64)
    for epoch, shares in enumerate(zip(first, second, strict=True)):
        ids = torch.tensor(shares).flatten()
        # Whole batches of 4 in each of two processes, of 41 samples or of 24.
        assert len(ids) == (40 if epoch == 0 else 24) == len(ids.unique())
        visits[ids] += 1
    assert table["count"].tolist() == visits.tolist()
    assert all(torch.equal(table[name], other_table[name]) for name in table)
    assert all(map(torch.equal, weights, other_weights))


def test_lightnings_own_sampler_is_refused(world):
    for rank in world:
        assert "Trainer(use_distributed_sampler=False)" in rank["lightning"][1]
