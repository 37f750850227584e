# SPDX-License-Identifier: Apache-2.0
"""Colours and common parts of all figures; sets a matplotlib backend that needs no screen."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "plt", "save", "tidy"]

# Okabe and Ito's palette: distinct for colour-blind readers and in print.
COLOURS = ("#000000", "#7f7f7f", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7")


def tidy(axes: Axes, *, grid: Literal["both", "x", "y"] | None = "y") -> None:
    """Draws a pale grid and removes the upper and right border."""
    if grid is not None:
        axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, *, note: str = "") -> None:
    """Writes a figure, with `note` in small print below it, and frees its memory."""
    if note:
        figure.text(0.01, 0.01, note, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03 if note else 0, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
