# SPDX-License-Identifier: Apache-2.0
"""Includes and imports go downwards only, from bindings to shared, from classes to _ops."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".h", ".cuh", ".cu", ".cpp"}

# What the files of a folder may include. The CPU shares the contracts of kernels, not their code.
MAY_INCLUDE = {
    "shared": ["shared/"],
    "device": ["shared/", "device/"],
    "kernels": ["shared/", "device/", "kernels/"],
    "cpu": ["shared/", "cpu/"],
    "bindings": ["shared/", "cpu/", "kernels/*.h", "kernels/*/*.h", "bindings/"],
}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|pybind11)/|Python\.h")
CUDA_HEADER = re.compile(
    r"(cuda|cub|thrust|cooperative_groups|nv|cuco)(/|\.h|_)|cu[a-z]+\.h|math_constants"
)
# Guarded, so that the same files compile for the emulator and for a machine without CUDA.
CUDA_HEADERS_ALLOWED = {
    "device/launch.h",
    "device/grid.h",
    "device/cuda_types.h",
    "bindings/common.h",
}
EMULATOR_HEADER = "simt.h"

# Modules not named here are classes: above functional, in any order without cycles.
LAYERS = {
    "_C": 0,
    "_arguments": 0,
    "_ops_contract": 0,
    "_ops_fakes": 0,
    "_ops": 1,
    "_score_updates": 2,
    "_scoring": 2,
    "functional": 3,
}
CLASSES, TOP = 4, 5


class Include(NamedTuple):
    name: str
    quoted: bool
    guarded: bool  # inside an #if


def without_comments(text: str) -> str:
    """C++ without comments and string contents, line for line; #include lines keep their names."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith(('"', "'")):
            line_start = text.rfind("\n", 0, match.start()) + 1
            if text[line_start : match.start()].lstrip().startswith("#"):
                return found
            return found[0] * 2
        return "\n" * found.count("\n")

    literal = r'"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\''
    return re.sub(rf"//[^\n]*|/\*.*?\*/|{literal}", blank, text, flags=re.S)


def includes(text: str) -> list[Include]:
    """The #include lines of a C++ file."""
    found, depth = [], 0
    for line in without_comments(text).splitlines():
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        if not directive:
            continue
        word, rest = directive[1], directive[2]
        depth += {"if": 1, "ifdef": 1, "ifndef": 1, "endif": -1}.get(word, 0)
        if word == "include" and (name := re.match(r'<([^>]+)>|"([^"]+)"', rest)):
            found.append(Include(name[1] or name[2], name[2] is not None, depth > 0))
    return found


def allowed(target: str, patterns: list[str]) -> bool:
    return any(
        target.startswith(pattern) if pattern.endswith("/") else Path(target).match(pattern)
        for pattern in patterns
    )


def cpp_violations(csrc: Path) -> list[str]:
    """Every include in csrc that goes upwards or sideways, and every kernel launch out of place."""
    found = []
    for path in sorted(path for path in csrc.rglob("*") if path.suffix in SUFFIXES):
        here = path.relative_to(csrc).as_posix()
        folder = here.split("/")[0]
        text = path.read_text()
        for include in includes(text):
            if TORCH_HEADER.match(include.name):
                if folder != "bindings":
                    found.append(
                        f"{here} includes {include.name}: only bindings know torch and Python"
                    )
            elif CUDA_HEADER.match(include.name):
                if here not in CUDA_HEADERS_ALLOWED or not include.guarded:
                    found.append(
                        f"{here} includes {include.name}: CUDA headers come through device"
                    )
            elif include.quoted and not (include.name == EMULATOR_HEADER and include.guarded):
                beside = path.parent / include.name
                target = beside if beside.is_file() else csrc / include.name
                name = target.relative_to(csrc).as_posix()
                if not target.is_file():
                    found.append(f"{here} includes {include.name}, which is not in csrc")
                elif not allowed(name, MAY_INCLUDE.get(folder, [])):
                    found.append(f"{here} includes {name}: includes go downwards only")
        if "<<<" in without_comments(text) and here != "device/launch.h":
            found.append(f"{here} launches with <<<: only device/launch.h does")
    return found


