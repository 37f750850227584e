# SPDX-License-Identifier: Apache-2.0
"""bench_scoring.py runs from end to end, and says whether its targets are reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import bench_scoring, targets
from benchmarks.scoring.steps import (
    KINDS,
    PLAIN,
    LossOptions,
    Table,
    eager_step_of,
    loss_alone,
    losses,
    our_step,
    two_ops,
)
from dynprune_cuda import Pruner


def test_a_run_tells_which_targets_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out.json", torch.get_num_threads()
    shapes = ["512x10", "8x3", "8x3/soft", "8x3/labels", "4x3x2x5/pixels", "4x6x5/tokens"]
    options = ["--rounds", "1", "--no-compile", "--forgetting", "--out", str(out)]
    arguments = ["--shapes", *shapes, *options]
    monkeypatch.setattr(sys, "argv", ["bench_scoring.py", *arguments])
    monkeypatch.setattr(bench_scoring, "NUM_SAMPLES", 100)  # fewer than the larger batch has
    torch.set_num_threads(1)
    try:
        bench_scoring.main()
    finally:
        torch.set_num_threads(before)
    rows = json.loads(out.read_text())["rows"]
    assert [row["kind"] for row in rows if row["name"] == "ours"] == ["", *KINDS]
    told = {(tuple(row["shape"]), row["name"]): row["target"] for row in rows}
    assert told[(512, 10), "eager"].startswith("5x faster: ") and not told[(8, 3), "eager"]
    for row in rows:
        if row["name"] == "eager" and row["target"]:
            assert row["target"].endswith("reached") == (row["times_ours"] >= 5)
    assert "of 3 targets reached" in capsys.readouterr().out


def test_options_of_the_loss_are_for_all_rivals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    options = ["--rounds", "1", "--no-compile", "--class-weights", "--label-smoothing", "0.1"]
    shapes = ["512x10", "8x3/soft", "8x3/labels"]
    arguments = ["--shapes", *shapes, "--dtype", "bfloat16", *options, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_scoring.py", *arguments])
    bench_scoring.main()
    rows = json.loads(out.read_text())["rows"]
    names = {"ours", "two ops", "eager", "loss alone", "copy"}
    for kind in ("", "soft"):
        assert {row["name"] for row in rows if row["kind"] == kind} == names
    assert all(row["class_weights"] and row["label_smoothing"] == 0.1 for row in rows)
    assert not any(row["target"] for row in rows)  # these are of the plain loss
    assert "8x3/labels: left out" in capsys.readouterr().err


def test_targets_are_the_promised_ones() -> None:
    def at_least(*call: object) -> float | None:
        target = targets.find(*call)  # type: ignore[arg-type]
        return None if target is None else target.at_least

    assert at_least("cpu", "float32", (512, 100), "eager") == 4
    assert at_least("cpu", "float32", (64, 32768), "eager") == 6.5
    assert at_least("cpu", "float32", (256, 1000), "torch.compile") == 1.3
    assert at_least("cpu", "float32", (8, 262144), "loss alone") == pytest.approx(1 / 1.15)
    assert at_least("cpu", "float32", (512, 1000), "eager", "soft") == 4
    assert at_least("cpu", "float32", (512, 80), "eager", "labels") == 4
    assert at_least("cpu", "float32", (8, 21, 128, 128), "eager", "pixels") == 4
    assert at_least("cpu", "float32", (16, 128, 8192), "eager", "tokens") == 4
    assert at_least("cpu", "float32", (512, 1000), "eager") is None
    assert at_least("cpu", "bfloat16", (512, 100), "eager") is None
    assert at_least("cuda", "float32", (512, 100), "eager") is None
    assert at_least("cpu", "float32", (512, 10), "copy") is None


@pytest.mark.parametrize(("times", "verdict"), [(1.4, "reached"), (1.2, "missed")])
def test_our_two_operators_are_compared_with_the_compiled_step(times: float, verdict: str) -> None:
    seconds = {"ours/full": [1e-4] * 3, "two ops/full": [2e-4] * 3}
    seconds["torch.compile/full"] = [times * 2e-4] * 3

    def told(classes: int, kind: str, names: tuple[str, ...]) -> str:
        known = {name: seconds[name] for name in names}
        x = torch.zeros(512, classes)
        row = bench_scoring.result("two ops", x, kind, known, (0.0, 0))
        assert row["times_ours"] == pytest.approx(2)
        return str(row["target"])

    assert told(10, "", tuple(seconds)) == f"1.3x faster than torch.compile: {verdict}"
    assert told(10, "", ("ours/full", "two ops/full")) == ""
    assert told(11, "", tuple(seconds)) == told(10, "labels", tuple(seconds)) == ""


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("forgetting", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rivals_do_the_same_work(kind: str, forgetting: bool, weighted: bool) -> None:
    """Loss and table of the obvious code, of our two operators and of our step agree."""
    device = torch.device("cpu")
    tables = [Table(50, device, forgetting) for _ in range(2)]
    pruner = Pruner(50, 0.5, track_forgetting=forgetting)
    pruner.set_epoch(0)
    options = PLAIN
    if weighted and kind != "labels":
        options = LossOptions(torch.tensor([0.5, 1.0, 2.0, 1.5]), label_smoothing=0.1)
    obvious, ours = eager_step_of(kind), our_step(pruner, kind, options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        size = {"pixels": (20, 4, 3, 2), "tokens": (20, 6, 4)}.get(kind, (20, 4))
        x = torch.randn(size, generator=generator)
        y = x.argsort(-1 if kind == "tokens" else 1).select(-1 if kind == "tokens" else 1, 1)
        if kind in ("soft", "labels"):
            y = torch.rand(20, 4, generator=generator)
        ids = torch.randperm(50, generator=generator)[:20]
        loss, _, _ = obvious(x, y, ids, tables[0], options)
        torch.testing.assert_close(two_ops(x, y, ids, tables[1], kind, options), loss)
        torch.testing.assert_close(ours(x, y, ids), loss)
        torch.testing.assert_close(loss_alone(x, y, kind, options), loss)
    seen = pruner.table.count > 0
    assert (pruner.table.count > 1).any()
    for table in tables:
        for name in ("mean", "variance"):
            got, expected = getattr(table, name), getattr(pruner.table, name)
            torch.testing.assert_close(got[seen], expected[seen])
        assert torch.equal(table.count, pruner.table.count)
        if forgetting:
            assert torch.equal(table.forgets, pruner.table.forget_count)


def test_labels_have_no_options_of_classes() -> None:
    with pytest.raises(ValueError, match="no class weights"):
        losses(50, torch.device("cpu"), False, "labels", options=LossOptions(label_smoothing=0.1))
