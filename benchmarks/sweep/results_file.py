# SPDX-License-Identifier: Apache-2.0
"""One JSON line per run, in a file that a killed process may have left in the middle of a line."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision

from benchmarks.common.timing import machine

__all__ = ["append", "describe", "locked", "read"]


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of whole lines; a line that was cut off is left out, and said."""
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: line {number} was cut off and is ignored", file=sys.stderr)
    return entries


def append(path: Path, entry: dict[str, Any]) -> None:
    """Writes a line, and waits until it is on the disk."""
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # after what a killed process left
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second sweep out of a folder, until the process ends in whatever way."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder}") from None
        yield


def describe(device: torch.device) -> dict[str, Any]:
    """What a run depends on beside its configuration."""
    return {
        **machine(device),
        "torchvision": torchvision.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "git": _git(),
    }


def _git() -> str | None:
    """The commit of this source tree, marked if it was changed; None outside of git."""
    here = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(
                ["git", *command], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changed else "")
