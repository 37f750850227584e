# SPDX-License-Identifier: Apache-2.0
"""The checks themselves find what they are there to find."""

import warnings

import pytest
import torch
from paths import ROOT
from waiting import no_cuda_waiting, no_waiting

from benchmarks.selection import gpu_timing

X = torch.arange(6.0)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: X[0].item(),
        lambda: bool(X[0]),
        lambda: float(X.sum()),
        lambda: X.nonzero(),
        lambda: X[X > 2],
        lambda: X.clone().__setitem__(X > 2, X[:3]),
        lambda: X.unique(),
        lambda: torch.equal(X, X),
    ],
)
def test_waiting_is_found(wait):
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        wait()


def test_the_rest_passes():
    with no_waiting():
        ids = torch.arange(3)
        torch.where(X > 2, X, 0.0).cumsum(0)[ids].sort()


class FakeSyncDebugMode:
    """Stands for torch's, without a GPU: warns at its first use, and keeps the mode."""

    def __init__(self, monkeypatch):
        self.mode, self.warned = 0, False
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)

    def set(self, mode):
        # As in torch, the mode is set although its warning becomes an error.
        self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)
        if not self.warned:
            self.warned = True
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)


@pytest.mark.parametrize("before", [0, 1])
def test_the_mode_of_torch_is_set_and_restored(monkeypatch, before):
    fake = FakeSyncDebugMode(monkeypatch)
    fake.mode = before
    for _ in range(2):
        with no_cuda_waiting():
            assert fake.mode == 2
        assert fake.mode == before
    assert fake.warned  # warnings are errors in tests, and this one was ignored


def test_the_mode_of_torch_is_restored_after_an_error(monkeypatch):
    fake = FakeSyncDebugMode(monkeypatch)
    with pytest.raises(RuntimeError, match="synchronizing"), no_cuda_waiting():
        raise RuntimeError("called a synchronizing CUDA operation")
    assert fake.mode == 0


def test_warnings_of_the_body_are_still_seen(monkeypatch):
    FakeSyncDebugMode(monkeypatch)
    with pytest.warns(UserWarning, match="of the body"), no_cuda_waiting():
        warnings.warn("of the body", stacklevel=1)


class Waits:
    """A tensor's item(), of which torch warns in the mode."""

    def __init__(self, fake):
        self.fake = fake

    def item(self):
        if self.fake.mode == 1:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)


def test_host_waits_are_counted_in_the_mode_which_is_restored(monkeypatch):
    fake = FakeSyncDebugMode(monkeypatch)
    waits = Waits(fake)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: waits)

    def call():
        waits.item()
        waits.item()

    assert gpu_timing.host_syncs(call, torch.device("cpu")) == 2
    assert fake.mode == 0 and fake.warned
    with pytest.raises(ZeroDivisionError):
        gpu_timing.host_syncs(lambda: 1 // 0, torch.device("cpu"))
    assert fake.mode == 0


def test_nothing_else_sets_the_mode():
    """What sets it by itself can leave it set, and what comes later fails then."""
    allowed = {"benchmarks/common/sync_debug.py", "tests/project/test_waiting.py"}
    found = {
        str(path.relative_to(ROOT))
        for folder in ("benchmarks", "scripts", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if "set_sync_debug_mode" in path.read_text()
    }
    assert found == allowed
