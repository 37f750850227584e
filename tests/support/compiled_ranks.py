# SPDX-License-Identifier: Apache-2.0
"""What the processes of `test_compiled_ranks.py` do: compiled steps, and one checkpoint of all."""

import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import BATCH, N, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynprune_cuda import Pruner

EPOCHS, STOP = 4, 25
POINTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
LABELS = (POINTS.sum(1) > 0).long()


def make_pruner():
    # 61 and 25 samples: two ranks repeat a sample in every epoch, at the end of a smaller batch.
    return Pruner(N, 25, "ucb", period=1, seed=3)


def steps(kind, compiled):
    """Trains for some epochs; returns the losses, the shared table and the weights."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    if kind == "ddp":
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    pruner = make_pruner()

    def loss_of(x, y, ids):
        return pruner.cross_entropy(model(x), y, ids)

    def step(x, y, ids):
        loss = loss_of(x, y, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    if compiled:
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        # Without DDP, whose own hooks are no part of a graph, model and loss are one graph.
        loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=kind == "model")
        step = torch.compile(step, backend="aot_eager") if kind == "ddp" else step
    losses = []
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(BATCH):
            ids = torch.tensor(batch)
            losses.append(step(POINTS[ids], LABELS[ids], ids))
    pruner.set_epoch(EPOCHS)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if compiled else None
    return (
        torch.stack(losses),
        pruner.state_dict(),
        [p.detach().clone() for p in model.parameters()],
        graphs,
    )


def checkpoint(rank, folder):
    """All ranks save together in mid-epoch, and others go on."""
    whole = make_pruner()
    expected = train(whole, whole.batch_sampler(BATCH))[0]
    first = make_pruner()
    sampler = first.batch_sampler(BATCH)
    before = train(first, sampler, STOP)[0]
    # Inside an epoch each rank has seen other samples: a key for each of them.
    mine = {f"pruner-{rank}": first.state_dict(), "sampler": sampler.state_dict()}
    dcp.save(mine, checkpoint_id=folder / "checkpoint")
    second = make_pruner()
    resumed = second.batch_sampler(BATCH)
    state = {f"pruner-{rank}": second.state_dict(), "sampler": resumed.state_dict()}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    second.load_state_dict(state[f"pruner-{rank}"])
    resumed.load_state_dict(state["sampler"])
    after = train(second, resumed)[0]
    return expected, before + after, whole.state_dict(), second.state_dict()


def between_epochs(rank, folder):
    """Between two epochs all are alike, and one state serves any number of processes."""
    first = make_pruner()
    train(first, first.batch_sampler(BATCH))
    dcp.save({"pruner": first}, checkpoint_id=folder / "common")
    second = make_pruner()
    dcp.load({"pruner": second}, checkpoint_id=folder / "common")
    return first.state_dict(), second.state_dict()


def work(rank, size, folder):
    """One process of a world."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(folder)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size
    )
    results = {
        (kind, compiled): steps(kind, compiled)
        for kind in ("model", "ddp")
        for compiled in (False, True)
    }
    results["checkpoint"] = checkpoint(rank, folder)
    results["between epochs"] = between_epochs(rank, folder)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
