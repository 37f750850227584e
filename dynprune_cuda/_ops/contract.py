# SPDX-License-Identifier: Apache-2.0
"""The numbers and names that the operators take, as the compiled module defines them.

tests/functional/test_registration.py compares them with the names that the compiled module exports.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor


class RankingKind(IntEnum):
    """How a key is computed; the order is that of `RankingKind` in csrc/shared/ranking_spec.h."""

    SCORE = 0
    UCB_VARIANCE = 1
    UCB_STD = 2
    UCB1 = 3
    WEIGHT = 4
    EXPLORE = 5  # a hash of the sample id; the random part of epsilon-greedy
    SCORE_WEIGHT = 6  # weighted sampling by the score
    SCORE_WEIGHT_SQRT = 7  # weighted sampling by the square root of the score


class Score(IntEnum):
    """The score that the table records; of MARGIN, the negative."""

    LOSS = 0
    EL2N = 1
    ENTROPY = 2
    MARGIN = 3


class Reduction(IntEnum):
    """How the losses of a batch become the result."""

    NONE = 0
    MEAN = 1
    SUM = 2


class RowReduction(IntEnum):
    """How the rows of one sample in a batch become its value."""

    MEAN = 0
    SUM = 1
    MAX = 2


class GradientTime(IntEnum):
    """When the gradient is computed: not at all, by the step, or by the backward pass."""

    NEVER = 0
    NOW = 1
    LATER = 2


class StepColumn(IntEnum):
    """The rows of the step's result `scores`, [5, B]."""

    LOSS = 0  # unweighted
    EL2N = 1
    ENTROPY = 2
    MARGIN = 3
    ROW_WEIGHT = 4  # derivative of the sum of the step's loss by the unweighted loss


class SavedColumn(IntEnum):
    """What backward needs of a row: the columns of `saved`, [B, 4]."""

    MAX = 0
    LOG_NORMALISER = 1
    MISS = 2  # 1 - probability of the target
    SUM_WEIGHT = 3


class StepArguments(NamedTuple):
    """The arguments of scored_cross_entropy_step_ between `logits` and `gradient`."""

    target: Tensor
    sample_ids: Tensor
    mean: Tensor
    variance: Tensor
    count: Tensor  # type: ignore[assignment]  # hides the method of tuple
    non_finite_count: Tensor | None
    last_non_finite: Tensor | None
    last_correct: Tensor | None
    forget_count: Tensor | None
    ticket: Tensor | None
    alpha: float
    published_first_visit: bool
    score: int
    row_reduction: int
    rows_per_id: int  # which follow each other
    reduction: int
    sample_weight: Tensor | None
    token_weight: Tensor | None
    divisor: Tensor | None  # of a mean
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    second_target: Tensor | None
    lam: Tensor | None
    grad_scale: Tensor | None

    def without_indices(self) -> tuple[Any, ...]:
        """Returns the arguments of soft_cross_entropy_step_, whose target has no indices."""
        *others, _ignore_index, label_smoothing, _second_target, _lam, grad_scale = self
        return (*others, label_smoothing, grad_scale)
