# SPDX-License-Identifier: Apache-2.0
"""The jobs of CI: their order, their results, their logs, and that together they run every test."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import ci
import kernel_resources
import matrix
import pytest
from ci import JOBS, Job
from paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TESTS = ROOT / "tests"
AREAS = {
    path.name
    for path in TESTS.iterdir()
    if path.is_dir() and path.name not in ("support", "emulator") and any(path.glob("test_*.py"))
}
# What stands for make: the last word says what a job does.
MAKE = """
import pathlib, subprocess, sys, time
name, *words = sys.argv[1].split("-")
print("output of", name)
if "hang" in words:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("build/ci-child").write_text(str(child.pid))
    time.sleep(60)
if "leave" in words:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("build/ci-child").write_text(str(child.pid))
if "slow" in words:
    time.sleep(1)
sys.exit(3 if "fail" in words else 0)
"""


def job(name, *needs, does="pass", **more):
    return Job(name, (f"{name}-{does}",), needs, **more)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs jobs whose make is a script; returns the results, what was printed and the logs."""
    monkeypatch.setattr(ci, "ROOT", tmp_path)
    monkeypatch.setattr(ci, "POLL_SECONDS", 0.01)
    (tmp_path / "build").mkdir()
    logs = tmp_path / "build" / "ci"

    def run_jobs(*jobs, **more):
        results = ci.run(jobs, logs, (sys.executable, "-c", MAKE), **more)
        code = ci.report(results, 1.0, logs)
        return results, code, capsys.readouterr().out, logs

    return run_jobs


@pytest.mark.slow
def test_each_job_has_a_line_and_a_log(run):
    results, code, out, logs = run(job("one"), job("two", "one"))
    assert results == {"one": "passed", "two": "passed"} and code == 0
    assert re.search(r"^one +passed +\d+ s +\[\d+ s\]  build/ci/one.log$", out, re.M)
    assert out.endswith("\n==> all passed: one, two   [1 s]\n")
    assert (logs / "two.log").read_text() == "output of two\n"


@pytest.mark.slow
def test_the_log_of_a_failed_job_comes_last(run, monkeypatch):
    results, code, out, _ = run(
        job("bad", does="fail"), job("needs_it", "bad"), job("good"), job("also", "needs_it")
    )
    assert code == 1
    assert results["bad"] == "FAILED (exit code 3)" and results["good"] == "passed"
    assert results["needs_it"] == "skipped (bad did not pass)"
    assert results["also"] == "skipped (needs_it did not pass)"
    failed = "\n==> failed: bad; skipped: needs_it, also   [1 s]\n"
    assert out.endswith(f"\n==> the end of bad.log\noutput of bad\n{failed}")
    assert "output of good" not in out


@pytest.mark.slow
def test_nothing_runs_where_lint_fails(run):
    skipped = "skipped (lint did not pass)"
    results, code, *_ = run(job("lint", does="fail", slots=2), job("fast"), job("slow"))
    assert code == 1 and set(results.values()) == {"FAILED (exit code 3)", skipped}
    results, *_ = run(job("early", does="hang"), job("lint", does="fail"), job("fast"))
    assert results["early"] == results["fast"] == skipped


@pytest.mark.slow
def test_a_job_waits_for_others_whether_they_pass_or_not(run):
    jobs = [job("a", does="fail"), Job("b", ("b-pass",), after=("a", "not there"))]
    results, _, out, _ = run(*jobs)
    assert results == {"a": "FAILED (exit code 3)", "b": "passed"}
    assert re.findall(r"^(\w)  +(begins|passed|FAILED)", out, re.M) == [
        ("a", "begins"),
        ("a", "FAILED"),
        ("b", "begins"),
        ("b", "passed"),
    ]


@pytest.mark.slow
def test_two_jobs_run_at_once_and_a_large_one_alone(run):
    jobs = [job(name, does="slow") for name in "ab"] + [job("c", slots=2), job("d", does="slow")]
    *_, out, _ = run(*jobs)
    order = re.findall(r"^(\w)  +(begins|passed)", out, re.M)
    assert order[:2] == [("a", "begins"), ("b", "begins")]
    assert order[4:] == [("c", "begins"), ("c", "passed"), ("d", "begins"), ("d", "passed")]


