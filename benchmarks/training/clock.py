# SPDX-License-Identifier: Apache-2.0
"""Measures the time of named parts of a loop without a synchronization per step."""

from __future__ import annotations

import time

import torch

__all__ = ["Clock"]


class Clock:
    """Adds the time since the last lap to a part.

    On a GPU a lap records an event in the stream. The time of a part then is the device's, which
    includes waiting for work from the host. `read` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[tuple[str, float | torch.cuda.Event]] = []
        self._last = self._now()

    def start(self) -> None:
        """Discards the time since the last lap."""
        self._laps.append(("", self._now()))

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to `part`."""
        self._laps.append((part, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last read."""
        if self._laps and isinstance(self._laps[-1][1], torch.cuda.Event):
            self._laps[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for part, now in self._laps:
            seconds[part] = seconds.get(part, 0.0) + self._between(self._last, now)
            self._last = now
        self._laps.clear()
        seconds.pop("", None)
        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
        if isinstance(before, torch.cuda.Event):
            assert isinstance(after, torch.cuda.Event)
            return before.elapsed_time(after) / 1e3
        assert not isinstance(after, torch.cuda.Event)
        return after - before
