# SPDX-License-Identifier: Apache-2.0
"""What each of two processes does in `test_saved_before.py`."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from make_saved_states import RANK_CASES, rank_pruner
from runs import BATCH, train
from shard_pruner_ranks import start


def resume(rank, size, folder, saved, name):
    """Loads a state of two processes, and goes on."""
    start(rank, size, folder)
    one = torch.load(Path(saved) / f"{name}_rank{rank}.pt", weights_only=True)
    pruner = rank_pruner(**RANK_CASES[name])
    state = one["state"]
    if state is None:
        loaded = {"pruner": pruner.state_dict()}
        checkpoint.load(loaded, checkpoint_id=str(Path(saved) / f"{name}_dcp"))
        state = loaded["pruner"]
    pruner.load_state_dict(state)
    sampler = pruner.batch_sampler(BATCH)
    sampler.load_state_dict(one["sampler"])
    found = {"rest": train(pruner, sampler), "expected": one["rest"]}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
