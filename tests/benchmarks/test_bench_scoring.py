# SPDX-License-Identifier: Apache-2.0
"""bench_scoring.py runs from end to end, and says whether its targets are reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import bench_scoring, targets


def test_a_run_tells_which_targets_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out.json", torch.get_num_threads()
    shapes = ["512x10", "8x3", "8x3/soft", "8x3/labels"]
    arguments = ["--shapes", *shapes, "--rounds", "1", "--no-compile", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_scoring.py", *arguments])
    monkeypatch.setattr(bench_scoring, "NUM_SAMPLES", 100)  # fewer than the larger batch has
    torch.set_num_threads(1)
    try:
        bench_scoring.main()
    finally:
        torch.set_num_threads(before)
    rows = json.loads(out.read_text())["rows"]
    assert [row["kind"] for row in rows if row["name"] == "ours"] == ["", "", "soft", "labels"]
    told = {(tuple(row["shape"]), row["name"]): row["target"] for row in rows}
    assert told[(512, 10), "eager"].startswith("5x faster: ") and not told[(8, 3), "eager"]
    for row in rows:
        if row["name"] == "eager" and row["target"]:
            assert row["target"].endswith("reached") == (row["times_ours"] >= 5)
    assert "of 3 targets reached" in capsys.readouterr().out


def test_targets_are_the_promised_ones() -> None:
    def at_least(*call: object) -> float | None:
        target = targets.find(*call)  # type: ignore[arg-type]
        return None if target is None else target.at_least

    assert at_least("cpu", "float32", (512, 100), "eager") == 5
    assert at_least("cpu", "float32", (64, 32768), "eager") == 4
    assert at_least("cpu", "float32", (256, 1000), "torch.compile") == 1.3
    assert at_least("cpu", "float32", (8, 262144), "loss alone") == pytest.approx(1 / 1.15)
    assert at_least("cpu", "float32", (512, 1000), "eager", "soft") == 4
    assert at_least("cpu", "float32", (512, 80), "eager", "labels") == 4
    assert at_least("cpu", "float32", (512, 1000), "eager") is None
    assert at_least("cpu", "bfloat16", (512, 100), "eager") is None
    assert at_least("cuda", "float32", (512, 100), "eager") is None
    assert at_least("cpu", "float32", (512, 10), "copy") is None
