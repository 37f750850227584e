# SPDX-License-Identifier: Apache-2.0
"""Seeds of single purposes, derived from the seed of the run."""

from __future__ import annotations

_MASK = 2**64 - 1


def derive_seed(seed: int, *path: int | str) -> int:
    """Derives the seed of one purpose from the seed of the run.

    A chain of splitmix64 finalisers, one per word of `path`. For a given path it is one-to-one in
    `seed` modulo 2**64: no two runs share a stream, and no bit of the seed is lost.

    Args:
        seed: The seed of the run.
        *path: What the seed is for, for example "order" and the epoch.

    Returns:
        An int in [0, 2**64), the same on every machine and in every process.
    """
    state = _mix(seed & _MASK)
    for part in path:
        for word in _words(part):
            state = _mix(state ^ word)
    return state


def as_int64(seed: int) -> int:
    """Returns a seed modulo 2**64 as an int64 holds it."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _words(part: int | str) -> list[int]:
    """Returns a path element as 64-bit words, led by its kind and length."""
    if isinstance(part, str):
        data = part.encode()
        words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
        return [2 * len(data) + 1, *words]
    return [0, part & _MASK]


def _mix(value: int) -> int:
    """Advances splitmix64 by one step (https://prng.di.unimi.it/splitmix64.c)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
