# SPDX-License-Identifier: Apache-2.0
"""What two processes of `test_linear_scoring.py` do: a small language model under DDP."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynprune_cuda import Pruner

N, LENGTH, WIDTH, WORDS, BATCH, EPOCHS = 12, 6, 8, 11, 6, 3
TOKENS = torch.randint(WORDS, (N, LENGTH), generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """An embedding whose transpose is the head; its forward pass ends with the loss."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(1))
        self.words = nn.Embedding(WORDS, WIDTH, _weight=weight)
        self.inside = nn.Linear(WIDTH, WIDTH)
        nn.init.eye_(self.inside.weight)
        nn.init.zeros_(self.inside.bias)

    def forward(self, tokens, ids, pruner):
        hidden = self.inside(self.words(tokens[:, :-1])).tanh()
        return pruner.linear_cross_entropy(hidden, self.words.weight, tokens[:, 1:], ids)


def train(process_group, sharding):
    """Trains on all samples; returns all means and the weights."""
    pruner = Pruner(N, 1.0, "uniform", process_group=process_group, sharding=sharding, seed=2)
    model = Model()
    size = pruner.ranks.size
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(BATCH // size):
            ids = torch.tensor(batch)
            wrapped(TOKENS[ids], ids, pruner).backward()
            optimizer.step()
            optimizer.zero_grad()
    pruner.set_epoch(EPOCHS)
    mean = pruner.table.mean
    if sharding == "shard" and size > 1:
        parts = [torch.empty_like(mean) for _ in range(size)]
        dist.all_gather(parts, mean)
        mean = torch.cat(parts)
    return mean, [x.detach().clone() for x in model.parameters()]


def work(rank, size, folder):
    """Runs as one rank, and saves what it found."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    found = {sharding: train(None, sharding) for sharding in ("replicate", "shard")}
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
