# SPDX-License-Identifier: Apache-2.0
"""Times rivals side by side: interleaved rounds, medians, ratios."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import dynprune_cuda

__all__ = ["Call", "cpu_name", "machine", "median_ms", "time_once", "time_rounds", "write_json"]

Call = Callable[[], object]


def time_rounds(
    calls: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    *,
    slow_after: float = math.inf,
    before_each: Call | None = None,
    refused: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call in every round, after one round that is not counted.

    Each round runs every call once, so that whatever else the machine does hits all of them alike;
    on a CPU a call of microseconds runs for about two milliseconds and gives its mean.

    Args:
        calls: What to time, by name.
        device: Where the calls run.
        rounds: How many are counted.
        slow_after: A call that took more seconds than this in the round that is not counted runs in
            the first, the middle and the last round only.
        before_each: Runs untimed before every timed call.
        refused: Where the reason goes when a call raises in the first round; such a call is left
            out. Without it the error is the caller's.
    """
    first = {}
    for name, call in calls.items():
        try:
            first[name] = time_once(call, device)
        except Exception as error:
            if refused is None:
                raise
            refused[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
    few = {0, rounds // 2, rounds - 1}
    seconds: dict[str, list[float]] = {name: [] for name in first}
    for number in range(rounds):
        for name, took in first.items():
            if took > slow_after and number not in few:
                continue
            if before_each is not None:
                before_each()
            repeats = 1 if device.type == "cuda" else _repeats(took)
            seconds[name].append(time_once(calls[name], device, repeats))
    return seconds


def time_once(call: Call, device: torch.device, repeats: int = 1) -> float:
    """Mean seconds of a call: by CUDA events on a GPU, by the wall clock on a CPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _repeats(seconds: float) -> int:
    return max(1, min(100, round(2e-3 / max(seconds, 1e-9))))


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
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def write_json(path: Path, facts: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> None:
    """Raw rounds with everything needed to repeat them; `facts` are those of `machine`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": facts, **more, "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")
