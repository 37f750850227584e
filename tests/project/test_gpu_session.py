# SPDX-License-Identifier: Apache-2.0
"""gpu_session.sh without a GPU: its rehearsal, its command lines, its time-outs, its bundle."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import dynprune_cuda
from benchmarks.equal_steps import experiment
from benchmarks.scoring import accuracy, bench_scoring
from benchmarks.selection import bench_selection

sys.path.insert(0, str(ROOT / "scripts" / "gpu"))
import launches
import make_bundle
import show_machine
import smoke

pytestmark = pytest.mark.slow  # each runs the script
SCRIPT = ROOT / "scripts" / "gpu_session.sh"
STEPS = {
    "call1": ["machine", "smoke", "test_cuda", "cuda_tests", "sanitizers"],
    "call2": [
        *("machine", "selection", "selection_base", "scoring_bfloat16", "scoring_float32"),
        *("scoring_base", "ncu", "top_k_1e9", "accuracy"),
    ],
}
SWEEP = ["machine", "sweep"]
# What comes back from a machine that is lent.
MOST_FILES, PLAIN_NAME = 8, re.compile(r"[A-Za-z0-9._-]+")


def session(*arguments: str | Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable} | {
        name: str(value) for name, value in variables.items()
    }
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=1500
    )


def results(out: Path, call: str) -> dict[str, str]:
    """What the summary says of each step."""
    lines = (out / f"{call}_summary.txt").read_text().splitlines()
    found = [re.fullmatch(r"(\w+) +(pass|FAIL.*?) +\d+ s", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def check_files(out: Path) -> None:
    files = list(out.rglob("*"))
    assert len(files) <= MOST_FILES
    assert all(path.is_file() and PLAIN_NAME.fullmatch(path.name) for path in files)


@pytest.mark.parametrize("call", STEPS)
def test_a_rehearsal_runs_every_step(tmp_path, call):
    out = tmp_path / "out"
    done = session(call, "--rehearse", out, BUNDLE=tmp_path / "none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(out, call) == dict.fromkeys(STEPS[call], "pass")
    summary = (out / f"{call}_summary.txt").read_text()
    assert done.stdout.endswith(summary) and summary.count("skipped: ") >= len(STEPS[call])
    assert re.search(rf"^{call}: {len(STEPS[call])} steps, 0 failed, \d+ s$", summary, re.M)
    check_files(out)
    if call == "call1":
        rows = [json.loads(line) for line in (out / "smoke.jsonl").read_text().splitlines()]
        assert {row["check"] for row in rows} == {"select_top_k", "step 64x10"}
        assert all(row["passed"] for row in rows)
    else:
        for name in ("selection", "top_k_1e9", "scoring_bfloat16", "scoring_float32"):
            assert json.loads((out / f"{name}.json").read_text())["rows"], name


def test_a_rehearsal_of_the_sweep_reads_its_options(tmp_path):
    done = session("sweep", "--rehearse", tmp_path, BUNDLE=tmp_path / "none", SWEEP_MINUTES="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path, "sweep") == dict.fromkeys(SWEEP, "pass")
    assert "skipped: the experiment" in done.stdout
    assert re.search(r"sweep, at most \d+ s", (tmp_path / "sweep_log.txt").read_text())
    check_files(tmp_path)


PARSERS = {
    "benchmarks.equal_steps.experiment": experiment.make_parser,
    "benchmarks.selection.bench_selection": bench_selection.make_parser,
    "benchmarks.scoring.bench_scoring": bench_scoring.make_parser,
    "benchmarks.scoring.accuracy": accuracy.make_parser,
    "smoke.py": smoke.make_parser,
    "launches.py": launches.make_parser,
    "make_bundle.py": make_bundle.make_parser,
    "show_machine.py": show_machine.make_parser,
}


@pytest.fixture
def machine(tmp_path):
    """A bundle, and programs of a machine with a GPU that only write down their command lines."""
    for name in ("ours", "base"):
        (tmp_path / "bundle" / name / "dynprune_cuda").mkdir(parents=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python3", "ncu", "compute-sanitizer", "nvidia-smi"):
        path = programs / name
        path.write_text(
            # One write for each line: programs run at the same time.
            f"#!/bin/sh\nline=$(printf '%s' {name}; printf '\\t%s' \"$@\")\n"
            f"printf '%s\\n' \"$line\" >> {tmp_path}/told\n"
            'case "$*" in *"$FAILS"*) exit 1 ;; *"$HANGS"*) sleep 100 ;; esac\n'
        )
        path.chmod(0o755)
    return {
        "BUNDLE": tmp_path / "bundle",
        "PYTHON": programs / "python3",
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAILS": "nothing fails",
        "HANGS": "nothing hangs",
    }


def test_the_commands_of_a_gpu_are_understood(tmp_path, machine, monkeypatch):
    """No option is misspelt in what a rehearsal leaves out."""
    monkeypatch.setattr(bench_selection, "_device", str)
    for call, steps in {**STEPS, "sweep": SWEEP}.items():
        done = session(call, tmp_path / "out", CIFAR10=tmp_path, **machine)
        # The sanitizers' reports are missing, since nothing made them.
        assert set(results(tmp_path / "out", call)) == set(steps), done.stdout + done.stderr
    told = [line.split("\t") for line in (tmp_path / "told").read_text().splitlines()]
    found = set()
    for _, *words in told:
        for number, word in enumerate(words):
            parser = PARSERS.get(Path(word).name if word.endswith(".py") else word)
            if parser is not None:
                options: argparse.Namespace = parser().parse_args(words[number + 1 :])
                found.add(Path(word).name)
                if hasattr(options, "ops") and options.ops:
                    assert options.ops == ["select_top_k, ascending"]
                if "config" in options:
                    assert (ROOT / options.config).is_file() and options.device == "cuda"
                    assert options.data_root == tmp_path and options.minutes == 8
    assert found == set(PARSERS)
    assert {program for program, *_ in told} == {
        *("python3", "ncu", "compute-sanitizer", "nvidia-smi")
    }
    tools = {words[words.index("--tool") + 1] for _, *words in told if "--tool" in words}
    assert tools == {"memcheck", "racecheck", "synccheck", "initcheck"}


def test_a_step_that_fails_or_hangs_stops_nothing(tmp_path, machine):
    machine |= {"FAILS": "bench_selection", "HANGS": "scoring.accuracy"}
    done = session("call2", tmp_path / "out", **machine)
    assert done.returncode == 1
    found = results(tmp_path / "out", "call2")
    assert list(found) == STEPS["call2"]
    failed = {name for name, result in found.items() if result == "FAIL"}
    assert failed == {"selection", "selection_base", "top_k_1e9"}
    assert found["accuracy"] == "FAIL (time-out)"
    assert "call2: 9 steps, 4 failed" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["call3"], ["call1", "--fast"], ["call1", "a", "b"]])
def test_other_arguments_are_refused(arguments):
    done = session(*arguments)
    assert done.returncode == 2 and "call1|call2|sweep" in done.stderr


def test_a_gpu_needs_a_bundle(tmp_path):
    done = session("call1", tmp_path / "out", BUNDLE=tmp_path / "none")
    assert done.returncode == 1 and "make gpu-bundle" in done.stderr


def test_the_time_of_a_call_is_that_of_its_steps():
    """Nothing at the end of a call is left without time, even if all before it time out."""
    plans = re.findall(r"(call\d)\) budget=(\d+) plan=\(([^)]*)\)", SCRIPT.read_text(), re.DOTALL)
    assert {call for call, *_ in plans} == set(STEPS)
    for call, budget, plan in plans:
        limits = dict(entry.split("=") for entry in plan.split())
        assert list(limits) == STEPS[call]
        assert sum(map(int, limits.values())) <= int(budget) <= {"call1": 240, "call2": 330}[call]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_has_no_common_mistakes():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def small_tree(tmp_path, monkeypatch):
    for name in make_bundle.SOURCES:
        path = tmp_path / name if "." in name else tmp_path / name / "a.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr(make_bundle, "ROOT", tmp_path)
    return tmp_path


def test_a_bundle_of_other_sources_is_noticed(small_tree, capsys):
    out = small_tree / "bundle"
    assert make_bundle.check(out) == 0 and "there is no" in capsys.readouterr().out
    out.mkdir()
    manifest = {"sources": make_bundle.source_hash(small_tree), "left_out": {"quack": "large\n"}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert make_bundle.check(out) == 0
    assert "skipped: quack, left out of the bundle: large\n" in capsys.readouterr().out
    (small_tree / "dynprune_cuda" / "_C.abi3.so").write_text("what is built is no source")
    assert make_bundle.check(out) == 0
    (small_tree / "csrc" / "a.cu").write_text("new")
    assert make_bundle.check(out) == 1 and "run `make gpu-bundle`" in capsys.readouterr().out


def test_setup_py_runs_in_the_copied_tree(tmp_path):
    """What setup.py imports and reads is in the bundle's copy of the sources."""
    make_bundle.copy_tree(None, tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=tmp_path,
        env={**os.environ, "DYNPRUNE_CUDA": "0", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == dynprune_cuda.__version__


def test_an_older_commit_may_lack_a_source(tmp_path, monkeypatch):
    repository, place = tmp_path / "repository", tmp_path / "place"
    for name in ("setup.py", "csrc/a.cu"):
        make_bundle.write_if_new(repository / name, name.encode())
    commit = ["-c", "user.name=a", "-c", "user.email=a", "commit", "-q", "-m", "a"]
    for words in (["init", "-q"], ["add", "."], commit):
        subprocess.run(["git", *words], cwd=repository, check=True)
    monkeypatch.setattr(make_bundle, "ROOT", repository)
    make_bundle.copy_tree("HEAD", place)
    copied = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert copied == {"setup.py", "csrc/a.cu"}


def test_equal_sources_are_not_compiled_again(tmp_path):
    path = tmp_path / "folder" / "a.cu"
    make_bundle.write_if_new(path, b"one")
    os.utime(path, (1, 1))
    make_bundle.write_if_new(path, b"one")
    assert path.stat().st_mtime == 1
    make_bundle.write_if_new(path, b"two")
    assert path.stat().st_mtime > 1 and path.read_bytes() == b"two"


def test_smoke_notices_what_differs(monkeypatch):
    selections = {"wrong": lambda x, k: smoke.F.select_top_k(x, k, seed=len(calls))}
    calls = []
    monkeypatch.setattr(smoke, "SELECTIONS", selections)
    cpu = smoke.torch.device("cpu")
    smoke.compare_selection("wrong", cpu, [100.0])
    monkeypatch.setitem(
        selections, "wrong", lambda x, k: smoke.torch.randperm(len(x))[: calls.append(0) or k]
    )
    with pytest.raises(AssertionError, match=r"N = 1,000: \d+ of 333 ids differ"):
        smoke.compare_selection("wrong", cpu, [1000.0])
    step, factors = smoke.step, [1.0, 1.01]

    def rather_wrong(*arguments):
        found = step(*arguments)
        return found | {"gradient": found["gradient"] * factors.pop()}

    monkeypatch.setattr(smoke, "step", rather_wrong)
    with pytest.raises(AssertionError, match="gradient"):
        smoke.compare_step("8x5", cpu)
