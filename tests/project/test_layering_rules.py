# SPDX-License-Identifier: Apache-2.0
"""The rules of `layering` on made-up trees: each breach is reported once, and nothing else is."""

import pytest
from layering import cpp_uses, cycles, numbered, place, python_uses, violations

LEVELS = numbered("low", "left right", "right/inner", "top", "__init__")
FILES = {
    "__init__.py": "from pkg import top",
    "low/__init__.py": "",
    "low/a.py": "",
    "low/b.py": "from .a import x",
    "left/__init__.py": "from pkg.low import b\nimport torch",
    "right/__init__.py": "from ..low.a import x",
    "right/inner/__init__.py": "from .. import y\nfrom ...low import a",
    "top.py": "from pkg.left import x\nimport pkg.right.inner",
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def reported(tmp_path, changes, reserved=None):
    package = tmp_path / "pkg"
    write(package, {**FILES, **changes})
    return violations(python_uses(package), LEVELS, reserved)


def test_a_table_numbers_its_rows_and_names_a_place_once():
    assert numbered("a", "b c") == {"a": 0, "b": 1, "c": 1}
    with pytest.raises(AssertionError, match="named twice"):
        numbered("a", "b a")


def test_the_place_of_a_file():
    assert place("top.py") == place("top.abi3.so") == "top"
    assert place("low/a.py") == place("low/__init__.py") == "low"
    assert place("right/inner/x.cu") == "right/inner"


def test_nothing_is_reported_of_a_tree_in_order(tmp_path):
    assert reported(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"low/a.py": "from pkg import top"}, "low/a.py uses top.py: upwards, from low to top"),
        ({"low/a.py": "from .. import top"}, "low/a.py uses top.py: upwards, from low to top"),
        (
            {"low/a.py": "def f():\n    import pkg.left.x"},
            "low/a.py uses left/__init__.py: upwards, from low to left",
        ),
        (
            {"right/__init__.py": "from .inner import x"},
            "right/__init__.py uses right/inner/__init__.py: upwards, from right to right/inner",
        ),
        (
            {"left/__init__.py": "from ..right import x"},
            "left/__init__.py uses right/__init__.py: sideways, from left to right",
        ),
        ({"new/x.py": ""}, "new has no level in the table"),
        ({"new.py": "import torch"}, "new has no level in the table"),
        ({"left/new/x.py": "from pkg.top import x"}, "left/new has no level in the table"),
        ({"low/a.py": "from . import b"}, "cycle: low/a.py -> low/b.py -> low/a.py"),
        (
            {"low/__init__.py": "from .a import x", "low/a.py": "from pkg.low import x"},
            "cycle: low/__init__.py -> low/a.py -> low/__init__.py",
        ),
    ],
    ids=str,
)
def test_a_breach_is_reported(tmp_path, changes, complaint):
    found = reported(tmp_path, changes)
    assert complaint in found
    # An import upwards may also close a cycle.
    assert all(line == complaint or line.startswith("cycle: ") for line in found)


def test_a_level_without_a_place_is_reported(tmp_path):
    write(tmp_path / "pkg", {"low/a.py": ""})
    found = violations(python_uses(tmp_path / "pkg"), numbered("low", "gone"))
    assert found == ["gone is only in the table"]


def test_a_file_may_be_reserved(tmp_path):
    found = reported(tmp_path, {}, {"low/a.py": ["low", "left"]})
    assert found == [
        "right/__init__.py uses low/a.py: only low and left may use low/a.py",
        "right/inner/__init__.py uses low/a.py: only low and left may use low/a.py",
    ]
    (found,) = reported(tmp_path, {}, {"left/*": []})
    assert found == "top.py uses left/__init__.py: only no file may use left/*"


def test_a_compiled_module_is_known_by_its_stub(tmp_path):
    write(tmp_path / "pkg", {"_C.pyi": "", "user.py": "from ._C import x", "__init__.py": ""})
    uses = python_uses(tmp_path / "pkg")
    assert uses == {"__init__.py": [], "_C.pyi": [], "user.py": ["_C.pyi"]}


def test_a_name_from_the_package_itself_is_a_use_of_its_init(tmp_path):
    files = {"__init__.py": "from .a import f", "a.py": "from pkg import __version__", "b.py": ""}
    write(tmp_path / "pkg", files)
    uses = python_uses(tmp_path / "pkg")
    assert uses["a.py"] == ["__init__.py"] and uses["b.py"] == []
    assert cycles(uses) == ["cycle: __init__.py -> a.py -> __init__.py"]


def test_cycles_of_headers_are_found(tmp_path):
    write(
        tmp_path,
        {
            "low/a.h": '#pragma once\n#include "b.h"\n#include <vector>',
            "low/b.h": '#include "low/c.h"  // not "low/a.h"',
            "low/c.h": '#if X\n#include "a.h"\n#endif\n#include "elsewhere.h"',
            "low/d.cpp": '// #include "no.h"\n#include "low/a.h"',
        },
    )
    uses = cpp_uses(tmp_path)
    assert uses["low/d.cpp"] == ["low/a.h"] and uses["low/c.h"] == ["low/a.h"]
    assert violations(uses, numbered("low")) == ["cycle: low/a.h -> low/b.h -> low/c.h -> low/a.h"]
