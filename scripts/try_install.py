# SPDX-License-Identifier: Apache-2.0
"""Runs README's commands for installing from a clone, and their check, word by word.

    python scripts/try_install.py SOURCES   # a clone, or an unpacked sdist

They run in an environment of their own, which finds the torch of this Python instead of downloading
one. The build is for the CPU. Objects of an earlier build in SOURCES are used again.
"""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from pathlib import Path

from matrix import ROOT, StepError, environment, run

FOLDER = ROOT / "build" / "try-install"


def commands(readme: str) -> str:
    """The first block of commands in README's section on installing."""
    found = re.search(r"^## Install\n.*?^```sh\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    if found is None:
        raise StepError("README has no block of commands below ## Install")
    return found[1]


def make_environment(folder: Path) -> dict[str, str]:
    """An empty environment that finds the packages of this Python, and its variables."""
    shutil.rmtree(folder, ignore_errors=True)
    run(["sh", ROOT / "scripts" / "make_venv.sh", sys.executable, folder], environment())
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = Path(run([folder / "bin" / "python", "-c", purelib], environment()).strip())
    # Behind the environment's own packages; what is editable there is not followed.
    (place / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = environment()
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}"  # ninja is in the second
    return {**env, "PATH": path, "DYNPRUNE_CUDA": "0"}


def try_install(sources: Path, folder: Path = FOLDER) -> str:
    """Runs the commands in `sources`; returns what the check prints.

    Raises:
        StepError: A command failed, or the check imported another package.
    """
    text = commands((ROOT / "README.md").read_text())
    try:
        env = make_environment(folder)
        printed = run(["bash", "-euc", text], env, cwd=sources).strip().splitlines()[-1]
        code = "import dynprune_cuda; print(dynprune_cuda.__file__)"
        place = run([folder / "bin" / "python", "-c", code], env, cwd=folder).strip()
        if not Path(place).is_relative_to(folder):
            raise StepError(f"README's commands installed nothing: {place} was imported")
        return printed
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    try:
        print(f"README's commands install: {try_install(Path(sys.argv[1]).resolve())}")
    except StepError as error:
        raise SystemExit(f"try_install: {error}") from None


if __name__ == "__main__":
    main()
