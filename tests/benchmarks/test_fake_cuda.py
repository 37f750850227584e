# SPDX-License-Identifier: Apache-2.0
"""Every case and rival of the GPU benchmarks, made and called on fake CUDA tensors, without a GPU.

A fake tensor has a device, a shape and a type, and no data. What fails here would cost the minutes
of a machine that is lent.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_packages
import numpy as np
import pytest
import torch
from paths import ROOT
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from benchmarks.common.machine_info import machine_info
from benchmarks.common.timing import Call
from benchmarks.loading import bench_samplers
from benchmarks.scoring import accuracy, bench_scoring, steps
from benchmarks.selection import batch_choice, bench_selection, cases, gpu_timing, report, rivals
from dynprune_cuda import functional as F

CUDA = torch.device("cuda")
# A mask makes as many ids as it has true values, which nobody knows of fake ones.
SHAPE_BY_VALUES = "topk + isin + randperm"


@torch.no_grad()  # as the engine calls the nodes
def backward(loss: torch.Tensor) -> None:
    """loss.backward(), node by node in Python: torch's engine asks a CUDA driver first."""
    assert loss.grad_fn is not None
    order: list[Any] = []

    def visit(node: Any) -> None:
        if node is not None and node not in order:
            for following, _ in node.next_functions:
                visit(following)
            order.append(node)

    visit(loss.grad_fn)
    gradients: dict[Any, dict[int, torch.Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in reversed(order):
        given = gradients.get(node, {})
        if hasattr(node, "variable"):
            node.variable.grad = given[0]
            continue
        function = getattr(node, "apply", node)  # a function of Python, or one of C++
        made = function(*(given.get(i) for i in range(len(node._input_metadata))))
        made = made if isinstance(made, tuple) else (made,)
        for (following, place), gradient in zip(node.next_functions, made, strict=False):
            if following is not None and gradient is not None:
                wanted = gradients.setdefault(following, {})
                wanted[place] = wanted[place] + gradient if place in wanted else gradient


def grad(loss: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
    x.grad = None
    backward(loss)
    assert x.grad is not None and x.grad.shape == x.shape
    return (x.grad,)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake CUDA tensors, and stand-ins for all GPU packages."""
    gpu_packages.install(monkeypatch)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(rivals, "check_ids", lambda ids, x, k: np.testing.assert_equal(len(ids), k))
    monkeypatch.setattr(F, "check_errors", lambda device: None)  # it reads from the device
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(FakeTensor, "numpy", lambda x: np.arange(len(x), dtype=np.float32))
    monkeypatch.setattr(torch, "from_numpy", lambda ids: torch.empty(len(ids), dtype=torch.int64))
    with FakeTensorMode():
        yield


def selection_options(*arguments: str) -> argparse.Namespace:
    """As of a command line with --device cuda, which only a machine with a GPU may pass."""
    options = bench_selection.parse(["--quick", "--num-samples", "1000", *arguments])
    options.device = CUDA
    return options


@pytest.mark.parametrize("part", bench_selection.PARTS)
def test_every_selection_and_rival_is_called(fake_cuda: None, part: str) -> None:
    called: set[str] = set()
    for case in bench_selection.all_cases(selection_options("--parts", part)):
        case.call()
        for name, call in case.rivals.items():
            if name == SHAPE_BY_VALUES:
                with pytest.raises(DynamicOutputShapeException):
                    call()
            else:
                call()
            called.add(name)
    if part == "ops":
        packages = {"cub::DeviceTopK", "cupy.argpartition", "pylibraft.select_k (RAFT)"}
        assert {"torch.topk", "flashinfer.top_k", rivals.HOST_ROUND_TRIP, *packages} <= called


def test_bfloat16_has_the_rivals_that_accept_it(fake_cuda: None) -> None:
    """NumPy, CuPy and RAFT do not; looking for them used to end the program."""
    (case,) = [case for case in cases.distributions(1000, 300, CUDA) if case.scores == "bfloat16"]
    case.call()
    assert set(case.rivals) == {cases.USUAL, "torch.topk"}
    names = set(rivals.top_k(cases.make_scores("bfloat16", 1000, CUDA), 300))
    assert names == {"torch.topk", "torch.topk(sorted=True)", "torch.sort[:k]", "flashinfer.top_k"}


def test_cub_is_asked_for_its_workspace_first(
    fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binding of scripts/gpu/cub, with a library that writes down what it is given."""
    told: list[tuple[Any, ...]] = []

    def cub_topk(workspace: int | None, num_bytes: Any, *rest: Any) -> int:
        told.append((workspace, *rest))
        num_bytes._obj.value = 300
        return len(told) // 3

    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(cub_topk=cub_topk))
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda x: 1000 + x.numel())
    topk = ROOT / "scripts" / "gpu" / "cub" / "topk.py"
    namespace = runpy.run_path(str(topk))
    x = torch.empty(50, device=CUDA)
    ids = namespace["top_k"](x, 20)
    assert ids.device.type == "cuda" and ids.shape == (20,) and ids.dtype == torch.int64
    assert told == [(None, 1050, 1020, 1020, 50, 20, 7), (1300, 1050, 1020, 1020, 50, 20, 7)]
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        namespace["top_k"](x, 20)
    # As many arguments as the function of the .cu file has.
    source = re.sub(r"//.*", "", topk.with_suffix(".cu").read_text())
    signature = source.split("cub_topk(")[1].split(")")[0]
    assert signature.count(",") + 1 == len(namespace["_cub_topk"].argtypes) == len(told[0]) + 1


def made_up_times(calls: Mapping[str, Call], *_: Any, **more: Any) -> dict[str, list[float]]:
    """Calls everything once; 1 ms each, and refusals as `time_rounds` tells them."""
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = [1e-3]
        except DynamicOutputShapeException:
            more["refused"][name] = "a shape of values"
    return found


@pytest.fixture
def no_gpu_timing(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Everything that would measure, made up; counts the graphs and profiles."""
    counts = {"graphs": 0, "profiles": 0}

    def graph_seconds(call: Call, *_: Any) -> list[float]:
        call()
        counts["graphs"] += 1
        return [5e-4]

    def profile(call: Call, *_: Any) -> dict[str, Any]:
        counts["profiles"] += 1
        return {"kernels": [], "waits": 0}

    made_up = gpu_timing.Gpu(flush=lambda: None, copy_rate=4e12)
    monkeypatch.setattr(gpu_timing, "graph_seconds", graph_seconds)
    monkeypatch.setattr(gpu_timing, "profile", profile)
    monkeypatch.setattr(gpu_timing, "host_syncs", lambda call, device: 0)
    monkeypatch.setattr(gpu_timing, "prepare", lambda device, rounds: made_up)
    for module in (bench_selection, bench_scoring):
        monkeypatch.setattr(module, "time_rounds", made_up_times)
        here = machine_info(torch.device("cpu"))
        monkeypatch.setattr(module, "machine_info", lambda device, here=here: here)
    monkeypatch.setattr(bench_scoring, "host_and_launches", lambda *_: (1.0, 1))
    monkeypatch.setattr(bench_scoring, "graph_seconds", graph_seconds)
    return counts


def test_rows_of_a_gpu_are_told(fake_cuda: None, no_gpu_timing: dict[str, int]) -> None:
    options = selection_options("--no-host-rivals", "--no-profile")
    gpu = gpu_timing.prepare(CUDA, 1)
    rows = [
        bench_selection.measure(case, options, gpu) for case in bench_selection.all_cases(options)
    ]
    assert no_gpu_timing["profiles"] == 0
    assert not any(rivals.HOST_ROUND_TRIP in name for row in rows for name in row["seconds"])
    assert {SHAPE_BY_VALUES} == {name for row in rows for name in row["refused"]}
    top_k = next(row for row in rows if row["op"] == "select_top_k, ascending")
    assert set(top_k["rival_graph_seconds"]) == {"torch.topk", "cub::DeviceTopK"}
    told = "\n".join(line for row in rows for line in report.lines(row))
    assert "| torch.topk | 1.000 (0 host waits), 0.500 in a replay |" in told


def test_a_run_that_is_killed_keeps_its_rows(
    fake_cuda: None,
    no_gpu_timing: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    original, measured = bench_selection.measure, []

    def killed_at_third(*arguments: Any) -> dict[str, Any]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(original(*arguments))
        return measured[-1]

    monkeypatch.setattr(bench_selection, "measure", killed_at_third)
    options = selection_options("--parts", "ops", "--out", str(tmp_path))
    monkeypatch.setattr(bench_selection, "parse", lambda arguments: options)
    with pytest.raises(KeyboardInterrupt):
        bench_selection.main()
    document = json.loads((tmp_path / "bench_selection.json").read_text())
    assert [row["op"] for row in document["rows"]] == [row["op"] for row in measured]
    assert len(document["rows"]) == 2 and document["machine"]["torch"] == torch.__version__
    text = (tmp_path / "bench_selection.md").read_text()
    assert "| select_top_k, random |" in text and "## Targets" not in text
    assert not list(tmp_path.glob("*.new"))


def test_a_case_that_fails_loses_only_its_own_row(
    fake_cuda: None,
    no_gpu_timing: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("an illegal instruction\nand more")

    monkeypatch.setattr(F, "select_ucb", fails)
    out = tmp_path / "rows.json"
    options = selection_options("--parts", "ops", "--out", str(out))
    monkeypatch.setattr(bench_selection, "parse", lambda arguments: options)
    monkeypatch.setattr(bench_selection, "time_rounds", refusing_time_rounds)
    with pytest.raises(SystemExit, match="1 case failed"):
        bench_selection.main()
    ops = [row["op"] for row in json.loads(out.read_text())["rows"]]
    assert len(ops) == 7 and "select_ucb, ascending" not in ops
    told = "FAILED: select_ucb, ascending, N = 1000: select_ucb, ascending, N = 1000: an illegal"
    assert told in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


def refusing_time_rounds(calls: Mapping[str, Call], *_: Any, **more: Any) -> dict[str, list[float]]:
    """As `made_up_times`; every error is a refusal, as on a machine with a GPU."""
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = [1e-3]
        except Exception as error:
            more["refused"][name] = str(error).splitlines()[0]
    return found


def test_a_rival_that_no_graph_can_capture_has_no_replay(
    fake_cuda: None, no_gpu_timing: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def graph_seconds(call: Call, *_: Any) -> list[float]:
        no_gpu_timing["graphs"] += 1
        if no_gpu_timing["graphs"] == 2:  # torch.topk; ours came first
            raise RuntimeError("operation not permitted when stream is capturing")
        return [5e-4]

    monkeypatch.setattr(gpu_timing, "graph_seconds", graph_seconds)
    options = selection_options("--no-host-rivals", "--no-profile")
    case = next(iter(bench_selection.all_cases(options)))
    row = bench_selection.measure(case, options, gpu_timing.prepare(CUDA, 1))
    assert set(row["rival_graph_seconds"]) == {"cub::DeviceTopK"}
    assert row["not_captured"] == {"torch.topk": "operation not permitted when stream is capturing"}


LOSSES = {"ours", *steps.RIVALS}


SHAPES = {
    "": "8x10",
    "soft": "8x10/soft",
    "labels": "8x10/labels",
    "pixels": "2x5x3x4/pixels",
    "tokens": "2x3x10/tokens",
}


@pytest.mark.parametrize("kind", steps.KINDS)
@pytest.mark.parametrize("forgetting", [False, True], ids=["", "forgetting"])
def test_every_kind_of_step_is_called(
    fake_cuda: None, no_gpu_timing: dict[str, int], kind: str, forgetting: bool
) -> None:
    arguments = ["--device", "cuda", "--shapes", SHAPES[kind], *["--forgetting"] * forgetting]
    options = bench_scoring.make_parser().parse_args(arguments)
    measured, refused = bench_scoring.measure(*options.shapes, options)
    assert refused == {} and {row["kind"] for row in measured} == {kind}
    names = set(steps.CAPTURABLE) if kind else LOSSES
    assert {row["name"] for row in measured} == names | {"copy"}
    captured = {row["name"] for row in measured if row["replay_seconds"] == [5e-4]}
    assert captured == set(steps.CAPTURABLE) and no_gpu_timing["graphs"] == len(captured)
    assert {bench_scoring.shape_name(row) for row in measured} == {SHAPES[kind]}


@pytest.mark.parametrize("dtype", bench_scoring.DTYPES)
def test_every_scoring_step_is_called(
    fake_cuda: None, no_gpu_timing: dict[str, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits: dict[str, set[int]] = {}
    calls = bench_scoring.calls

    def remembered(x: Any, y: Any, ids: Any, loss: Any) -> dict[str, Call]:
        assert x.device.type == y.device.type == ids.device.type == "cuda"
        assert x.dtype == bench_scoring.DTYPES[dtype]
        logits.setdefault("all", set()).add(id(x))
        return calls(x, y, ids, loss)

    monkeypatch.setattr(bench_scoring, "calls", remembered)
    options = bench_scoring.make_parser().parse_args(["--device", "cuda", "--dtype", dtype])
    measured, refused = bench_scoring.measure("8x10", options)
    assert refused == {} and {row["name"] for row in measured} == LOSSES | {"copy"}
    captured = {row["name"] for row in measured if row["replay_seconds"] == [5e-4]}
    assert captured == set(steps.CAPTURABLE) and no_gpu_timing["graphs"] == len(captured)
    shown = [bench_scoring.table_row(row).count("| 500.0 |") for row in measured]
    assert shown.count(1) == len(captured)
    assert len(logits["all"]) == 2  # Liger's own, which it overwrites, and those of all others
    assert all(row["dtype"] == f"torch.{dtype}" for row in measured)


def test_liger_in_place_overwrites_only_its_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real numbers, on the CPU: what others read stays."""
    gpu_packages.install(monkeypatch)
    found = steps._gpu_packages()
    x = torch.randn(4, 3).requires_grad_()
    before, y, ids = x.detach().clone(), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    bench_scoring.calls(x, y, ids, found["Liger on a copy"])["full"]()
    assert x.grad is not None and torch.equal(x.detach(), before)
    wanted = x.grad.clone()
    bench_scoring.calls(x, y, ids, found[steps.OVERWRITES])["full"]()
    assert torch.allclose(x.detach(), wanted) and torch.allclose(x.grad, wanted)


def test_a_rival_that_fails_loses_only_its_own_row(
    no_gpu_timing: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    losses = steps.losses

    def with_a_bad_one(*arguments: Any) -> dict[str, steps.Loss]:
        def fails(*_: Any) -> Any:
            raise RuntimeError("out of memory\nand more")

        return losses(*arguments) | {"quack": fails}

    monkeypatch.setattr(bench_scoring, "losses", with_a_bad_one)
    out = tmp_path / "some" / "out.json"
    arguments = ["--shapes", "8x3", "4x5", "--no-compile", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_scoring", *arguments])
    bench_scoring.main()
    assert "4x5: quack failed: out of memory\n" in capsys.readouterr().err
    names = [row["name"] for row in json.loads(out.read_text())["rows"]]
    assert names == ["ours", "two ops", "eager", "loss alone", "copy"] * 2


def test_scoring_rows_are_written_after_each_shape(
    no_gpu_timing: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure = bench_scoring.measure

    def killed(shape: str, options: argparse.Namespace) -> Any:
        if shape == "4x5":
            raise KeyboardInterrupt
        if shape == "9x9":
            raise RuntimeError("out of memory\nand more")
        return measure(shape, options)

    monkeypatch.setattr(bench_scoring, "measure", killed)
    out = tmp_path / "out.json"
    arguments = ["--shapes", "9x9", "8x3", "4x5", "--no-compile", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_scoring", *arguments])
    with pytest.raises(KeyboardInterrupt):
        bench_scoring.main()
    assert {tuple(row["shape"]) for row in json.loads(out.read_text())["rows"]} == {(8, 3)}
    monkeypatch.setattr(sys, "argv", ["bench_scoring", *arguments[:3], "--no-compile"])
    with pytest.raises(SystemExit, match="failed: 9x9"):
        bench_scoring.main()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_accuracy_is_computed_where_it_is_asked(fake_cuda: None, dtype: torch.dtype) -> None:
    logits, target = (torch.empty(4, 3, dtype=dtype), torch.empty(4, dtype=torch.int64))
    for method in accuracy.METHODS.values():
        loss, el2n = method(logits.to(CUDA), target.to(CUDA))
        assert loss.device.type == el2n.device.type == "cuda" and loss.shape == el2n.shape == (4,)


# ---- choices inside a batch, and samplers


def test_every_choice_inside_a_batch_is_called(
    fake_cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def composer(x: Any, y: Any, model: Any, loss: Any, keep: float) -> tuple[Any, Any]:
        assert loss(model(x), y).device.type == "cuda"
        kept = round(keep * len(x))
        return x[:kept], y[:kept]

    here = machine_info(torch.device("cpu"))
    monkeypatch.setattr(batch_choice, "machine_info", lambda device: here)
    monkeypatch.setattr(batch_choice, "git_commit", lambda: "a commit")
    monkeypatch.setattr(batch_choice, "composer_function", lambda: composer)
    monkeypatch.setattr(batch_choice.importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(batch_choice, "time_rounds", made_up_times)
    monkeypatch.setattr(FakeTensor, "numpy", lambda x: np.arange(len(x)))
    monkeypatch.setattr(torch.Tensor, "equal", lambda a, b: a.shape == b.shape)
    out = tmp_path / "batch_choice.json"
    arguments = ["--rows", "64", "--classes", "5", "--device", "cuda", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["batch_choice", *arguments])
    batch_choice.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["same_rows"] for row in rows] == [None, True, None, True, None, True]
    assert all(row["median_ms"] == 1 for row in rows)


class FakeStream:
    """A stream; its events are done when they are waited for."""

    def __init__(self) -> None:
        self.waited = 0

    def wait_stream(self, other: Any) -> None:
        assert other.cuda_stream == 7

    def record_event(self) -> FakeStream:
        return self

    def synchronize(self) -> None:
        self.waited += 1


def test_the_samplers_of_a_gpu_are_drained(
    fake_cuda: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    streams: list[FakeStream] = []

    def stream() -> FakeStream:
        streams.append(FakeStream())
        return streams[-1]

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **more: empty(*a, **more))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(FakeTensor, "tolist", lambda x: list(range(len(x))))
    monkeypatch.setattr(torch.Tensor, "__int__", lambda x: 0)  # samples trained by mistake
    monkeypatch.setattr(bench_samplers, "SubsetRandomSampler", list)
    sizes = ["--samples", "1000", "--keep", "300", "--batch-size", "16", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_samplers", *sizes, "--device", "cuda"])
    bench_samplers.main()
    told = capsys.readouterr().out
    assert "device cuda" in told and "of 300 ids" in told
    assert told.count("million ids/s; first batch") == 2
    assert len(streams) == 2 and all(stream.waited >= 1 for stream in streams)
