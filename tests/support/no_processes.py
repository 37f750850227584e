# SPDX-License-Identifier: Apache-2.0
"""A check that code starts no process: what `make test-fast` runs in."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any
from unittest import mock


class ProcessStarted(BaseException):
    """Not an Exception, so that the tested code does not take it for a failed command."""


def _refuse(self: object, *arguments: Any, **more: Any) -> None:
    raise ProcessStarted(f"a process is started ({arguments}): mark the test as slow")


@contextmanager
def no_processes() -> Iterator[None]:
    """Raises where subprocess, multiprocessing, or torch by one of them starts a process."""
    with (
        mock.patch.object(subprocess.Popen, "__init__", _refuse),
        mock.patch.object(BaseProcess, "start", _refuse),
    ):
        yield
