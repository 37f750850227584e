# SPDX-License-Identifier: Apache-2.0
"""Files with results: whole JSON documents, and JSON lines that survive a killed process."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "append_line",
    "locked",
    "read_lines",
    "replaced",
    "write_json",
    "write_measurements",
    "write_text",
]


def write_measurements(
    path: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """Writes rows of raw measurements with the `machine_info` of their machine.

    The file is replaced as a whole: a program may write after each row, and be killed.
    """
    write_json(path, {"machine": dict(machine), **more, "rows": list(rows)})


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document, and makes the folder; other types than JSON's become strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears as a whole or not at all."""
    with replaced(path) as new:
        new.write_text(text)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives the path of a new file, which replaces `path` at the end unless an error is raised."""
    new = path.with_suffix(".new")
    yield new
    os.replace(new, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of all complete lines; reports on stderr a line that was cut off."""
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: line {number} was cut off and is ignored", file=sys.stderr)
    return entries


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Appends a line, and waits until it is on the disk."""
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # after the part of a line that a killed process wrote
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder against a second process; the lock ends with the process.

    Raises:
        ValueError: Another process holds the lock.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder}") from None
        yield
