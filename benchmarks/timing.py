# SPDX-License-Identifier: Apache-2.0
"""Times rivals side by side: interleaved rounds, medians, ratios."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import dynprune_cuda

Call = Callable[[], object]


def time_rounds(
    calls: Mapping[str, Call], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every call in every round, after one round that is not counted.

    Each round runs every call once, so that whatever else the machine does hits all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name, call in calls.items():
            elapsed = time_once(call, device)
            if round_number > 0:
                seconds[name].append(elapsed)
    return seconds


def time_once(call: Call, device: torch.device) -> float:
    """Seconds of one call: by CUDA events on a GPU, by the wall clock on a CPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on."""
    facts: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        **dynprune_cuda.build_info(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["torch_cuda"] = torch.version.cuda
    return facts


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def write_json(path: Path, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Raw rounds with everything needed to repeat them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")
