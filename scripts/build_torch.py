# SPDX-License-Identifier: Apache-2.0
"""Finds out whether the torch that a build sees is the one that the user has. Needs no torch.

An isolated build has packages of its own. pip runs it by the user's interpreter. So the user's
packages can be found, although they cannot be imported. Other build tools see no torch at all:
pyproject.toml does not require one. A download would take minutes, and the module might not load
with the user's torch.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

REMEDY = "pip install ninja wheel 'setuptools>=77' && pip install --no-build-isolation ."


def packages_of_the_interpreter() -> list[Path]:
    """Where the interpreter has its packages, whatever a build has put in front of them."""
    return sorted({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})


def cuda_of(torch: Path) -> str:
    """The CUDA version that a torch was built with, "" for the CPU only; read, not imported."""
    version = torch / "version.py"
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    found = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else ""


def complaint(seen: Path | None, places: Iterable[Path]) -> str | None:
    """Why a build must not go on, and what to do; None if it may.

    Args:
        seen: The folder of the torch that was imported, None if there is none.
        places: Folders of packages in which the user's torch would be.
    """
    if seen is None:
        return (
            "dynprune_cuda builds against the torch that is installed, and sees none: install "
            f"torch >= 2.11, and build without isolation: {REMEDY}"
        )
    for own in (place / "torch" for place in places):
        if not own.is_dir() or own.resolve() == seen.resolve():
            continue
        theirs, mine = cuda_of(own), cuda_of(seen)
        if theirs.split(".")[0] != mine.split(".")[0]:
            return (
                f"dynprune_cuda would be built for the torch in {seen} ({_kind(mine)}), and the "
                f"installed one is in {own} ({_kind(theirs)}): build without isolation: "
                f"{REMEDY}"
            )
    return None


def _kind(cuda: str) -> str:
    return f"CUDA {cuda}" if cuda else "CPU only"
