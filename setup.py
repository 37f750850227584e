# SPDX-License-Identifier: Apache-2.0
"""Builds dynprune_cuda._C, one abi3 module against the LibTorch stable ABI, with or without CUDA.

Metadata is in pyproject.toml. Switches: DYNPRUNE_CUDA=0/1, DYNPRUNE_LINEINFO=1,
TORCH_CUDA_ARCH_LIST, MAX_JOBS, and of scripts/dist.py DYNPRUNE_LABEL=1.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))  # a PEP 517 build does not have the project on its path

import build_torch  # noqa: E402
import cuda_toolkit  # noqa: E402
from cuda_toolkit import Toolkit  # noqa: E402

try:
    import torch
except ImportError as error:
    raise SystemExit(build_torch.complaint(None, ())) from error

if complaint := build_torch.complaint(
    Path(torch.__file__).parent, build_torch.packages_of_the_interpreter()
):
    raise SystemExit(complaint)

# The oldest torch whose stable ABI is used (2.11.0): one binary serves it and every later release.
TORCH_TARGET_VERSION = "0x020b000000000000"


def choose_toolkit() -> Toolkit | None:
    """The CUDA toolkit to build with, None for CPU only; told in the build log either way."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise SystemExit(
            f"dynprune_cuda: the headers of {sys.executable} are missing (Debian: python3-dev)"
        )
    try:
        decision = cuda_toolkit.decide(torch.version.cuda, os.environ)
    except cuda_toolkit.ToolkitError as error:
        raise SystemExit(f"dynprune_cuda: {error}") from error
    print(f"dynprune_cuda: {decision.message}", file=sys.stderr)
    return decision.toolkit


def architectures(toolkit: Toolkit) -> str:
    """What to compile for, written back to where torch's build extension reads it."""
    wanted = cuda_toolkit.parse_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    wanted = wanted or cuda_toolkit.default_architectures(toolkit)
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(wanted)
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def line_info() -> list[str]:
    """nvcc's flag for profilers that show source lines; it makes the module larger."""
    request = os.environ.get("DYNPRUNE_LINEINFO", "")
    if request not in ("", "0", "1"):
        raise SystemExit(f"dynprune_cuda: DYNPRUNE_LINEINFO must be 0, 1 or unset, got {request!r}")
    return ["-lineinfo"] if request == "1" else []


def sources(pattern: str) -> list[str]:
    """Relative paths, sorted: the order of the objects must not depend on the file system."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def extension(toolkit: Toolkit | None) -> Extension:
    """The one extension module. Only the host compiler sees torch: kernels do without it."""
    from torch.utils.cpp_extension import include_paths, library_paths

    ext = Extension(
        "dynprune_cuda._C",
        sources("csrc/bindings/*.cpp") + sources("csrc/cpu/*/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        libraries=["c10", "torch", "torch_cpu"],
        library_dirs=library_paths(),
        extra_link_args=["-pthread"],
        language="c++",
        py_limited_api=True,
    )
    host_flags = [
        "-std=c++17",
        "-O3",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-pthread",
    ]
    # -g0: the interpreter's own -g would make the module ten times larger.
    host_flags += ["-g0", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    headers = include_paths()
    facts = {"TORCH_VERSION": torch.__version__, "CUDA_VERSION": "", "CUDA_ARCHITECTURES": ""}
    if toolkit is not None:
        host_flags += ["-DUSE_CUDA", "-DDYNPRUNE_WITH_CUDA"]
        headers.append(str(toolkit.include))
        facts |= {"CUDA_VERSION": toolkit.version, "CUDA_ARCHITECTURES": architectures(toolkit)}
        ext.sources += sources("csrc/kernels/**/*.cu")
        ext.libraries.append("torch_cuda")
        ext.library_dirs += map(str, toolkit.libraries)
        # By file name: the pip wheel of the CUDA runtime has no libcudart.so link.
        ext.extra_link_args.append(f"-l:libcudart.so.{toolkit.version.split('.')[0]}")
    host_flags += [f'-DDYNPRUNE_{name}="{value}"' for name, value in facts.items()]
    # System headers: other people's warnings are not ours to fix.
    host_flags += [flag for path in headers for flag in ("-isystem", path)]
    nvcc_flags = ["-std=c++17", "-O3", "-Xcompiler=-fvisibility=hidden", *line_info()]
    # nvcc compresses PTX only; most machine code repeats that of the kernels for other types.
    nvcc_flags += ["-Xfatbin=-compress-all"]
    ext.extra_compile_args = {"cxx": host_flags, "nvcc": nvcc_flags}
    return ext


def label(toolkit: Toolkit | None) -> str:
    """The local part of a published wheel's version, as torch's: "+cpu", or "+cu130"."""
    if os.environ.get("DYNPRUNE_LABEL") != "1":
        return ""
    return "+cpu" if toolkit is None else f"+cu{toolkit.version.replace('.', '')}"


cuda = choose_toolkit()
if cuda is not None:
    os.environ["CUDA_HOME"] = str(cuda.root)

from setuptools.command.egg_info import egg_info  # noqa: E402
from torch.utils.cpp_extension import BuildExtension  # noqa: E402  (reads CUDA_HOME when imported)


class IncrementalBuild(BuildExtension):
    """Keeps the objects in one place, so that a pip install recompiles only what changed."""

    def finalize_options(self) -> None:
        given = self.build_temp
        super().finalize_options()
        self.build_temp = given or str(ROOT / "build" / "temp")


class LabelledVersion(egg_info):
    """Adds the label; the setup.cfg of an sdist would overrule an option."""

    def finalize_options(self) -> None:
        self.tag_build = label(cuda) or self.tag_build
        super().finalize_options()


setup(
    ext_modules=[extension(cuda)],
    cmdclass={"build_ext": IncrementalBuild, "egg_info": LabelledVersion},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
