# SPDX-License-Identifier: Apache-2.0
"""The only door to the compiled module: operators, fake kernels, autograd formulas."""

from dynprune_cuda._ops import fakes
from dynprune_cuda._ops.autograd import StepLoss
from dynprune_cuda._ops.binary_cross_entropy import BinaryArguments, BinaryStepLoss
from dynprune_cuda._ops.errors import checking_weights
from dynprune_cuda._ops.library import compiled, ops
from dynprune_cuda._ops.linear_cross_entropy import LinearArguments, LinearLoss

fakes.register()

__all__ = [
    "BinaryArguments",
    "BinaryStepLoss",
    "LinearArguments",
    "LinearLoss",
    "StepLoss",
    "checking_weights",
    "compiled",
    "ops",
]
