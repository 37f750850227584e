# SPDX-License-Identifier: Apache-2.0
"""Two processes that choose rows together, against one process with the concatenated batch."""

import batch_ranks
import pytest
import ranks
import torch
from batch_ranks import CALLS, ROWS, SELECTORS, K

from dynprune_cuda import BatchSelector

SIZE = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ranks.run_world(SIZE, tmp_path_factory.mktemp("batches"), batch_ranks.work)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_choice_is_that_of_one_process(name, world):
    alone = BatchSelector(SIZE * K, seed=7, **SELECTORS[name])
    for call in range(CALLS):
        logits, target = batch_ranks.whole_batch(SIZE, call)
        rows, weights = alone(logits, target)
        choices = [result[name][0][call][0] for result in world]
        for choice in choices:
            assert choice.rows.equal(rows)
        if weights is None:
            assert all(choice.weights is None for choice in choices)
        else:
            assert torch.cat([choice.weights for choice in choices]).equal(weights)
        for number, whole in enumerate((logits, target)):
            taken = [result[name][0][call][1][number] for result in world]
            assert [len(part) for part in taken] == [K, K]
            assert torch.cat(taken).equal(whole[rows])
    for result in world:
        assert result[name][1] == alone.state_dict()


def test_hard_rows_of_one_process_are_shared(world):
    """The case that choosing per process gets wrong."""
    choice = world[0]["top_k"][0][0][0]
    own = (choice.rows < ROWS).sum()
    assert 0 < own < K


@pytest.mark.parametrize("name", ["top_k", "weighted", "percentile", "uniform"])
def test_awkward_scores(name, world):
    alone = BatchSelector(SIZE * K, seed=7, **SELECTORS[name])
    wanted = alone.choose(batch_ranks.awkward_scores(SIZE)).rows
    assert [result["awkward", name].tolist() for result in world] == [wanted.tolist()] * SIZE


def test_tensors_of_any_kind_are_dealt_out(world):
    whole = batch_ranks.values(SIZE)
    whole += [whole[-1].transpose(1, 2), whole[-1][:, :0]]
    for rank, result in enumerate(world):
        rows, taken = result["values"]
        mine = rows[rank * K : (rank + 1) * K]
        for tensor, part in zip(whole, taken, strict=True):
            assert part.dtype == tensor.dtype and part.equal(tensor[mine])


def test_what_differs_is_refused_before_anything_is_chosen(world):
    for rank, result in enumerate(world):
        errors = result["errors"]
        assert "keep must be the same on every rank, got 10 on rank [0], 11" in errors["keep"]
        assert "seed must be the same on every rank, got 0 on rank [0], 1" in errors["seed"]
        assert "the length of the batch must be the same, got 33 on rank [0]" in errors["length"]
        assert f"this is rank {rank}" in errors["length"]
        assert "must have 33 rows, as at the first call" in errors["first call"]
        assert "tensors[0] must have 33 rows, as the batch, got shape (34,)" in errors["rows"]
        assert "tensors[0] must not require a gradient" in errors["gradient"]
        assert result["calls"] == 1
