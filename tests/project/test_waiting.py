# SPDX-License-Identifier: Apache-2.0
"""The check itself finds what it is there to find."""

import pytest
import torch
from waiting import no_waiting

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
