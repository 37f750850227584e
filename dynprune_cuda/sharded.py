# SPDX-License-Identifier: Apache-2.0
"""Selections that many processes make together, each from the scores of its own samples.

No process ever holds all scores, and no score moves. The total order of `functional` ranks samples
by a composite key of 64 bits: the score's 32, then 32 of a hash of (seed, sample id). The processes
add up histograms of its digits, from the top, until the k-th greatest key is known; each then takes
what it has at or above it. All ranks together select exactly what one process would, as a set,
however many there are and whichever samples each holds, ties and all-equal scores included.

One digit is 11, 11 or 10 bits, a histogram int64: 40,960 bytes per rank are reduced if the scores
decide, 81,920 if the hash of equal scores must, whatever the number of samples. Thresholds stay on
the device: on a GPU all six rounds are reduced, since nobody waits to learn that three were enough.
At the end one small exchange tells how many ids each rank has, and waits.

Every rank of the group calls the same function with the same k, seed and options. A call that
differs, or scores that are wrong, are an error on all ranks. Gradients do not flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune_cuda import distributed
from dynprune_cuda._arguments import (
    COUNT_DTYPES,
    MAX_SAMPLES,
    as_choice,
    as_float,
    as_int,
    check_vector,
)
from dynprune_cuda._ops import ops

__all__ = [
    "Shard",
    "select_epsilon_greedy",
    "select_top_k",
    "select_ucb",
    "select_ucb1",
    "select_uniform",
    "select_weighted",
]

LAYOUTS = ("contiguous", "strided")
KEY_ROUNDS, ALL_ROUNDS = 3, 6
# float64 has composite keys of 96 bits, which take no place in an int64.
SCORES = (torch.float32, torch.float16, torch.bfloat16)
_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Shard:
    """Which samples this process holds.

    Attributes:
        num_samples: How many samples there are in all processes together, at most 2^32.
        rank: This process, from 0.
        size: How many processes there are.
        layout: "contiguous": rank r holds the r-th piece of `ceil(num_samples / size)` ids, as
            `torch.chunk` cuts; the last pieces may be shorter, or empty. "strided": the ids that
            are r modulo `size`.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: An attribute is out of range.
    """

    num_samples: int
    rank: int
    size: int
    layout: str = "contiguous"

    def __post_init__(self) -> None:
        """Checks the attributes."""
        as_int("num_samples", self.num_samples, minimum=0, maximum=MAX_SAMPLES)
        as_int("size", self.size, minimum=1)
        as_int("rank", self.rank, minimum=0, maximum=self.size - 1)
        as_choice("layout", self.layout, LAYOUTS)

    @property
    def piece(self) -> int:
        """Ids per rank, in ranks that are full."""
        return -(-self.num_samples // self.size)

    @property
    def first(self) -> int:
        """The first id of this rank, if it has any."""
        if self.layout == "strided":
            return self.rank
        return min(self.rank * self.piece, self.num_samples)

    @property
    def stride(self) -> int:
        """The distance between neighbours."""
        return self.size if self.layout == "strided" else 1

    def __len__(self) -> int:
        """Returns how many samples this rank holds."""
        if self.layout == "strided":
            return len(range(self.rank, self.num_samples, self.size))
        return min(self.piece, self.num_samples - self.first)

    def ids(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns the ids of this rank, ascending, int64 [len(self)]."""
        return torch.arange(len(self), device=device).mul_(self.stride).add_(self.first)

    def ids_at(self, positions: Tensor) -> Tensor:
        """Returns the ids of samples of this rank, int64."""
        return positions * self.stride + self.first

    def positions_of(self, ids: Tensor) -> Tensor:
        """Returns where samples of this rank are in its tensors, int64."""
        return (ids - self.first) // self.stride

    def owner_of(self, ids: Tensor) -> Tensor:
        """Returns the ranks that hold samples, int64."""
        return ids % self.size if self.layout == "strided" else ids // max(self.piece, 1)


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

    def keys() -> Tensor:
        _check("scores", scores, SCORES, shard)
        return _tensor(ops.keys_by_score(scores.detach()))

    return _select(keys, k, 0.0, shard, seed, process_group, scores)


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

    Three rounds more than `select_top_k`, 40,960 bytes, find the random part.

    Args:
        scores: float32, float16 or bfloat16 [len(shard)].
        k: As in `select_top_k`.
        epsilon: Share of random samples, in [0, 1].
        shard: As in `select_top_k`.
        seed: As in `select_top_k`.
        process_group: As in `select_top_k`.
    """

    def keys() -> Tensor:
        _check("scores", scores, SCORES, shard)
        as_float("epsilon", epsilon, low=0.0, high=1.0)
        return _tensor(ops.keys_by_score(scores.detach()))

    return _select(keys, k, epsilon, shard, seed, process_group, scores)


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

    def keys() -> Tensor:
        _check("mean", mean, SCORES, shard)
        check_vector("variance", variance, (mean.dtype,), mean)
        weight = as_float("c", c, low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
        sqrt_bonus = as_choice("bonus", bonus, ("variance", "std")) == "std"
        return _tensor(ops.keys_by_ucb(mean.detach(), variance.detach(), weight, sqrt_bonus))

    return _select(keys, k, 0.0, shard, seed, process_group, mean)


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

    def keys() -> Tensor:
        _check("mean", mean, (torch.float32,), shard)
        check_vector("count", count, COUNT_DTYPES, mean)
        weight = as_float("c", c, low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
        log_step = math.log(as_float("step", step, low=1.0))
        return _tensor(ops.keys_by_ucb1(mean.detach(), count, weight, log_step))

    return _select(keys, k, 0.0, shard, seed, process_group, mean)


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

    def keys() -> Tensor:
        _check("weights", weights, SCORES, shard)
        first, stride = shard.first, shard.stride
        return _tensor(ops.keys_by_weight(weights.detach(), first, stride, None, signed(seed)))

    return _select(keys, k, 0.0, shard, seed, process_group, weights)


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


@dataclass(frozen=True)
class Found:
    """The thresholds of a selection, on every rank alike, and how much of it this rank has.

    Attributes:
        greedy: int64 [2] on the device, None without a greedy part: the threshold, and 0.
        random: The same of the random part.
        count: How many samples of this rank are selected, 0-d int64 on the device.
        rounds: How many histograms were reduced.
    """

    greedy: Tensor | None
    random: Tensor | None
    count: Tensor
    rounds: int


@torch.no_grad()
def find(keys: Tensor, k: int, num_random: int, shard: Shard, seed: int, group: Any) -> Found:
    """Finds the thresholds of a selection, without waiting for a GPU. Collective.

    Args:
        keys: From one of the keys_by operators, int32 [len(shard)].
        k: How many samples to select, from 1 to `shard.num_samples`.
        num_random: How many of them at random, from 0 to `k`.
        shard: Which samples this rank holds.
        seed: The seed.
        group: The process group; None is the default one.
    """
    place = (shard.first, shard.stride, None, signed(seed))
    greedy = random = None
    count = torch.zeros((), dtype=torch.int64, device=keys.device)
    rounds = 0

    def search(wanted: int, explore: bool) -> Tensor:
        nonlocal count, rounds
        state = torch.zeros(2, dtype=torch.int64, device=keys.device)
        state[1:].fill_(wanted)
        for number in range(KEY_ROUNDS if explore else ALL_ROUNDS):
            own = ops.shard_digit_counts(keys, state, greedy, explore, number, *place)
            total = own
            if shard.size > 1:
                total = own.clone()
                dist.all_reduce(total, dist.ReduceOp.SUM, group)
            rounds += 1
            state, taken = advance(state, total, own, number)
            count = count + taken
            if not state.is_cuda and not int(state[1]):
                break  # known without waiting, and to all ranks alike
        return state

    if num_random < k:
        greedy = search(k - num_random, explore=False)
    if num_random:
        random = search(num_random, explore=True)
    return Found(greedy, random, count, rounds)


def advance(state: Tensor, total: Tensor, own: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """One step of a search: takes the bin in which the last wanted sample lies.

    Args:
        state: int64 [2]: the prefix found so far, and how many are wanted below it.
        total: Counts of the next digit in all ranks, int64 [bins], ascending.
        own: The same of this rank.
        number: The round.

    Returns:
        The new state, and how many samples of this rank are now known to be selected, 0-d int64.
    """
    prefix, wanted = state.unbind()
    shift = (32 if number < KEY_ROUNDS else 0) + (21, 10, 0)[number % 3]
    from_top = total.flip(0).cumsum(0)
    place = (from_top < wanted).sum()  # of the bin, counted from the top
    last = len(total) - 1
    reached = from_top.gather(0, place.clamp(max=last).view(1))[0]
    inside = total.flip(0).gather(0, place.clamp(max=last).view(1))[0]
    left = wanted - (reached - inside)
    finished = wanted == 0
    whole = left == inside  # all of the bin are wanted: nothing to search in it
    own_from_top = own.flip(0).cumsum(0)
    own_inside = own.flip(0).gather(0, place.clamp(max=last).view(1))[0]
    own_reached = own_from_top.gather(0, place.clamp(max=last).view(1))[0]
    taken = torch.where(whole, own_reached, own_reached - own_inside)
    found = torch.stack(
        [prefix | ((last - place) << shift), torch.where(whole, torch.zeros_like(left), left)]
    )
    return torch.where(finished, state, found), torch.where(finished, 0, taken)


def list_found(keys: Tensor, found: Found, count: int, shard: Shard, seed: int) -> Tensor:
    """Returns this rank's ids of a selection, ascending, int64 [count]; `count` is found.count."""
    place = (shard.first, shard.stride, None, signed(seed))
    return shard.ids_at(ops.shard_positions(keys, found.greedy, found.random, count, *place))


