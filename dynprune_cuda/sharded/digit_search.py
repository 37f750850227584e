# SPDX-License-Identifier: Apache-2.0
"""Which samples a process holds, and the search that all processes make together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._ops import ops
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard

KEY_ROUNDS, ALL_ROUNDS = 3, 6
# RankingKind of csrc/shared/ranking_spec.h.
SCORE, UCB_VARIANCE, UCB_STD, UCB1, WEIGHT, EXPLORE = range(6)


class Ranking(NamedTuple):
    """What a rank's samples are ranked by.

    Attributes:
        values: Scores, means or weights, [samples of this rank].
        second: Their variances or counts, if it takes these.
        kind: SCORE, ..., or EXPLORE: by a hash, whatever the values are.
        c: Weight of a bonus.
        log_step: Of UCB1.
    """

    values: Tensor
    second: Tensor | None = None
    kind: int = SCORE
    c: float = 0.0
    log_step: float = 0.0

    def keys(self, shard: Shard, seed: int) -> Tensor:
        """Returns the keys that `find` takes, int32; ValueError for wrong weights on the CPU."""
        place = (shard.first, shard.stride, None, signed(seed))
        keys: Tensor = ops.shard_keys(*self, *place)
        return keys


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
def find(keys: Tensor, k: int, num_random: int, shard: Shard, seed: int, ranks: Ranks) -> Found:
    """Finds the thresholds of a selection, without waiting for a GPU. Collective.

    Args:
        keys: From `Ranking.keys`, int32 [len(shard)].
        k: How many samples to select, from 1 to `shard.num_samples`.
        num_random: How many of them at random, from 0 to `k`.
        shard: Which samples this rank holds.
        seed: The seed.
        ranks: The processes.
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
            total = ranks.add_up_(own.clone())
            rounds += 1
            state, taken = advance(state, total, own, digit(number))
            count = count + taken
            if not state.is_cuda and not int(state[1]):
                break  # known without waiting, and to all ranks alike
        return state

    if num_random < k:
        greedy = search(k - num_random, explore=False)
    if num_random:
        random = search(num_random, explore=True)
    return Found(greedy, random, count, rounds)


def advance(state: Tensor, total: Tensor, own: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """One step of a search: takes the bin in which the last wanted sample lies.

    Args:
        state: int64 [2]: the prefix found so far, and how many are wanted below it.
        total: Counts of the next digit in all ranks, int64 [bins], ascending.
        own: The same of this rank.
        shift: The lowest bit of that digit.

    Returns:
        The new state, and how many samples of this rank are now known to be selected, 0-d int64.
    """
    prefix, wanted = state.unbind()
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


def digit(number: int) -> int:
    """Returns the lowest bit of a round's digit, counted from the end of a composite key."""
    return (32 if number < KEY_ROUNDS else 0) + (21, 10, 0)[number % 3]


def list_found(keys: Tensor, found: Found, count: int, shard: Shard, seed: int) -> Tensor:
    """Returns this rank's ids of a selection, ascending, int64 [count]; `count` is found.count."""
    place = (shard.first, shard.stride, None, signed(seed))
    positions: Tensor = ops.shard_positions(keys, found.greedy, found.random, count, *place)
    if shard.stride != 1:
        positions.mul_(shard.stride)
    return positions.add_(shard.first) if shard.first else positions


def split(k: int, epsilon: float) -> int:
    """Returns how many of `k` samples epsilon-greedy draws at random."""
    return math.floor(epsilon * k + 0.5)


def signed(seed: int) -> int:
    """Returns a seed modulo 2^64 as an int64 holds it."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
