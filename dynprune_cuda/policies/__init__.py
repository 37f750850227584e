# SPDX-License-Identifier: Apache-2.0
"""Which samples to train on next: one small frozen class per rule, and how to write your own."""

from dynprune_cuda.policies.adaptive import Adaptive
from dynprune_cuda.policies.balanced import Balanced
from dynprune_cuda.policies.covered import Covered
from dynprune_cuda.policies.epsilon_greedy import EpsilonGreedy
from dynprune_cuda.policies.full import Full
from dynprune_cuda.policies.ies import IES
from dynprune_cuda.policies.infobatch import InfoBatch
from dynprune_cuda.policies.orderdp import OrderDP
from dynprune_cuda.policies.paper import paper
from dynprune_cuda.policies.protocol import Policy, WeighingPolicy
from dynprune_cuda.policies.registry import names, register, resolve
from dynprune_cuda.policies.repb import RePB
from dynprune_cuda.policies.seta import SeTa
from dynprune_cuda.policies.static_subset import StaticSubset
from dynprune_cuda.policies.ucb import UCB
from dynprune_cuda.policies.uniform import RandomStatic, UniformRandom
from dynprune_cuda.policies.weighted import Weighted

__all__ = [
    "IES",
    "UCB",
    "Adaptive",
    "Balanced",
    "Covered",
    "EpsilonGreedy",
    "Full",
    "InfoBatch",
    "OrderDP",
    "Policy",
    "RandomStatic",
    "RePB",
    "SeTa",
    "StaticSubset",
    "UniformRandom",
    "WeighingPolicy",
    "Weighted",
    "names",
    "paper",
    "register",
    "resolve",
]
