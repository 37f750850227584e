# SPDX-License-Identifier: Apache-2.0
"""Emulators of the emulator's own kernels."""

from collections.abc import Iterator

import pytest
from bug_matrix import SOURCES
from emulator import HERE, Emulator, build

ALL_SOURCES = (*SOURCES, HERE / "intrinsics.cu", HERE / "behaviour.cu")


@pytest.fixture
def checked() -> Iterator[Emulator]:
    """The check build."""
    with Emulator(build(ALL_SOURCES, "check")) as emulator:
        yield emulator


@pytest.fixture(params=["check", "fast"])
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Both builds that run inside Python."""
    with Emulator(build(ALL_SOURCES, request.param)) as emulator:
        yield emulator
