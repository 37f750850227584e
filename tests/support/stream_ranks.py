# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_stream_ranks.py` does; the results are compared there."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from dynprune_cuda import Pruner

N, EPOCHS, BATCH, MAX_TOKENS, WORKERS = 61, 4, 5, 70, 2
LENGTHS = [1 + (37 * i * i + 11 * i) % 31 for i in range(N)]
KEYS = [(17 * i + 5) % N for i in range(N)]


def half(key):
    return key / 2


def run(rank, size):
    """Epochs by token budget, then the same epochs from a stream in workers."""
    pruner = Pruner(N, 0.4, "ucb", seed=3)
    sampler = pruner.batch_sampler(BATCH, lengths=LENGTHS, max_tokens=MAX_TOKENS)
    stream = pruner.filter(KEYS, int, decode=half)
    loader = DataLoader(stream, BATCH, num_workers=WORKERS, persistent_workers=True)
    results = []
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        steps = len(sampler), stream.steps(BATCH, WORKERS)
        bucketed, streamed = list(sampler), [ids.tolist() for _, ids in loader]
        for ids in bucketed:
            pruner.observe(torch.tensor(ids), torch.tensor(ids) * 0.1 + rank)
        results.append((pruner.selected.tolist(), steps, bucketed, streamed))
    return results


def work(rank, size, folder):
    """One process of a world."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(run(rank, size), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
