# SPDX-License-Identifier: Apache-2.0
"""A small training with checkpoints, for `test_resume.py`: run as a script, it may be killed."""

import os
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

SAMPLES, EPOCHS, BATCH, STEPS_PER_CHECKPOINT = 90, 8, 10, 3


def run(folder: Path) -> dict[str, str]:
    """Trains to the end, from the checkpoint in `folder` if there is one; returns its history."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(SAMPLES, 4, generator=generator)
    labels = (points.sum(1) > 0).long()
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    pruner = Pruner(SAMPLES, 0.4, "ucb", period=2, seed=17)
    sampler = pruner.batch_sampler(BATCH)
    loader = DataLoader(IndexedDataset(TensorDataset(points, labels)), batch_sampler=sampler)
    checkpoint, step = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pruner.load_state_dict(state["pruner"])
        sampler.load_state_dict(state["sampler"])
        step = state["step"]
    history = (folder / "history").open("a", buffering=1)
    for epoch in range(pruner.epoch, EPOCHS):
        pruner.set_epoch(epoch)
        for x, y, ids in loader:
            loss = pruner.cross_entropy(model(x), y, ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scores = pruner.table.mean.nan_to_num().double().sum().item().hex()
            history.write(f"{step}:{epoch} {ids.tolist()} {loss.item().hex()} {scores}\n")
            step += 1
            if step % STEPS_PER_CHECKPOINT == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "pruner": pruner.state_dict(),
                    "sampler": sampler.state_dict(),
                    "step": step,
                }
                torch.save(state, folder / "new.pt")
                os.replace(folder / "new.pt", checkpoint)
            if __name__ == "__main__":
                print(step, flush=True)
                time.sleep(0.02)  # leaves the parent time to kill before the end
    history.close()
    return read(folder)


def read(folder: Path) -> dict[str, str]:
    """What each step did; a step that was done again after a kill must have done the same."""
    steps: dict[str, str] = {}
    for line in (folder / "history").read_text().splitlines():
        step, what = line.split(":", 1)
        if steps.setdefault(step, what) != what:
            raise AssertionError(f"step {step} differs:\n{steps[step]}\n{what}")
    return steps


def first_batches(pruner, queue) -> None:
    """Sends the first batches of the current epoch to another process."""
    queue.put(list(islice(pruner.batch_sampler(8), 2)))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
