# SPDX-License-Identifier: Apache-2.0
"""What two processes of `test_losses_over_ranks.py` do: each loss under DDP."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynprune_cuda import Pruner

N, INPUTS, OUTPUTS, BATCH, EPOCHS = 24, 5, 4, 8, 4
_GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(N, INPUTS, generator=_GENERATOR)
LABELS = (torch.rand(N, OUTPUTS, generator=_GENERATOR) < 0.4).float()
PROBABILITIES = torch.rand(N, OUTPUTS, generator=_GENERATOR).softmax(1)
TARGETS = {"labels": LABELS, "probabilities": PROBABILITIES, "classes": LABELS.argmax(1)}


def train(kind, sharding, keep=0.5):
    """Trains on half of the samples; returns all means and counts, and the weights."""
    pruner = Pruner(N, keep, "ucb", period=1, sharding=sharding, seed=2)
    model = nn.Linear(INPUTS, OUTPUTS)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    size = pruner.ranks.size
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    loss_of = pruner.binary_cross_entropy if kind == "labels" else pruner.cross_entropy
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(BATCH // size):
            ids = torch.tensor(batch)
            loss_of(wrapped(POINTS[ids]), TARGETS[kind][ids], ids).backward()
            optimizer.step()
            optimizer.zero_grad()
    pruner.set_epoch(EPOCHS)
    columns = pruner.table.mean, pruner.table.count
    if sharding == "shard" and size > 1:
        columns = tuple(map(gathered, columns))
    return *columns, *(x.detach().clone() for x in model.parameters())


def gathered(column):
    """The pieces of all ranks, in order."""
    parts = [torch.empty_like(column) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, column)
    return torch.cat(parts)


def work(rank, size, folder):
    """Runs as one rank, and saves what it found."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    found = {
        (kind, sharding): train(kind, sharding)
        for kind in TARGETS
        for sharding in ("replicate", "shard")
    }
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
