# SPDX-License-Identifier: Apache-2.0
"""Types of command-line arguments for argparse."""

from __future__ import annotations

import argparse

__all__ = ["positive_int", "share"]


def positive_int(text: str) -> int:
    """Parses a whole number of at least 1, also as 1_000_000 or 1e6."""
    value = float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text}")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(value)


def share(text: str) -> float:
    """Parses a number in (0, 1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return value
