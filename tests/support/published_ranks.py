# SPDX-License-Identifier: Apache-2.0
"""What each of several processes does in `test_published_runs.py`."""

from pathlib import Path

import torch
import torch.distributed as dist
from runs import N
from shard_pruner_ranks import start

from dynprune_cuda import Pruner
from dynprune_cuda.policies import IES, Covered, OrderDP, RePB, SeTa

EPOCHS = 7
# IES leaves out much of what bends this little.
POLICIES = (OrderDP(), SeTa(), IES(0.6), RePB(batch_size=16), Covered("ucb", 3))


def subsets(policy):
    """The subset and the factors of each epoch of a run of these processes together."""
    keep = 20 if isinstance(policy, Covered) else None
    pruner = Pruner(N, keep, policy, period=1, epochs=EPOCHS, seed=3)
    found, everything = [], torch.arange(N)
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        found.append((pruner.selected.tolist(), pruner.rescale(everything, everything + 1.0)))
        for ids in pruner.batch_sampler(8):
            ids = torch.tensor(ids)
            pruner.observe(ids, torch.sin(ids * 12.9898 + epoch) + 1.5)
    return found


def work(rank, size, folder):
    """One process: the runs of all policies."""
    start(rank, size, folder)
    torch.save([subsets(policy) for policy in POLICIES], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
