# SPDX-License-Identifier: Apache-2.0
"""The operators as functions: selection, scoring, score updates.

Every selection returns distinct int64 sample ids on the device of its input, without waiting for
the device. One total order decides: score descending (NaN is the greatest, -0 equals +0), equal
scores by a hash of (seed, sample id). The subset and its order depend on the values, k and the seed
only: not on device, grid or thread count.

Arguments common to all selections:

- `k`: How many samples, 0 <= k <= N, N at most 2^32.
- `seed`: Any Python int (modulo 2^64), or a 0-d int64 tensor on the device. The tensor is read when
  the kernels run, so that a captured CUDA graph can be replayed with a new seed.
- `order`: "random", a seeded uniformly random order, ready for SGD; or "ascending".

Errors in arguments are ValueError or TypeError and name the argument and the value. Errors in the
data of CPU tensors are raised at once. Those of CUDA tensors, such as a target, a sample id or a
weight out of range, cannot be raised without waiting. The row is skipped, and the error stays on
the device until `check_errors` raises it.
"""

from dynprune_cuda.functional.binary_cross_entropy import (
    scored_binary_cross_entropy,
    scored_binary_cross_entropy_step_,
)
from dynprune_cuda.functional.cross_entropy import (
    ScoredLoss,
    last_layer_grand,
    scored_cross_entropy,
)
from dynprune_cuda.functional.cross_entropy_step import scored_cross_entropy_step_
from dynprune_cuda.functional.errors import check_errors
from dynprune_cuda.functional.inclusion import inclusion_probabilities
from dynprune_cuda.functional.linear_cross_entropy import (
    LinearScoredLoss,
    scored_linear_cross_entropy,
)
from dynprune_cuda.functional.ranking import FixedIds, Ranking, Uniform
from dynprune_cuda.functional.rules import Trimmed
from dynprune_cuda.functional.score_updates import update_scores_
from dynprune_cuda.functional.selection import (
    permutation,
    select,
    select_epsilon_greedy,
    select_rescaled,
    select_top_k,
    select_ucb,
    select_ucb1,
    select_uniform,
    select_weighted,
)
from dynprune_cuda.functional.tilted import Tilted

__all__ = [
    "FixedIds",
    "LinearScoredLoss",
    "Ranking",
    "ScoredLoss",
    "Tilted",
    "Trimmed",
    "Uniform",
    "check_errors",
    "inclusion_probabilities",
    "last_layer_grand",
    "permutation",
    "scored_binary_cross_entropy",
    "scored_binary_cross_entropy_step_",
    "scored_cross_entropy",
    "scored_cross_entropy_step_",
    "scored_linear_cross_entropy",
    "select",
    "select_epsilon_greedy",
    "select_rescaled",
    "select_top_k",
    "select_ucb",
    "select_ucb1",
    "select_uniform",
    "select_weighted",
    "update_scores_",
]
