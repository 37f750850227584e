# SPDX-License-Identifier: Apache-2.0
"""A small training without a framework, which the tests of the frameworks compare with."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

N, BATCH, EPOCHS = 50, 8, 5
POINTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
LABELS = (POINTS.sum(1) > 0).long()
DATA = IndexedDataset(TensorDataset(POINTS, LABELS))
# Epochs of many lengths, growing and shrinking.
KEEP = {"keep": [0.2, 1.0, 0.5, 0.1, 0.9], "period": 1, "warmup_epochs": 0}


def make_pruner(keep=0.4, policy="ucb", **options):
    return Pruner(N, keep, policy, **{"period": 2, "seed": 3, **options})


def make_net():
    """A model that begins the same each time."""
    net = nn.Linear(4, 2)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net


def make_optimizer(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def plain_run(pruner, accumulate=1, exact=False):
    """Trains to the end; returns (epoch, ids) of each batch, and the model.

    exact: take the mean over all that is accumulated, not the mean of the batches' means.
    """
    net = make_net()
    optimizer = make_optimizer(net)
    seen = []
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        batches = list(pruner.batch_sampler(BATCH))
        for start in range(0, len(batches), accumulate):
            group = batches[start : start + accumulate]
            for batch in group:
                seen.append((epoch, batch))
                ids = torch.tensor(batch)
                loss = pruner.cross_entropy(net(POINTS[ids]), LABELS[ids], ids)
                share = len(batch) / sum(map(len, group)) if exact else 1 / len(group)
                (loss if accumulate == 1 else loss * share).backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen, net
