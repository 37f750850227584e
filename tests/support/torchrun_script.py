# SPDX-License-Identifier: Apache-2.0
"""A small DDP training with checkpoints: `torchrun --nproc-per-node 2 torchrun_script.py folder`.

Every rank saves its own state. With a second argument, rank 1 is killed at that step of the first
attempt, and torchrun starts all ranks again, which go on from the newest step that all have saved.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

SAMPLES, EPOCHS, BATCH, STEPS_PER_CHECKPOINT = 91, 6, 5, 2


def run(folder, rank, size, die=None):
    """Trains to the end, from the checkpoints in `folder` if there are any; returns its history."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(SAMPLES, 4, generator=generator)
    labels = (points.sum(1) > 0).long()
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    if size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    pruner = Pruner(SAMPLES, 0.4, "ucb", period=2, seed=17)
    sampler = pruner.batch_sampler(BATCH)
    loader = DataLoader(IndexedDataset(TensorDataset(points, labels)), batch_sampler=sampler)
    saved = [
        step
        for step in range(0, 1000, STEPS_PER_CHECKPOINT)
        if all((folder / f"{step}-{other}.pt").exists() for other in range(size))
    ]
    if size > 1:
        dist.barrier()  # nobody saves a newer step while another rank still looks for the newest
    step = 0
    if saved:
        step = saved[-1]
        state = torch.load(folder / f"{step}-{rank}.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pruner.load_state_dict(state["pruner"])
        sampler.load_state_dict(state["sampler"])
    history = (folder / f"history-{rank}").open("a", buffering=1)
    for epoch in range(pruner.epoch, EPOCHS):
        pruner.set_epoch(epoch)
        for x, y, ids in loader:
            if step == die:
                os.kill(os.getpid(), signal.SIGKILL)
            loss = pruner.cross_entropy(model(x), y, ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            subset = pruner.selected.tolist()
            history.write(f"{step}:{epoch} {ids.tolist()} {loss.item().hex()} {subset}\n")
            step += 1
            if step % STEPS_PER_CHECKPOINT == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "pruner": pruner.state_dict(),
                    "sampler": sampler.state_dict(),
                }
                new = folder / f"new-{rank}"
                torch.save(state, new)
                os.replace(new, folder / f"{step}-{rank}.pt")
    history.close()
    return read(folder / f"history-{rank}")


def read(path):
    """What each step did; a step that was done again after a restart must have done the same."""
    steps = {}
    for line in path.read_text().splitlines():
        step, what = line.split(":", 1)
        if steps.setdefault(step, what) != what:
            raise AssertionError(f"step {step} differs:\n{steps[step]}\n{what}")
    return steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    # Torchrun's own store may still hold the addresses of the processes that are gone.
    store = f"file://{sys.argv[1]}/store" if restarts else None
    dist.init_process_group("gloo", store, rank=rank, world_size=size)
    dies = len(sys.argv) > 2 and rank == 1 and restarts == 0
    run(Path(sys.argv[1]), rank, size, int(sys.argv[2]) if dies else None)
    dist.destroy_process_group()
