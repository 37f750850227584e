# SPDX-License-Identifier: Apache-2.0
"""Devices for tests, and what the markers mean.

`device` runs a test on the CPU and on a GPU; `needs_cuda` marks GPU tests. Without a GPU these are
skipped. A machine that has one sets FAIL_WITHOUT_CUDA=1, which turns each such skip into a failure.

`slow` marks what `make test-fast` leaves out. With `-m "not slow"` a test that starts a process
fails.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from no_processes import no_processes

import dynprune_cuda

EMULATOR = Path(__file__).with_name("emulator")


def why_no_cuda() -> str | None:
    """Why tests cannot run on a GPU, None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    if not dynprune_cuda.build_info()["cuda"]:
        return "dynprune_cuda was built for the CPU only"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a test runs on."""
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def fast_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of the session, so that it comes before what modules set up."""
    with no_processes() if request.config.option.markexpr == "not slow" else nullcontext():
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine two threads waiting for each other take far longer than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(EMULATOR):
            item.add_marker("slow")  # each compiles its kernels first


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_cuda") and (reason := why_no_cuda()):
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail(f"FAIL_WITHOUT_CUDA=1, but {reason}", pytrace=False)
        pytest.skip(reason)
