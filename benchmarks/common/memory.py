# SPDX-License-Identifier: Apache-2.0
"""Memory of this process, by the counters of the Linux kernel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_bytes", "reset_peak", "resident_bytes"]


def resident_bytes() -> int:
    """Bytes of this process that are in memory."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The greatest number of resident bytes since the start, or since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Sets the peak to the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
