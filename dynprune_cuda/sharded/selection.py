# SPDX-License-Identifier: Apache-2.0
"""Selections from the shards of all ranks; see `sharded` for what they have in common."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import (
    COUNT_DTYPES,
    as_choice,
    as_float,
    as_int,
    check_vector,
)
from dynprune_cuda._ops import ops
from dynprune_cuda.distributed import resolve
from dynprune_cuda.distributed.shard import LAYOUTS, Shard
from dynprune_cuda.sharded import bracket_search
from dynprune_cuda.sharded.digit_search import (
    UCB1,
    UCB_STD,
    UCB_VARIANCE,
    WEIGHT,
    Ranking,
    find,
    list_found,
    signed,
    split,
)

# float64 has composite keys of 96 bits, which take no place in an int64.
SCORES = (torch.float32, torch.float16, torch.bfloat16)
_FLOAT32_MAX = torch.finfo(torch.float32).max

# What this rank's samples are ranked by, and which call asks for it.
Asked = tuple[Ranking, tuple[Any, ...]]


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

    def asked() -> Asked:
        _check("scores", scores, SCORES, shard)
        return Ranking(scores.detach()), ("top_k",)

    return _select(asked, k, 0.0, shard, seed, process_group, scores)


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

    Three rounds more than `select_top_k`, 40,960 bytes, find the random part; in one read of the
    scores it needs no sample, since the distribution of a hash is known.

    Args:
        scores: float32, float16 or bfloat16 [len(shard)].
        k: As in `select_top_k`.
        epsilon: Share of random samples, in [0, 1].
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def asked() -> Asked:
        _check("scores", scores, SCORES, shard)
        return Ranking(scores.detach()), ("epsilon_greedy",)

    return _select(asked, k, epsilon, shard, seed, process_group, scores)


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
        variance: Of the same dtype [len(shard)].
        k: As in `select_top_k`.
        c: Weight of the bonus, finite.
        bonus: "variance" or "std".
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def asked() -> Asked:
        _check("mean", mean, SCORES, shard)
        check_vector("variance", variance, (mean.dtype,), mean)
        weight = as_float("c", c, low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
        sqrt_bonus = as_choice("bonus", bonus, ("variance", "std")) == "std"
        kind = UCB_STD if sqrt_bonus else UCB_VARIANCE
        ranking = Ranking(mean.detach(), variance.detach(), kind, weight)
        return ranking, ("ucb", weight, sqrt_bonus)

    return _select(asked, k, 0.0, shard, seed, process_group, mean)


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

    def asked() -> Asked:
        _check("mean", mean, (torch.float32,), shard)
        check_vector("count", count, COUNT_DTYPES, mean)
        weight = as_float("c", c, low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
        log_step = math.log(as_float("step", step, low=1.0))
        ranking = Ranking(mean.detach(), count, UCB1, weight, log_step)
        return ranking, ("ucb1", weight, log_step)

    return _select(asked, k, 0.0, shard, seed, process_group, mean)


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

    def asked() -> Asked:
        _check("weights", weights, SCORES, shard)
        return Ranking(weights.detach(), None, WEIGHT), ("weighted",)

    return _select(asked, k, 0.0, shard, seed, process_group, weights)


def select_uniform(
    k: int, *, shard: Shard, seed: int = 0, device: torch.device | str | int = "cpu"
) -> Tensor:
    """This rank's part of `functional.select_uniform`. Not collective: nobody is asked.

    Args:
        k: As in `select_top_k`.
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        device: Where the ids go.

    Returns:
        As `select_top_k`. Waits for the device, to learn how many there are.
    """
    k = as_int("k", k, minimum=0, maximum=shard.num_samples)
    like = torch.empty((0,), device=device)
    part = (shard.num_samples, shard.first, shard.stride, len(shard))
    places = ops.permutation_part(like, *part, True, None, signed(as_int("seed", seed)))
    return shard.ids_at((places < k).nonzero().flatten())


def _select(
    asked: Callable[[], Asked],
    k: int,
    epsilon: float,
    shard: Shard,
    seed: int,
    process_group: Any,
    like: Tensor,
) -> Tensor:
    """Agrees with all ranks about the arguments, then selects together."""
    ranks = resolve(process_group)
    ranking = Ranking(torch.empty(0))
    keys: Tensor | None = None
    sample: Tensor | None = None
    random = 0

    def prepare() -> dict[str, int]:
        nonlocal ranking, keys, sample, k, seed, random
        if (shard.rank, shard.size) != (ranks.rank, ranks.size):
            raise ValueError(
                f"shard must be that of rank {ranks.rank} of {ranks.size}, got rank {shard.rank} "
                f"of {shard.size}"
            )
        k = as_int("k", k, minimum=0, maximum=shard.num_samples)
        seed = as_int("seed", seed)
        random = split(k, as_float("epsilon", epsilon, low=0.0, high=1.0))
        ranking, call = asked()
        if bracket_search.pays(ranking, shard):
            sample = bracket_search.draw(ranking, shard, seed)
        else:
            keys = ranking.keys(shard, seed)
        return {
            "num_samples": shard.num_samples,
            "layout": LAYOUTS.index(shard.layout),
            "k": k,
            "seed": seed,
            "the number of random samples": random,
            "the function, with its options and dtype (here a hash of them),": _hash(
                (*call, like.dtype)
            ),
        }

    if ranks.size == 1:
        prepare()
    else:
        device = like.device if isinstance(like, Tensor) else torch.device("cpu")
        ranks.meet("the selection", device, prepare, False)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=like.device)
    if sample is not None:
        ids = bracket_search.select(ranking, sample, k, random, shard, seed, ranks)
        if ids is not None:
            return ids
    if keys is None:
        keys = ranking.keys(shard, seed)
    found = find(keys, k, random, shard, seed, ranks)
    return list_found(keys, found, int(found.count), shard, seed)


def _check(name: str, value: Any, dtypes: tuple[torch.dtype, ...], shard: Shard) -> None:
    check_vector(name, value, dtypes)
    if len(value) != len(shard):
        raise ValueError(
            f"{name} must have one element for each of this rank's {len(shard)} samples, got "
            f"{len(value)}"
        )


def _hash(call: tuple[Any, ...]) -> int:
    """Returns 63 bits that are the same for equal calls in every process, unlike hash()."""
    return int.from_bytes(hashlib.sha256(repr(call).encode()).digest()[:8], "big") >> 1
