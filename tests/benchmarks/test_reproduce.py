# SPDX-License-Identifier: Apache-2.0
"""benchmarks/sweep/reproduce.py from end to end: whole sweeps of seconds, kills, time limits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packed_cifar import jpegs, pack
from paths import ROOT

from benchmarks.common import result_files
from benchmarks.common.records import Run, run_from_json
from benchmarks.sweep import reproduce
from benchmarks.sweep.config import read_config
from benchmarks.sweep.reproduce import main
from benchmarks.training.methods import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CONFIGS = ROOT / "benchmarks" / "sweep" / "configs"
COMPARED = [name for name, method in METHODS.items() if method.kind != "host"]
COMPARED.remove("weighted")  # not one of the paper's


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 20 test images of 8x8 pixels."""
    path = tmp_path_factory.mktemp("data") / "cifar10.bin"
    path.write_bytes(pack(jpegs(80), [i % 10 for i in range(80)], [0] * 60 + [1] * 20))
    return path


# A sweep of a second per run: on 8x8 images, in three epochs.
SMALL = [
    "training.epochs=3",
    "training.batch_size=16",
    "training.evaluations=2",
    "training.device='cpu'",
    "training.threads=1",
    "static.models=2",
    "static.epochs=1",
    "static.forgetting_epochs=2",
    "static.chunk_size=8",
]


def runs_of(out: Path) -> list[Run]:
    return [run_from_json(entry["run"]) for entry in result_files.read_lines(out / "results.jsonl")]


def what_happened(out: Path) -> dict[Any, Any]:
    """All but the seconds, by cell."""
    return {
        (run.method, run.keep, run.seed): (
            [(epoch.samples, epoch.train_loss) for epoch in run.epochs],
            [(look.samples, look.accuracy) for look in run.evaluations],
        )
        for run in runs_of(out)
    }