@pytest.mark.slow
@pytest.mark.parametrize("does", ["hang", "leave"])
def test_a_job_is_ended_with_all_that_it_started(run, tmp_path, does):
    results, code, *_ = run(job("stuck", does=does), limit=2.0)
    expected = {"hang": (1, "FAILED (after the limit of 2 s)"), "leave": (0, "passed")}
    assert (code, results["stuck"]) == expected[does]
    child = int((tmp_path / "build" / "ci-child").read_text())
    for _ in range(50):
        try:
            status = Path(f"/proc/{child}/stat").read_text().split(") ")[1][0]
        except OSError:
            break
        if status == "Z":  # ended, and not yet collected by init
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process that the job had started goes on")


def test_only_the_end_of_a_log_is_printed(tmp_path):
    log = tmp_path / "a.log"
    log.write_bytes(b"\n".join(b"line %d \xff" % number for number in range(1000)))
    lines = ci.last_lines(log).splitlines()
    assert len(lines) == 150 and lines[-1] == "line 999 \N{REPLACEMENT CHARACTER}"


def test_jobs_bring_what_they_need():
    def names(*wanted):
        return [one.name for one in ci.chosen(wanted)]

    assert names("lint") == ["venv", "tools", "lint"]
    assert names("kernels") == ["venv", "kernels"]
    assert names("matrix") == ["venv", "tools", "wheel", "matrix"]
    assert names("slow", "docs") == ["venv", "tools", "build", "docs", "slow"]
    assert names() == [one.name for one in JOBS if not one.by_request]
    assert "ptx" in names() and names("ptx") == ["venv", "tools", "build", "ptx"]


def test_tests_do_not_run_while_the_metadata_is_written():
    for one in JOBS:
        runs_project = one.make[0] in ("test-fast", "test-slow", "docs", "demo")
        assert ("wheel" in one.after) == runs_project
        if not runs_project and one.make[0].startswith("test-") and one.name != "ptx":
            assert not runs(one.make[0], "tests/project/test_build.py::test_a", True)
    assert next(one for one in JOBS if one.name == "wheel").after == ("build",)


def test_what_fails_soonest_runs_first():
    names = [one.name for one in JOBS]
    assert names[:8] == ["venv", "tools", "kernels", "lint", "build", "wheel", "docs", "fast"]
    assert ci.FIRST == "lint"
    for place, one in enumerate(JOBS):
        waits_for = {*one.needs, *one.after}
        assert waits_for <= set(names[:place]), f"{one.name} would wait for a later job"


def test_each_job_is_a_target():
    phony = set(re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.M)[1].split()) - {"\\"}
    for one in JOBS:
        assert one.make[0] in phony and re.search(rf"^{one.make[0]}:.*##", MAKEFILE, re.M)
        for setting in one.make[1:]:
            assert f"$({setting.split('=')[0]})" in MAKEFILE


