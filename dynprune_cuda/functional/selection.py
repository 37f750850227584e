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
    check_dense,
    check_num_samples,
    empty_on,
)
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._ops import checking_weights, ops
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.functional.inclusion import (
    inclusion_probabilities,
    loss_factors,
)
from dynprune_cuda.functional.ranking import FixedIds, Ranking, Uniform
from dynprune_cuda.functional.rules import (
    RULES,
    SelectionRule,
    Trimmed,
    WeightedRule,
    trim_seeds,
)
from dynprune_cuda.functional.tilted import Tilted

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
    n_random greatest scores left over. It is epsilon-greedy for a set of arms (Sutton & Barto 2018,
    section 2.2).

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

    The bound is computed inside the selection and never stored. It is mean + c * variance, as in
    the UCB baseline that the authors of InfoBatch released, or mean + c * sqrt(variance). It is
    computed in float32 with one fused multiply-add.

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
            ValueError on the CPU, in compiled code a RuntimeError; on CUDA it counts as zero and
            `check_errors` raises.
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
        rule: A `Ranking` of all samples, `Tilted`, `Trimmed`, `Uniform()`, or `FixedIds`.
        num_samples: N.
        k: See `functional`.
        seed: See `functional`; an int for `Trimmed`.
        device: Where the ids go; a ranking's values are there already.
        order: See `functional`; fixed ids are ascending, whatever it is.

    Returns:
        [k] int64 sample ids.

    Raises:
        TypeError: `rule` is none.
        ValueError: The rule does not fit the number of samples or `k`.
    """
    if isinstance(rule, Ranking | Tilted | Trimmed):
        return _select_ranked(_as_ranking(rule, num_samples, seed), k, seed, order)
    num_samples = as_int("num_samples", num_samples, minimum=0)
    k = _check_k(k, num_samples)
    as_choice("order", order, ("random", "ascending"))
    if not isinstance(seed, Tensor):
        seed = as_int("seed", seed)
    if isinstance(rule, Uniform):
        if k == num_samples and order == "ascending":
            return torch.arange(num_samples, device=as_device("device", device))
        return select_uniform(num_samples, k, seed=seed, device=device, order=order)
    if isinstance(rule, FixedIds):
        if k != rule.count(num_samples):
            raise ValueError(f"k must be the number of ids, {len(rule.tensor)}, got {k}")
        return move_without_waiting("ids", rule.tensor, as_device("device", device))
    raise TypeError(f"rule must be a {RULES}, got {type(rule).__name__}")


def select_rescaled(
    rule: SelectionRule, num_samples: int, k: int, *, seed: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    """Selects by weights, and tells what to multiply the losses by.

    With the factors, the mean loss of the selection estimates the mean loss of all samples. Samples
    that are trimmed, or weigh nothing, count as 0 in that mean; so do those of the easier half with
    `Tilted`. The factors are (k / N) / p, where p is the sample's
    `inclusion_probabilities` (Horvitz & Thompson 1952), and at most 10. A factor of 10 means: drawn
    a tenth as often as the others.

    Args:
        rule: A rule for all samples, by weights: `Ranking.by_weight`, `Ranking.by_score_weight`,
            `Tilted`, or `Trimmed`.
        num_samples: N.
        k: See `functional`.
        seed: See `functional`; an int for `Trimmed`.

    Returns:
        Ascending sample ids, int64 [k], and their factors, float32 [k], on the ranking's device.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The rule is not drawn by weights, or does not fit the number of samples or `k`.
    """
    if not isinstance(rule, Ranking | Tilted | Trimmed):
        raise TypeError(
            f"rule must be a Ranking, Tilted or Trimmed, got {type(rule).__name__}: other rules "
            "have no weights to rescale by"
        )
    ranking = _as_ranking(rule, num_samples, seed)
    weights = ranking.weights()
    ids = _select_ranked(ranking, k, seed, "ascending")
    return ids, loss_factors(inclusion_probabilities(weights, k), k, num_samples)[ids]


def _as_ranking(rule: WeightedRule, num_samples: int, seed: int | Tensor) -> Ranking:
    """Returns the ranking that a rule amounts to, with the scores of all samples."""
    num_samples = as_int("num_samples", num_samples, minimum=0)
    inner = rule.ranking if isinstance(rule, Trimmed) else rule
    values = inner.values
    if len(values) != num_samples:
        raise ValueError(
            f"{inner.name} must have {num_samples} elements, one per sample, got {len(values)}"
        )
    if isinstance(rule, Trimmed):
        if isinstance(seed, Tensor):
            raise TypeError("seed must be an int for Trimmed, got a tensor")
        left_out, exempt = rule.counts(num_samples)
        seeds = trim_seeds(rule, as_int("seed", seed))
        values = rule.without(
            select_top_k(rule.known(), left_out, seed=seeds[0], order="ascending"),
            select_uniform(num_samples, exempt, seed=seeds[1], device=values.device),
        )
    if isinstance(inner, Tilted):
        return inner.ranking(inner.histogram(), values)
    return inner._replace(values=values)


def _select_ranked(ranking: Ranking, k: int, seed: int | Tensor, order: Order) -> Tensor:
    k = _check_k(k, ranking.values.numel())
    common = _seed_and_order(seed, order, ranking.values.device)
    options = (k, ranking.num_random(k), *common)
    return _ids(checking_weights(ops.select_ranked, *ranking.arguments(), *options))


def _check_k(k: Any, num_samples: int) -> int:
    number = as_int("k", k)
    if not 0 <= number <= num_samples:
        raise ValueError(f"k must be in [0, {num_samples}], got {number}")
    return number


def _seed_and_order(seed: Any, order: Any, device: torch.device) -> tuple[Tensor | None, int, bool]:
    """seed_tensor, seed and ascending, as every selection op takes them last."""
    ascending = as_choice("order", order, ("random", "ascending")) == "ascending"
    if isinstance(seed, Tensor):
        check_dense("seed", seed)
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
