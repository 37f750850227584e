# SPDX-License-Identifier: Apache-2.0
"""Measurements on a GPU only: L2 flushes, graph replays, kernels, host synchronizations.

`launches_and_waits` and `count_sync_warnings` need no GPU, so they are tested without one.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common.sync_debug import sync_debug_mode
from benchmarks.common.timing import Call, graph_seconds, time_once

__all__ = [
    "Gpu",
    "copy_rate",
    "count_sync_warnings",
    "graph_seconds",
    "host_syncs",
    "l2_flush",
    "launches_and_waits",
    "prepare",
    "profile",
]

# Calls of the CUDA runtime that make the host wait. cudaDeviceSynchronize is not among them: the
# profiler itself calls it.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


@dataclass(frozen=True)
class Gpu:
    """What is measured or allocated once per run."""

    flush: Call
    copy_rate: float


def prepare(device: torch.device, rounds: int) -> Gpu:
    torch.cuda.set_device(device)
    return Gpu(l2_flush(device), copy_rate(device, rounds))


def l2_flush(device: torch.device) -> Call:
    """A call that evicts from the L2 cache what earlier calls read or wrote."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(max(2 * cache, 1 << 26), dtype=torch.uint8, device=device)
    return buffer.zero_


def copy_rate(device: torch.device, rounds: int, num_bytes: int = 1 << 30) -> float:
    """Bytes per second, read and written, of a large copy on the device."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [time_once(lambda: target.copy_(source), device) for _ in range(rounds + 1)]
    return 2 * num_bytes / statistics.median(seconds[1:])


def host_syncs(call: Call, device: torch.device) -> int | None:
    """How often the call made the host wait, by torch's own count; None if torch does not count.

    torch counts its own synchronizations. Those of other packages are in `profile`.
    """
    with sync_debug_mode("warn"):
        probe = torch.zeros((), device=device)
        if count_sync_warnings(probe.item) == 0:
            return None
        return count_sync_warnings(call)


def count_sync_warnings(call: Call) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def profile(call: Call, device: torch.device) -> dict[str, Any]:
    """Kernels and copies of one call with their times, and how often the host waited."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities):  # the first profile includes the set-up
        call()
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities) as recorded:
        call()
        torch.cuda.synchronize(device)
    return launches_and_waits(recorded.key_averages())


def launches_and_waits(events: Iterable[Any]) -> dict[str, Any]:
    """The profiler's averages as {"kernels": [...], "waits": number}, slowest kernel first."""
    kernels, waits = [], 0
    for event in events:
        if event.device_type.name == "CUDA":
            if event.self_device_time_total > 0:
                kernels.append(
                    {
                        "kernel": event.key,
                        "launches": event.count,
                        "microseconds": event.self_device_time_total,
                    }
                )
        elif event.key in WAITS:
            waits += event.count
    kernels.sort(key=lambda kernel: -kernel["microseconds"])
    return {"kernels": kernels, "waits": waits}
