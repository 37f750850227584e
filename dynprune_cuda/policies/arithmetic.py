# SPDX-License-Identifier: Apache-2.0
"""Sums and coins that are the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda._schedule.seeds import as_int64, derive_seed

# A score becomes an integer of so many bits: with up to 2^32 of them, no sum overflows 63 bits.
_SCORE_BITS = 30


def as_integers(values: Tensor, largest: Tensor) -> Tensor:
    """Returns values as integers, whose sums do not depend on the order of the additions.

    Args:
        values: float64 [n].
        largest: The greatest absolute value that each is added with, float64, 0-d or [n].

    Returns:
        int64 [n], of at most 30 bits: the values times a power of two.
    """
    # 2^e has the bits of (1023 + e) << 52 as a float64.
    exponent = torch.frexp(largest).exponent.long()
    scale = ((1023 + _SCORE_BITS - exponent) << 52).view(torch.float64)
    return (values * scale).round_().long()


def coins(num_samples: int, chance: float, *, seed: int, device: torch.device) -> Tensor:
    """Returns independent random decisions, without waiting.

    Args:
        num_samples: How many.
        chance: Probability that one is True, in [0, 1].
        seed: Decides all of them.
        device: Where they go.

    Returns:
        bool [num_samples], the same on every device.
    """
    # The finaliser of splitmix64 (https://prng.di.unimi.it/splitmix64.c), modulo 2^64.
    words = torch.arange(num_samples, device=device) * as_int64(0x9E3779B97F4A7C15)
    words += as_int64(derive_seed(seed, "coins"))
    words = (words ^ _shifted(words, 30)) * as_int64(0xBF58476D1CE4E5B9)
    words = (words ^ _shifted(words, 27)) * as_int64(0x94D049BB133111EB)
    return _shifted(words ^ _shifted(words, 31), 11) < int(chance * 2.0**53)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Returns int64 words shifted right, filled up with zeros."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
