# SPDX-License-Identifier: Apache-2.0
"""What each of two processes of `test_sharded_failures.py` does; the results are compared there."""

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from ranks import message
from shard_pruner_ranks import start

from dynprune_cuda import Pruner, functional, sharded
from dynprune_cuda.sharded import Shard

N = 20


def make(**more):
    return Pruner(N, 10, "ucb", period=1, sharding="shard", **more)


def visited(epochs=1):
    """A pruner whose samples were visited in some epochs."""
    pruner = make()
    for epoch in range(epochs):
        pruner.set_epoch(epoch)
        for batch in pruner.batch_sampler(4):
            ids = torch.tensor(batch)
            pruner.observe(ids, ids + 1.0 + epoch)
    return pruner


def torch_saved(rank, folder):
    """States and a pruner by torch.save: of rank 0 for all, and of each for itself."""
    pruner = visited(2)
    state = pruner.state_dict()
    torch.save(state, folder / f"state{rank}.pt")
    if rank == 0:
        torch.save(pruner, folder / "pruner.pt")
    dist.barrier()
    found = []
    for safe in (True, False):
        other = make()
        wrong = torch.load(folder / "state0.pt", weights_only=safe)
        found.append(message(lambda other=other, wrong=wrong: other.load_state_dict(wrong)))
        found.append(int(other.table.count.sum()))
    right = make()
    right.load_state_dict(torch.load(folder / f"state{rank}.pt", weights_only=True))
    lost = torch.load(folder / "pruner.pt", weights_only=False)
    unpickled = [message(lambda: lost.set_epoch(2)), message(lost.state_dict)]
    del state["table"]["mean"]._dynprune_rank
    unknown = message(lambda: make().load_state_dict(state))
    return found, torch.equal(right.table.mean, pruner.table.mean), unpickled, unknown


def failed_entry(rank, folder):
    """The second visits cannot be entered on rank 1: nobody's are, and the next call works."""
    pruner = visited()
    pruner.set_epoch(1)
    before = pruner.table.state_dict()
    for visit in range(3):
        pruner.observe(torch.tensor([1, N - 1]), torch.full((2,), float(visit)))
    real, calls = functional.update_scores_, []

    def fails(*arguments, **options):
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return real(*arguments, **options)

    functional.update_scores_ = fails
    found = []
    for call in (lambda: pruner.set_epoch(2), pruner.state_dict):
        calls.clear()
        text = message(call)
        found.append((text, before, pruner.table.state_dict(), pruner.epoch))
    functional.update_scores_ = real
    pruner.set_epoch(2)
    return found, (pruner.table.count - before["count"]).tolist()


def converted(rank, folder):
    """Numbers that are no plain int or float, on one rank only."""
    shard = Shard(np.int64(N), torch.tensor(rank), np.int32(2))
    x = torch.arange(10.0) + 10 * rank
    k, seed, epsilon = (np.int64(7), torch.tensor(3), np.float32(0.5)) if rank else (7, 3, 0.5)
    found = [
        sharded.select_top_k(x, k, seed=seed, shard=shard),
        sharded.select_weighted(x, k, seed=seed, shard=shard),
        sharded.select_epsilon_greedy(x, k, epsilon, seed=seed, shard=shard),
    ]
    return found, type(shard.num_samples), type(shard.rank), type(shard.size)


def differing_calls(rank, folder):
    shard = Shard(N, rank, 2)
    x = torch.rand(10)
    other = sharded.select_weighted if rank else sharded.select_top_k
    return [
        message(lambda: sharded.select_ucb(x, x, 7, c=1.0 + rank, shard=shard)),
        message(lambda: sharded.select_ucb1(x, x.int(), 7, step=5 + rank, shard=shard)),
        message(lambda: other(x, 7, shard=shard)),
        message(lambda: sharded.select_top_k(x.half() if rank else x, 7, shard=shard)),
        message(lambda: sharded.select_ucb(x, x, 7, c=2, shard=shard)),
    ]


def differing_states(rank, folder):
    """Each rank loads another state: nothing is taken over."""
    pruner = visited()
    first = pruner.state_dict()
    pruner.set_epoch(1)
    second = pruner.state_dict()
    other, short = make(), torch.zeros(3, dtype=torch.bool)
    found = {
        "epoch": message(lambda: other.load_state_dict(second if rank else first)),
        "seed": message(lambda: other.load_state_dict({**second, "seed": rank})),
        "repeat": message(lambda: other.load_state_dict({**second, "repeat": ["x"]})),
        "length": message(lambda: other.load_state_dict({**second, "repeat": short})),
    }
    second.pop("repeat")
    found["missing"] = message(lambda: other.load_state_dict(second))
    return found, other.epoch, other.seed, int(other.table.count.sum())


def damaged_pieces(rank, folder):
    """One number of one rank's rows is another: no rank takes anything over."""
    pruner = visited()
    found = []
    for column, change in (("mean", 0.5), ("variance", 1.0), ("count", 1)):
        state = pruner.state_dict()
        if rank == 1:
            state["table"][column].to_local()[3] += change
        other = make()
        found.append((message(lambda other=other, state=state: other.load_state_dict(state)),))
        found[-1] += (int(other.table.count.sum()), other.epoch)
    state = {**pruner.state_dict(), "num_selections": 1 + rank}
    found.append((message(lambda: make().load_state_dict(state)),))
    make().load_state_dict(pruner.state_dict())
    return found


def strays(rank, folder):
    """Both ranks train on all samples in a pruned epoch; what each is warned of."""
    found = []
    for sharding in ("replicate", "shard"):
        pruner = Pruner(N, 7, "uniform", sharding=sharding)
        texts = []
        for epoch in range(4):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                pruner.set_epoch(epoch)
            texts.append([str(warning.message) for warning in caught])
            ids = torch.arange(rank, N, 2)
            pruner.observe(ids, torch.rand(len(ids)))
        found.append(texts)
    return found


def constructors(rank, folder):
    """What only one rank is told is an error on both, not a wait for the other."""
    return message(lambda: make(track_forgetting=rank == 1)), make().num_samples


SCENARIOS = (
    torch_saved,
    failed_entry,
    converted,
    differing_calls,
    differing_states,
    damaged_pieces,
    strays,
    constructors,
)


def work(rank, size, folder):
    """One process of a world."""
    start(rank, size, folder, seconds=30)
    found = {scenario.__name__: scenario(rank, Path(folder)) for scenario in SCENARIOS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
