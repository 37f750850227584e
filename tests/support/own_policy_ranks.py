# SPDX-License-Identifier: Apache-2.0
"""What each of several processes does in `test_own_ranking.py`."""

from pathlib import Path

import torch
import torch.distributed as dist
from shard_pruner_ranks import start
from smallest_margin import SmallestMargin

from dynprune_cuda import Pruner, policies

N, EPOCHS, KEEP = 1000, 4, 0.3


def train(sharding="replicate"):
    """The subsets and batches of a run that scores logits which depend on sample and epoch."""
    pruner = Pruner(N, KEEP, "smallest_margin", period=1, score="margin", sharding=sharding, seed=5)
    subsets, batches = [], []
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        subsets.append(pruner.selected)
        for ids in pruner.batch_sampler(50):
            batches.append(ids)
            ids = torch.tensor(ids)
            places = ids[:, None] * 12.9898 + torch.arange(10) * 78.233 + epoch
            pruner.cross_entropy(torch.sin(places), ids % 10, ids)
    return subsets, batches


def work(rank, size, folder):
    """One process: the run with replicated and with sharded scores."""
    start(rank, size, folder)
    policies.register("smallest_margin", SmallestMargin)
    runs = {sharding: train(sharding) for sharding in ("replicate", "shard")}
    torch.save(runs, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
