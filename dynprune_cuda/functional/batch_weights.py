# SPDX-License-Identifier: Apache-2.0
"""Weights of the rows of a batch: those that rows are drawn by, and those that undo a choice."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.functional.selection import select_top_k


def percentile_weights(scores: Tensor, k: int) -> Tensor:
    """Returns what selective backpropagation draws k rows in proportion to, float32 [B].

    Equal scores rank by their position. Rows of score -inf weigh nothing.

    Args:
        scores: float32 [B]; NaN ranks as the greatest.
        k: How many rows are drawn, from 1 to B.
    """
    num_rows = len(scores)
    order = scores.argsort(stable=True)
    shares = torch.arange(num_rows, dtype=torch.float64, device=scores.device)
    weights = shares.add_(0.5).div_(num_rows).pow_(num_rows / k - 1.0).to(torch.float32)
    weights = torch.empty_like(weights).index_copy_(0, order, weights)
    return weights.masked_fill_(scores == -torch.inf, 0.0)


def epsilon_weights(scores: Tensor, rows: Tensor, epsilon: float, seed: Tensor) -> Tensor:
    """Returns k/B over each row's chance to be chosen by the greatest scores and a random share.

    Args:
        scores: float32 [B].
        rows: The rows that were chosen, int64 [k].
        epsilon: Random share of the k rows.
        seed: What they were chosen with, int64, 0-d, on the device.

    Returns:
        float32 [k]: k/B of the greatest scores, whose chance is 1; more of the others.

    Raises:
        ValueError: No row is drawn at random.
    """
    num_rows, k = len(scores), len(rows)
    num_random = Ranking.by_score(scores, random_share=epsilon).num_random(k)
    if num_random == 0:
        raise ValueError(
            f"epsilon must draw at least one of {k} rows with rescale=True, got "
            f"{epsilon}: use at least {0.5 / k:.3g}"
        )
    greedy = k - num_random
    best = select_top_k(scores, greedy, seed=seed, order="ascending")
    is_best = torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, best, True)
    share = k / num_rows
    weights = torch.full_like(scores, share * (num_rows - greedy) / num_random)
    return weights.masked_fill_(is_best, share).index_select(0, rows)
