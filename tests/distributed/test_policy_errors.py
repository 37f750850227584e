# SPDX-License-Identifier: Apache-2.0
"""What fails on one rank in a selection is an error on all of them at once, with its cause."""

import policy_error_ranks
import pytest
import ranks
import torch.distributed as dist
from policy_error_ranks import BAD, CASES, TIMEOUT, N

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
]
AT_ONCE = TIMEOUT / 2
OWN = {
    "result": "TypeError: FunctionPolicy(",
    "sharded no rule": "TypeError: Ranks() must return a Ranking, ",
    "sharded fixed of other length": "ValueError: keep must be the number of ids of Ranks(), 2,",
}
DIFFER = ("sharded uniform", "sharded fixed")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What each of three ranks found."""
    return ranks.run_world(3, tmp_path_factory.mktemp("errors"), policy_error_ranks.work)


@pytest.mark.parametrize("case", CASES)
def test_an_error_of_one_rank_is_one_of_all(world, case):
    for rank, found in enumerate(world):
        text, seconds, epochs, again, selected = found["policies"][case]
        assert seconds < AT_ONCE
        own = OWN.get(case, "KeyError: 'no such column'")
        if case in DIFFER:
            assert text.startswith("ValueError: set_epoch found ranks that differ: the kind of")
        elif rank == BAD:
            assert text.startswith(own)
        else:
            assert text.startswith(f"RuntimeError: set_epoch failed on rank [{BAD}], whose own")
            assert f"that of rank {BAD} is {own}" in text
        assert epochs == (None, 0)
        assert again == "no error" and selected == N // 2


@pytest.mark.parametrize("name", ["top_k", "weighted", "ucb", "rule"])
def test_a_tensor_that_one_rank_cannot_exchange_is_an_error_of_all(world, name):
    for rank, found in enumerate(world):
        text, seconds = found["selections"][name]
        assert seconds < AT_ONCE and found["selections"]["after"] == N // 3
        own = "TypeError: rule must be a Ranking" if name == "rule" else "got 'meta'"
        assert own in text
        kind = "RuntimeError: the selection failed on rank [1]" if rank != BAD else ""
        assert text.startswith(kind)


@pytest.mark.parametrize("device", ["cud", "meta"])
def test_a_device_that_one_rank_cannot_use_is_an_error_of_all(world, device):
    for rank, found in enumerate(world):
        text, seconds = found["constructors"][device]
        assert seconds < AT_ONCE and "device must be" in text and f"'{device}'" in text
        if rank != BAD:
            assert text.startswith(f"RuntimeError: making the pruner failed on rank [{BAD}]")


def test_an_error_is_not_lost_where_the_others_are_gone(world):
    text, seconds = world[BAD]["early"]
    assert seconds < AT_ONCE and text == "KeyError: 'no such column'"
