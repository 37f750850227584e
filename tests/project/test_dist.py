# SPDX-License-Identifier: Apache-2.0
"""The judge of published files, on wheels that are made here; and what the sdist must hold."""

import re
import tarfile
import zipfile

import dist
import matrix
import pytest
from paths import ROOT

INFO = "dynprune_cuda-0.2.0+cpu.dist-info"
NAME = "dynprune_cuda-0.2.0+cpu-cp310-abi3-manylinux_2_34_x86_64.whl"


@pytest.fixture
def make_wheel(tmp_path):
    """Makes a wheel as it should be, but for the files that are given; None leaves a file out."""

    def make(changes=(), name=NAME):
        files = {
            path.relative_to(ROOT).as_posix(): "" for path in (ROOT / "dynprune_cuda").rglob("*.py")
        }
        files |= {f"dynprune_cuda/{name}": "" for name in ("_C.abi3.so", "_C.pyi", "py.typed")}
        files |= {f"{INFO}/METADATA": "Name: dynprune_cuda\nRequires-Python: >=3.10\n"}
        files |= {f"{INFO}/licenses/LICENSE": "", **dict(changes)}
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file, text in files.items():
                if text is not None:
                    archive.writestr(file, text)
        return tmp_path / name

    return make


def test_a_wheel_as_it_should_be_has_no_fault(make_wheel):
    assert dist.faults(make_wheel(), "cpu") == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"dynprune_cuda/py.typed": None}, "lacks dynprune_cuda/py.typed"),
        ({"dynprune_cuda/_C.pyi": None}, "lacks dynprune_cuda/_C.pyi"),
        ({"dynprune_cuda/_C.abi3.so": None}, "lacks dynprune_cuda/_C.abi3.so"),
        ({"dynprune_cuda/pruner/pruner.py": None}, "lacks dynprune_cuda/pruner/pruner.py"),
        ({"tests/test_a.py": ""}, "has tests/test_a.py"),
        ({f"{INFO}/licenses/LICENSE": None}, "lacks the licence"),
        ({f"{INFO}/METADATA": "Requires-Python: >=3.11\n"}, "requires Python >=3.11, not >=3.10"),
        ({"dynprune_cuda/_C.abi3.so": " " * 3_000_000}, "bytes; at most 3,000,000"),
    ],
)
def test_a_fault_is_named(make_wheel, changes, fault):
    (found,) = dist.faults(make_wheel(changes), "cpu")
    assert found.startswith(NAME) and found.endswith(fault)


def test_a_wheel_for_one_python_is_a_fault(make_wheel):
    wheel = make_wheel(name=NAME.replace("cp310-abi3", "cp311-cp311"))
    assert dist.faults(wheel, "cpu") == [
        f"{wheel.name} is not for cp310-abi3: it serves one Python only"
    ]


def test_the_oldest_glibc_is_that_of_the_newest_symbol():
    assert dist.oldest_glibc(b"GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBCXX_3.4.21\0") == (2, 34)


def test_unpacking_keeps_objects_and_nothing_else(tmp_path):
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-1" / "new.py").write_text("new")
    with tarfile.open(tmp_path / "a-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a-1", "a-1")
    place = tmp_path / "place"
    for stale in ("old.py", "csrc/old.cu", "build/temp/kept.o", "build/lib.linux/old.py"):
        (place / "a-1" / stale).parent.mkdir(parents=True, exist_ok=True)
        (place / "a-1" / stale).touch()
    root = dist.extract(tmp_path / "a-1.tar.gz", place)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files == {"new.py", "build/temp/kept.o"}


def test_the_sdist_holds_what_setup_imports():
    manifest = (ROOT / "MANIFEST.in").read_text()
    imported = re.findall(r"^(?:import|from) (\w+)", (ROOT / "setup.py").read_text(), re.M)
    own = [name for name in imported if (ROOT / "scripts" / f"{name}.py").is_file()]
    assert own and all(f"scripts/{name}.py" in manifest for name in own)
    for name in own:
        inner = re.findall(
            r"^(?:import|from) (\w+)", (ROOT / f"scripts/{name}.py").read_text(), re.M
        )
        assert not [other for other in inner if (ROOT / "scripts" / f"{other}.py").is_file()]


def test_wheels_are_tried_with_every_python_and_the_outermost_torches():
    cells = dist.SMOKE_CELLS
    assert {cell.python for cell in cells} == set(matrix.PYTHONS)
    assert {matrix.TORCHES[0], matrix.TORCHES[-1]} <= {cell.torch for cell in cells}


def test_the_wheels_of_two_kinds_have_two_names():
    setup = (ROOT / "setup.py").read_text()
    function = re.search(r"^def label\(.*?(?=^\S)", setup, re.M | re.S)[0]
    env = {"DYNPRUNE_LABEL": "1"}
    space = {"os": type("os", (), {"environ": env})}
    exec(f"from __future__ import annotations\n{function}", space)
    toolkit = type("Toolkit", (), {"version": "13.0"})
    assert (space["label"](None), space["label"](toolkit)) == ("+cpu", "+cu130")
    env.clear()
    assert space["label"](toolkit) == ""