@pytest.mark.parametrize(("name", "keeps", "limit"), [("cifar10_2cores", [0.1, 0.5], 0)])
def test_the_configurations_for_real_run_as_they_are(
    name: str,
    keeps: list[float],
    limit: int,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every method of the committed files with its own network, at sizes of a rehearsal."""
    changes = [*SMALL, f"sweep.keeps={keeps}", "sweep.seeds=[0]", f"data.limit={limit}"]
    path = CONFIGS / f"{name}.toml"
    main([str(path), "--data-root", str(packed), "--set", *changes, "--out", str(tmp_path)])
    config = read_config(path)
    assert set(config.sweep.methods) == set(COMPARED)
    assert config.sweep.keeps == (0.1, 0.3, 0.5) and len(config.sweep.seeds) == 3
    runs = runs_of(tmp_path)
    expected = {
        (method, keep)
        for method in COMPARED
        for keep in (keeps if METHODS[method].takes_keep else [None])
    } | {("ucb_host", 0.3), ("epsilon_greedy_host", 0.3)}
    assert Counter((run.method, run.keep) for run in runs) == dict.fromkeys(expected, 1)
    assert "infobatch_published-seed0 is left out" in capsys.readouterr().out
    for run in runs:
        assert len(run.evaluations) == 2
        assert (run.static is not None) == run.method.startswith("static")
    report = (tmp_path / "report.md").read_text()
    assert all(f"## keep {keep}\n" in report for keep in keeps) and "JPEG" in report
    for figure in ("time", "samples", "keep"):
        assert (tmp_path / f"accuracy_{figure}.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_line_holds_all_that_a_repetition_needs(packed: Path, tmp_path: Path) -> None:
    changes = [*SMALL, "sweep.methods=['static_el2n']", "sweep.keeps=[0.3]", "overhead.methods=[]"]
    changes += ["sweep.seeds=[5]"]
    arguments = [str(CONFIGS / "cifar10_2cores.toml"), "--data-root", str(packed)]
    main([*arguments, "--set", *changes, "--out", str(tmp_path)])
    (entry,) = result_files.read_lines(tmp_path / "results.jsonl")
    assert entry["config"]["training"]["epochs"] == 3 and entry["config"]["sweep"]["seeds"] == [5]
    assert entry["data"]["train"] == 60 and entry["data"]["test"] == 20
    assert {"torch", "torchvision", "python", "cpu", "cores", "threads", "git", "version"} <= set(
        entry["machine"]
    )
    assert entry["run"]["static"]["seeds"] == [1_005_000, 1_005_001]
    assert set(entry["run"]["epochs"][0]["parts"]) == {
        "selection",
        "data",
        "loss",
        "step",
        "evaluation",
    }
    # Nothing is done twice, and nothing is measured again.
    before = (tmp_path / "results.jsonl").read_bytes()
    main([*arguments, "--set", *changes, "--out", str(tmp_path)])
    assert (tmp_path / "results.jsonl").read_bytes() == before
    with pytest.raises(SystemExit, match="holds runs of another configuration"):
        main([*arguments, "--set", *changes, "training.lr=0.1", "--out", str(tmp_path)])
    (tmp_path / "fingerprint").unlink()  # the lines tell it, too
    with pytest.raises(SystemExit, match="holds runs of another configuration"):
        main([*arguments, "--set", *changes, "training.lr=0.1", "--out", str(tmp_path)])
    (tmp_path / "report.md").unlink()
    main(["--report-only", "--out", str(tmp_path)])
    assert (tmp_path / "report.md").is_file()


def test_static_scoring_is_shared_between_keeps_and_counted_in_each(
    packed: Path, tmp_path: Path
) -> None:
    methods = ["static_el2n", "static_grand", "static_grand_last", "static_forgetting"]
    changes = [*SMALL, f"sweep.methods={methods}", "sweep.keeps=[0.2, 0.4]", "sweep.seeds=[0]"]
    arguments = [str(CONFIGS / "cifar10_2cores.toml"), "--data-root", str(packed)]
    main([*arguments, "--set", *changes, "overhead.methods=[]", "--out", str(tmp_path)])
    costs: dict[str, list[dict[str, Any]]] = {}
    for run in runs_of(tmp_path):
        assert run.static is not None and run.static_seconds > 0
        assert run.seconds == run.static_seconds + run.train_seconds
        costs.setdefault(run.method, []).append(run.static)
    for one, other in costs.values():
        assert one == other
    el2n, grand, last, forgetting = (costs[method][0] for method in methods)
    # The same models, each time with the whole cost of their training.
    assert el2n["training_seconds"] == grand["training_seconds"] == last["training_seconds"] > 0
    assert el2n["seeds"] == grand["seeds"] == last["seeds"] and len(el2n["seeds"]) == 2
    assert forgetting["training_seconds"] not in (0, el2n["training_seconds"])
    assert len(list((tmp_path / "static").glob("model-*.pt"))) == 2


def command(packed: Path, out: Path, *more: str) -> list[str]:
    """A sweep that is slow enough to be killed: a checkpoint and a line after every epoch."""
    changes = [*SMALL, "training.epochs=6", "training.checkpoint_seconds=0.0"]
    changes += ["sweep.methods=['static_el2n', 'ucb', 'infobatch']", "sweep.keeps=[0.5]"]
    changes += ["sweep.seeds=[0]", "overhead.methods=[]"]
    config = str(CONFIGS / "cifar10_2cores.toml")
    return [config, "--data-root", str(packed), "--out", str(out), "--set", *changes, *more]


# Runs a sweep that dies as by kill -9 in the middle of its n-th training step.
DYING = """
import os, signal, sys
steps = int(sys.argv.pop(1))
from benchmarks.sweep import reproduce
from benchmarks.training import clock
lap = clock.Clock.lap
def dying(self, part):
    global steps
    steps -= part == "loss"
    if steps == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    lap(self, part)
clock.Clock.lap = dying
reproduce.main()
"""


def test_a_killed_sweep_goes_on_bit_for_bit(packed: Path, tmp_path: Path) -> None:
    main(command(packed, tmp_path / "whole"))
    expected = what_happened(tmp_path / "whole")
    assert len(expected) == 3

    killed = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for step, what_is_there in (
        (6, "model-1000000-epochs1.pt"),  # in the second model for EL2N
        (4 + 5, "static_el2n-keep0.5-seed0.checkpoint"),  # which is trained; in epoch 3
        (10 + 4 + 3, "ucb-keep0.5-seed0.checkpoint"),  # what is left of EL2N; in epoch 3
    ):
        script = [sys.executable, "-c", DYING, str(step), *command(packed, killed)]
        done = subprocess.run(script, env=environment, capture_output=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(killed.rglob(what_is_there))
    main(command(packed, killed))
    assert what_happened(killed) == expected
    assert [run.resumed for run in runs_of(killed)] == [1, 1, 0]


def test_a_sweep_stops_in_time_and_goes_on(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["training.epochs=3", "sweep.methods=['static_el2n', 'ucb']"]
    main(command(packed, tmp_path / "whole", *short))
    parts, done = tmp_path / "parts", []
    while not done or done[-1] < 2:
        arguments = command(packed, parts, *short)
        main([*arguments[:5], "--minutes", "0", *arguments[5:]])  # each time a step further
        done.append(len(runs_of(parts)))
        assert len(done) < 20
    # Two models for EL2N, its scores, four epochs of the subset; three of UCB.
    assert done == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    assert "stopped: 0 of 2 runs are done; start again to go on" in capsys.readouterr().out
    assert what_happened(parts) == what_happened(tmp_path / "whole")
    assert [run.resumed for run in runs_of(parts)] == [3, 2]


def test_time_is_looked_at_while_scores_are_computed(packed: Path, tmp_path: Path) -> None:
    arguments = command(packed, tmp_path, "sweep.methods=['static_grand', 'static_forgetting']")
    files = []
    for _ in range(3):
        main([*arguments[:5], "--minutes", "0", *arguments[5:]])
        files.append({path.name for path in (tmp_path / "static").iterdir()})
    models = [f"model-100000{number}-epochs1.pt" for number in (0, 1)]
    scores = {"grand-seed0.pt", "grand-seed0.json"}
    assert files == [{models[0]}, set(models), {*models, *scores}]
    assert not list(tmp_path.glob("*.checkpoint"))


def test_the_time_left_knows_the_runs_of_earlier_starts(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Noted(reproduce.Forecast):
        def observe(self, run: Run) -> None:
            calls.append(run.method)
            super().observe(run)

        def seconds(self, cells: Any, there: Any = ()) -> float | None:
            calls.append(set(there))
            return super().seconds(cells, there)

    main(command(packed, tmp_path, "sweep.methods=['static_el2n']"))
    monkeypatch.setattr(reproduce, "Forecast", Noted)
    main(command(packed, tmp_path, "sweep.methods=['static_el2n', 'ucb']"))
    assert calls == ["static_el2n", "ucb", {("el2n", 0)}]


def test_a_report_is_there_after_each_seed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, reports = reproduce.Sweep._train, []

    def watched(self: Any, cell: Any) -> Run:
        path = tmp_path / "report.md"
        reports.append(path.read_text() if path.exists() else "")
        return train(self, cell)

    monkeypatch.setattr(reproduce.Sweep, "_train", watched)
    main(command(packed, tmp_path, "sweep.methods=['full', 'ucb']", "sweep.seeds=[0, 1]"))
    assert reports[:2] == ["", ""] and reports[2] == reports[3]
    assert "- 2 runs;" in reports[2] and "- 4 runs;" in (tmp_path / "report.md").read_text()


def test_set_can_be_repeated(packed: Path, tmp_path: Path) -> None:
    arguments = command(packed, tmp_path, "sweep.methods=['full']")
    main([*arguments, "--set", "training.epochs=2", "--set", "pruning.period=7"])
    (entry,) = result_files.read_lines(tmp_path / "results.jsonl")
    config = entry["config"]
    assert (config["training"]["epochs"], config["pruning"]["period"]) == (2, 7)
    assert config["training"]["batch_size"] == 16 and config["sweep"]["methods"] == ["full"]


def test_nothing_to_report(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none"):
        with pytest.raises(SystemExit, match="nothing to report: no run is finished in") as stopped:
            main(["--report-only", "--out", str(out)])
        assert isinstance(stopped.value.code, str)  # which is status 1
    assert not (tmp_path / "none").exists()


def test_a_folder_that_was_only_begun_is_not_mixed_up(packed: Path, tmp_path: Path) -> None:
    arguments = command(packed, tmp_path)
    main([*arguments[:5], "--minutes", "0", *arguments[5:]])
    assert not (tmp_path / "results.jsonl").exists()
    with pytest.raises(SystemExit, match="holds runs of another configuration"):
        main([*arguments, "training.lr=0.1"])


def test_a_run_that_fails_does_not_stop_the_others(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = reproduce.Sweep._train

    def failing(self: Any, cell: Any) -> Run:
        if cell.method == "ucb":
            raise RuntimeError("no memory")
        return train(self, cell)

    monkeypatch.setattr(reproduce.Sweep, "_train", failing)
    with pytest.raises(SystemExit, match=r"failed, start again to repeat them: ucb-keep0.5-seed0"):
        main(command(packed, tmp_path))
    assert {run.method for run in runs_of(tmp_path)} == {"static_el2n", "infobatch"}


def test_a_cut_off_line_is_ignored_and_not_built_upon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    assert result_files.read_lines(path) == []
    result_files.append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    result_files.append_line(path, {"a": 3})
    assert result_files.read_lines(path) == [{"a": 1}, {"a": 3}]
    assert "line 2 was cut off" in capsys.readouterr().err


def test_a_second_sweep_is_kept_out(packed: Path, tmp_path: Path) -> None:
    with (
        result_files.locked(tmp_path),
        pytest.raises(SystemExit, match="another process is at work in"),
    ):
        main(command(packed, tmp_path))


def test_a_machine_that_can_only_train(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.sweep.report", None)
    changes = [*SMALL, "sweep.methods=['full']", "sweep.seeds=[0]", "overhead.methods=[]"]
    arguments = [str(CONFIGS / "cifar10_2cores.toml"), "--data-root", str(packed)]
    main([*arguments, "--set", *changes, "--out", str(tmp_path)])
    assert len(runs_of(tmp_path)) == 1
    assert "write it there with --report-only" in capsys.readouterr().out


def test_estimate(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = reproduce.measure_speed
    monkeypatch.setattr(reproduce, "measure_speed", lambda *a: measure(*a, seconds=0.1))
    main(["--estimate", *command(packed, tmp_path)])
    text = capsys.readouterr().out
    assert re.search(r"images a second: [\d,]+ in training, [\d,]+ in evaluation, [\d,]+ of", text)
    assert re.search(r"about .* min for 3 runs", text)
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.toml"], "No such file"),
        (
            [str(CONFIGS / "cifar10_2cores.toml"), "--data-root", "/none"],
            "no CIFAR-10 in /none.*--set data.download=true",
        ),
        ([str(CONFIGS / "tiny.toml"), "--set", "training.model='none'"], "model must be cnn"),
        ([str(CONFIGS / "tiny.toml"), "--set", "training.epochs=0"], "at least 1, got 0"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--out", str(tmp_path)])
    assert re.search(f"^reproduce.py: .*{message}", str(stopped.value.code))


def test_the_file_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    swallowed = ["--set", "training.epochs=2", str(CONFIGS / "tiny.toml")]
    for arguments in ([], swallowed):
        with pytest.raises(SystemExit):
            main([*arguments, "--out", str(tmp_path)])
        assert "the TOML file is needed, before --set" in capsys.readouterr().err


def test_json_lines_are_plain(packed: Path, tmp_path: Path) -> None:
    changes = [*SMALL, "sweep.methods=['full']", "sweep.seeds=[0]", "overhead.methods=[]"]
    arguments = [str(CONFIGS / "cifar10_2cores.toml"), "--data-root", str(packed)]
    main([*arguments, "--set", *changes, "--out", str(tmp_path)])
    text = (tmp_path / "results.jsonl").read_text()
    assert "NaN" not in text and json.loads(text)["run"]["method"] == "full"
