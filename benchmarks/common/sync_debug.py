# SPDX-License-Identifier: Apache-2.0
"""torch's own report of where the host waits for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

__all__ = ["sync_debug_mode"]


@contextmanager
def sync_debug_mode(mode: Literal["warn", "error"]) -> Iterator[None]:
    """Makes torch warn or raise where the host waits, and restores the mode in any case.

    torch warns of a prototype feature when the mode is set first in a process. That warning is
    ignored: where warnings are errors, it would leave the mode set.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(mode)
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
