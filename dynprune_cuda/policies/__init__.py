# SPDX-License-Identifier: Apache-2.0
"""Which samples to train on next: one small frozen class per rule, and how to write your own."""

from dynprune_cuda.policies.balanced import Balanced
from dynprune_cuda.policies.choosing import names, resolve
from dynprune_cuda.policies.infobatch import InfoBatch
from dynprune_cuda.policies.protocol import Policy, WeighingPolicy
from dynprune_cuda.policies.rules import (
    UCB,
    EpsilonGreedy,
    Full,
    RandomStatic,
    StaticSubset,
    UniformRandom,
    Weighted,
)

__all__ = [
    "UCB",
    "Balanced",
    "EpsilonGreedy",
    "Full",
    "InfoBatch",
    "Policy",
    "RandomStatic",
    "StaticSubset",
    "UniformRandom",
    "WeighingPolicy",
    "Weighted",
    "names",
    "resolve",
]
