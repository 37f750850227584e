# SPDX-License-Identifier: Apache-2.0
"""The benchmark of choosing inside a batch: its rivals choose the same, and it runs."""

import json

import numpy as np
import pytest
import torch

from benchmarks.selection import batch_choice
from dynprune_cuda import BatchSelector


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 5, generator=generator), torch.arange(64) % 5


def test_the_eager_way_takes_the_same_rows():
    logits, target = batch()
    (eager,) = batch_choice.rivals("top_k", logits, target, 16).values()
    assert eager().sort().values.equal(BatchSelector(16)(logits, target).rows)


def test_the_eager_ways_draw_the_hardest_rows_more_often():
    logits, target = batch()
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    np.random.seed(0)
    torch.manual_seed(0)
    hardest = losses.argmax()
    for draw in batch_choice.rivals("percentile", logits, target, 16).values():
        rows = draw()
        assert len(rows.unique()) == 16
        assert sum(int((draw() == hardest).sum()) for _ in range(40)) > 20


@pytest.mark.parametrize("policy", ["top_k", "percentile"])
def test_it_measures(policy):
    medians = batch_choice.measure(policy, *batch(), 0.25, 2)
    assert batch_choice.OURS in medians and len(medians) >= 2
    assert all(milliseconds > 0 for milliseconds in medians.values())


@pytest.mark.parametrize("policy", ["top_k", "percentile"])
@pytest.mark.parametrize("keep", [0.5, 0.25, 0.125])
def test_the_same_random_numbers_give_the_same_rows(policy, keep):
    """Also of Composer's own function, where it is installed."""
    same = batch_choice.same_rows(policy, *batch(), keep)
    assert same and all(same.values())
    assert any("Composer" in name for name in same) == (
        policy == "percentile" and batch_choice.composer_function() is not None
    )


def test_another_rule_is_told(monkeypatch):
    def easiest_first(logits, target, k, on_host):
        return batch_choice.eager_top_k(-logits, target, k)

    monkeypatch.setattr(batch_choice, "eager_percentile", easiest_first)
    assert not any(
        agrees
        for name, agrees in batch_choice.same_rows("percentile", *batch(), 0.25).items()
        if "Composer" not in name
    )


@pytest.mark.slow  # asks git for the commit
def test_it_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    out = tmp_path / "batch_choice.json"
    arguments = ["batch_choice", "--rows", "64", "--classes", "5", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", [*arguments, "--device", "cpu", "--out", str(out)])
    batch_choice.main()
    written = json.loads(out.read_text())
    assert {row["policy"] for row in written["rows"]} == {"top_k", "percentile"}
    assert all(row["median_ms"] > 0 for row in written["rows"]) and written["machine"]["cpu"]
    assert "same rows" in capsys.readouterr().out
