# SPDX-License-Identifier: Apache-2.0
"""The page on frameworks: its Python is Python, and its diff is one that `patch` takes."""

import ast
import re
import shutil
import subprocess

import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "guides" / "frameworks.md").read_text()
HUNK = re.compile(r"@@ -(\d+),\d+ \+\d+,\d+ @@\n((?:[-+ ].*\n|\n)+)")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_its_python_is_python():
    found = blocks("python")
    assert len(found) >= 6
    for block in found:
        ast.parse(block.replace("False, ...)", "False)"))


def test_every_framework_has_a_table_of_what_was_run():
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    frameworks = [text for text in sections if not text.startswith("Epochs differ")]
    assert len(frameworks) >= 7
    for text in frameworks:
        assert re.search(r"^\| run( with [A-Z]?\w+ \d+\.\d+[.\d]*)? \|", text, re.M), text[:40]
        assert "refused" in text, text[:40]
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
def test_the_change_of_timms_script_is_a_patch_of_about_ten_lines(tmp_path):
    """Applied to a file that has the lines which it names, where it names them."""
    (diff,) = blocks("diff")
    original = ["# another line"] * 1600
    for start, body in HUNK.findall(diff):
        lines = [line[1:] for line in body.splitlines() if not line.startswith("+")]
        original[int(start) - 1 : int(start) - 1 + len(lines)] = lines
    (tmp_path / "train.py").write_text("\n".join(original) + "\n")
    command = ["patch", "-p1", "--fuzz=0"]
    done = subprocess.run(command, input=diff, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "offset" not in done.stdout, done.stdout
    changed = (tmp_path / "train.py").read_text().splitlines()
    added = [line[1:] for line in diff.splitlines() if re.match(r"\+(?!\+\+)", line)]
    removed = [line for line in diff.splitlines() if re.match(r"-(?!--)", line)]
    assert len(added) <= 12 and len(changed) == 1600 + len(added) - len(removed)
    assert all(line in changed for line in added)
