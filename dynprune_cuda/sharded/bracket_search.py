# SPDX-License-Identifier: Apache-2.0
"""The search in one read of the scores, on the CPU, by all ranks together.

A random sample of all scores brackets the threshold. Each rank reads its scores once. It marks
those above the bracket and keeps the few percent inside it, the candidates. Only these are
searched, by the digits of their composite keys. The sample decides the time, never the result. The
threshold may be outside the bracket, or a rank may have too many candidates. Then all ranks learn
it, and search by digits of all keys instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda._ops import checking_weights, ops
from dynprune_cuda._schedule.seeds import as_int64
from dynprune_cuda.distributed.ranks import Ranks
from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.functional.ranking import Ranking
from dynprune_cuda.sharded.digit_search import advance
from dynprune_cuda.sharded.ranking import explore_like

MIN_SAMPLES = 1 << 18  # of a process; of fewer, the plain search
MAX_DRAWS = 1 << 16
DIGIT_BITS = 11
# One in so many samples may be a candidate: they take less memory than the plain search's keys.
ROOM = 4


@dataclass(frozen=True)
class Bracketed:
    """What one read tells of this process's samples.

    Attributes:
        bits: Those above the bracket, 64 to an int64; once it is settled, those that are selected.
        words: How far above its lower end the composite keys of those in the bracket are, int64
            [candidates].
        positions: Where they are in the shard, int32 [candidates].
        above: How many of this process are above the bracket.
        missing: How many candidates of all processes are selected.
        width: Bits of the greatest possible word.
        own: The histogram of the first digit of the words, int64 [bins].
        total: The same of all processes.
    """

    bits: Tensor
    words: Tensor
    positions: Tensor
    above: int
    missing: int
    width: int
    own: Tensor
    total: Tensor


def is_faster(ranking: Ranking, shard: Shard) -> bool:
    """Whether this search is faster than the plain one; the same on all ranks."""
    return ranking.values.device.type == "cpu" and shard.piece >= MIN_SAMPLES


def draw_sample(ranking: Ranking, shard: Shard, seed: int) -> Tensor:
    """Returns this process's part of a sample of composite keys, int64; all parts add up to it.

    It is the sample that a single process would take. Raises ValueError for wrong weights.
    """
    size = min(MAX_DRAWS, int(shard.num_samples ** (2 / 3)))
    place = (shard.num_samples, size, shard.first, shard.stride, as_int64(seed))
    sample: Tensor = checking_weights(ops.shard_sample, *ranking.arguments(), *place)
    return sample


@torch.no_grad()
def select(
    ranking: Ranking,
    sample: Tensor,
    k: int,
    num_random: int,
    shard: Shard,
    seed: int,
    ranks: Ranks,
) -> Tensor | None:
    """Selects together. Collective.

    Args:
        ranking: What to rank by.
        sample: This process's part, from `draw`; replaced by the sum of all.
        k: How many samples to select, from 1 to `shard.num_samples`.
        num_random: How many of them at random, from 0 to `k`.
        shard: Which samples this rank holds.
        seed: The seed.
        ranks: The processes.

    Returns:
        This rank's ids, ascending, int64; None on all ranks if it takes the plain search.
    """
    bits: Tensor | None = None
    count = 0
    num_greedy = k - num_random
    if num_greedy:
        ranks.add_up_(sample)
        greedy = find_bracketed(ranking, sample, None, num_greedy, shard, seed, ranks)
        if greedy is None:
            return None
        bits, count = greedy.bits, search_candidates(greedy, ranks)[0]
    if num_random:
        hashes = explore_like(ranking)
        random = find_bracketed(hashes, None, bits, num_random, shard, seed, ranks, num_greedy)
        if random is None:
            return None
        count += search_candidates(random, ranks)[0]
        bits = random.bits if bits is None else bits.bitwise_or_(random.bits)
    assert bits is not None
    return list_marked(bits, count, shard)


def find_bracketed(
    ranking: Ranking,
    sample: Tensor | None,
    excluded: Tensor | None,
    wanted: int,
    shard: Shard,
    seed: int,
    ranks: Ranks,
    num_excluded: int = 0,
) -> Bracketed | None:
    """Reads this process's scores. Collective.

    Args:
        ranking: What to rank by.
        sample: The sum of all ranks' samples; None for hashes, whose distribution is known.
        excluded: Bits of samples that do not take part, as those that are returned; or None.
        wanted: How many samples of all ranks to select.
        shard: Which samples this rank holds.
        seed: The seed.
        ranks: The processes.
        num_excluded: How many samples of all ranks are excluded.

    Returns:
        None on all ranks if the bracket is of no use.
    """
    capacity = len(shard) // ROOM
    numbers = (shard.num_samples - num_excluded, wanted, capacity)
    place = (shard.first, shard.stride, as_int64(seed))
    bits, words, positions, info = ops.shard_bracket(
        *ranking.arguments(), sample, excluded, *numbers, *place
    )
    above, found, low, high = info.tolist()
    words, positions = words[:found], positions[:found]
    width = max(1, ((high - low) % (1 << 64)).bit_length())
    fits = found <= capacity
    # The first digit does not depend on what is missing: one message tells both.
    own = ops.shard_candidate_counts(words[: found * fits], torch.tensor([0, 1]), *digits(width)[0])
    mine = torch.cat([torch.tensor([above, found, int(not fits)]), own])
    info, total = ranks.add_up_(mine).tensor_split([3])
    all_above, candidates, too_many = info.tolist()
    missing = wanted - all_above
    if too_many or not 0 <= missing <= candidates:
        return None
    return Bracketed(bits, words, positions, above, missing, width, own, total)


def search_candidates(part: Bracketed, ranks: Ranks) -> tuple[int, int]:
    """Selects among the candidates, and sets their bits. Collective.

    Returns:
        How many samples of this rank are selected, and how many histograms were used.
    """
    count, rounds = part.above, 0
    own, total = part.own, part.total
    state = torch.tensor([0, part.missing])
    for shift, bits in digits(part.width):
        if not int(state[1]):
            break
        if rounds:
            own = ops.shard_candidate_counts(part.words, state, shift, bits)
            total = ranks.add_up_(own.clone())
        state, taken = advance(state, total, own, shift)
        count += int(taken)
        rounds += 1
    if rounds:
        ops.shard_add_candidates_(part.bits, part.words, part.positions, state)
    return count, rounds


def digits(width: int) -> list[tuple[int, int]]:
    """Cuts a word into digits, from the top: the lowest bit and the number of bits of each."""
    tops = range(width, 0, -DIGIT_BITS)
    return [(max(0, top - DIGIT_BITS), min(top, DIGIT_BITS)) for top in tops]


def list_marked(bits: Tensor, count: int, shard: Shard) -> Tensor:
    """Returns the ids of this rank's samples whose bits are set, ascending, int64 [count]."""
    ids: Tensor = ops.shard_list(bits, count, len(shard), shard.first, shard.stride)
    return ids
