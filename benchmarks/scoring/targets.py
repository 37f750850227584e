# SPDX-License-Identifier: Apache-2.0
"""What was promised of the scored step's speed on 2 cores: a table can say whether it holds."""

from __future__ import annotations

from benchmarks.selection.targets import Target

TIMES_EAGER = {(512, 10): 5.0, (512, 100): 5.0, (256, 1000): 3.0, (64, 32768): 4.0}
TIMES_COMPILED = 1.3
TIMES_LOSS_ALONE = 1.15  # what the step takes, at most


def find(device_type: str, dtype: str, shape: tuple[int, int], rival: str) -> Target | None:
    """The target for the ratio of a rival's full step to ours, None where nothing was promised."""
    if device_type != "cpu" or dtype != "float32":
        return None
    if rival == "loss alone":
        return Target(f"at most {TIMES_LOSS_ALONE:g} times its time", 1 / TIMES_LOSS_ALONE)
    if shape not in TIMES_EAGER or rival not in ("eager", "torch.compile"):
        return None
    factor = TIMES_EAGER[shape] if rival == "eager" else TIMES_COMPILED
    return Target(f"{factor:g}x faster", factor)
