# SPDX-License-Identifier: Apache-2.0
"""How likely a weighted selection takes each sample; public through `functional`."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import as_int, check_vector

# Weights fall into bins by their leading bits: exponent and 4 bits of the fraction. A bin is at
# most 6 % wide and counts as its mean, by the sum of the bits below. Zero has the last bin.
_SHIFT = 19
_INFINITE = 255 << 4  # the bin of infinity
_ZERO = 256 << 4
_LEAST_BITS = -(1 << 31)
NUM_BINS = _ZERO + 1
_PIECE = 1 << 22  # weights per piece: the memory that a histogram takes does not grow with them
# Newton's method from the left converges from below. Near the solution it doubles the digits.
# Before that, a step multiplies what is left by at most 1/e: 2^-32 of the samples take 22 steps.
_STEPS = 32


def inclusion_probabilities(weights: Tensor, k: int) -> Tensor:
    """How likely `select_weighted` with these weights takes each sample, without waiting.

    A sample's place in the order is Exp(1) / weight. So the selection takes those whose place is
    below some value t, and sample i is among them with probability 1 - exp(-weights[i] * t). Here
    t is such that the probabilities add up to k (Rosen 1997, sequential Poisson sampling). This is
    exact as k and N - k grow, while no sample holds a fixed share of the weight. For 10 samples it
    is off by up to a tenth; small probabilities beside a dominating weight by more.

    Args:
        weights: [N] float32, >= 0, not NaN. Infinite weights are taken first, zeros last. The
            positive ones should span at most 20 decades, and none be below 1e-30.
        k: How many samples are selected, from 0 to N.

    Returns:
        [N] float32. t comes from integer counts: it does not depend on the order of additions.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A dtype, a shape or `k` is wrong.
    """
    check_vector("weights", weights, (torch.float32,))
    k = as_int("k", k, minimum=0, maximum=weights.numel())
    return probabilities(weights, histogram(weights), k)


# Losses count at most so many times; without a limit, single samples would decide a step.
LARGEST_FACTOR = 10.0


def loss_factors(probabilities: Tensor, k: int, num_samples: int) -> Tensor:
    """Returns what losses are multiplied by, float32 [N]; see `select_rescaled`."""
    return (k / num_samples / probabilities).clamp_(max=LARGEST_FACTOR)


def histogram(weights: Tensor) -> Tensor:
    """Counts weights by bin, and adds up their bits below it; those of several ranks add up.

    Returns:
        int64 [2, NUM_BINS]: counts and sums.
    """
    counts = sums = torch.zeros(NUM_BINS, dtype=torch.int64, device=weights.device)
    one = torch.ones(1, dtype=torch.int64, device=weights.device)
    for piece in torch.split(weights.detach().resolve_neg().contiguous(), _PIECE):
        bits = piece.view(torch.int32)
        bins = (bits >> _SHIFT).clamp_(0, _INFINITE).masked_fill_(piece == 0, _ZERO).long()
        # Not in place: in a plain tensor, a wrapper of several tensors would count each of them.
        counts = counts.scatter_add(0, bins, one.expand(len(bins)))
        sums = sums.scatter_add(0, bins, (bits & ((1 << _SHIFT) - 1)).long())
    return torch.stack((counts, sums))


def probabilities(weights: Tensor, table: Tensor, k: int) -> Tensor:
    """Inclusion probabilities of some weights, from the histogram of all of them."""
    means, finite, zeros = bin_means(table)
    infinite, number = table[0, _INFINITE].double(), finite.sum()
    wanted = (k - infinite).clamp(min=0)
    time = _time(finite, means, torch.minimum(wanted, number))
    first = (k / infinite).clamp(max=1.0)
    last = (wanted - number).clamp(min=0) / zeros
    taken = torch.mul(weights, -time.to(torch.float32)).expm1_().neg_()
    taken.masked_fill_(wanted >= number, 1.0)  # all positive weights are taken
    taken = torch.where(weights == 0, last.to(torch.float32), taken)
    return torch.where(weights == torch.inf, first.to(torch.float32), taken)


def bin_means(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the means and counts of the finite weights by bin, and the number of zeros; float64.

    Within a bin, weights are linear in their bits.
    """
    counts, sums = table.double()
    finite = counts[:_INFINITE]
    bits = torch.arange(_INFINITE, dtype=torch.int32, device=table.device) << _SHIFT
    start = bits.view(torch.float32).double()
    step = (bits + 1).view(torch.float32).double() - start
    means = start + step * (sums[:_INFINITE] / finite.clamp(min=1.0))
    return means, finite, counts[_ZERO]


def upper_half(values: Tensor, table: Tensor) -> Tensor:
    """Tells which values are among the greater half, without waiting.

    Args:
        values: Some weights, float32 [n]. What is not positive is in the bin of zeros.
        table: The histogram of all weights. Infinite ones do not count.

    Returns:
        float32 [n]: 1 in the greater half, and 0 in the other one. A histogram does not tell the
        weights of one bin apart. Those in the bin of the median get the share of that bin that is
        in the half.
    """
    # Descending: finite weights from the greatest bin on, then zeros.
    counts = torch.cat((table[0, :_INFINITE].flip(0), table[0, _ZERO:])).double()
    above = counts.cumsum(0)
    half = above[-1] / 2
    place = (above < half).sum()
    # `take` does not wait, as an index would.
    share = 1.0 - (above.take(place) - half) / counts.take(place).clamp(min=1.0)
    # Bits of positive floats are in the order of the floats, and those of negative ones below them.
    # A bin ends where the next one begins; zero is one by itself, together with all below.
    start = (_INFINITE - 1 - place) << _SHIFT
    is_zero = place == _INFINITE
    lower = torch.where(is_zero, _LEAST_BITS, start.clamp(min=1)).to(torch.int32)
    upper = torch.where(is_zero, 1, start + (1 << _SHIFT)).to(torch.int32)
    bits = values.resolve_neg().contiguous().view(torch.int32)
    inside = (bits >= lower).to(torch.float32).mul_(share.to(torch.float32))
    return torch.where(bits >= upper, 1.0, inside)


def _time(counts: Tensor, means: Tensor, wanted: Tensor) -> Tensor:
    """Solves for the time t at which `wanted` samples are drawn, 0-d float64."""
    number, time = counts.sum(), wanted / (counts * means).sum()
    for _ in range(_STEPS):
        left = counts * torch.exp(-means * time)
        missing = left.sum() - (number - wanted)
        slope = (left * means).sum()
        time = torch.where(slope > 0, time + (missing / slope).clamp(min=0), time)
    return time
