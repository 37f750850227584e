# SPDX-License-Identifier: Apache-2.0
"""What `make test-fast` leaves out and what it does not, and that CI runs it early."""

import multiprocessing
import os
import re
import subprocess
import sys

import pytest
from no_processes import ProcessStarted, no_processes
from paths import ROOT
from torch.utils.data import DataLoader

TESTS = ROOT / "tests"
AREAS = sorted(
    path.name
    for path in TESTS.iterdir()
    if path.is_dir() and path.name not in ("support", "emulator") and any(path.glob("test_*.py"))
)


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "--version"], check=False),
        lambda: os.popen("true"),
        lambda: multiprocessing.Process(target=print).start(),
        lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
        lambda: list(DataLoader([1, 2], num_workers=1)),
    ],
    ids=["subprocess", "popen", "fork", "spawn", "loader"],
)
def test_a_process_is_noticed(start):
    with pytest.raises(ProcessStarted, match="mark the test as slow"), no_processes():
        start()


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*_statistics.py")), ids=lambda p: p.name)
def test_judgements_of_randomness_are_slow(path):
    marked = re.search(r"^pytestmark = \[?\s*pytest\.mark\.slow\b", path.read_text(), re.M)
    assert marked, "a statistics module needs pytestmark = pytest.mark.slow"


@pytest.mark.slow
def test_each_area_has_fast_tests():
    """Collected as `make test-fast` does; `addopts` and the folders are those of the project."""
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "--collect-only", "-q"]
    command += ["-p", "no:cacheprovider", "--ignore=tests/emulator"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = set(re.findall(r"^tests/([a-z_]+)/test_\w+\.py::", done.stdout, re.M))
    assert found == set(AREAS)


def test_make_test_fast_leaves_them_out():
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^test-fast:.*\n\t(.*)$", makefile, re.M)
    assert '-m "not slow"' in recipe and "--ignore=tests/emulator" in recipe


def test_ci_runs_what_fails_soonest_first():
    steps = re.findall(r"^step (.*)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert steps[0] == "make lint" and "test_layering.py" in steps[1]
    later = ["make docs", "make test-fast", "make kernels", "make test-ptx", "make demo"]
    assert steps[2:] == [*later, "wheel", 'make matrix CELLS="2.11 2.15"', "make test"]
