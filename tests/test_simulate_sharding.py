# SPDX-License-Identifier: Apache-2.0
"""The model of sharded selections: limits that can be worked out by hand."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import simulate_sharding as model  # noqa: E402

GPU = model.assumed_gpu()


def test_one_rank_sends_nothing():
    assert model.all_reduce(1e9, 1, GPU) == model.all_to_all(1e9, 1, GPU) == 0
    silent = dataclasses.replace(GPU, latency=1e9, bandwidth=1e-9)
    for way in model.WAYS:
        assert model.cost(way, 10**9, 1, silent) == model.cost(way, 10**9, 1, GPU)


def test_messages_by_hand():
    m = dataclasses.replace(GPU, latency=2.0, bandwidth=10.0)
    assert model.all_reduce(40.0, 4, m) == min(6 * (2 + 1), 2 * (2 + 4))
    assert model.all_reduce(4000.0, 4, m) == 6 * (2 + 100)  # a ring
    assert model.all_to_all(40.0, 4, m) == 3 * (2 + 1)


def test_the_search_moves_what_the_design_says():
    local = {field.name: 0.0 for field in dataclasses.fields(GPU) if field.type == "float"}
    m = dataclasses.replace(GPU, **{**local, "bandwidth": 1.0}, rounds=6)
    routed = 0.5 * (12 + 8) * model.KEEP * 10**9 / 2
    assert model.cost("plain", 10**9, 2, m)[0] - routed == pytest.approx(81_920)
    assert model.cost("one-read", 10**9, 2, m)[0] - routed == pytest.approx(524_288 + 49_152 + 24)


@pytest.mark.parametrize("way", ["plain", "one-read"])
def test_memory_falls_with_the_ranks_and_a_replicated_table_does_not(way):
    sizes = [model.cost(way, 10**10, ranks, GPU)[1] for ranks in (1, 8, 64)]
    assert sizes[0] == pytest.approx(8 * sizes[1]) == pytest.approx(64 * sizes[2])
    replicated = [model.cost("replicate", 10**10, ranks, GPU)[1] for ranks in (1, 8)]
    assert replicated[0] == replicated[1]


def test_the_programs_run_and_their_selections_are_exact(tmp_path):
    series, out = tmp_path / "series.json", tmp_path / "model"
    options = ["--samples", "100_000", "--keep", "30_000", "--ranks", "1", "2", "--rounds", "1"]
    for command in (
        ["billion.py", *options, "--out", str(series)],
        ["simulate_sharding.py", "--measured", str(series), "--out", str(out)],
    ):
        program = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]]
        done = subprocess.run(program, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    rows = json.loads(series.read_text())["rows"]
    assert [(row["ranks"], row["exact"]) for row in rows] == [(1, True), (2, True)]
    assert "| 1e+11 | 4096 |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 10_000
