# SPDX-License-Identifier: Apache-2.0
"""The only door to the compiled module."""

from dynprune_cuda._ops.library import StepLoss, compiled, ops

__all__ = ["StepLoss", "compiled", "ops"]
