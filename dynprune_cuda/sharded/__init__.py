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

On the CPU, with 2^18 samples or more per rank, the scores are read once instead (`_one_read`): a
random sample of them, at most 524,288 bytes that are reduced, brackets the threshold, one pass
leaves a few percent of the samples open, and only these are searched, in histograms of 16,384
bytes, two or three of them as a rule. Where the sample misleads, all ranks make the plain search
after all: that costs time and changes nothing.

Every rank of the group calls the same function with the same k, seed and options, on scores of the
same dtype. A call that differs, or scores that are wrong, are an error on all ranks. Gradients do
not flow.
"""

from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.sharded.selection import (
    select_epsilon_greedy,
    select_top_k,
    select_ucb,
    select_ucb1,
    select_uniform,
    select_weighted,
)

__all__ = [
    "Shard",
    "select_epsilon_greedy",
    "select_top_k",
    "select_ucb",
    "select_ucb1",
    "select_uniform",
    "select_weighted",
]
