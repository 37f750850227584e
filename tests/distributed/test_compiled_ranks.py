# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo: compiled training steps, and `torch.distributed.checkpoint`."""

import compiled_ranks
import pytest
import ranks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from states import assert_same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def world(folder):
    """What each of two ranks found."""
    return ranks.run_world(2, folder, compiled_ranks.work)


@pytest.mark.parametrize("kind", ["model", "ddp"])
def test_a_compiled_step_is_the_eager_one(world, kind):
    for rank in world:
        losses, state, weights, _ = rank[kind, False]
        its_losses, its_state, its_weights, graphs = rank[kind, True]
        assert len(losses) == 8 + 3 * 4
        torch.testing.assert_close(its_losses, losses, rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(its_weights, weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        # Repeated samples were found out in the compiled step, too: one visit each per epoch.
        assert its_state["table"]["count"].sum() == compiled_ranks.N + 3 * 25
        assert torch.equal(its_state["table"]["count"], state["table"]["count"])
        mean = state["table"]["mean"]
        torch.testing.assert_close(its_state["table"]["mean"], mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(its_state["subset"], state["subset"])
        # Some for the sizes of batches, none for epochs, subsets or orders.
        assert 0 < graphs <= 6
    assert_same(world[0][kind, True][1], world[1][kind, True][1])
    weights = world[0]["ddp", True][2], world[1]["ddp", True][2]
    assert all(map(torch.equal, *weights))


def test_all_ranks_save_into_one_checkpoint_and_go_on_bit_for_bit(world):
    for expected, seen, whole, resumed in (rank["checkpoint"] for rank in world):
        assert seen == expected and len(seen) > compiled_ranks.STOP
        assert_same(resumed, whole)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_checkpoint_between_epochs_serves_any_number_of_processes(world, folder):
    states = [state for rank in world for state in rank["between epochs"]]
    alone = compiled_ranks.make_pruner()
    dcp.load({"pruner": alone}, checkpoint_id=folder / "common")
    for state in [*states, alone.state_dict()]:
        assert_same(state, states[0])
