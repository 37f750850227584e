# SPDX-License-Identifier: Apache-2.0
"""Selections from the shards of all ranks; see `sharded` for what they have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    as_device,
    as_float,
    as_int,
    check_tensor,
    check_type,
    empty_on,
)
from dynprune_cuda._checks.batches import move_without_waiting
from dynprune_cuda._ops import ops
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.distributed.ranks import Ranks, resolve
from dynprune_cuda.distributed.shard import LAYOUTS, Shard
from dynprune_cuda.functional.inclusion import histogram, loss_factors, probabilities
from dynprune_cuda.functional.ranking import FixedIds, Ranking, Uniform
from dynprune_cuda.functional.rules import (
    RULES,
    SelectionRule,
    Trimmed,
    WeightedRule,
    trim_seeds,
)
from dynprune_cuda.functional.tilted import Tilted
from dynprune_cuda.sharded import bracket_search
from dynprune_cuda.sharded.digit_search import find_thresholds, list_selected
from dynprune_cuda.sharded.ranking import DTYPES, check_rows, keys_of, options_hash


def select_top_k(
    scores: Tensor, k: int, *, shard: Shard, seed: int = 0, process_group: Any = None
) -> Tensor:
    """This rank's part of `functional.select_top_k`. Collective.

    Args:
        scores: float32, float16 or bfloat16 [len(shard)].
        k: How many samples all ranks select together, from 0 to `shard.num_samples`.
        shard: Which samples this rank holds.
        seed: Any int, modulo 2^64.
        process_group: The ranks; None is the default group, or this process alone without one.

    Returns:
        Ascending sample ids, int64 [as many as this rank holds of the selection].

    Raises:
        TypeError: An argument has the wrong type, on any rank.
        ValueError: An argument is wrong, or differs between ranks.
        RuntimeError: Another rank's arguments are wrong.
    """

    def ranking() -> Ranking:
        check_tensor("scores", scores, DTYPES)
        return Ranking.by_score(scores)

    return _select(ranking, k, shard, seed, process_group, scores)


def select_epsilon_greedy(
    scores: Tensor,
    k: int,
    epsilon: float,
    *,
    shard: Shard,
    seed: int = 0,
    process_group: Any = None,
) -> Tensor:
    """This rank's part of `functional.select_epsilon_greedy`. Collective.

    Three rounds more than `select_top_k`, 40,960 bytes, find the random part. In one read of the
    scores it needs no sample, since the distribution of a hash is known.

    Args:
        scores: float32, float16 or bfloat16 [len(shard)].
        k: As in `select_top_k`.
        epsilon: Share of random samples, in [0, 1].
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def ranking() -> Ranking:
        check_tensor("scores", scores, DTYPES)
        share = as_float("epsilon", epsilon, low=0.0, high=1.0)
        return Ranking.by_score(scores, random_share=share)

    return _select(ranking, k, shard, seed, process_group, scores)


def select_ucb(
    mean: Tensor,
    variance: Tensor,
    k: int,
    *,
    c: float = 1.0,
    bonus: Literal["variance", "std"] = "variance",
    shard: Shard,
    seed: int = 0,
    process_group: Any = None,
) -> Tensor:
    """This rank's part of `functional.select_ucb`. Collective.

    Args:
        mean: float32, float16 or bfloat16 [len(shard)].
        variance: Variances, of the same dtype [len(shard)].
        k: As in `select_top_k`.
        c: Weight of the bonus, finite.
        bonus: "variance" or "std".
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def ranking() -> Ranking:
        return Ranking.by_ucb(mean, variance, c=c, bonus=bonus)

    return _select(ranking, k, shard, seed, process_group, mean)


def select_ucb1(
    mean: Tensor,
    count: Tensor,
    k: int,
    *,
    c: float = 1.0,
    step: float,
    shard: Shard,
    seed: int = 0,
    process_group: Any = None,
) -> Tensor:
    """This rank's part of `functional.select_ucb1`. Collective.

    Args:
        mean: float32 [len(shard)].
        count: int32 or int64 [len(shard)].
        k: As in `select_top_k`.
        c: Weight of the bonus, finite.
        step: Number of visits of all samples of all ranks so far, at least 1.
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def ranking() -> Ranking:
        return Ranking.by_ucb1(mean, count, c=c, step=step)

    return _select(ranking, k, shard, seed, process_group, mean)


