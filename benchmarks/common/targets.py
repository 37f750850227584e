# SPDX-License-Identifier: Apache-2.0
"""A stated speed target, so that a table can say whether a measurement reaches it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Target", "at_most", "faster"]


@dataclass(frozen=True)
class Target:
    """A bound on one ratio: the rival's time divided by ours."""

    text: str
    at_least: float

    def reached(self, ratio: float) -> bool:
        return ratio >= self.at_least


def faster(factor: float) -> Target:
    """The rival takes at least `factor` times as long."""
    return Target(f"{factor:g}x faster", factor)


def at_most(factor: float) -> Target:
    """We take at most `factor` times as long as the rival."""
    return Target(f"at most {factor:g} times its time", 1 / factor)
