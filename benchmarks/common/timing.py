# SPDX-License-Identifier: Apache-2.0
"""Times of calls: one call, the median of several, several calls in interleaved rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

__all__ = [
    "Call",
    "first_line",
    "graph_seconds",
    "median_ms",
    "median_seconds",
    "time_once",
    "time_rounds",
    "timed",
]

Call = Callable[[], object]
Result = TypeVar("Result")


def time_rounds(
    calls: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    *,
    slow_after: float = math.inf,
    before_each: Call | None = None,
    refused: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Returns the seconds of every call in every round, after one round that is not counted.

    Each round runs every call once, so that other load on the machine affects all calls alike. On a
    CPU, a call of microseconds is repeated for about two milliseconds and its mean is taken.

    Args:
        calls: What to time, by name.
        device: Where the calls run.
        rounds: How many rounds are counted.
        slow_after: Seconds. A call that takes longer in the round that is not counted is slow. It
            runs in the first, the middle and the last round only.
        before_each: Runs untimed before every timed call.
        refused: Receives the reason if a call raises in the first round, and the call is left out.
            Without it the error is raised.
    """
    first = {}
    for name, call in calls.items():
        try:
            first[name] = time_once(call, device)
        except Exception as error:
            if refused is None:
                raise
            refused[name] = first_line(error)
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


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def graph_seconds(
    call: Call, device: torch.device, rounds: int, before_each: Call | None = None
) -> list[float]:
    """Seconds of each replay of the captured call, without the cost of its launches."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    seconds = []
    for _ in range(rounds):
        if before_each is not None:
            before_each()
        seconds.append(time_once(graph.replay, device))
    return seconds


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """The result of one call and its wall-clock seconds."""
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def median_seconds(call: Call, rounds: int) -> float:
    """Median wall-clock seconds of a call."""
    return statistics.median(timed(call)[1] for _ in range(rounds))


def median_ms(seconds: list[float]) -> float:
    """Median of seconds, in milliseconds."""
    return statistics.median(seconds) * 1e3


def _repeats(seconds: float) -> int:
    return max(1, min(100, round(2e-3 / max(seconds, 1e-9))))
