# SPDX-License-Identifier: Apache-2.0
"""Finds a CUDA toolkit and decides what to build, for setup.py and `make kernels`. Needs no torch.

A toolkit is a directory that holds bin/nvcc and the runtime headers. An nvcc on the PATH may be a
wrapper script whose parent directory is no toolkit, so nvcc is asked where it lives.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a wheel should serve: Ampere, Ada, Hopper and Blackwell, data centre, Thor and desktop.
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0")

USUAL_PLACE = Path("/usr/local")

INSTALL_HINT = (
    "For CUDA, install NVIDIA's toolkit of the same major version as torch.version.cuda and set "
    "CUDA_HOME to it, or install its pip wheels next to torch, for CUDA 13.0:\n"
    "  pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' "
    "'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-runtime==13.0.*'"
)


class ToolkitError(RuntimeError):
    """CUDA is required and cannot be built; the message says what to install."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit on disk."""

    root: Path
    version: str  # as nvcc reports it, e.g. "13.0"

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        include = header_directory(self.root)
        assert include is not None, "only a directory with headers becomes a Toolkit"
        return include

    @property
    def libraries(self) -> list[Path]:
        places = [self.root / "lib64", self.root / "lib", *self.root.glob("targets/*/lib")]
        return [place for place in places if place.is_dir()]

    def architectures(self, wanted: Sequence[str] = DEFAULT_ARCHITECTURES) -> list[str]:
        """Those of `wanted` that this nvcc can compile for, in the same order."""
        known = set(re.findall(r"compute_(\d+)", output_of(self.nvcc, "--list-gpu-arch")))
        return [arch for arch in wanted if arch.replace(".", "") in known]


@dataclass(frozen=True)
class Decision:
    """What to build: CUDA with `toolkit`, or CPU only. `message` is for the build log."""

    toolkit: Toolkit | None
    message: str


def output_of(*command: str | Path) -> str:
    """Everything a command prints, empty if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def header_directory(root: Path) -> Path | None:
    """Where `root` keeps cuda_runtime.h: include/, or conda's targets/<platform>/include/."""
    for include in (root / "include", *root.glob("targets/*/include")):
        if (include / "cuda_runtime.h").is_file():
            return include
    return None


def nvcc_root(nvcc: str) -> Path | None:
    """The toolkit that an nvcc works with, which its own dry run prints as TOP."""
    match = re.search(
        r"^#\$ TOP=(.+)$", output_of(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.M
    )
    return Path(match[1].strip()).resolve() if match else None


def package_directories() -> list[Path]:
    """Where pip may have put wheels; sys.path alone lacks them in some isolated builds."""
    return [
        Path(path) for path in (sysconfig.get_path("platlib"), *site.getsitepackages(), *sys.path)
    ]


def candidates(env: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Places where a toolkit may be, the most explicit first."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(name):
            yield name, Path(env[name])
    if nvcc := shutil.which("nvcc", path=env.get("PATH")):
        for root in (nvcc_root(nvcc), Path(nvcc).resolve().parents[1]):
            if root is not None:
                yield f"nvcc ({nvcc})", root
    for root in (USUAL_PLACE / "cuda", *sorted(USUAL_PLACE.glob("cuda-*"), reverse=True)):
        yield "usual place", root
    for packages in package_directories():
        for root in sorted(packages.glob("nvidia/cu[0-9]*"), reverse=True):
            yield "pip wheels", root
    if env.get("CONDA_PREFIX"):
        yield "CONDA_PREFIX", Path(env["CONDA_PREFIX"])


def inspect(root: Path) -> Toolkit | str:
    """The toolkit at `root`, or the reason why there is none."""
    if not (root / "bin" / "nvcc").is_file():
        return "no bin/nvcc"
    if header_directory(root) is None:
        return "no include/cuda_runtime.h"
    release = re.search(r"release (\d+\.\d+)", output_of(root / "bin" / "nvcc", "--version"))
    return Toolkit(root, release[1]) if release else "its nvcc does not run"


def find(
    major: str | None = None, env: Mapping[str, str] | None = None
) -> tuple[Toolkit | None, list[str]]:
    """The first toolkit (of that major version), and why the places before it were passed over."""
    passed_over: list[str] = []
    seen: set[Path] = set()
    for origin, root in candidates(os.environ if env is None else env):
        if root.resolve() in seen:
            continue
        seen.add(root.resolve())
        found = inspect(root)
        if isinstance(found, Toolkit):
            if major is None or found.version.split(".")[0] == major:
                return found, passed_over
            found = f"CUDA {found.version}, but this torch needs CUDA {major}"
        # A usual place that does not exist is no news; a variable that points nowhere is.
        if root.is_dir() or origin.startswith("CUDA"):
            passed_over.append(f"{root} ({origin}): {found}")
    return None, passed_over


def decide(torch_cuda: str | None, env: Mapping[str, str]) -> Decision:
    """CUDA or CPU only, from the CUDA version of torch, DYNPRUNE_CUDA and what is on disk."""
    request = env.get("DYNPRUNE_CUDA", "")
    if request not in ("", "0", "1"):
        raise ToolkitError(f"DYNPRUNE_CUDA must be 0, 1 or unset, got {request!r}")
    if request == "0":
        return Decision(None, "building CPU only: DYNPRUNE_CUDA=0")
    if torch_cuda is None:
        reason = "this torch is a CPU build (torch.version.cuda is None)"
        remedy = "For CUDA, install a CUDA build of torch."
    else:
        toolkit, passed_over = find(torch_cuda.split(".")[0], env)
        looked = "".join(f"\n  not {place}" for place in passed_over)
        if toolkit is not None:
            found = f"CUDA {toolkit.version} from {toolkit.root}"
            return Decision(toolkit, f"building CPU and CUDA with {found}{looked}")
        reason = f"this torch needs CUDA {torch_cuda} and no matching toolkit was found{looked}"
        remedy = INSTALL_HINT
    if request == "1":
        raise ToolkitError(f"DYNPRUNE_CUDA=1, but {reason}\n{remedy}")
    return Decision(None, f"building CPU only: {reason}\n{remedy}")


def parse_architectures(text: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST as a list: entries are separated by spaces or semicolons."""
    return [arch for arch in re.split(r"[;\s]+", text) if arch]


def default_architectures(toolkit: Toolkit) -> list[str]:
    """DEFAULT_ARCHITECTURES that the toolkit knows; the newest also as PTX, for later GPUs."""
    known = toolkit.architectures()
    if not known:
        raise ToolkitError(
            f"nvcc of {toolkit.root} knows none of {', '.join(DEFAULT_ARCHITECTURES)}"
        )
    return [*known[:-1], f"{known[-1]}+PTX"]
