# SPDX-License-Identifier: Apache-2.0
"""A training with dropout and augmentation, whose process may be killed; `test_resume_random.py`.

As a script: python random_run.py FOLDER KIND WORKERS STEP..., which kills it at each of these
steps. Every time, a new process goes on from the last checkpoint.
"""

import contextlib
import copy
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # noqa: F401  (optimisers load it: once, before processes fork)
from torch.utils.data import DataLoader

from dynprune_cuda import IndexedDataset, Pruner

N, BATCH = 60, 8
KILLED_EPOCHS, STEPS_PER_CHECKPOINT = 10, 2


class Augmented(torch.utils.data.Dataset):
    """Samples with noise from the generators of torch, NumPy and Python."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        noise = torch.rand(()).item() + np.random.rand() + random.random()
        return torch.sin(torch.arange(5.0) * (i + 1)) + noise, i % 3


class Run:
    """A training with dropout whose state is all that is saved."""

    def __init__(self, kind, num_workers, seed=0, epochs=4, **options):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.pruner = Pruner(N, 0.5, "ucb", period=2)
        self.sampler = self.pruner.batch_sampler(BATCH)
        make = DataLoader
        if kind == "stateful":
            make = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
        data = IndexedDataset(Augmented())
        self.loader = make(data, batch_sampler=self.sampler, num_workers=num_workers, **options)
        self.kind, self.epochs, self.trained, self.step = kind, epochs, 0, 0

    def train(self, stop=None, after_step=lambda what: None):
        """Trains until `stop` batches were seen; returns their ids, noise and losses."""
        seen = []
        for epoch in range(self.pruner.epoch, self.epochs):
            if epoch != self.pruner.epoch:
                self.trained = 0
            self.pruner.set_epoch(epoch)
            for inputs, labels, ids in self.loader:
                loss = self.pruner.cross_entropy(self.model(inputs), labels, ids)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.trained += len(ids)
                seen.append((tuple(ids.tolist()), inputs.sum().item().hex(), loss.item().hex()))
                self.step += 1
                after_step(seen[-1])
                if len(seen) == stop:
                    return seen
        return seen

    def save(self):
        if self.kind == "stateful":
            position = self.loader.state_dict()
        else:
            position = self.sampler.state_dict()
            assert position == {"epoch": self.pruner.epoch, "ids": self.trained}
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "pruner": self.pruner.state_dict(),
                "position": position,
                "generators": [torch.get_rng_state(), np.random.get_state(), random.getstate()],
                "counts": (self.trained, self.step),
            }
        )

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])
        (self.loader if self.kind == "stateful" else self.sampler).load_state_dict(
            state["position"]
        )
        self.trained, self.step = state["counts"]
        torch.set_rng_state(state["generators"][0])
        np.random.set_state(state["generators"][1])
        random.setstate(state["generators"][2])

    def result(self):
        parameters = [parameter.detach().clone() for parameter in self.model.parameters()]
        return [*parameters, *self.pruner.table.state_dict().values(), torch.get_rng_state()]


def go_on(folder: Path, kind: str, num_workers: int, attempt: int, reports: int) -> None:
    """Trains from the checkpoint in `folder`, if there is one, to the end; saves what came out.

    Writes the number of each step to the file descriptor `reports`.
    """
    checkpoint = folder / "checkpoint.pt"
    resumes = checkpoint.exists()
    run = Run(kind, num_workers, seed=attempt if resumes else 0, epochs=KILLED_EPOCHS)
    if resumes:
        run.load(torch.load(checkpoint, weights_only=False))

    with (folder / "history").open("ab") as history:

        def after_step(what) -> None:
            history.write(pickle.dumps((run.step - 1, what)))
            history.flush()
            if run.step % STEPS_PER_CHECKPOINT == 0:
                torch.save(run.save(), folder / "new.pt")
                (folder / "new.pt").replace(checkpoint)
            os.write(reports, f"{run.step}\n".encode())
            time.sleep(0.02)  # leaves the parent time to kill before the next step

        run.train(after_step=after_step)
    torch.save((run.result(), read_history(folder)), folder / "result.pt")


def read_history(folder: Path) -> list:
    """What each step did, in the order of time: some were done again after a kill."""
    steps = []
    with (folder / "history").open("rb") as history:
        while True:
            try:
                steps.append(pickle.load(history))
            except EOFError:
                return steps


def main(folder: Path, kind: str, num_workers: int, steps: list[int]) -> None:
    """Prints how each process ended."""
    for attempt, step in enumerate([*steps, None]):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.close(reader)
            go_on(folder, kind, num_workers, attempt, writer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as reports:
            for line in reports:
                if step is not None and int(line) >= step:
                    os.kill(child, signal.SIGKILL)
                    break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        # Workers of a loader may wait for ever for a process that was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [int(step) for step in sys.argv[4:]])
