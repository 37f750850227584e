# SPDX-License-Identifier: Apache-2.0
"""Dynamic data pruning: train on the samples worth it, chosen anew every few epochs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from dynprune_cuda import functional, policies, schedules
from dynprune_cuda._ops import compiled
from dynprune_cuda._schedule.schedule import same_steps
from dynprune_cuda._version import __version__
from dynprune_cuda.batch_selection import BatchChoice, BatchSelector
from dynprune_cuda.data import DeviceLoader, IndexedDataset
from dynprune_cuda.functional import ScoredLoss
from dynprune_cuda.hooks import track_gradient_norm
from dynprune_cuda.policies import (
    UCB,
    Balanced,
    EpsilonGreedy,
    Full,
    InfoBatch,
    RandomStatic,
    StaticSubset,
    UniformRandom,
    Weighted,
)
from dynprune_cuda.pruner import Pruner
from dynprune_cuda.scores.table import ScoreTable
from dynprune_cuda.stats import Stats

if TYPE_CHECKING:
    from dynprune_cuda import sharded, static_scores
    from dynprune_cuda.plotting import KeptHistory, plot_kept
    from dynprune_cuda.static_scores import StaticScores

# Imported at their first use, so that importing the package stays fast.
_LAZY = {
    "sharded": "sharded",
    "static_scores": "static_scores",
    "StaticScores": "static_scores",
    "KeptHistory": "plotting",
    "plot_kept": "plotting",
}


def __getattr__(name: str) -> Any:
    """Imports what `_LAZY` names."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
    return module if name == _LAZY[name] else getattr(module, name)


def __dir__() -> list[str]:
    """Names what is imported later, too."""
    return sorted({*globals(), *_LAZY})


def build_info() -> dict[str, str]:
    """What was built and what runs: versions, architectures, compiler.

    "cuda" is the toolkit's version, "" for a CPU-only build.
    """
    return {
        "version": __version__,
        "torch": torch.__version__,
        "built_with_torch": compiled.TORCH_VERSION,
        "cuda": compiled.CUDA_VERSION,
        "cuda_architectures": compiled.CUDA_ARCHITECTURES,
        "compiler": compiled.COMPILER,
    }


__all__ = [
    "UCB",
    "Balanced",
    "BatchChoice",
    "BatchSelector",
    "DeviceLoader",
    "EpsilonGreedy",
    "Full",
    "IndexedDataset",
    "InfoBatch",
    "KeptHistory",
    "Pruner",
    "RandomStatic",
    "ScoreTable",
    "ScoredLoss",
    "StaticScores",
    "StaticSubset",
    "Stats",
    "UniformRandom",
    "Weighted",
    "build_info",
    "functional",
    "plot_kept",
    "policies",
    "same_steps",
    "schedules",
    "sharded",
    "static_scores",
    "track_gradient_norm",
]
