# SPDX-License-Identifier: Apache-2.0
"""Selections that many processes make together, each from the scores of its own samples.

No process holds all scores, and no score is sent. All ranks together select exactly what one
process would select. The set depends neither on the number of ranks nor on who holds which sample.

The order of `functional` ranks a sample by a composite key of 64 bits. These are 32 of the score,
then 32 of a hash of (seed, sample id). The ranks all-reduce histograms of the key's digits, from
the top, until the k-th greatest key is known. Each rank then takes its samples that have at least
this key.

Traffic: a digit has 11, 11 or 10 bits, and a histogram is int64. Each rank reduces 40,960 bytes if
the scores decide, and 81,920 bytes if the hash of equal scores decides. On a GPU all six rounds are
reduced, because learning that three were enough would wait for the device. At the end one small
exchange tells how many ids each rank has; it waits.

On the CPU, from 2^18 samples per rank on, `bracket_search` reads the scores only once. It reduces a
random sample of at most 524,288 bytes, and two or three histograms of 16,384 bytes as a rule.

Every rank of the group calls the same function with the same k, seed and options, on scores of the
same dtype. A call that differs, or wrong scores, are an error on all ranks. Gradients do not flow.
"""

from dynprune_cuda.distributed.shard import Shard
from dynprune_cuda.sharded.selection import (
    select,
    select_epsilon_greedy,
    select_rescaled,
    select_top_k,
    select_ucb,
    select_ucb1,
    select_uniform,
    select_weighted,
)

__all__ = [
    "Shard",
    "select",
    "select_epsilon_greedy",
    "select_rescaled",
    "select_top_k",
    "select_ucb",
    "select_ucb1",
    "select_uniform",
    "select_weighted",
]