def test_jobs_that_run_beside_another_have_one_thread():
    given = {"MAKEFLAGS": "j", "PYTEST_ADDOPTS": "-x", "HOME": "/h", "TORCH_CUDA_ARCH_LIST": "8.0"}
    env = ci.environment(job("a"), given)
    assert env["OMP_NUM_THREADS"] == env["MAX_JOBS"] == "1" and env["HOME"] == "/h"
    assert env["TORCH_CUDA_ARCH_LIST"] == "8.0" and not {"MAKEFLAGS", "PYTEST_ADDOPTS"} & set(env)
    assert ci.environment(job("a"), {})["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert "MAX_JOBS" not in ci.environment(job("a", slots=2), given)
    assert "MAX_JOBS" not in ci.environment(job("a"), given, alone=True)


def test_other_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        ci.main(["lint", "nothing"])
    assert "there is no job 'nothing'; jobs are venv, tools" in capsys.readouterr().err
    assert ci.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(JOBS)


def test_the_workflow_has_the_same_jobs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (rest,) = re.findall(r"^ +job: \[(.*)\]$", workflow, re.M)
    # all-kernels includes what kernels does.
    left_out = (ci.FIRST, "kernels")
    names = [one.name for one in JOBS if not one.prepares and one.name not in left_out]
    assert rest.split(", ") == names
    assert re.findall(r"run: (\.ci/run .*)$", workflow, re.M) == [
        ".ci/run lint",
        ".ci/run ${{ matrix.job }}",
    ]


def test_ci_runs_the_oldest_and_the_newest_torch():
    cells = f"CELLS={matrix.TORCHES[0]} {matrix.TORCHES[-1]}"
    (one,) = (one for one in JOBS if one.name == "matrix")
    assert one.make == ("matrix", cells)


def test_ci_compiles_for_each_generation_and_for_what_limits_are_read_off():
    archs = ci.KERNEL_ARCHS.split()
    known = kernel_resources.ARCHITECTURES
    assert set(archs) <= set(known) and kernel_resources.CODE_ARCHITECTURE in archs
    # 11.0 has the tensor cores of 10.0.
    assert {arch[:-1] for arch in known} - {"11"} == {arch[:-1] for arch in archs}


# ---- every test is in a job

PLUGIN = """
import json, os
def pytest_collection_modifyitems(items):
    found = [[item.nodeid, item.get_closest_marker("slow") is not None] for item in items]
    with open(os.environ["FOUND"], "w") as file:
        json.dump(found, file)
"""


def selection(target):
    """The folders that a target of the Makefile runs, those that it ignores, and its marker."""
    variables = dict(re.findall(r"^([A-Z_]+) := (.*)$", MAKEFILE, re.M))
    recipe = re.search(rf"^{target}:.*((?:\n\t.*)+)", MAKEFILE, re.M)[1]
    (command,) = re.findall(r"-m pytest (.*)$", recipe, re.M)

    def value(text):
        return re.sub(r"\$\(([A-Z_]+)\)", lambda found: variables[found[1]], text)

    command = re.sub(
        r"\$\(addprefix --ignore=,((?:\$\(\w+\) ?)+)\)",
        lambda found: " ".join(f"--ignore={path}" for path in value(found[1]).split()),
        command,
    )
    command = value(command)
    marker = re.search(r'-m ("not slow"|slow)', command)
    ignored = re.findall(r"--ignore=(\S+)", command)
    paths = re.findall(r"(?<![=\w/])tests(?:/[\w.]+)*", command)
    return paths or ["tests"], ignored, marker[1].strip('"') if marker else ""


def runs(target, nodeid, is_slow):
    paths, ignored, marker = selection(target)

    def inside(folders):
        file = nodeid.partition("::")[0]
        return any(file == folder or file.startswith(f"{folder}/") for folder in folders)

    fits = {"": True, "slow": is_slow, "not slow": not is_slow}[marker]
    return fits and inside(paths) and not inside(ignored)


def test_selections_are_read_from_the_makefile():
    assert selection("test-fast") == (["tests"], ["tests/emulator"], "not slow")
    assert selection("test-emulator") == (["tests/emulator"], [], "")
    assert selection("test-distributed") == (["tests/distributed", "tests/sharded"], [], "slow")
    paths, ignored, marker = selection("test-slow")
    assert paths == ["tests"] and marker == "slow" and len(ignored) == 6
    assert not runs("test-slow", "tests/sharded/test_sharded.py::test_a", True)
    assert runs("test-slow", "tests/project/test_ci.py::test_a", True)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """(id, slow) of each test."""
    folder = tmp_path_factory.mktemp("collected")
    (folder / "write_found.py").write_text(PLUGIN)
    path = os.pathsep.join([str(folder), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "FOUND": str(folder / "found.json")}
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-p", "write_found", "tests"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_every_test_is_in_one_job(collected):
    # The job ptx runs tests of the emulator again, on nvcc's code.
    targets = [one.make[0] for one in JOBS if one.make[0].startswith("test-") and one.name != "ptx"]
    for nodeid, is_slow in collected:
        found = [target for target in targets if runs(target, nodeid, is_slow)]
        if not found:
            assert runs("docs", nodeid, is_slow), f"no job runs {nodeid}"
        assert len(found) <= 1, f"{nodeid} is run by {found}"
    files = {nodeid.partition("::")[0] for nodeid, _ in collected}
    everything = {path.relative_to(ROOT).as_posix() for path in TESTS.rglob("test_*.py")}
    # A module may skip itself where a package is missing; its tests would be in the same jobs.
    for file in everything - files:
        assert "importorskip" in (ROOT / file).read_text(), f"{file} has no test"


@pytest.mark.slow
def test_each_area_has_fast_tests(collected):
    fast = [nodeid for nodeid, is_slow in collected if runs("test-fast", nodeid, is_slow)]
    assert {nodeid.split("/")[1] for nodeid in fast} == AREAS
