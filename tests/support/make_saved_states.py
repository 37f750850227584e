# SPDX-License-Identifier: Apache-2.0
"""Writes states with the installed version: `python make_saved_states.py FOLDER`.

test_saved_before.py loads what version 0.1.0 wrote, and goes on as that version did.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
import torch.multiprocessing as mp
from runs import BATCH, MAKERS, SINCE_0_2_0, N, train

from dynprune_cuda import KeptHistory, Pruner, StaticScores

STOPS = (5, 13)  # batches
RANK_STOP = 9
RANK_CASES = {
    "replicated": {},
    "sharded": {"sharding": "shard"},
    "strided_local": {"sharding": "shard", "shard_layout": "strided", "surplus": "local"},
}
SINGLE_SHARDS = {"shard": {}, "shard_strided": {"shard_layout": "strided"}}
SAVED = [name for name in MAKERS if name not in SINCE_0_2_0]
CASES = [*(f"{name}-{stop}" for name in SAVED for stop in STOPS), *SINGLE_SHARDS]


def rank_pruner(**options):
    """A pruner whose samples do not divide among two processes."""
    return Pruner(N + 1, 0.4, "ucb", period=2, seed=3, **options)


def make(case):
    """The pruner of a case of a single process."""
    if case in SINGLE_SHARDS:
        return rank_pruner(sharding="shard", **SINGLE_SHARDS[case])
    return MAKERS[case.rpartition("-")[0]]("cpu")


def stopped(case):
    """The state of a run in mid-epoch, the position of its sampler, and how it goes on."""
    pruner = make(case)
    sampler = pruner.batch_sampler(BATCH)
    train(pruner, sampler, RANK_STOP if case in SINGLE_SHARDS else int(case.rpartition("-")[2]))
    position, state = sampler.state_dict(), pruner.state_dict()
    sampler.load_state_dict(position)
    return {"state": state, "sampler": position, "rest": train(pruner, sampler)}


def save_ranks(rank, folder):
    """One of two processes."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, options in RANK_CASES.items():
        pruner = rank_pruner(**options)
        sampler = pruner.batch_sampler(BATCH)
        train(pruner, sampler, RANK_STOP)
        state, position = pruner.state_dict(), sampler.state_dict()
        if options:
            checkpoint.save({"pruner": state}, checkpoint_id=str(folder / f"{name}_dcp"))
            state = None
        sampler.load_state_dict(position)
        result = {"state": state, "sampler": position, "rest": train(pruner, sampler)}
        torch.save(result, folder / f"{name}_rank{rank}.pt")
    dist.destroy_process_group()


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    saved = {case: stopped(case) for case in CASES}
    pruner = MAKERS["ucb"]("cpu")
    history = KeptHistory(pruner)
    for epoch in range(4):
        pruner.set_epoch(epoch)
        history.record()
    saved["kept_history"] = {"state": history.state_dict()}
    torch.save(saved, folder / "single.pt")
    StaticScores(torch.arange(9.0), "el2n").save(folder / "static_scores.pt")
    mp.spawn(save_ranks, (folder,), nprocs=2)
    (folder / "store").unlink()


if __name__ == "__main__":
    main()