def select_weighted(
    weights: Tensor, k: int, *, shard: Shard, seed: int = 0, process_group: Any = None
) -> Tensor:
    """This rank's part of `functional.select_weighted`. Collective.

    Args:
        weights: float32, float16 or bfloat16 [len(shard)], >= 0. A negative or NaN weight is a
            ValueError on the CPU; on CUDA it counts as zero and `functional.check_errors` raises.
        k: As in `select_top_k`.
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def ranking() -> Ranking:
        check_tensor("weights", weights, DTYPES)
        return Ranking.by_weight(weights)

    return _select(ranking, k, shard, seed, process_group, weights)


def select_uniform(
    k: int, *, shard: Shard, seed: int = 0, device: torch.device | str | int = "cpu"
) -> Tensor:
    """This rank's part of `functional.select_uniform`. Not collective.

    Args:
        k: As in `select_top_k`.
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        device: Where the ids go.

    Returns:
        As `select_top_k`. Waits for the device, to learn how many there are.
    """
    check_type("shard", shard, Shard)
    k = as_int("k", k, minimum=0, maximum=shard.num_samples)
    like = empty_on("device", device)
    part = (shard.num_samples, shard.first, shard.stride, len(shard))
    places = ops.permutation_part(like, *part, True, None, as_int64(as_int("seed", seed)))
    return shard.ids_at((places < k).nonzero().flatten())


def select(
    rule: SelectionRule,
    k: int,
    *,
    shard: Shard,
    seed: int = 0,
    process_group: Any = None,
    device: torch.device | str | int = "cpu",
) -> Tensor:
    """This rank's part of `functional.select`, by any rule. Collective for rankings.

    Args:
        rule: A `Ranking`, `Tilted` or `Trimmed` of this rank's samples, `Uniform()`, or
            `FixedIds` of all ranks.
        k: As in `select_top_k`.
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
        device: Where the ids go; a ranking's values are there already.

    Returns:
        As `select_top_k`.

    Raises:
        TypeError: `rule` is none, or as of `select_top_k`.
        ValueError: As of `select_top_k`, or fixed ids do not fit `k`.
        RuntimeError: Another rank's arguments are wrong.
    """
    if isinstance(rule, Uniform | FixedIds):
        check_type("shard", shard, Shard)
        k = as_int("k", k, minimum=0, maximum=shard.num_samples)
        as_int("seed", seed)
    if isinstance(rule, Uniform):
        if k == shard.num_samples:
            return shard.ids(as_device("device", device))
        return select_uniform(k, shard=shard, seed=seed, device=device)
    if isinstance(rule, FixedIds):
        if k != rule.count(shard.num_samples):
            raise ValueError(f"k must be the number of ids, {len(rule.tensor)}, got {k}")
        own = rule.tensor[shard.owner_of(rule.tensor) == shard.rank]
        return move_without_waiting("ids", own, as_device("device", device))
    if isinstance(rule, Ranking | Tilted | Trimmed):
        ranking = _as_ranking(rule, shard, seed, resolve(process_group))
        return _select(lambda: ranking, k, shard, seed, process_group, ranking.values)

    def refused() -> Ranking:
        raise TypeError(f"rule must be a {RULES}, got {type(rule).__name__}")

    return _select(refused, k, shard, seed, process_group, None)


def select_rescaled(
    rule: SelectionRule, k: int, *, shard: Shard, seed: int = 0, process_group: Any = None
) -> tuple[Tensor, Tensor]:
    """This rank's part of `functional.select_rescaled`. Collective.

    The ranks add up a histogram of their weights, 66 KB, and agree about the factors by it.

    Args:
        rule: As in `functional.select_rescaled`, of this rank's samples.
        k: As in `select_top_k`.
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.

    Returns:
        Ascending sample ids, int64, and their factors, float32 [as many].
    """
    ranks = resolve(process_group)
    if not isinstance(rule, Ranking | Tilted | Trimmed):
        raise TypeError(
            f"rule must be a Ranking, Tilted or Trimmed, got {type(rule).__name__}: other rules "
            "have no weights to rescale by"
        )
    ranking = _as_ranking(rule, shard, seed, ranks)
    weights = ranking.weights()
    ids = select(ranking, k, shard=shard, seed=seed, process_group=ranks)
    k = as_int("k", k)  # an array of NumPy is none for torch
    counts = ranks.add_up_(histogram(weights))
    factors = loss_factors(probabilities(weights, counts, k), k, shard.num_samples)
    return ids, factors[shard.positions_of(ids)]


def _as_ranking(rule: WeightedRule, shard: Shard, seed: int, ranks: Ranks) -> Ranking:
    """Returns this rank's part of the ranking that a rule amounts to. Collective."""
    inner = rule.ranking if isinstance(rule, Trimmed) else rule
    values = inner.values
    if isinstance(rule, Trimmed):
        try:
            check_type("shard", shard, Shard)
            seed = as_int("seed", seed)
        except TypeError:
            # Raises the same where the other ranks hear of it.
            _select(lambda: Ranking.by_score(values), 0, shard, seed, ranks, values)
            raise
        left_out, exempt = rule.counts(shard.num_samples)
        seeds = trim_seeds(rule, seed)
        common: Any = {"shard": shard, "process_group": ranks}
        top = select_top_k(rule.known(), left_out, seed=seeds[0], **common)
        again = select_uniform(exempt, shard=shard, seed=seeds[1], device=values.device)
        values = rule.without(shard.positions_of(top), shard.positions_of(again))
    if isinstance(inner, Tilted):
        return inner.ranking(ranks.add_up_(inner.histogram()), values)
    return inner._replace(values=values)