def imported_modules(path: Path, package: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, by first name below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = path.parent.relative_to(package.parent).parts
                parts = above[: len(above) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name and len(parts) > 1:
                found.add(parts[1])
    # `from package import name` may also name a function of the package itself.
    return {
        name for name in found if list(package.glob(f"{name}.py*")) or (package / name).is_dir()
    }


def python_violations(package: Path) -> list[str]:
    """Every import that goes upwards, and every cycle."""
    found = []
    graph: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").parts[0]
        imported = imported_modules(path, package) - {module}
        graph.setdefault(module, set()).update(imported)
        layer = TOP if module == "__init__" else LAYERS.get(module, CLASSES)
        found += [
            f"{module} imports {other}: imports go downwards only"
            for other in sorted(imported)
            if LAYERS.get(other, CLASSES) > layer
        ]
        if "_C" in imported and module not in ("_ops", "__init__"):
            found.append(f"{module} imports _C: _ops loads the extension")
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append("cycle: " + " -> ".join([*trail[trail.index(module) :], module]))
        elif module not in finished:
            for other in sorted(graph.get(module, ())):
                visit(other, [*trail, module])
            finished.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_includes_go_downwards_only():
    assert cpp_violations(ROOT / "csrc") == []


def test_imports_go_downwards_only():
    assert python_violations(ROOT / "dynprune_cuda") == []


def test_emulator_knows_no_torch():
    for path in sorted((ROOT / "tests" / "emulator").rglob("*")):
        if path.suffix in SUFFIXES:
            names = [include.name for include in includes(path.read_text())]
            assert not [name for name in names if TORCH_HEADER.match(name)], path


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("shared/x.h", '#include "kernels/k.h"', "downwards"),
        ("shared/x.h", "#include <torch/csrc/stable/tensor.h>", "only bindings"),
        ("kernels/x.cu", '#include "cpu/c.h"', "downwards"),
        ("kernels/x.cu", '#include "bindings/b.h"', "downwards"),
        ("kernels/x.cu", "  # include <ATen/ATen.h>  // why", "only bindings"),
        ("kernels/x.cu", "#include <cuda_fp16.h>", "through device"),
        ("kernels/x.cu", "#include <cub/cub.cuh>", "through device"),
        ("kernels/x.cu", "void f() { k<<<1, 2>>>(); }", "<<<"),
        ("kernels/x.cu", '#include "no/such.h"', "not in csrc"),
        ("cpu/x.cpp", '#include "kernels/k.cuh"', "downwards"),
        ("cpu/x.cpp", "#include <Python.h>", "only bindings"),
        ("device/launch.h", "#include <cuda_runtime.h>", "through device"),
    ],
)
def test_cpp_rule_reports(tmp_path, file, text, complaint):
    for name in ("kernels/k.h", "kernels/k.cuh", "cpu/c.h", "bindings/b.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"// header\n{text}\n")
    (found,) = cpp_violations(tmp_path)
    assert found.startswith(file)
    assert complaint in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("kernels/x.cu", '// #include <ATen/ATen.h> and k<<<1, 2>>>()\n#include "k.h"'),
        ("kernels/x.cu", '/* k<<<1, 2>>>() */ const char* s = "<<<"; int big = 1\'000;'),
        ("cpu/x.cpp", '#include "shared/s.h"\n#include <vector>'),
        ("bindings/x.cpp", '#include <Python.h>\n#include "cpu/c.h"'),
        (
            "device/launch.h",
            '#if X\n#include "simt.h"\n#else\n#include <cuda_runtime.h>\n#endif',
        ),
    ],
)
def test_cpp_rule_is_silent_on(tmp_path, file, text):
    for name in ("kernels/k.h", "cpu/c.h", "shared/s.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert cpp_violations(tmp_path) == []


@pytest.mark.parametrize(
    ("modules", "complaint"),
    [
        ({"_ops": "from pkg import functional", "functional": ""}, "_ops imports functional"),
        ({"functional": "from . import scores", "scores": ""}, "functional imports scores"),
        ({"functional": "from pkg._C import X", "_C": ""}, "functional imports _C"),
        ({"a": "from .b import x", "b": "def f():\n    import pkg.a"}, "cycle: a -> b -> a"),
    ],
)
def test_import_rule_reports(tmp_path, modules, complaint):
    package = tmp_path / "pkg"
    package.mkdir()
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text)
    (found,) = python_violations(package)
    assert found.startswith(complaint)
