# SPDX-License-Identifier: Apache-2.0
"""The learning-rate schedule of all runs."""

from __future__ import annotations

import math

__all__ = ["PEAK", "one_cycle"]

PEAK = 0.2  # share of the steps after which the learning rate is greatest


def one_cycle(progress: float) -> tuple[float, float]:
    """Learning rate divided by its peak, and momentum, at a share of the steps in [0, 1].

    The shape is that of torch's OneCycleLR with its defaults (Smith & Topin 2018,
    arXiv:1708.07120). As a function without state it also serves runs whose number of steps is not
    known in advance.
    """
    if progress < PEAK:
        return _cosine(1 / 25, 1.0, progress / PEAK), _cosine(0.95, 0.85, progress / PEAK)
    progress = (progress - PEAK) / (1 - PEAK)
    return _cosine(1.0, 1 / 25e4, progress), _cosine(0.85, 0.95, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
