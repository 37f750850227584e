# SPDX-License-Identifier: Apache-2.0
"""The CPU's vector code gives the same bits on machines with wide vectors and with narrow ones."""

import os
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow

# What decides arithmetic, as in setup.py.
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def test_every_width_gives_the_same_bits(tmp_path):
    program = tmp_path / "vector_widths"
    source = Path(__file__).with_name("vector_widths.cpp")
    compiler = os.environ.get("CXX", "g++").split()
    command = [*compiler, *FLAGS, "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    *differences, widths = done.stdout.splitlines()
    assert differences == []
    assert done.returncode == 0
    if widths == "16":
        pytest.skip("this machine has one width of vectors only")
