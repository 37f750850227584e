# SPDX-License-Identifier: Apache-2.0
"""The matrix of torch and Python releases: its cells, its environments, its table."""

import argparse
import re
import sys
from pathlib import Path

import matrix
import pytest
from matrix import Cell, Outcome
from paths import ROOT

from dynprune_cuda._ops.library import OLDEST_TORCH

PAGE = (ROOT / "docs" / "versions.md").read_text()
# As torch 2.15.0 states them.
REQUIREMENTS = [
    "filelock",
    "typing-extensions>=4.13.0",
    "setuptools>=77.0.3",
    'cuda-toolkit[cublas,cudart]==13.2.2; platform_system == "Linux"',
    'cuda-bindings<14,>=13.0.3; platform_system == "Linux" and python_version < "3.15"',
    'nvidia-cudnn-cu13==9.26.0.51; platform_system == "Linux"',
    'nvidia-nvshmem-cu13==3.7.2; platform_system == "Linux"',
    'triton~=3.9.0; platform_system == "Linux" and python_version < "3.16"',
    'optree>=0.13.0; extra == "optree"',
]


def test_every_torch_and_every_python_has_a_cell():
    cells = matrix.all_cells()
    assert len(cells) == len(set(cells)) == 8
    assert {cell.torch for cell in cells} == set(matrix.TORCHES)
    assert {cell.python for cell in cells} == set(matrix.PYTHONS)
    default = re.search(r"^TORCH \?= (\d+\.\d+)", (ROOT / "Makefile").read_text(), re.M)
    assert default and default[1] == matrix.COMMON_TORCH
    assert matrix.TORCHES[0] == ".".join(map(str, OLDEST_TORCH))
    needed = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    assert needed and needed[1] == matrix.PYTHONS[0]


def test_the_page_says_what_ci_runs():
    assert f'make matrix CELLS="{matrix.TORCHES[0]} {matrix.TORCHES[-1]}"' in PAGE


def test_the_tests_that_are_named_exist():
    text = "".join((ROOT / file).read_text() for file in matrix.TESTS)
    for name in matrix.LEFT_OUT:
        assert text.count(f"def {name}(") == 1, name


def test_cells_are_read():
    assert matrix.parse_cell("2.14/3.13", "3.11") == Cell("2.14", "3.13")
    assert matrix.parse_cell("2.9", "3.11") == Cell("2.9", "3.11")
    for text in ("2", "2.14.1", "2.14/", "2.14/3", "/3.11", "torch", "2.14/3.11/1"):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            matrix.parse_cell(text, "3.11")


def test_a_cell_installs_no_cuda_library_but_the_one_that_must_fit():
    plain, alone = matrix.split_requirements(REQUIREMENTS)
    assert plain == REQUIREMENTS[:3]
    assert alone == [REQUIREMENTS[6]]
    assert matrix.split_requirements([]) == ([], [])


def test_tests_are_counted(tmp_path):
    cases = ['<testcase name="ok"/>', '<testcase name="no"><skipped message="x"/></testcase>']
    cases += [f'<testcase name="bad{i}"><failure message="x"/></testcase>' for i in range(3)]
    cases += ['<testcase name="torn"><error message="x"/></testcase>']
    report = tmp_path / "report.xml"

    def counted(chosen):
        report.write_text(f"<testsuites><testsuite>{''.join(chosen)}</testsuite></testsuites>")
        return matrix.count_tests(report)

    assert counted(cases) == (1, "4 failed: bad0, bad1, bad2 and 1 more")
    assert counted(cases[:3]) == (1, "1 failed: bad0")
    assert counted(cases[:1] * 3) == (3, "")
    assert counted([]) == (0, "")


def test_the_table_says_what_was_not_run():
    outcomes = [
        Outcome(Cell("2.11", "3.11"), "2.11.0+cu130", "3.11.7", 10),
        Outcome(Cell("2.15", "3.11"), "2.15.0+cu132", "3.11.7", 9, "1 failed: test_x"),
        Outcome(Cell("2.14", "3.9"), wrong="not run: there is no Python 3.9 on this machine"),
    ]
    assert matrix.table(outcomes).splitlines()[2:] == [
        "| 2.11.0+cu130 | 3.11.7 | 10 | passed |",
        "| 2.15.0+cu132 | 3.11.7 | 9 | 1 failed: test_x |",
        "| 2.14 | 3.9 | – | not run: there is no Python 3.9 on this machine |",
    ]


def test_a_result_replaces_the_last_one():
    document = f"before\n\n{matrix.RESULT}\nold\n"
    once = matrix.replace_result(document, "new")
    assert once == f"before\n\n{matrix.RESULT}\nnew\n"
    assert matrix.replace_result(once, "new") == once
    with pytest.raises(ValueError, match="must have the line '## Result'"):
        matrix.replace_result("text", "new")
    assert PAGE.count(matrix.RESULT) == 1 and PAGE.count("\n## ") == 3


def test_the_page_has_a_row_for_every_cell():
    rows = re.findall(r"^\| (\d+\.\d+)[.\w+]* \| (\d+\.\d+)[.\d]* \|", PAGE, re.M)
    assert [Cell(*row) for row in rows] == matrix.all_cells()
    assert re.search(r"^Built with torch \d", PAGE, re.M)


def test_pythons_are_found_where_pyenv_and_the_path_have_them(tmp_path, monkeypatch):
    for place in ("pyenv/versions/3.98.1/bin/python", "bin/python3.98", "bin/python3.97"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch(mode=0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    here = "{}.{}".format(*sys.version_info)
    assert matrix.find_python(here) == Path(sys.executable)
    assert matrix.find_python("3.98") == tmp_path / "pyenv/versions/3.98.1/bin/python"
    assert matrix.find_python("3.97") == tmp_path / "bin/python3.97"
    with pytest.raises(matrix.StepError, match=r"no Python 3\.99 "):
        matrix.find_python("3.99")