def split(k: int, epsilon: float) -> int:
    """Returns how many of `k` samples epsilon-greedy draws at random."""
    return math.floor(epsilon * k + 0.5)


def signed(seed: int) -> int:
    """Returns a seed modulo 2^64 as an int64 holds it."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _select(
    make_keys: Callable[[], Tensor],
    k: int,
    epsilon: float,
    shard: Shard,
    seed: int,
    process_group: Any,
    like: Tensor,
) -> Tensor:
    """Agrees with all ranks about the arguments, then selects together."""
    ranks = distributed.resolve(process_group)
    keys = torch.empty(0)

    def prepare() -> dict[str, int]:
        nonlocal keys
        if (shard.rank, shard.size) != (ranks.rank, ranks.size):
            raise ValueError(
                f"shard must be that of rank {ranks.rank} of {ranks.size}, got rank {shard.rank} "
                f"of {shard.size}"
            )
        as_int("k", k, minimum=0, maximum=shard.num_samples)
        as_int("seed", seed)
        keys = make_keys()
        random = split(k, as_float("epsilon", epsilon, low=0.0, high=1.0))
        layout = LAYOUTS.index(shard.layout)
        names = ("num_samples", "layout", "k", "seed", "the number of random samples")
        numbers = (shard.num_samples, layout, k, seed, random)
        return dict(zip(names, numbers, strict=True))

    if ranks.size == 1:
        prepare()
    else:
        device = like.device if isinstance(like, Tensor) else torch.device("cpu")
        ranks.meet("the selection", device, prepare, False)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=keys.device)
    found = find(keys, k, split(k, epsilon), shard, seed, process_group)
    return list_found(keys, found, int(found.count), shard, seed)


def _check(name: str, value: Any, dtypes: tuple[torch.dtype, ...], shard: Shard) -> None:
    check_vector(name, value, dtypes)
    if len(value) != len(shard):
        raise ValueError(
            f"{name} must have one element for each of this rank's {len(shard)} samples, got "
            f"{len(value)}"
        )


def _tensor(value: Tensor) -> Tensor:
    """An op's result, typed."""
    return value
