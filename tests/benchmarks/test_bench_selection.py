# SPDX-License-Identifier: Apache-2.0
"""benchmarks/selection/bench_selection.py: runs from end to end, and its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.common import timing
from benchmarks.selection import bench_selection, cases, gpu_timing, report, rivals, targets
from dynprune_cuda import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OPS = {
    "select_top_k, ascending",
    "select_top_k, random",
    "select_ucb, ascending",
    "select_ucb1, ascending",
    "select_epsilon_greedy, ascending",
    "select_uniform, random",
    "permutation",
    "select_weighted, ascending",
}


def run(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    bench_selection.main(["--quick", "--rounds", "2", "--out", str(out), *arguments])
    document = json.loads((out / "bench_selection.json").read_text())
    return document, (out / "bench_selection.md").read_text()


def test_a_run_measures_every_op_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, text = run(tmp_path)
    assert capsys.readouterr().out == text
    assert document["machine"]["torch"] == torch.__version__
    assert document["settings"]["rounds"] == "2"
    rows = document["rows"]
    for n in (1_000, 20_000):
        ops = [row for row in rows if row["part"] == "ops" and row["num_samples"] == n]
        assert {row["op"] for row in ops} == OPS and len(ops) == len(OPS)
    assert {row["part"] for row in rows} == set(bench_selection.PARTS)
    kinds = [row["scores"] for row in rows if row["part"] == "distributions"]
    assert kinds == list(cases.DISTRIBUTIONS)
    for row in rows:
        assert set(row["refused"]) <= {"host round trip"}, row["refused"]
        assert len(row["seconds"]) >= 3  # ours, the read, and at least one rival
        for seconds in row["seconds"].values():
            assert len(seconds) == 2 and min(seconds) > 0
    assert text.count("\n## ") == 2 + 1 + 1 + 1 + 1 + 1
    with Image.open(tmp_path / "bench_selection.png") as image:
        assert image.size == (2475, 675)


def test_a_run_of_some_parts_without_files(capsys: pytest.CaptureFixture[str]) -> None:
    bench_selection.main(["--parts", "weighted", "--weighted-samples", "100", "--rounds", "1"])
    told = capsys.readouterr().out
    assert "N = 100" in told and "torch.multinomial" in told and "Kept shares" not in told


@pytest.mark.needs_cuda
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    document, _ = run(tmp_path, "--device", "cuda")
    for row in document["rows"]:
        assert row["host_syncs"]["ours"] == 0, row["op"]
        if row["part"] != "order":
            assert len(row["graph_seconds"]) == 2 and row["kernels"] and row["waits"] == 0
    assert document["rows"][0]["host_syncs"]["host round trip"] >= 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--keep", "0"],
        ["--keep", "1.5"],
        ["--num-samples", "0.5"],
        ["--rounds", "0"],
        ["--parts", "all"],
        ["--device", "tpu"],
        *([] if torch.cuda.is_available() else [["--device", "cuda"]]),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_selection.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_default_sizes_are_those_of_the_targets() -> None:
    options = bench_selection.parse([])
    assert {50_000, 10_000_000} <= set(options.num_samples) and options.keep == 0.3
    assert options.rounds == 7
    below, above = options.weighted_samples
    assert below == 16_000_000 < targets.MULTINOMIAL_LIMIT < above


# Bytes per sample at k = N/3, as the design of the selection derives them.
LIMITS = {
    "select_top_k, ascending": 6.67,
    "select_top_k, random": 6.67,
    "select_ucb, ascending": 10.67,
    "select_ucb1, ascending": 10.67,
    "select_epsilon_greedy, ascending": 6.67,
    "select_uniform, random": 2.67,
    "permutation": 8.0,
    "select_weighted, ascending": 6.67,
}


def test_limits_are_one_read_of_the_scores_and_one_write_of_the_ids() -> None:
    per_sample = {case.op: case.limit_bytes / 3000 for case in cases.ops(3000, 1000, CPU)}
    assert per_sample == pytest.approx(LIMITS, abs=0.005)
    limits = {case.scores: case.limit_bytes for case in cases.distributions(3000, 1000, CPU)}
    assert limits["lognormal"] == 20_000 and limits["bfloat16"] == 14_000


@pytest.mark.parametrize("kind", cases.DISTRIBUTIONS)
def test_distributions_are_what_they_are_called(kind: str) -> None:
    torch.manual_seed(0)
    n = 20_000
    x = cases.make_scores(kind, n, CPU)
    assert x.shape == (n,)
    share = {
        "lognormal": len(x.unique()) / n > 0.9 and bool((x > 0).all()),
        "equal": len(x.unique()) == 1,
        "99 % zeros": 0.98 < (x == 0).double().mean() < 0.995,
        "early training": 2.29 < x.mean() < 2.31 and 0.14 < x.std() < 0.16,
        "eight levels": len(x.unique()) == 8,
        "sorted": bool((x.diff() >= 0).all()) and len(x.unique()) / n > 0.9,
        "10 % NaN": 0.08 < x.isnan().double().mean() < 0.12,
        "bfloat16": x.dtype == torch.bfloat16,
    }
    assert share[kind]


def test_rivals_select_what_ours_selects() -> None:
    x = torch.randperm(1000).float()
    wanted = F.select_top_k(x, 300, order="ascending")
    for name, call in {**rivals.top_k(x, 300), **rivals.top_k_shuffled(x, 300)}.items():
        if name != "host round trip":
            ids = torch.as_tensor(call())
            assert torch.equal(ids.sort().values, wanted), name
    variance, count = torch.rand(1000), torch.randint(1, 9, (1000,), dtype=torch.int32)
    (call,) = rivals.ucb(x, variance, 300).values()
    ours = F.select_ucb(x, variance, 300, order="ascending")
    assert torch.equal(call().indices.sort().values, ours)
    (call,) = rivals.ucb1(x, count, 300, 50.0).values()
    ours = F.select_ucb1(x, count, 300, step=50.0, order="ascending")
    assert torch.equal(call().indices.sort().values, ours)
    (call,) = rivals.epsilon_greedy(x, 300, 0.1).values()
    ids = call()
    assert len(ids.unique()) == 300
    assert torch.isin(F.select_top_k(x, 270), ids).all()
    for call in (*rivals.uniform(1000, 300, CPU).values(), *rivals.weighted(x, 300).values()):
        assert len(call().unique()) == 300


def test_every_part_of_an_epoch_s_order_is_visited() -> None:
    """Lazy and materialised order call the same ops; both must run for any batch size."""
    (case,) = cases.order(1000, 301, 64, CPU)
    for call in (case.call, *case.rivals.values()):
        call()
    assert len(case.rivals) == 2


def test_wrong_results_of_other_packages_are_noticed() -> None:
    x = torch.tensor([3.0, 1.0, torch.nan, 2.0, 3.0])
    rivals.check_ids(torch.tensor([4, 2], dtype=torch.int32), x, 2)
    rivals.check_ids(torch.tensor([2, 0]), x, 2)  # the other of two equal scores
    for wrong in ([2, 2], [2], [2, 3], [0, 4]):
        with pytest.raises(RuntimeError, match="wrong result"):
            rivals.check_ids(torch.tensor(wrong), x, 2)


def test_multinomial_s_refusal_is_torch_s_own() -> None:
    """The limit in the targets is the one at which torch raises."""
    weights = torch.ones(targets.MULTINOMIAL_LIMIT + 1)
    refused: dict[str, str] = {}
    timing.time_rounds(rivals.weighted(weights, 1), CPU, 1, refused=refused)
    assert "2^24" in refused["torch.multinomial"]


def test_rounds_take_turns_and_slow_calls_get_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    cost = {"fast": 0.1, "slow": 2.0}

    def once(call: timing.Call, device: torch.device, repeats: int = 1) -> float:
        call()
        return cost[told[-1]]

    monkeypatch.setattr(timing, "time_once", once)
    calls = {name: (lambda name=name: told.append(name)) for name in cost}
    seconds = timing.time_rounds(
        calls, CPU, 7, slow_after=1.0, before_each=lambda: told.append("flush")
    )
    assert {name: len(times) for name, times in seconds.items()} == {"fast": 7, "slow": 3}
    first_three = ["fast", "slow", "flush", "fast", "flush", "slow", "flush", "fast", "flush"]
    assert told[:9] == first_three


def test_a_call_that_raises_is_left_out_only_where_that_is_expected() -> None:
    def fail() -> None:
        raise ValueError("no\nsecond line")

    calls: dict[str, timing.Call] = {"fine": lambda: None, "fails": fail}
    refused: dict[str, str] = {}
    assert set(timing.time_rounds(calls, CPU, 2, refused=refused)) == {"fine"}
    assert refused == {"fails": "no"}
    with pytest.raises(ValueError, match="no"):
        timing.time_rounds(calls, CPU, 2)


def test_a_gpu_s_row_has_what_its_table_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the GPU's path but the GPU: what it would measure is made up."""
    made_up = {
        "graph_seconds": lambda call, device, rounds, flush: [2e-6] * rounds,
        "profile": lambda call, device: {
            "kernels": [{"kernel": "k", "launches": 4, "microseconds": 2.0}],
            "waits": 0,
        },
        "host_syncs": lambda call, device: 0,
    }
    for name, function in made_up.items():
        monkeypatch.setattr(gpu_timing, name, function)
    flushed: list[int] = []
    gpu = gpu_timing.Gpu(flush=lambda: flushed.append(1), copy_rate=3e12)
    options = bench_selection.parse(["--quick", "--rounds", "2", "--num-samples", "500"])
    rows = [
        bench_selection.measure(case, options, gpu) for case in bench_selection.all_cases(options)
    ]
    assert len(flushed) == sum(2 * len(row["seconds"]) for row in rows)
    for row in rows:
        assert "read" not in row["seconds"] and ("graph_seconds" in row) == (row["part"] != "order")
        cells = report.header(row)[3].count("|")
        assert all(line.count("|") == cells for line in report.lines(row))
    assert "## Kernels" in report.summary(rows)
