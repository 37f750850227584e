# SPDX-License-Identifier: Apache-2.0
"""A build that does not see the user's torch stops, and says how to build without isolation."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import build_torch
import pytest
import torch
from paths import ROOT


def make_torch(place, cuda):
    folder = place / "torch"
    folder.mkdir(parents=True)
    line = f"cuda: Optional[str] = {cuda!r}\n"
    (folder / "version.py").write_text(f"__version__ = '2.14.1'\n{line}git_version = 'abc'\n")
    return folder


def test_the_cuda_version_is_read_from_the_file(tmp_path):
    assert build_torch.cuda_of(make_torch(tmp_path / "gpu", "13.0")) == "13.0"
    assert build_torch.cuda_of(make_torch(tmp_path / "cpu", None)) == ""
    assert build_torch.cuda_of(tmp_path) == ""
    assert build_torch.cuda_of(Path(torch.__file__).parent) == (torch.version.cuda or "")


def test_the_torch_of_these_tests_is_the_users():
    places = build_torch.packages_of_the_interpreter()
    assert Path(sysconfig.get_path("purelib")) in places
    assert build_torch.complaint(Path(torch.__file__).parent, places) is None


@pytest.mark.parametrize(
    ("seen", "own", "stops"),
    [
        ("13.0", None, True),
        (None, "13.0", True),
        ("13.0", "12.8", True),
        ("13.2", "13.0", False),
        (None, None, False),
    ],
)
def test_a_build_stops_where_the_users_torch_is_of_another_kind(tmp_path, seen, own, stops):
    theirs, place = make_torch(tmp_path / "build-env", seen), tmp_path / "site-packages"
    make_torch(place, own)
    text = build_torch.complaint(theirs, [tmp_path / "elsewhere", place])
    assert (text is not None) == stops
    if text:
        assert text.endswith(build_torch.REMEDY) and "\n" not in text
        assert str(theirs) in text and str(place) in text


def test_no_torch_at_all_has_the_same_remedy():
    text = build_torch.complaint(None, [])
    assert text.endswith(build_torch.REMEDY) and "\n" not in text
    assert "pip install --no-build-isolation ." in (ROOT / "README.md").read_text()


def test_the_build_asks_for_no_torch():
    requires = (ROOT / "pyproject.toml").read_text().split("requires = ")[1].split("\n")[0]
    assert "torch" not in requires


@pytest.mark.slow
def test_setup_stops_before_it_compiles(tmp_path):
    """As in an isolated build: the interpreter's own packages cannot be imported."""
    env = {"PATH": "/usr/bin:/bin", "DYNPRUNE_CUDA": "0"}
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; "
    code += "sys.argv = ['setup.py', '--version']; "
    code += "exec(open('setup.py').read(), {'__file__': 'setup.py'})"
    stub = tmp_path / "setuptools"
    stub.mkdir()
    (stub / "__init__.py").write_text("Extension = setup = None\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.strip().endswith(build_torch.REMEDY)
