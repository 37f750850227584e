# SPDX-License-Identifier: Apache-2.0
"""An exact check of a selection over ranks, which shares no code with the selection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.sharding.stages import SEED, Ranks, Shard

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
import reference

__all__ = ["is_exact"]


def is_exact(scores: Tensor, ids: Tensor, k: int, shard: Shard, ranks: Ranks) -> bool:
    """Whether the ids of all ranks are those of the k greatest scores. Collective.

    Every score above the least selected one must be selected, and none below it. Of the scores
    equal to it, those must be selected that the hash of the tests' reference ranks first.
    """
    positions = ids - shard.first
    ascending = bool((ids[1:] > ids[:-1]).all()) and len(ids) <= len(scores)
    chosen = scores[positions]
    least = chosen.min() if len(ids) else torch.tensor(float("inf"))
    if ranks.size > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    above, equal = scores > least, (scores == least).nonzero().flatten() + shard.first
    tied = ids[chosen == least]
    numbers = torch.stack([above.sum(), (chosen > least).sum(), torch.tensor(len(ids))])
    num_above, chosen_above, selected = ranks.add_up_(numbers).tolist()
    everyone: list[Any] = [(equal, tied)]
    if ranks.size > 1:
        everyone = [None] * ranks.size
        dist.all_gather_object(everyone, (equal, tied))
    candidates = torch.cat([one for one, _ in everyone]).numpy()
    hashes = reference.listed_id_hash(SEED, reference.TIE, candidates)
    first = set(candidates[np.argsort(hashes)[::-1][: k - num_above]].tolist())
    selected_ties = set(torch.cat([one for _, one in everyone]).tolist())
    complete = selected == k and chosen_above == num_above
    return ascending and complete and selected_ties == first
