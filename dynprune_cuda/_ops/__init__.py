# SPDX-License-Identifier: Apache-2.0
"""The only door to the compiled module: operators, fake kernels, autograd formulas."""

from dynprune_cuda._ops import fakes
from dynprune_cuda._ops.autograd import (
    CROSS_ENTROPY,
    CROSS_ENTROPY_STEP,
    SOFT_CROSS_ENTROPY,
    SOFT_CROSS_ENTROPY_STEP,
    StepLoss,
    apply_ordinary_step,
    scored_losses,
)
from dynprune_cuda._ops.binary_cross_entropy import (
    BINARY_CROSS_ENTROPY,
    BINARY_STEP,
    BinaryArguments,
    BinaryStepLoss,
)
from dynprune_cuda._ops.errors import REFUSALS, checking_weights, is_refusal
from dynprune_cuda._ops.library import compiled, ops
from dynprune_cuda._ops.linear_cross_entropy import LinearArguments, LinearLoss

fakes.register()

__all__ = [
    "BINARY_CROSS_ENTROPY",
    "BINARY_STEP",
    "CROSS_ENTROPY",
    "CROSS_ENTROPY_STEP",
    "REFUSALS",
    "SOFT_CROSS_ENTROPY",
    "SOFT_CROSS_ENTROPY_STEP",
    "BinaryArguments",
    "BinaryStepLoss",
    "LinearArguments",
    "LinearLoss",
    "StepLoss",
    "apply_ordinary_step",
    "checking_weights",
    "compiled",
    "is_refusal",
    "ops",
    "scored_losses",
]
