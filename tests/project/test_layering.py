# SPDX-License-Identifier: Apache-2.0
"""Includes and imports go downwards only. The tables here name the level of every folder."""

import re
from pathlib import Path

import pytest
from layering import (
    cpp_files,
    cpp_uses,
    included_file,
    includes,
    not_downwards,
    numbered,
    out_of_reach,
    place,
    python_uses,
    violations,
    without_comments,
)
from paths import ROOT

# Each row is one level, the lowest first. A file may use its own folder and all rows above its own.
PACKAGE = numbered(
    "_C _checks _version",
    "_ops _schedule schedules stats",
    "distributed functional",
    "data scores sharded",
    "policies",
    "_epochs advice batch_selection rescoring static_scores",
    "pruner",
    "hooks integrations plotting",
    "__init__",
)
PACKAGE_RESERVED = {"_C.pyi": ["_ops"]}

CSRC = numbered(
    "shared",
    "cpu device",
    "cpu/scoring cpu/selection kernels kernels/scoring kernels/selection",
    "cpu/sharding kernels/sharding",
    "bindings",
)
# CPU code and device code have only shared/ in common.
CSRC_RESERVED = {
    "cpu/*": ["cpu", "bindings"],
    "device/*": ["device", "kernels"],
    "kernels/*": ["kernels", "bindings"],
    "*.cuh": ["kernels"],
    "*.cu": [],
    "*.cpp": [],
}

BENCHMARKS = numbered(
    "common", "selection scoring loading sharding training", "equal_steps sweep", "__init__"
)

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
LAUNCHES = "device/launch.h"
EMULATOR_HEADER = "simt.h"


def misplaced_in_csrc(csrc: Path) -> list[str]:
    """Headers of torch, Python and CUDA, includes of no file, and launches where none may be."""
    found = []
    uses = cpp_uses(csrc)
    for here in uses:
        text = (csrc / here).read_text()
        for include in includes(text):
            if TORCH_HEADER.match(include.name):
                if not here.startswith("bindings/"):
                    found.append(
                        f"{here} includes {include.name}: only bindings know torch and Python"
                    )
            elif CUDA_HEADER.match(include.name):
                if here not in CUDA_HEADERS_ALLOWED or not include.guarded:
                    folder = place(LAUNCHES)
                    found.append(f"{here} includes {include.name}: CUDA's come through {folder}")
            elif include.name == EMULATOR_HEADER and include.guarded:
                continue
            elif include.quoted and included_file(csrc / here, include.name, csrc) is None:
                found.append(f"{here} includes {include.name}, which is not in csrc")
        if "<<<" in without_comments(text) and here != LAUNCHES:
            found.append(f"{here} launches with <<<: only {LAUNCHES} does")
    return found


def test_includes_go_downwards_only():
    csrc = ROOT / "csrc"
    assert violations(cpp_uses(csrc), CSRC, CSRC_RESERVED) == []
    assert misplaced_in_csrc(csrc) == []


def test_imports_of_the_package_go_downwards_only():
    assert violations(python_uses(ROOT / "dynprune_cuda"), PACKAGE, PACKAGE_RESERVED) == []


def test_imports_of_the_benchmarks_go_downwards_only():
    assert violations(python_uses(ROOT / "benchmarks"), BENCHMARKS) == []


def test_emulator_knows_no_torch():
    for path in cpp_files(ROOT / "tests" / "emulator"):
        names = [include.name for include in includes(path.read_text())]
        assert not [name for name in names if TORCH_HEADER.match(name)], path


def write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


def complaints(csrc: Path) -> list[str]:
    """As of the whole tree, for a few files of it."""
    uses = cpp_uses(csrc)
    found = not_downwards(uses, CSRC) or out_of_reach(uses, CSRC_RESERVED)
    return found + misplaced_in_csrc(csrc)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("shared/x.h", '#include "kernels/k.h"', "upwards"),
        ("shared/x.h", "#include <torch/csrc/stable/tensor.h>", "only bindings"),
        ("kernels/x.cu", '#include "cpu/c.h"', "only cpu and bindings may use cpu/*"),
        ("cpu/x.cpp", '#include "device/d.h"', "sideways"),
        ("cpu/selection/x.cpp", '#include "device/d.h"', "only device and kernels may use"),
        ("kernels/x.cu", '#include "bindings/b.h"', "upwards"),
        ("kernels/x.cu", "  # include <ATen/ATen.h>  // why", "only bindings"),
        ("kernels/x.cu", "#include <cuda_fp16.h>", "through device"),
        ("kernels/x.cu", "#include <cub/cub.cuh>", "through device"),
        ("kernels/x.cu", "void f() { k<<<1, 2>>>(); }", "<<<"),
        ("kernels/x.cu", '#include "no/such.h"', "not in csrc"),
        ("cpu/x.cpp", '#include "kernels/k.cuh"', "upwards"),
        ("cpu/sharding/x.cpp", '#include "kernels/k.h"', "only kernels and bindings may use"),
        ("kernels/scoring/x.cu", '#include "kernels/k.h"', "sideways"),
        ("cpu/x.cpp", "#include <Python.h>", "only bindings"),
        ("bindings/x.cpp", '#include "kernels/k.cuh"', "only kernels may use *.cuh"),
        ("device/launch.h", "#include <cuda_runtime.h>", "through device"),
    ],
)
def test_what_csrc_may_not_include(tmp_path, file, text, complaint):
    names = ("kernels/k.h", "kernels/k.cuh", "cpu/c.h", "bindings/b.h", "device/d.h")
    write(tmp_path, {**dict.fromkeys(names, ""), file: f"// header\n{text}\n"})
    (found,) = complaints(tmp_path)
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
def test_what_csrc_may_include(tmp_path, file, text):
    write(tmp_path, {"kernels/k.h": "", "cpu/c.h": "", "shared/s.h": "", file: text})
    assert complaints(tmp_path) == []
