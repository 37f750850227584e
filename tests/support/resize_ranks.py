# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_resize_ranks.py` does; the results are compared there."""

import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import message

from dynprune_cuda import Pruner, policies

N, SIZES, EPOCHS = 60, (85, 51), 3  # epochs before each resize, and after the last one
POLICIES = {
    "ucb": lambda n, **more: Pruner(n, 0.3, "ucb", period=2, seed=5, **more),
    "weighted": lambda n, **more: Pruner(n, 0.3, policies.Weighted(rescale=True), **more),
}
HOLDERS = {
    "replicate": {},
    "contiguous": {"sharding": "shard"},
    "strided": {"sharding": "shard", "shard_layout": "strided"},
}


def value(ids, epoch):
    """Of a visit; any function will do."""
    return torch.frac(ids.double() * 0.37 + epoch * 0.61).float() + 0.01


def visit(pruner, first, number):
    """Some epochs; returns the ids of each."""
    seen = []
    for epoch in range(first, first + number):
        pruner.set_epoch(epoch)
        seen.append(pruner.epoch_order().tolist())
        for ids in map(torch.tensor, pruner.batch_sampler(4)):
            pruner.observe(ids, value(ids, epoch))
    return seen


def run(make, **more):
    """A run that grows and shrinks in mid-period, and one that goes on from its state."""
    pruner = make(N, **more)
    seen, epoch = visit(pruner, 0, EPOCHS), EPOCHS
    state = pruner.state_dict()  # before the others' visits are known, if the scores are replicated
    for size in SIZES:
        pruner.resize(size)
        seen += visit(pruner, epoch, EPOCHS)
        epoch += EPOCHS
    turnover, times = float(pruner.turnover), pruner.times_selected.clone()
    pruner.set_epoch(epoch)
    grown = make(SIZES[0], **more)
    grown.load_state_dict(state, grow=True)
    return seen, turnover, times, pruner.table.mean.clone(), visit(grown, EPOCHS, EPOCHS)


def errors(rank):
    """What goes wrong on one rank is an error on all of them, and nothing changes."""
    found = {}
    for name, more in HOLDERS.items():
        pruner = POLICIES["ucb"](N, **more)
        visit(pruner, 0, 2)
        found[name, "differ"] = message(lambda pruner=pruner: pruner.resize(70 + rank))
        found[name, "failed"] = message(lambda pruner=pruner: pruner.resize(70 * (1 - rank)))
        small = POLICIES["ucb"](N - 1 + rank, process_group=False)
        if name != "replicate":
            state = small.state_dict()
            found[name, "states"] = message(
                lambda pruner=pruner, state=state: pruner.load_state_dict(state, grow=True)
            )
        found[name, "after"] = (pruner.num_samples, len(visit(pruner, 2, 1)[0]))
    tiny = POLICIES["ucb"](N, sharding="shard")
    found["tiny"] = message(lambda: tiny.resize(1))
    return found


def work(rank, size, folder):
    """One process of a world."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "no score was observed", RuntimeWarning)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    results = {
        (policy, holder): run(make, **more)
        for policy, make in POLICIES.items()
        for holder, more in HOLDERS.items()
    }
    torch.save((results, errors(rank)), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
