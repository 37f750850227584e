# SPDX-License-Identifier: Apache-2.0
"""Selections on a whole table; see `functional` for what they have in common."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    as_choice,
    as_device,
    as_float,
    as_int,
    check_num_samples,
    empty_on,
    is_freed,
)
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._ops import ops
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.functional.ranking import FixedIds, Ranking, SelectionRule, Uniform

Order = Literal["random", "ascending"]


def select_top_k(
    scores: Tensor, k: int, *, seed: int | Tensor = 0, order: Order = "random"
) -> Tensor:
    """The k samples with the greatest scores.

    Args:
        scores: [N] float32, float16, bfloat16 or float64; any strides.
        k: See `functional`.
        seed: See `functional`; it breaks ties and draws the order.
        order: See `functional`.

    Returns:
        [k] int64 sample ids.
    """
    return _select_ranked(Ranking.by_score(scores), k, seed, order)


def select_epsilon_greedy(
    scores: Tensor, k: int, epsilon: float, *, seed: int | Tensor = 0, order: Order = "random"
) -> Tensor:
    """The greatest scores, with a share of the k samples drawn uniformly from all others.

    n_random = floor(epsilon * k + 0.5) samples are drawn without replacement from what the k -
    n_random greatest scores left over (epsilon-greedy, Sutton & Barto 2018, section 2.2, for a set
    of arms).

    Args:
        scores: [N] float32, float16, bfloat16 or float64; any strides.
        k: See `functional`.
        epsilon: Share of random samples, in [0, 1].
        seed: See `functional`.
        order: See `functional`.

    Returns:
        [k] int64 sample ids.
    """
    epsilon = as_float("epsilon", epsilon, low=0.0, high=1.0)
    ranking = Ranking.by_score(scores, random_share=epsilon)
    return _select_ranked(ranking, k, seed, order)


def select_ucb(
    mean: Tensor,
    variance: Tensor,
    k: int,
    *,
    c: float = 1.0,
    bonus: Literal["variance", "std"] = "variance",
    seed: int | Tensor = 0,
    order: Order = "random",
) -> Tensor:
    """The k samples with the greatest upper confidence bound.

    Computed inside the selection and never stored: the bound is mean + c * variance (as in the UCB
    baseline that the authors of InfoBatch released) or mean + c * sqrt(variance), in float32 with
    one fused multiply-add.

    Args:
        mean: [N] float32, float16 or bfloat16; NaN ranks first.
        variance: [N], dtype and device of mean.
        k: See `functional`.
        c: Weight of the bonus, finite.
        bonus: "variance" or "std".
        seed: See `functional`.
        order: See `functional`.

    Returns:
        [k] int64 sample ids.
    """
    return _select_ranked(Ranking.by_ucb(mean, variance, c=c, bonus=bonus), k, seed, order)


def select_ucb1(
    mean: Tensor,
    count: Tensor,
    k: int,
    *,
    c: float = 1.0,
    step: float,
    seed: int | Tensor = 0,
    order: Order = "random",
) -> Tensor:
    """The k samples with the greatest mean + c * sqrt(log(step) / count); count 0 ranks first.

    Auer, Cesa-Bianchi & Fischer 2002 (UCB1, where c is sqrt(2)), in float32 with one fused
    multiply-add.

    Args:
        mean: [N] float32.
        count: [N] int32 or int64, visits of each sample.
        k: See `functional`.
        c: Weight of the bonus, finite.
        step: Number of visits of all samples so far, at least 1.
        seed: See `functional`.
        order: See `functional`.

    Returns:
        [k] int64 sample ids.
    """
    return _select_ranked(Ranking.by_ucb1(mean, count, c=c, step=step), k, seed, order)


def select_uniform(
    num_samples: int,
    k: int,
    *,
    seed: int | Tensor = 0,
    device: torch.device | str | int = "cpu",
    order: Order = "random",
) -> Tensor:
    """A uniformly random subset: the first k elements of `permutation` with the same seed.

    In random order this is O(k) work and reads nothing.

    Args:
        num_samples: N.
        k: See `functional`.
        seed: See `functional`.
        device: Where the ids go.
        order: See `functional`.

    Returns:
        [k] int64 sample ids.
    """
    num_samples = as_int("num_samples", num_samples, minimum=0)
    check_num_samples("num_samples", num_samples)
    k = _check_k(k, num_samples)
    like = empty_on("device", device)
    return _ids(
        ops.select_uniform(like, num_samples, k, *_seed_and_order(seed, order, like.device))
    )


def select_weighted(
    weights: Tensor, k: int, *, seed: int | Tensor = 0, order: Order = "random"
) -> Tensor:
    """Draws k samples without replacement, with probability proportional to the weights left.

    Efraimidis & Spirakis 2006: the k greatest w / E with E ~ Exp(1). Infinite weights come first;
    zero weights only when no positive ones remain, at random. The order is independent of the
    weights.

    Args:
        weights: [N] float32, float16, bfloat16 or float64, >= 0. A negative or NaN weight is a
            ValueError on the CPU; on CUDA it counts as zero and `check_errors` raises.
        k: See `functional`.
        seed: See `functional`.
        order: See `functional`.

    Returns:
        [k] int64 sample ids.
    """
    return _select_ranked(Ranking.by_weight(weights), k, seed, order)


def permutation(
    num_samples: int, *, seed: int | Tensor = 0, device: torch.device | str | int = "cpu"
) -> Tensor:
    """A seeded random permutation of 0 .. num_samples - 1, the same on every device.

    A keyed bijection (Mitchell et al. 2021, arXiv:2106.06161) evaluated position by position: no
    sort, no memory beside the result.

    Args:
        num_samples: N.
        seed: See `functional`.
        device: Where the ids go.

    Returns:
        [N] int64.
    """
    return select_uniform(num_samples, num_samples, seed=seed, device=device)


def select(
    rule: SelectionRule,
    num_samples: int,
    k: int,
    *,
    seed: int | Tensor = 0,
    device: torch.device | str | int = "cpu",
    order: Order = "ascending",
) -> Tensor:
    """Selects from a whole table by any rule.

    Args:
        rule: A `Ranking` of all samples, `Uniform()`, or `FixedIds`.
        num_samples: N.
        k: See `functional`.
        seed: See `functional`.
        device: Where the ids go; a ranking's values are there already.
        order: See `functional`; fixed ids are ascending, whatever it is.

    Returns:
        [k] int64 sample ids.

    Raises:
        TypeError: `rule` is none.
        ValueError: The rule does not fit the number of samples or `k`.
    """
    if isinstance(rule, Ranking):
        if len(rule.values) != num_samples:
            raise ValueError(
                f"{rule.name} must have {num_samples} elements, one per sample, got "
                f"{len(rule.values)}"
            )
        return _select_ranked(rule, k, seed, order)
    k = _check_k(k, num_samples)
    as_choice("order", order, ("random", "ascending"))
    if isinstance(rule, Uniform):
        if k == num_samples and order == "ascending":
            return torch.arange(num_samples, device=as_device("device", device))
        return select_uniform(num_samples, k, seed=seed, device=device, order=order)
    if isinstance(rule, FixedIds):
        if k != rule.count(num_samples):
            raise ValueError(f"k must be the number of ids, {len(rule.tensor)}, got {k}")
        return move_without_waiting("ids", rule.tensor, as_device("device", device))
    raise TypeError(f"rule must be a Ranking, Uniform or FixedIds, got {type(rule).__name__}")


def _select_ranked(ranking: Ranking, k: int, seed: int | Tensor, order: Order) -> Tensor:
    k = _check_k(k, ranking.values.numel())
    common = _seed_and_order(seed, order, ranking.values.device)
    return _ids(ops.select_ranked(*ranking.arguments(), k, ranking.num_random(k), *common))


def _check_k(k: Any, num_samples: int) -> int:
    number = as_int("k", k)
    if not 0 <= number <= num_samples:
        raise ValueError(f"k must be in [0, {num_samples}], got {number}")
    return number


def _seed_and_order(seed: Any, order: Any, device: torch.device) -> tuple[Tensor | None, int, bool]:
    """seed_tensor, seed and ascending, as every selection op takes them last."""
    ascending = as_choice("order", order, ("random", "ascending")) == "ascending"
    if isinstance(seed, Tensor):
        if is_freed(seed):
            raise ValueError("seed must be a number, got a tensor whose storage was freed")
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise ValueError(
                "seed must be an int or a 0-d int64 tensor, "
                f"got {seed.dtype} of shape {tuple(seed.shape)}"
            )
        if seed.device != device:
            raise ValueError(f"seed must be on {device}, got {seed.device}")
        return seed, 0, ascending
    return None, as_int64(as_int("seed", seed)), ascending


def _ids(ids: Tensor) -> Tensor:
    """An op's result, typed."""
    return ids
