# SPDX-License-Identifier: Apache-2.0
"""The search for a selection's thresholds, by digits of the composite keys of all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda._ops import ops
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard

KEY_ROUNDS, ALL_ROUNDS = 3, 6


@dataclass(frozen=True)
class Thresholds:
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
def find_thresholds(
    keys: Tensor, k: int, num_random: int, shard: Shard, seed: int, ranks: Ranks
) -> Thresholds:
    """Finds the thresholds of a selection, without waiting for a GPU. Collective.

    Args:
        keys: From `keys_of`, int32 [len(shard)].
        k: How many samples to select, from 1 to `shard.num_samples`.
        num_random: How many of them at random, from 0 to `k`.
        shard: Which samples this rank holds.
        seed: The seed.
        ranks: The processes.
    """
    place = (shard.first, shard.stride, None, as_int64(seed))
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
    return Thresholds(greedy, random, count, rounds)


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


def list_selected(keys: Tensor, found: Thresholds, count: int, shard: Shard, seed: int) -> Tensor:
    """Returns this rank's ids of a selection, ascending, int64 [count]; `count` is found.count."""
    place = (shard.first, shard.stride, None, as_int64(seed))
    positions: Tensor = ops.shard_positions(keys, found.greedy, found.random, count, *place)
    if shard.stride != 1:
        positions.mul_(shard.stride)
    return positions.add_(shard.first) if shard.first else positions
