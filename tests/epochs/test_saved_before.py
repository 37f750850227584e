# SPDX-License-Identifier: Apache-2.0
"""States that version 0.1.0 saved are loaded, and their runs go on as that version would have.

saved_by_0_1_0/ holds what `tests/support/make_saved_states.py` wrote with version 0.1.0.
"""

from pathlib import Path

import pytest
import ranks
import saved_ranks
import torch
import torch.distributed as dist
from make_saved_states import CASES, make, train
from runs import BATCH, MAKERS

from dynprune_cuda import KeptHistory, StaticScores

FOLDER = Path(__file__).with_name("saved_by_0_1_0")


@pytest.fixture(scope="module")
def saved():
    """The states of single processes, by case."""
    return torch.load(FOLDER / "single.pt", weights_only=True)


def test_all_cases_are_there(saved):
    assert saved.keys() == {*CASES, "kept_history"}


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_as_the_version_before_would(saved, case):
    one, pruner = saved[case], make(case)
    before = {name: value for name, value in one["state"].items() if name != "table"}
    pruner.load_state_dict(one["state"])
    after = pruner.state_dict()
    assert after.keys() == one["state"].keys()
    for name, value in {**before, **one["state"]["table"]}.items():
        mine = {**after, **after["table"]}[name]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(mine, value, rtol=0, atol=0, equal_nan=True)
        elif name != "version":  # which now ends with a checksum
            assert mine == value, name
    sampler = pruner.batch_sampler(BATCH)
    sampler.load_state_dict(one["sampler"])
    assert train(pruner, sampler) == one["rest"]


def test_other_files_of_the_version_before(saved):
    history = KeptHistory(MAKERS["ucb"]("cpu"))
    history.load_state_dict(saved["kept_history"]["state"])
    epochs, kept = history.table()
    assert epochs == [0, 1, 2, 3] and kept[:, 0].all() and kept[:, 1].sum() == 24
    scores = StaticScores.load(FOLDER / "static_scores.pt")
    assert scores.values.tolist() == list(range(9))


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("name", ["replicated", "sharded", "strided_local"])
def test_two_ranks_go_on_as_the_version_before_would(tmp_path, name):
    for rank in ranks.run_world(2, tmp_path, saved_ranks.resume, str(FOLDER), name):
        assert rank["rest"] == rank["expected"]
