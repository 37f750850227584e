# SPDX-License-Identifier: Apache-2.0
"""Tables, targets, figure and GPU counts of bench_selection.py, from made-up results."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.selection import cases, gpu_timing, report, targets
from benchmarks.selection import plot as selection_plot

CPU = torch.device("cpu")


def row(**changes: Any) -> report.Row:
    values = {
        "part": "ops",
        "op": "select_top_k, ascending",
        "scores": "lognormal",
        "num_samples": 10_000_000,
        "k": 3_000_000,
        "keep": 0.3,
        "limit_bytes": 64_000_000,
        "refused": {},
        "seconds": {"ours": [0.02, 0.01, 0.03], "torch.topk": [0.11, 0.09, 0.1], "read": [0.002]},
    }
    return {**values, **changes}


def gpu_row(**changes: Any) -> report.Row:
    values = {
        "num_samples": 100_000_000,
        "k": 33_333_333,
        "keep": 1 / 3,
        "limit_bytes": 666_666_664,
        "seconds": {"ours": [5e-4], "torch.topk": [1e-3]},
        "copy_rate": 4e12,
        "host_syncs": {"ours": 0, "torch.topk": None},
        "waits": 1,
        "graph_seconds": [3e-4],
        "kernels": [{"kernel": "void k<1|2>(int)", "launches": 4, "microseconds": 250.0}],
    }
    return row(**{**values, **changes})


def test_lines_of_a_cpu_table() -> None:
    told = report.lines(row(refused={"host round trip": "not applicable"}))
    assert told == [
        "| select_top_k, ascending | 20.000 | 6.40 | 10.0 "
        "| torch.topk | 100 | 5.00x | 5x faster | yes |",
        "|  |  |  |  | host round trip | refuses | not applicable | - | - |",
    ]
    slower = row(seconds={"ours": [1.0, 1.0], "torch.topk": [4.9], "read": [1.0]})
    assert report.lines(slower)[0].endswith("| 4900 (1 rounds) | 4.90x | 5x faster | NO |")


def test_lines_of_a_gpu_table() -> None:
    assert report.lines(gpu_row()) == [
        "| select_top_k, ascending | 0.500 | 0.300 | 4 | 6.67 | 56 % | 0 / 1 "
        "| torch.topk | 1.000 (- host waits) | 2.00x | 4x faster | NO |"
    ]
    columns = report.header(gpu_row())
    assert columns[3].count("|") == report.lines(gpu_row())[0].count("|") == columns[4].count("|")


def test_a_busy_machine_and_absent_packages_are_told() -> None:
    told = "\n".join(
        report.preamble({"load_average": [0.6, 0, 0], "cores": 2, "cuda": ""}, None, {})
    )
    assert "machine is busy" in told and "- cuda: none" in told
    installed = {"cupy": True, "flashinfer": False}
    told = "\n".join(report.preamble({"load_average": [0.6, 9, 9], "cores": 4}, 3e12, installed))
    assert "busy" not in told and "3000 GB/s" in told
    assert "not installed, so not measured: flashinfer\n" in told


def test_the_summary_judges_every_target_and_lists_kernels() -> None:
    told = "\n".join(report.summary([gpu_row()]))
    assert "1 of 2 reached" in told
    assert "| 0.300 ms | at most 0.35 ms in a replay | yes |" in told
    assert "| void k<1/2> | 4 | 250.0 |" in told
    beyond = row(
        part="weighted",
        op="select_weighted, ascending",
        num_samples=20_000_000,
        refused={"torch.multinomial": "too many"},
        seconds={"ours": [1.0], "read": [1.0]},
    )
    assert "1 of 1 reached" in report.summary([beyond])[1]
    assert report.lines(beyond)[0].endswith(
        "| torch.multinomial | refuses | too many | ours runs | yes |"
    )
    assert "None of them" in "\n".join(report.summary([row(num_samples=7)]))


def test_the_spread_of_distributions_is_judged_within_rounds() -> None:
    def kind(scores: str, ours: float, usual: float) -> report.Row:
        seconds = {"ours": [ours], cases.USUAL: [usual], "read": [1.0]}
        return row(part="distributions", scores=scores, seconds=seconds)

    # The machine was half as fast while "equal" was measured; a fast bfloat16 is no fault.
    rows = [kind("lognormal", 1.0, 1.0), kind("equal", 3.2, 2.0), kind("bfloat16", 0.5, 1.0)]
    assert report.spread(rows) == pytest.approx(1.6)
    assert [verdict.reached for verdict in report.verdicts(rows)] == [False]
    assert report.spread([row()]) is None


@pytest.mark.parametrize(
    ("op", "rival", "n", "at_least"),
    [
        ("select_top_k, ascending", "torch.topk", 10_000_000, 5),
        ("select_top_k, ascending", "np.argpartition", 10_000_000, 2),
        ("select_top_k, random", "np.argpartition + shuffle", 10_000_000, 3),
        ("select_top_k, random", "torch.topk + randperm", 10_000_000, 3),
        ("select_ucb, ascending", "select_top_k, ascending", 10_000_000, 1 / 1.3),
        ("select_epsilon_greedy, ascending", "topk + isin + randperm", 10_000_000, 15),
        ("select_uniform, random", "torch.randperm[:k]", 10_000_000, 8),
        ("select_weighted, ascending", "torch.multinomial", 16_000_000, 4),
        ("permutation", "torch.randperm[:k]", 50_000, 1),
        ("permutation", "torch.randperm[:k]", 10_000_000, None),
        ("select_top_k, ascending", "torch.topk", 20_000_000, None),
        ("select_ucb, ascending", "select_top_k, ascending", 50_000, None),
    ],
)
def test_targets_on_a_cpu(op: str, rival: str, n: int, at_least: float | None) -> None:
    target = targets.find("cpu", op, rival, n, 0.3)
    assert (target and target.at_least) == at_least
    assert targets.find("cpu", op, rival, n, 0.5) is None


def test_every_target_is_about_a_row_that_is_measured() -> None:
    """A rival or an op that is renamed must not lose its target without a word."""
    measured = {(case.op, rival) for case in cases.ops(100, 30, CPU) for rival in case.rivals}
    assert set(targets.AT_TEN_MILLION) <= measured
    assert ("select_ucb, ascending", "select_top_k, ascending") in measured
    assert ("select_weighted, ascending", "torch.multinomial") in measured


def test_waits_of_the_host_are_counted() -> None:
    def call() -> None:
        for text in ("called a synchronizing CUDA operation", "something else") * 2:
            warnings.warn(text, stacklevel=1)

    assert gpu_timing.count_sync_warnings(call) == 2
    assert gpu_timing.count_sync_warnings(lambda: None) == 0


def test_kernels_and_waits_of_a_profile() -> None:
    def event(key: str, kind: str, count: int, time: float) -> SimpleNamespace:
        device = SimpleNamespace(name=kind)
        return SimpleNamespace(
            key=key, device_type=device, count=count, self_device_time_total=time
        )

    told = gpu_timing.launches_and_waits(
        [
            event("small", "CUDA", 3, 2.0),
            event("great", "CUDA", 1, 9.0),
            event("an annotation", "CUDA", 1, 0.0),
            event("cudaLaunchKernel", "CPU", 4, 0.0),
            event("cudaStreamSynchronize", "CPU", 2, 0.0),
            event("cudaDeviceSynchronize", "CPU", 1, 0.0),
        ]
    )
    assert [kernel["kernel"] for kernel in told["kernels"]] == ["great", "small"]
    assert told["waits"] == 2


@pytest.mark.parametrize("made", [row, gpu_row])
def test_a_figure_of_made_up_rows(tmp_path: Path, made: Any) -> None:
    rows = [made(num_samples=n) for n in (1000, 10_000)]
    rows += [made(part="shares", keep=keep) for keep in (0.1, 0.5)]
    rows += [made(part="distributions", scores=kind) for kind in cases.DISTRIBUTIONS]
    selection_plot.plot(rows, tmp_path / "some.png")
    with Image.open(tmp_path / "some.png") as image:
        assert image.size == (2475, 675)
    selection_plot.plot([made(part="order")], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
