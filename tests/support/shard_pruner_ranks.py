# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_sharded_pruner.py` does; the results are compared there."""

import copy
import os
import pickle
import signal
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import BATCH, EPOCHS, RESCALED, N, message, train, value
from torch import nn

from dynprune_cuda import Pruner, policies

KEEP = [1.0, 30, 30, 17, 9, 2, 1]  # at the end fewer than ranks
POLICIES = {
    "ucb": lambda **more: Pruner(N, KEEP, "ucb", period=1, seed=3, **more),
    "ucb_std": lambda **more: Pruner(N, 0.4, policies.UCB(2.0, bonus="std"), period=3, **more),
    "epsilon_greedy": lambda **more: Pruner(N, 0.4, "epsilon_greedy", period=2, **more),
    "weighted": lambda **more: Pruner(N, 0.4, "weighted", period=2, **more),
    "adaptive": lambda **more: Pruner(N, KEEP, policies.Adaptive(trim=0.1), **more),
    "rescaled": lambda **more: Pruner(N, KEEP, RESCALED, period=1, **more),
    "uniform": lambda **more: Pruner(N, 25, "uniform", period=2, seed=-1, **more),
    "random_static": lambda **more: Pruner(N, 25, "random_static", period=2, **more),
    "static": lambda **more: Pruner(N, policy=policies.StaticSubset(range(3, 40, 2)), **more),
    "full": lambda **more: Pruner(N, policy="full", **more),
    "at_once": lambda **more: Pruner(N, 0.3, "ucb", warmup_epochs=0, period=2, **more),
}


def make(name, sharding="shard", **more):
    return POLICIES[name](sharding=sharding, **more)


def whole(pruner, state):
    """A state with all rows of all processes, from pieces."""
    full = {}
    for name, entry in {**state, **state["table"]}.items():
        if hasattr(entry, "full_tensor"):
            entry = entry.full_tensor()
        if name not in ("table", "repeat"):
            full[name] = entry
    return full


def whole_runs(rank, size):
    """Every policy; one of them with both ways to treat a rest that does not divide."""
    results = {}
    for name in POLICIES:
        for drop_last in (False, True) if name == "ucb" else (False,):
            pruner = make(name)
            seen, subsets = train(pruner, pruner.batch_sampler(BATCH, drop_last))
            turnover = pruner.turnover.clone()
            results[name, drop_last] = (seen, subsets, whole(pruner, pruner.state_dict()), turnover)
    return results


def resumed_runs(rank, size):
    """Stopped in the middle of an epoch, and gone on with by a new pruner of as many ranks."""
    results = {}
    for name in ("ucb", "at_once"):
        for stop in (1, 6):
            first = make(name)
            sampler = first.batch_sampler(BATCH)
            before = train(first, sampler, stop)[0]
            state, position = first.state_dict(), pickle.dumps(sampler.state_dict())
            second = make(name)
            second.load_state_dict(state)
            resumed = second.batch_sampler(BATCH)
            resumed.load_state_dict(pickle.loads(position))
            after = train(second, resumed)[0]
            results[name, stop] = (before + after, whole(second, second.state_dict()))
    return results


def copies(rank, size):
    """A copied pruner keeps its place, its order and what waits to be sent."""
    first = make("ucb")
    for epoch in range(4):
        first.set_epoch(epoch)
    batch = torch.tensor(next(iter(first.batch_sampler(BATCH))))
    first.observe(batch, torch.ones(len(batch)))
    results = []
    for pruner in (copy.deepcopy(first), pickle.loads(pickle.dumps(first)), first):
        batches = list(pruner.batch_sampler(BATCH))
        pruner.set_epoch(4)
        results.append((batches, pruner.table.count.clone(), pruner.selected))
    return results


def cross_entropy(rank, size):
    """The fused step against a replicated pruner, on the same batches."""
    torch.manual_seed(1)
    model = nn.Linear(4, 3)
    points = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(N) % 3
    labels[5] = -100  # an ignored row
    results = []
    for score in ("loss", "el2n", "margin"):
        ends = []
        for sharding in ("replicate", "shard"):
            pruner = Pruner(N, 0.4, "ucb", period=1, score=score, sharding=sharding)
            losses = []
            for epoch in range(3):
                pruner.set_epoch(epoch)
                for batch in pruner.batch_sampler(BATCH):
                    ids = torch.tensor(batch)
                    logits = model(points[ids]) * (1 + epoch)
                    losses.append(pruner.cross_entropy(logits, labels[ids], ids).item())
            pruner.set_epoch(3)
            state = pruner.state_dict()
            ends.append(
                (losses, state["table"] if sharding == "replicate" else whole(pruner, state))
            )
        results.append(ends)
    return results


def repeated_visits(rank, size):
    """Every rank visits the same samples, in several calls, and one by two rows of each."""
    pruner = Pruner(N, 0.3, "ucb", alpha=0.5, sharding="shard")
    pruner.set_epoch(0)
    ids = torch.tensor([3, 60, 3, -1])
    for visit in range(300):  # more batches than are kept loose
        pruner.observe(
            ids, torch.tensor([rank + visit / 8 - 2, 1.0 + visit, rank + visit / 8 + 2, 5.0])
        )
    pruner.observe(torch.tensor([7]), torch.tensor([float("nan")]))
    pruner.set_epoch(1)
    state = whole(pruner, pruner.state_dict())
    return state["mean"], state["count"], state["non_finite_count"]


