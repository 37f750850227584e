# SPDX-License-Identifier: Apache-2.0
"""The object that a training script touches: scores in, subsets and samplers out."""

from dynprune_cuda.pruner.pruner import Pruner

__all__ = ["Pruner"]
