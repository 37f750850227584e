# SPDX-License-Identifier: Apache-2.0
"""k-means of numbers, the same on every device, without waiting.

The numbers are counted in bins of equal width. The best borders between groups of bins are found
exactly, by dynamic programming (Wang & Song 2011, https://doi.org/10.32614/RJ-2011-015). Lloyd's
algorithm may end at a cost that is not the least. A selection takes a matrix of 8 MiB, whatever the
number of samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 1024


def bins_of(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Puts values into bins of equal width, from the smallest to the greatest that counts.

    Args:
        values: float32 or float64 [n].
        counts: Which of them count, bool [n]; these are finite.

    Returns:
        The bin of each value, int64 [n], arbitrary where it does not count; and whether all that
        count are equal, 0-d bool.
    """
    values = values.double()
    least = values.masked_fill(~counts, torch.inf).amin()
    greatest = values.masked_fill(~counts, -torch.inf).amax()
    same = ~(greatest > least)
    width = torch.where(same, 1.0, greatest - least)
    places = ((values - least) / width * BINS).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return places.clamp_(0, BINS - 1).long(), same


def k_means(bins: Tensor, counts: Tensor, num_groups: int) -> Tensor:
    """Divides samples into groups so that the squared distances to the groups' means are least.

    Args:
        bins: The bin of each sample, int64 [n], from 0 to `BINS - 1`.
        counts: Which samples count, bool [n].
        num_groups: How many groups, at least 1.

    Returns:
        The group of each sample, by rising bin, int64 [n]; groups may be empty where fewer bins
        than groups have samples.
    """
    costs = _costs(bins, counts)
    rows = torch.arange(BINS + 1, device=bins.device)[:, None]
    best, last_borders = costs[0], []
    for _ in range(num_groups - 1):
        totals = best[:, None] + costs  # by the last border, and by how many bins are divided
        best = totals.amin(0)
        last_borders.append(torch.where(totals == best, rows, BINS).amin(0))  # the first of equals
    border = rows[BINS]
    borders = []
    for by_end in reversed(last_borders):
        border = by_end[border]
        borders.append(border)
    found = torch.cat([*reversed(borders), rows[BINS]])  # every bin is below the last
    return torch.searchsorted(found, bins, right=True)


def _costs(bins: Tensor, counts: Tensor) -> Tensor:
    """Returns the squared distances of all samples in the bins from i to j - 1 to their mean.

    Returns:
        float64 [BINS + 1, BINS + 1], by i and j; infinite for i > j.
    """
    histogram = torch.zeros(BINS, dtype=torch.int64, device=bins.device)
    histogram.scatter_add_(0, bins, counts.long())
    numbers = torch.arange(BINS, device=bins.device)
    sizes, sums, squares = (
        torch.cat([numbers.new_zeros(1), values.cumsum(0)])
        for values in (histogram, histogram * numbers, histogram * numbers**2)
    )
    size, total, square = (
        (running[None, :] - running[:, None]).double() for running in (sizes, sums, squares)
    )
    costs = square - total * (total / size.clamp_(min=1.0))
    return costs.clamp_(min=0.0).masked_fill_(torch.ones_like(costs).tril_(-1) > 0, torch.inf)
