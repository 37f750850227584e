# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_library_ranks.py` does; the results are compared there."""

import itertools
import os
import warnings
from pathlib import Path

import stream_libraries as libraries
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from dynprune_cuda import Pruner
from dynprune_cuda.data import SeekableDataset

BATCH, EPOCHS = 3, (1, 2)
# Forked as in a script: workers of a fork server would each import torch and the library anew.
WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}


def ids_of(batches):
    """Ids by batch; each sample is the one that its id names."""
    found = []
    for batch in batches:
        halves, ids = libraries.halves_and_ids(batch)
        assert all(half == i / 2 for half, i in zip(halves, ids, strict=True) if i >= 0)
        found.append(ids)
    return found


def make():
    pruner = Pruner(libraries.N, 26, "uniform", seed=3)
    pruner.set_epoch(EPOCHS[0])
    return pruner


def filtered(library, folder):
    """Epochs in workers that live on, then an epoch that is stopped and resumed."""
    pruner = make()
    stream = libraries.filtered(pruner, library, folder)
    loader = DataLoader(stream, BATCH, **WORKERS, persistent_workers=True)
    epochs = []
    for epoch in EPOCHS:
        pruner.set_epoch(epoch)
        epochs.append((pruner.selected.tolist(), stream.steps(BATCH, 2), ids_of(loader)))
    first, second = (StatefulDataLoader(stream, BATCH, **WORKERS) for _ in range(2))
    iterator = iter(first)
    before = ids_of(itertools.islice(iterator, 2))
    state = first.state_dict()
    second.load_state_dict(state)
    return epochs, before, ids_of(iterator), ids_of(second)


def viewed(library, folder):
    """As `filtered`, in the pruner's order."""
    view, pruner = SeekableDataset(libraries.open_stream(library, folder)), make()
    assert len(view) == libraries.N
    samplers = [pruner.batch_sampler(BATCH) for _ in range(2)]
    first, second = (
        DataLoader(pruner.wrap(view), batch_sampler=sampler, **WORKERS) for sampler in samplers
    )
    epochs = []
    for epoch in EPOCHS:
        pruner.set_epoch(epoch)
        epochs.append((pruner.whole_order().tolist(), len(first), ids_of(first)))
    iterator = iter(first)
    before = ids_of(itertools.islice(iterator, 2))
    samplers[1].load_state_dict(samplers[0].state_dict())
    return epochs, before, ids_of(iterator), ids_of(second)


def by_grain():
    """One epoch of a MapDataset in Grain's workers, stopped and resumed."""
    import grain_loaders

    pruner = make()
    steps = pruner.steps_per_epoch(grain_loaders.BATCH)
    iterator = iter(grain_loaders.of_map_dataset(pruner, 2))
    before = grain_loaders.ids_of(itertools.islice(iterator, 2))
    state = iterator.get_state()
    rest = grain_loaders.ids_of(iterator)
    resumed = iter(grain_loaders.of_map_dataset(make(), 2))
    resumed.set_state(state)
    epochs = [(pruner.whole_order().tolist(), steps, before + rest)]
    return epochs, before, rest, grain_loaders.ids_of(resumed)


def work(rank, size, folder, data):
    """One process of a world; `data` maps libraries to folders."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    # mosaicml-streaming knows its processes by these only.
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), **local}
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    results = {}
    for library, where in data.items():
        results[library, "filtered"] = filtered(library, where)
        if library in libraries.SEEKABLE:
            results[library, "viewed"] = viewed(library, where)
    if "grain" in libraries.INSTALLED:
        results["grain", "viewed"] = by_grain()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
