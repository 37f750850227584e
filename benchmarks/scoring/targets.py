# SPDX-License-Identifier: Apache-2.0
"""The targets for the speed of the scored step, stated for 2 CPU cores and float32."""

from __future__ import annotations

from benchmarks.common.targets import Target, at_most, faster

TIMES_EAGER: dict[tuple[int, ...], float] = {
    (512, 10): 5.0,
    (512, 100): 4.0,
    (256, 1000): 4.5,
    (64, 32768): 6.5,
}
TIMES_EAGER_OF: dict[str, dict[tuple[int, ...], float]] = {
    "soft": {(512, 1000): 4.0},
    "labels": {(512, 80): 4.0},
    "pixels": {(8, 21, 128, 128): 4.0},
    "tokens": {(16, 128, 8192): 4.0},
}
TIMES_COMPILED = 1.3
TIMES_LOSS_ALONE = 1.15  # at most


def find(
    device_type: str, dtype: str, shape: tuple[int, ...], rival: str, kind: str = ""
) -> Target | None:
    """The target for the ratio of a rival's full step to ours, None where there is no target.

    `kind` says what is trained on; see steps.py.
    """
    if device_type != "cpu" or dtype != "float32":
        return None
    if kind:
        times = TIMES_EAGER_OF[kind].get(shape)
        return None if times is None or rival != "eager" else faster(times)
    if rival == "loss alone":
        return at_most(TIMES_LOSS_ALONE)
    if shape not in TIMES_EAGER or rival not in ("eager", "torch.compile"):
        return None
    return faster(TIMES_EAGER[shape] if rival == "eager" else TIMES_COMPILED)


def find_for_two_ops(
    device_type: str, dtype: str, shape: tuple[int, ...], kind: str = ""
) -> Target | None:
    """The target for the ratio of the compiled step to our two operators, as for `find`."""
    if device_type != "cpu" or dtype != "float32" or kind or shape not in TIMES_EAGER:
        return None
    return Target(f"{TIMES_COMPILED:g}x faster than torch.compile", TIMES_COMPILED)
