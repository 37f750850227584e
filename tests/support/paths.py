# SPDX-License-Identifier: Apache-2.0
"""Where the files of the project are, for tests in any folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def benchmark(name: str) -> Path:
    """The file with this name in `benchmarks/`, in whichever folder it is."""
    (path,) = (ROOT / "benchmarks").rglob(name)
    return path
