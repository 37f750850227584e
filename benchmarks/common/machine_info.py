# SPDX-License-Identifier: Apache-2.0
"""What a measurement depends on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import dynprune_cuda

__all__ = ["cpu_name", "git_commit", "machine_info"]


def machine_info(device: torch.device) -> dict[str, Any]:
    """Device, threads, processor, load and versions, as JSON can hold them."""
    info: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        **dynprune_cuda.build_info(),
    }
    if device.type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
        info["torch_cuda"] = torch.version.cuda
    return info


def cpu_name() -> str:
    """The processor's name by the kernel, or by Python where the kernel does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def git_commit() -> str | None:
    """The commit of this source tree, marked if files differ from it; None outside of git."""
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
