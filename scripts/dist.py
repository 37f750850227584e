# SPDX-License-Identifier: Apache-2.0
"""Builds what is published: the sdist, and from it the wheels; checks and tries them.

    python scripts/dist.py cpu                    # dist/: the sdist and the wheel for the CPU
    python scripts/dist.py cpu cuda --smoke       # both wheels, tried in empty environments
    python scripts/dist.py cpu --smoke 2.11/3.10  # tried with this torch and this Python

A wheel is built with the torch of the Python that runs this script, and serves every later torch.
TORCH_CUDA_ARCH_LIST and MAX_JOBS reach the build. After the wheel for the CPU, README's commands
for installing run in the unpacked sdist (try_install.py). The environments are made as those of
matrix.py, and have no compiler. In the first of them mypy checks the types of the installed
package.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import matrix
from matrix import ROOT, Cell, StepError, environment, run
from try_install import try_install

DIST = ROOT / "dist"
BUILD = ROOT / "build" / "sdist"
# In bytes. A wheel with CUDA holds machine code for every architecture.
MOST_BYTES = {"sdist": 1_000_000, "cpu": 3_000_000, "cuda": 30_000_000}
PYTHON_TAG = "cp310-abi3"
# Torch's oldest and newest release, and every Python: 2.15 needs 3.11.
SMOKE_CELLS = (
    Cell("2.11", "3.10"),
    Cell("2.15", "3.11"),
    Cell("2.14", "3.12"),
    Cell("2.15", "3.13"),
)


def build_sdist() -> Path:
    """The archive of the sources, in dist/."""
    for stale in (*DIST.glob("*.tar.gz"), *ROOT.glob("*.egg-info")):
        # setuptools would pack again what an older list of files names.
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run([sys.executable, "-c", code], {**environment(), "DYNPRUNE_CUDA": "0"})
    (archive,) = DIST.glob("*.tar.gz")
    return archive


def extract(archive: Path, place: Path) -> Path:
    """Unpacks the sources; objects of an earlier build stay, and only what changed is compiled."""
    root = place / archive.name.removesuffix(".tar.gz")
    for entry in root.iterdir() if root.is_dir() else ():
        if entry.is_file():
            entry.unlink()
        elif entry.name != "build":
            shutil.rmtree(entry)
    for stale in (*root.glob("build/lib*"), *root.glob("build/bdist*")):
        shutil.rmtree(stale)
    with tarfile.open(archive) as file:
        file.extractall(place, filter="data")
    return root


def build_wheel(archive: Path, kind: str) -> Path:
    """The wheel of this kind, cpu or cuda, built from the sdist and nothing else; in dist/."""
    sources = extract(archive, BUILD / kind)
    label = "+cpu" if kind == "cpu" else "+cu"
    for stale in DIST.glob(f"*{label}*.whl"):
        stale.unlink()
    # ninja is beside this Python.
    env = {**environment(), "DYNPRUNE_CUDA": str(int(kind == "cuda")), "DYNPRUNE_LABEL": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", DIST)
    run([sys.executable, "-m", "pip", "wheel", *options, sources], env)
    (wheel,) = DIST.glob(f"*{label}*.whl")
    return tagged(wheel)


def oldest_glibc(module: bytes) -> tuple[int, int]:
    """The oldest glibc that has every symbol that a compiled module names."""
    named = re.findall(rb"GLIBC_(\d+)\.(\d+)", module)
    return max((int(major), int(minor)) for major, minor in named)


def tagged(wheel: Path) -> Path:
    """The wheel, named for the oldest glibc that it runs with, so that pip refuses older ones."""
    with zipfile.ZipFile(wheel) as archive:
        major, minor = oldest_glibc(archive.read("dynprune_cuda/_C.abi3.so"))
    platform = f"manylinux_{major}_{minor}_{os.uname().machine}"
    command = (sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", platform)
    return wheel.parent / run([*command, wheel], environment()).split()[-1]


def faults(wheel: Path, kind: str) -> list[str]:
    """What is wrong with a wheel's name, size, files and metadata."""
    wrong = []
    if f"-{PYTHON_TAG}-" not in wheel.name:
        wrong.append(f"{wheel.name} is not for {PYTHON_TAG}: it serves one Python only")
    if (size := wheel.stat().st_size) > MOST_BYTES[kind]:
        wrong.append(f"{wheel.name} has {size:,} bytes; at most {MOST_BYTES[kind]:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
    info = metadata.partition("/")[0]
    needed = {f"dynprune_cuda/{name}" for name in ("_C.abi3.so", "_C.pyi", "py.typed")}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "dynprune_cuda").rglob("*.py")}
    wrong += [f"{wheel.name} lacks {name}" for name in sorted(needed - names)]
    foreign = {name for name in names if name.split("/")[0] not in ("dynprune_cuda", info)}
    wrong += [f"{wheel.name} has {name}" for name in sorted(foreign)]
    if not any(name.startswith(info) and name.endswith("/LICENSE") for name in names):
        wrong.append(f"{wheel.name} lacks the licence")
    if fields["Requires-Python"] != ">=3.10":
        wrong.append(f"{wheel.name} requires Python {fields['Requires-Python']}, not >=3.10")
    return wrong


