# SPDX-License-Identifier: Apache-2.0
"""Token budgets and streams on two processes with two workers each: equal steps, every sample."""

import itertools

import pytest
import ranks
import stream_ranks
from stream_ranks import EPOCHS, LENGTHS, MAX_TOKENS, WORKERS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ranks.run_world(2, tmp_path_factory.mktemp("streams"), stream_ranks.work)


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_processes_have_equal_steps_and_share_all_samples(world, epoch):
    selected = [results[epoch][0] for results in world]
    assert selected[0] == selected[1]
    steps = [results[epoch][1] for results in world]
    bucketed, streamed = ([results[epoch][part] for results in world] for part in (2, 3))
    assert steps[0] == steps[1]
    for which, batches in enumerate((bucketed, streamed)):
        assert [len(of_rank) for of_rank in batches] == [steps[0][which]] * 2
    for batch in itertools.chain(*bucketed):
        assert len(batch) * max(LENGTHS[i] for i in batch) <= MAX_TOKENS
    assert {i for rank in bucketed for batch in rank for i in batch} == set(selected[0])
    streamed_ids = [i for rank in streamed for batch in rank for i in batch]
    samples = [i for i in streamed_ids if i >= 0]
    assert sorted(samples) == selected[0]
    assert len(streamed_ids) == 2 * WORKERS * -(-len(selected[0]) // (2 * WORKERS))
