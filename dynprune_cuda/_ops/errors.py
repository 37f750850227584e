# SPDX-License-Identifier: Apache-2.0
"""Errors of the operators, as the exceptions that users get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

REFUSALS = (IndexError, RuntimeError, TypeError, ValueError)


def marking_refusals(op: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an operator, and marks its errors: it raised them before it changed anything."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return op(*arguments)
    except REFUSALS as error:
        mark_refusal(error)
        raise


def mark_refusal(error: BaseException) -> None:
    """Marks an error that an operator raised before it changed anything."""
    error.by_operator = True  # type: ignore[attr-defined]


def is_refusal(error: BaseException) -> bool:
    """Returns whether an error is marked."""
    return getattr(error, "by_operator", False)


def checking_weights(op: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an operator that reads weights or probabilities on the CPU, and returns its result.

    Releases of torch differ in which C++ errors they make a ValueError. So the operator raises a
    RuntimeError, and this function makes a ValueError of it. Compiled code calls the operator
    itself.

    Raises:
        ValueError: A weight is negative or NaN, or a target is no probability.
    """
    try:
        return op(*arguments)
    except RuntimeError as error:
        if not str(error).startswith(("weights[", "target[")):
            raise
        raise ValueError(str(error)) from None
