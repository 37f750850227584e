# SPDX-License-Identifier: Apache-2.0
"""Builds dynprune_cuda._C: one abi3 module against the LibTorch stable ABI, for CPU or for CPU and CUDA.

The rest of the metadata is in pyproject.toml. Switches: DYNPRUNE_CUDA=0/1, TORCH_CUDA_ARCH_LIST, MAX_JOBS.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))  # a PEP 517 build does not have the project on its path

from cuda_toolkit import Toolkit, ToolkitError, decide, default_architectures, parse_architectures  # noqa: E402

try:
    import torch
except ImportError as error:
    raise SystemExit(
        "dynprune_cuda builds against the torch that is installed, and there is none. Install torch >= 2.11, "
        "then: pip install --no-build-isolation ."
    ) from error

# The oldest torch whose stable ABI is used (2.11.0): one binary serves it and every later release.
TORCH_TARGET_VERSION = "0x020b000000000000"


def choose_toolkit() -> Toolkit | None:
    """The CUDA toolkit to build with, None for CPU only; told in the build log either way."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise SystemExit(f"dynprune_cuda: the headers of {sys.executable} are missing (Debian: python3-dev)")
    try:
        decision = decide(torch.version.cuda, os.environ)
    except ToolkitError as error:
        raise SystemExit(f"dynprune_cuda: {error}") from error
    print(f"dynprune_cuda: {decision.message}", file=sys.stderr)
    return decision.toolkit


def architectures(toolkit: Toolkit | None) -> str:
    """What to compile for, written back to where torch's build extension reads it."""
    if toolkit is None:
        return ""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(parse_architectures(wanted) or default_architectures(toolkit))
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def sources(*patterns: str) -> list[str]:
    """Relative paths, sorted: the order of the objects must not depend on the file system."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def extension(toolkit: Toolkit | None) -> Extension:
    """The one extension module. Only the host compiler sees torch: kernels do without it."""
    from torch.utils.cpp_extension import include_paths, library_paths

    facts = {
        "TORCH_VERSION": torch.__version__,
        "CUDA_VERSION": toolkit.version if toolkit else "",
        "CUDA_ARCHITECTURES": architectures(toolkit),
    }
    host_flags = "-std=c++17 -O3 -ffp-contract=off -Wall -Wextra -fvisibility=hidden -pthread".split()
    host_flags += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    host_flags += [f'-DDYNPRUNE_{name}="{value}"' for name, value in facts.items()]
    headers, libraries, library_dirs, link_flags = include_paths(), ["c10", "torch", "torch_cpu"], library_paths(), []
    if toolkit is not None:
        host_flags += ["-DUSE_CUDA", "-DDYNPRUNE_WITH_CUDA"]
        headers.append(str(toolkit.include))
        libraries.append("torch_cuda")
        library_dirs += [str(path) for path in toolkit.libraries]
        # By file name: the pip wheel of the CUDA runtime has no libcudart.so link.
        link_flags.append(f"-l:libcudart.so.{toolkit.version.split('.')[0]}")
    # System headers: other people's warnings are not ours to fix.
    host_flags += [flag for path in headers for flag in ("-isystem", path)]
    return Extension(
        "dynprune_cuda._C",
        sources("csrc/bindings/*.cpp", "csrc/cpu/*.cpp", *(["csrc/kernels/*.cu"] if toolkit else [])),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={
            "cxx": host_flags,
            "nvcc": "-std=c++17 -O3 -lineinfo -Xcompiler=-fvisibility=hidden".split(),
        },
        libraries=libraries,
        library_dirs=library_dirs,
        extra_link_args=link_flags,
        language="c++",
        py_limited_api=True,
    )


cuda = choose_toolkit()
if cuda is not None:
    os.environ["CUDA_HOME"] = str(cuda.root)

from torch.utils.cpp_extension import BuildExtension  # noqa: E402  (reads CUDA_HOME when imported)


class IncrementalBuild(BuildExtension):
    """Keeps the objects in one place, so that a pip install recompiles only what changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / "temp")


setup(
    ext_modules=[extension(cuda)],
    cmdclass={"build_ext": IncrementalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
