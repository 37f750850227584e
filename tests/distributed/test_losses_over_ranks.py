# SPDX-License-Identifier: Apache-2.0
"""Classes, probabilities and several labels: two processes over gloo train as one does."""

import loss_ranks
import pytest
import ranks
import torch
import torch.distributed as dist

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ranks.run_world(2, tmp_path_factory.mktemp("losses"), loss_ranks.work)


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize("kind", loss_ranks.TARGETS)
def test_two_processes_train_as_one(world, kind, sharding):
    alone = loss_ranks.train(kind, "replicate")
    assert alone[1].min() >= 1 and alone[1].max() > alone[1].min()  # visits: some were left out
    for rank in world:
        # The gradient is a mean of means, which rounds otherwise.
        torch.testing.assert_close(rank[kind, sharding], alone, rtol=1e-4, atol=1e-6)
