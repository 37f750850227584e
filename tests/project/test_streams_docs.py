# SPDX-License-Identifier: Apache-2.0
"""The page on streams: its Python is Python, its tests exist, and its versions are those run."""

import ast
import importlib.metadata
import re

import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "guides" / "stream_libraries.md").read_text()
RUN = re.findall(r"^\| run with ([\w-]+) ([\d.]+) \|", PAGE, re.M)


def test_its_python_is_python():
    found = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(found) >= 5
    for block in found:
        ast.parse(block)


def test_every_library_has_tables_of_tests_and_scripts_that_exist():
    assert len(RUN) == 5
    for section in re.split(r"^## ", PAGE, flags=re.M)[2:]:
        assert re.search(r"^\| run", section, re.M) and "| refused |" in section, section[:40]
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert named and named <= tests
    scripts = re.findall(r"`(examples/\w+\.py)`", PAGE)
    assert len(scripts) == 5 and all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize(("library", "version"), RUN)
def test_its_versions_are_not_newer_than_those_installed(library, version):
    try:
        installed = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {library}")
    numbers = [tuple(map(int, text.split(".")[:3])) for text in (version, installed)]
    assert numbers[0] <= numbers[1]
