# SPDX-License-Identifier: Apache-2.0
"""What `make test-fast` leaves out."""

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


def test_make_test_fast_leaves_them_out():
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^test-fast:.*\n\t(.*)$", makefile, re.M)
    assert '-m "not slow"' in recipe and "$(NO_EMULATOR)" in recipe
    assert re.search(r"^NO_EMULATOR := --ignore=tests/emulator$", makefile, re.M)
