# SPDX-License-Identifier: Apache-2.0
"""What a selection ranks by, as data: the same description serves whole tables and shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    COUNT_DTYPES,
    FLOATING,
    as_choice,
    as_float,
    check_vector,
    on_host,
)
from dynprune_cuda._ops.contract import RankingKind

BONUSES = ("variance", "std")

_NO_DOUBLES = (torch.float32, torch.float16, torch.bfloat16)
FLOAT32_MAX = torch.finfo(torch.float32).max


def as_start(start: Any) -> float:
    """Returns a starting point as selections take it: in [0, 1), a multiple of 2^-24."""
    number = as_float("start", start, low=0.0, high=1.0)
    if number == 1.0:
        raise ValueError(f"start must be below 1, got {start!r}")
    return math.floor(number * (1 << 24)) / (1 << 24)


class Ranking(NamedTuple):
    """Samples by the greatest key; make one with the `by_` functions, which check it.

    Attributes:
        kind: How the key is computed.
        values: Scores, means or weights, floating point [N].
        second: Variances or counts [N], or None.
        c: Weight of the bonus; of draws by weights, the starting point.
        log_step: Logarithm of the number of visits, for UCB1.
        random_share: Share of the samples that is drawn uniformly from what is left over.
    """

    kind: RankingKind
    values: Tensor
    second: Tensor | None = None
    c: float = 0.0
    log_step: float = 0.0
    random_share: float = 0.0

    @classmethod
    def by_score(cls, scores: Tensor, *, random_share: float = 0.0) -> Ranking:
        """Ranks by the scores themselves, greatest first.

        Args:
            scores: [N] float32, float16, bfloat16 or float64; any strides. NaN ranks first.
            random_share: Epsilon of epsilon-greedy, in [0, 1]: of k samples,
                floor(random_share * k + 0.5) are drawn uniformly from what is left over.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype, a shape or the share is wrong.
        """
        check_vector("scores", scores, FLOATING)
        if not (type(random_share) is float and random_share == 0.0):
            random_share = as_float("random_share", random_share, low=0.0, high=1.0)
        return cls(RankingKind.SCORE, scores.detach(), None, 0.0, 0.0, random_share)

    @classmethod
    def by_ucb(
        cls,
        mean: Tensor,
        variance: Tensor,
        *,
        c: float = 1.0,
        bonus: Literal["variance", "std"] = "variance",
    ) -> Ranking:
        """Ranks by mean + c * variance, or mean + c * sqrt(variance), computed when selecting.

        Args:
            mean: [N] float32, float16 or bfloat16; NaN ranks first.
            variance: [N], dtype and device of mean.
            c: Weight of the bonus, finite.
            bonus: "variance" or "std".

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype, a shape or a value is wrong.
        """
        check_vector("mean", mean, _NO_DOUBLES)
        check_vector("variance", variance, (mean.dtype,), mean)
        c = as_float("c", c, low=-FLOAT32_MAX, high=FLOAT32_MAX)
        std = as_choice("bonus", bonus, BONUSES) == "std"
        kind = RankingKind.UCB_STD if std else RankingKind.UCB_VARIANCE
        return cls(kind, mean.detach(), variance.detach(), c)

    @classmethod
    def by_ucb1(cls, mean: Tensor, count: Tensor, *, c: float = 1.0, step: float) -> Ranking:
        """Ranks by mean + c * sqrt(log(step) / count); count 0 ranks first.

        Args:
            mean: [N] float32.
            count: [N] int32 or int64, visits of each sample.
            c: Weight of the bonus, finite.
            step: Number of visits of all samples so far, at least 1.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype, a shape or a value is wrong.
        """
        check_vector("mean", mean, (torch.float32,))
        check_vector("count", count, COUNT_DTYPES, mean)
        c = as_float("c", c, low=-FLOAT32_MAX, high=FLOAT32_MAX)
        log_step = math.log(as_float("step", step, low=1.0))
        return cls(RankingKind.UCB1, mean.detach(), count, c, log_step)

    @classmethod
    def by_weight(cls, weights: Tensor, *, start: float = 0.0) -> Ranking:
        """Draws without replacement, in proportion to the weights (Efraimidis & Spirakis 2006).

        Draws with one seed share their random numbers, which lie on a circle. `start` turns it. Let
        it grow by k / N with each selection of k samples. Then each takes what the one before left
        out, as far as the weights allow. With equal weights, N / k selections take nearly every
        sample once. The chances of one selection alone are the same for every `start`. It is
        negative coordination by permanent random numbers (Ohlsson 1995).

        Args:
            weights: [N] float32, float16, bfloat16 or float64, >= 0. A negative or NaN weight is a
                ValueError on the CPU; on CUDA it counts as zero and `check_errors` raises.
            start: Starting point on the circle, in [0, 1); rounded to a multiple of 2^-24.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The dtype, the shape or the starting point is wrong.
        """
        check_vector("weights", weights, FLOATING)
        return cls(RankingKind.WEIGHT, weights.detach(), None, as_start(start))

    @classmethod
    def by_score_weight(cls, scores: Tensor, *, power: float = 1.0, start: float = 0.0) -> Ranking:
        """Draws without replacement, in proportion to a power of the scores.

        The power is computed while selecting; nothing is stored. Scores that are not positive weigh
        nothing and are drawn when positive ones run out. NaN comes first.

        Args:
            scores: [N] float32, float16 or bfloat16; any strides.
            power: 0.5 or 1.
            start: As of `by_weight`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype, a shape or the power is wrong.
        """
        check_vector("scores", scores, _NO_DOUBLES)
        if as_float("power", power, low=0.0) not in (0.5, 1.0):
            raise ValueError(f"power must be 0.5 or 1, got {power!r}")
        kind = RankingKind.SCORE_WEIGHT if power == 1.0 else RankingKind.SCORE_WEIGHT_SQRT
        return cls(kind, scores.detach(), None, as_start(start))

    @property
    def name(self) -> str:
        """What errors call the values."""
        if self.kind == RankingKind.WEIGHT:
            return "weights"
        by_bound = (RankingKind.UCB_VARIANCE, RankingKind.UCB_STD, RankingKind.UCB1)
        return "mean" if self.kind in by_bound else "scores"

    def weights(self) -> Tensor:
        """Returns what samples are drawn in proportion to, float32 [N]; NaN scores are infinite.

        Raises:
            ValueError: Nothing is drawn by weights.
        """
        values = self.values.to(torch.float32)
        if self.kind == RankingKind.WEIGHT:
            return values.nan_to_num(nan=0.0, posinf=math.inf).clamp_(min=0.0)  # as selections do
        if self.kind not in (RankingKind.SCORE_WEIGHT, RankingKind.SCORE_WEIGHT_SQRT):
            raise ValueError(
                f"rule must be drawn by weights to be rescaled, got {self.kind.name}: use "
                "Ranking.by_weight or Ranking.by_score_weight"
            )
        values = values.nan_to_num(nan=math.inf, posinf=math.inf).clamp_(min=0.0)
        return values.sqrt_() if self.kind == RankingKind.SCORE_WEIGHT_SQRT else values

    def num_random(self, k: int) -> int:
        """Returns how many of `k` samples are drawn at random.

        Args:
            k: How many samples are selected.
        """
        return math.floor(self.random_share * k + 0.5) if self.random_share else 0

    def arguments(self) -> tuple[Tensor, Tensor | None, int, float, float]:
        """Returns values, second, ranking, c and log_step, as the operators take them first."""
        return self.values, self.second, int(self.kind), self.c, self.log_step


@dataclass(frozen=True)
class Uniform:
    """Samples drawn uniformly, whatever their scores are."""


@dataclass(frozen=True, eq=False)
class FixedIds:
    """Samples that are known from the beginning.

    Attributes:
        ids: Ascending sample ids, int64 [num_ids], on the CPU. Given as any integer sequence,
            array or tensor, in any order.

    Raises:
        TypeError: `ids` cannot become a tensor.
        ValueError: `ids` is empty, not 1-D or not of integers, or an id is negative or repeated.
    """

    ids: Tensor | Sequence[int]

    def __post_init__(self) -> None:
        """Checks and sorts the ids."""
        object.__setattr__(self, "ids", _sorted_ids(self.ids))

    @property
    def tensor(self) -> Tensor:
        """The ids."""
        assert isinstance(self.ids, Tensor)
        return self.ids

    def count(self, num_samples: int) -> int:
        """Returns how many ids there are, if all are below `num_samples`; else ValueError.

        Args:
            num_samples: Size of the training set.
        """
        largest = int(self.tensor[-1])
        if largest >= num_samples:
            raise ValueError(f"ids must be below num_samples={num_samples}, got {largest}")
        return len(self.tensor)


def _sorted_ids(ids: Any) -> Tensor:
    """Returns sample ids, checked, on the CPU, int64, ascending."""
    tensor = on_host("ids", ids)
    if tensor.dim() != 1:
        raise ValueError(f"ids must be 1-D, got shape {tuple(tensor.shape)}")
    if len(tensor) == 0:
        raise ValueError("ids must hold at least one sample id, got none")
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise ValueError(f"ids must have an integer dtype, got {tensor.dtype}")
    ordered = tensor.to(torch.int64).sort().values
    if int(ordered[0]) < 0:
        raise ValueError(f"ids must not be negative, got {int(ordered[0])}")
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"ids must be distinct, got {int(repeated[0])} more than once")
    return ordered
