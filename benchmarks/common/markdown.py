# SPDX-License-Identifier: Apache-2.0
"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["head", "row", "table"]


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(columns), "|" + "---|" * len(columns)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """A whole table; the first row holds the names of the columns."""
    return "\n".join([*head(rows[0]), *map(row, rows[1:])])