def _select(
    make_ranking: Callable[[], Ranking],
    k: int,
    shard: Shard,
    seed: int,
    process_group: Any,
    like: Tensor | None,
) -> Tensor:
    """Agrees with all ranks about the arguments, then selects together.

    `make_ranking` is called where its errors reach the other ranks.
    """
    ranks = resolve(process_group)
    ranking: Ranking | None = None
    keys: Tensor | None = None
    sample: Tensor | None = None

    def prepare() -> dict[str, int]:
        nonlocal ranking, keys, sample, k, seed
        check_type("shard", shard, Shard)
        if (shard.rank, shard.size) != (ranks.rank, ranks.size):
            raise ValueError(
                f"shard must be that of rank {ranks.rank} of {ranks.size}, got rank {shard.rank} "
                f"of {shard.size}"
            )
        k = as_int("k", k, minimum=0, maximum=shard.num_samples)
        seed = as_int("seed", seed)
        ranking = make_ranking()
        ranks.check_device(ranking.values.device, f"the device of {ranking.name}")
        check_rows(ranking, shard)
        if bracket_search.is_faster(ranking, shard):
            sample = bracket_search.draw_sample(ranking, shard, seed)
        else:
            keys = keys_of(ranking, shard, seed)
        return {
            "num_samples": shard.num_samples,
            "layout": LAYOUTS.index(shard.layout),
            "k": k,
            "seed": seed,
            "the number of random samples": ranking.num_random(k),
            "the function, with its options and dtype (here a hash of them),": options_hash(
                ranking
            ),
        }

    device = like.device if isinstance(like, Tensor) else torch.device("cpu")
    ranks.agree("the selection", ranks.buffer_device(device), prepare)
    assert ranking is not None
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    num_random = ranking.num_random(k)
    if sample is not None:
        ids = bracket_search.select(ranking, sample, k, num_random, shard, seed, ranks)
        if ids is not None:
            return ids
    if keys is None:
        keys = keys_of(ranking, shard, seed)
    found = find_thresholds(keys, k, num_random, shard, seed, ranks)
    return list_selected(keys, found, int(found.count), shard, seed)
