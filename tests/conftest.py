# SPDX-License-Identifier: Apache-2.0
"""Devices for tests: `device` runs a test on the CPU and on a GPU, `needs_cuda` marks GPU tests.

Without a GPU their CUDA half is skipped, so a machine that has one sets FAIL_WITHOUT_CUDA=1: there
a driver that is not found must not look like a pass.
"""

import os
from collections.abc import Iterator

import pytest
import torch

import dynprune_cuda


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine two threads waiting for each other take far longer than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_cuda") and (reason := why_no_cuda()):
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail(f"FAIL_WITHOUT_CUDA=1, but {reason}", pytrace=False)
        pytest.skip(reason)