def errors(rank, size):
    last = rank == size - 1
    pruner = make("ucb")
    pruner.set_epoch(0)
    found = {
        "policy": message(lambda: Pruner(N, 0.3, lambda table, k, seed: None, sharding="shard")),
        "infobatch": message(lambda: Pruner(N, policy="infobatch", sharding="shard")),
        "groups": message(lambda: Pruner(N, 0.3, groups=torch.arange(N) % 3, sharding="shard")),
        "forgetting": message(lambda: Pruner(N, 0.3, track_forgetting=True, sharding="shard")),
        "few": message(lambda: Pruner(max(size - 1, 1), 1.0, sharding="shard")),
        "sharding": message(lambda: Pruner(N, 0.3, sharding="shard" if last else "replicate")),
        "is_selected": message(lambda: pruner.is_selected(torch.arange(3))),
        "id": message(lambda: pruner.observe(torch.tensor([3, N]), torch.ones(2))),
        "epoch": message(lambda: pruner.set_epoch(1 + last)),
    }
    state = pruner.state_dict()
    wrong = {**state, "seed": "3"} if last else state
    found["state"] = message(lambda: pruner.load_state_dict(wrong))
    found["num_selections"] = message(
        lambda: pruner.load_state_dict({**state, "subset_epoch": 1, "epoch": 1})
    )
    pruner.set_epoch(1)
    return found, pruner.epoch, len(pruner.epoch_order())


def memory(rank, size):
    """Elements of the columns that this rank holds."""
    pruner = make("ucb")
    return [len(pruner.table.mean), len(pruner.times_selected), pruner.num_samples]


SCENARIOS = (whole_runs, resumed_runs, copies, cross_entropy, repeated_visits, memory)


def start(rank, size, folder, seconds=60):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "no score was observed", RuntimeWarning)
    store = dist.FileStore(str(Path(folder) / f"store{size}"), size)
    timeout = timedelta(seconds=seconds)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)


def work(rank, size, folder):
    """One process of a world."""
    start(rank, size, folder)
    scenarios = SCENARIOS + ((errors,) if size > 1 else ())
    torch.save(
        {scenario.__name__: scenario(rank, size) for scenario in scenarios},
        Path(folder) / f"{rank}.pt",
    )
    dist.destroy_process_group()


def saving(rank, size, folder, options=None):
    """Trains for some epochs and saves with torch.distributed.checkpoint."""
    start(rank, size, folder)
    pruner = make("ucb", **(options or {}))
    for epoch in range(3):
        pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(BATCH):
            ids = torch.tensor(batch)
            pruner.observe(ids, value(epoch, ids))
    checkpoint.save({"pruner": pruner.state_dict()}, checkpoint_id=str(Path(folder) / "saved"))
    pruner.set_epoch(3)
    torch.save((pruner.selected, pruner.table.mean), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def loading(rank, size, folder, options=None):
    """Goes on from the checkpoint, with any number of processes."""
    start(rank, size, folder)
    pruner = make("ucb", **(options or {}))
    state = {"pruner": pruner.state_dict()}
    checkpoint.load(state, checkpoint_id=str(Path(folder) / "saved"))
    pruner.load_state_dict(state["pruner"])
    epoch = pruner.epoch
    seen = []
    for following in range(epoch + 1, EPOCHS):
        pruner.set_epoch(following)
        for batch in pruner.batch_sampler(BATCH):
            ids = torch.tensor(batch)
            pruner.observe(ids, value(following, ids))
            seen.append((following, batch))
    pruner.set_epoch(EPOCHS)
    torch.save((epoch, seen, whole(pruner, pruner.state_dict())), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def killed(rank, size, folder, collective):
    """The last rank dies in a selection, at its n-th all-reduce or all-to-all; others report."""
    start(rank, size, folder, seconds=10)
    pruner = make("ucb")
    for epoch in range(2):
        pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(BATCH):
            ids = torch.tensor(batch)
            pruner.observe(ids, value(epoch, ids))
    checkpoint.save({"pruner": pruner.state_dict()}, checkpoint_id=str(Path(folder) / "saved"))
    for batch in pruner.batch_sampler(BATCH):  # what waits to be sent
        pruner.observe(torch.tensor(batch), torch.full((len(batch),), 9.0))
    before = (pruner.epoch, pruner.table.state_dict(), pruner.selected, pruner.num_selections)
    real = getattr(dist, collective)
    if rank == size - 1:

        def dies(*arguments, **options):
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(dist, collective, dies)
    started = time.monotonic()
    found = message(lambda: pruner.set_epoch(2))
    seconds = time.monotonic() - started
    setattr(dist, collective, real)
    after = (pruner.epoch, pruner.table.state_dict(), pruner.selected, pruner.num_selections)
    torch.save((found, seconds, before, after), Path(folder) / f"{rank}.pt")
    os._exit(0)  # the group is broken
