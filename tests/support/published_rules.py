# SPDX-License-Identifier: Apache-2.0
"""Slow references of the published pruning rules: plain Python, from their descriptions.

Random choices are made from what the seeds give: a permutation of the samples, or one coin per
sample. The coins are computed here anew, with Python's own integers.
"""

import math
from fractions import Fraction

MASK = 2**64 - 1


def splitmix(word):
    """The finaliser of splitmix64."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def coins(num_samples, chance, seed):
    """One decision per sample; `seed` is that of the coins, derived already."""
    words = [splitmix((0x9E3779B97F4A7C15 * i + seed) & MASK) for i in range(num_samples)]
    return [(word >> 11) / 2**53 < chance for word in words]


def orderdp(losses, drawn, kept):
    """The `kept` greatest losses of the drawn samples; NaN is the greatest."""
    hardness = {i: math.inf if math.isnan(losses[i]) else losses[i] for i in drawn}
    return sorted(sorted(drawn, key=lambda i: -hardness[i])[:kept])


def binned(values, bins):
    """The bins of equal width that numbers are in."""
    least, greatest = min(values), max(values)
    return [min(bins - 1, int((v - least) / (greatest - least) * bins)) for v in values]


def best_groups(values, num_groups):
    """The least sum of squared distances to the means of groups, and the group of each number."""
    distinct = sorted(set(values))
    weights = [values.count(v) for v in distinct]

    def cost(i, j):
        size = sum(weights[i:j])
        mean = sum(w * v for w, v in zip(weights[i:j], distinct[i:j], strict=True)) / size
        return sum(w * (v - mean) ** 2 for w, v in zip(weights[i:j], distinct[i:j], strict=True))

    costs = {(i, j): cost(i, j) for j in range(1, len(distinct) + 1) for i in range(j)}
    best = {0: (0.0, [])}  # by how many of the numbers are divided: the cost, and the ends
    for _ in range(num_groups):
        best = {
            j: min((best[i][0] + costs[i, j], [*best[i][1], j]) for i in range(j) if i in best)
            for j in range(1, len(distinct) + 1)
            if any(i in best for i in range(j))
        }
    total, ends = best[len(distinct)]
    return total, [sum(distinct.index(v) >= end for end in ends) for v in values]


def cost_of(values, group):
    """The sum of squared distances to the means of the groups."""
    total = 0.0
    for g in set(group):
        part = [v for v, of in zip(values, group, strict=True) if of == g]
        mean = sum(part) / len(part)
        total += sum((v - mean) ** 2 for v in part)
    return total


class Ies:
    """IES with a list of losses per sample."""

    def __init__(self, num_samples, delta):
        self.losses, self.delta = [[] for _ in range(num_samples)], delta

    def left_out(self):
        """The samples that the next epoch leaves out."""
        return [i for i, losses in enumerate(self.losses) if self.is_mastered(losses[-5:])]

    def is_mastered(self, last):
        if len(last) < 5:
            return False
        bends = [abs(last[t] - 2 * last[t - 1] + last[t - 2]) for t in (4, 3, 2)]
        return (bends[0] + bends[1] + bends[2]) / 3 < self.delta


class RePb:
    """RePB with a set of samples and a count of uses per sample."""

    def __init__(self, num_samples, ratio, batch_size):
        self.num_samples, self.ratio, self.batch_size = num_samples, ratio, batch_size
        self.epochs, self.uses = 0, [0] * num_samples

    def end(self, order, losses, seed):
        """Ends an epoch; returns the samples of the next with their weights.

        Args:
            order: The samples in the order of their visits.
            losses: By sample; NaN if there is none.
            seed: Of the coins.
        """
        if not self.epochs:
            self.start(order)
        lucky = coins(self.num_samples, 1 - self.ratio, seed)
        stays = {i for i in range(self.num_samples) if lucky[i] and i not in set(order)}
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            known = [Fraction(losses[i]) for i in batch if not math.isnan(losses[i])]
            for i in batch:
                is_hard = math.isnan(losses[i]) or losses[i] * len(known) >= sum(known)
                if is_hard or lucky[i]:
                    stays.add(i)
        self.start(stays)
        return {i: self.epochs / self.uses[i] for i in sorted(stays)}

    def start(self, samples):
        """Notes that an epoch uses these samples."""
        self.epochs += 1
        for i in samples:
            self.uses[i] += 1
