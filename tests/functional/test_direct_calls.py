# SPDX-License-Identifier: Apache-2.0
"""The operators refuse what a caller of torch.ops can get wrong."""

import subprocess
import sys

import pytest
from paths import ROOT

CALLS = ROOT / "tests" / "support" / "wrong_calls.py"


@pytest.mark.slow
def test_direct_calls_with_wrong_arguments_raise_and_do_not_crash():
    """In another process, so that a crash fails this test only."""
    done = subprocess.run(
        [sys.executable, str(CALLS)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused" in done.stdout