def check(archive: Path, wheels: dict[str, Path]) -> None:
    """Raises StepError for the first file that twine, abi3audit or `faults` refuses."""
    run(
        [sys.executable, "-m", "twine", "check", "--strict", archive, *wheels.values()],
        environment(),
    )
    size = archive.stat().st_size
    wrong = []
    if size > MOST_BYTES["sdist"]:
        wrong.append(f"{archive.name} has {size:,} bytes; at most {MOST_BYTES['sdist']:,}")
    print(f"{archive.name}: {size / 1e6:.2f} MB")
    for kind, wheel in wheels.items():
        wrong += faults(wheel, kind)
        audit = ("--strict", "--assume-minimum-abi3", "3.10", wheel)
        run([sys.executable, "-m", "abi3audit", *audit], environment())
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB; twine and abi3audit are content")
    if wrong:
        raise StepError("\n".join(wrong))


def smoke(cell: Cell, wheels: dict[str, Path], types: bool) -> None:
    """Installs the wheels one after the other in one empty environment, and tries each."""
    folder = BUILD / f"smoke-torch{cell.torch}-python{cell.python}"
    shutil.rmtree(folder, ignore_errors=True)
    first, *_ = wheels.values()
    try:
        matrix.install(cell, folder, first, tools=("numpy",))
        python, env = folder / "bin" / "python", matrix.without_compilers(folder)
        for kind, wheel in wheels.items():
            options = ("--quiet", "--no-deps", "--force-reinstall")
            run([python, "-m", "pip", "install", *options, wheel], environment())
            script = ROOT / "scripts" / "try_wheel.py"
            print(run([python, script, folder, kind], env).strip(), flush=True)
        if types:
            check_types(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_types(folder: Path) -> None:
    """Checks a user's script against the installed package, and its stub against the module."""
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", f"mypy=={version('mypy')}"], environment())
    script = ROOT / "scripts" / "typed_user.py"
    copy = folder / script.name  # beside nothing that mypy could take for the package
    shutil.copy(script, copy)
    env = {**matrix.without_compilers(folder), "MYPY_CACHE_DIR": str(folder / "mypy")}
    run([python, "-m", "mypy", "--strict", "--config-file", "", copy], env, cwd=folder)
    run([python, "-m", "mypy.stubtest", "dynprune_cuda._C"], env, cwd=folder)
    print("the types of the installed package are found and right")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=("cpu", "cuda"), help="which wheels")
    parser.add_argument("--smoke", nargs="*", metavar="TORCH/PYTHON", help="try them; none: all")
    options = parser.parse_args()
    here = "{}.{}".format(*sys.version_info)
    try:
        cells = [matrix.parse_cell(text, here) for text in options.smoke or ()]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    DIST.mkdir(exist_ok=True)
    try:
        archive = build_sdist()
        wheels = {kind: build_wheel(archive, kind) for kind in sorted(set(options.kinds))}
        check(archive, wheels)
        if "cpu" in wheels:  # whose objects serve again
            sources = extract(archive, BUILD / "cpu")
            print(f"README's commands install: {try_install(sources)}", flush=True)
        if options.smoke is not None:
            for number, cell in enumerate(cells or SMOKE_CELLS):
                smoke(cell, wheels, types=number == 0)
    except StepError as error:
        raise SystemExit(f"dist: {error}") from None


if __name__ == "__main__":
    main()
