# SPDX-License-Identifier: Apache-2.0
"""A run with dropout and augmentation that is resumed inside an epoch goes on bit for bit.

The way is the documented one: save model, optimiser, pruner, position and generators; restore them
before the loop.
"""

import os
import random
import signal
import subprocess
import sys
from itertools import islice

import pytest
import random_run
import torch
from random_run import BATCH, N, Run
from torch.utils.data import DataLoader

from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.data.generators import PlacedBatch

KINDS = ["plain", "stateful"]
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]
quiet = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@quiet
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_workers", WORKERS)
def test_dropout_and_augmentation_go_on_bit_for_bit(kind, num_workers):
    whole = Run(kind, num_workers)
    expected = whole.train()
    assert len({noise for _, noise, _ in expected}) == len(expected)
    for stop in random.Random(0).sample(range(1, len(expected)), 10):
        first = Run(kind, num_workers)
        assert first.train(stop) == expected[:stop]
        state = first.save()
        del first
        second = Run(kind, num_workers, seed=stop)
        second.load(state)
        assert second.train() == expected[stop:], stop
        assert all(map(torch.equal, second.result(), whole.result())), stop


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ten_kills_change_no_bit(tmp_path, kind, num_workers):
    """SIGKILL at ten random steps; each time a process goes on from the last checkpoint on disk."""
    whole = Run(kind, num_workers, epochs=random_run.KILLED_EPOCHS)
    expected = whole.train()
    steps = sorted(random.SystemRandom().sample(range(1, len(expected) - 5), 10))
    command = [sys.executable, random_run.__file__, str(tmp_path), kind, str(num_workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += map(str, steps)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 10 + ["0"], steps
    result, history = torch.load(tmp_path / "result.pt", weights_only=False)
    # Steps behind a checkpoint are done again, and are the same.
    assert set(history) == set(enumerate(expected)), steps
    assert len(history) > len(expected), "no step was done again: were the processes killed?"
    assert all(map(torch.equal, result, whole.result())), steps


class Prefetching:
    """Asks a sampler as the workers of a loader do."""

    num_workers, prefetch_factor, in_order = 2, 3, True

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        return PrefetchingDataLoaderIter(self)


class PrefetchingDataLoaderIter:
    def __init__(self, loader):
        self.asked = iter(loader.batch_sampler)
        self.waiting = [next(self.asked, None) for _ in range(6)]

    def __iter__(self):
        return self

    def __next__(self):
        batch = self.waiting.pop(0)
        self.waiting.append(next(self.asked, None))
        if batch is None:
            raise StopIteration
        return batch


@pytest.mark.parametrize("start", [0, 8, 32, 60])
@pytest.mark.parametrize("drop_last", [False, True])
def test_what_workers_prefetched_does_not_count(start, drop_last):
    pruner = Pruner(N, 0.5)
    sampler = pruner.batch_sampler(BATCH, drop_last)
    sampler.load_state_dict({"epoch": 0, "ids": start})
    trained = start
    for batch in Prefetching(sampler):
        trained += len(batch)
        assert sampler.state_dict() == {"epoch": 0, "ids": trained}
    assert trained == (max(start, N - N % BATCH) if drop_last else N)
    assert sampler.state_dict() == {"epoch": 0, "ids": trained}


def test_what_cannot_be_counted_is_refused():
    pruner = Pruner(N, 0.5, "uniform")
    sampler = pruner.batch_sampler(BATCH)
    loader = Prefetching(sampler)
    loader.in_order = False
    assert len(next(iter(loader))) == BATCH
    with pytest.raises(ValueError, match=r"which batches were trained on: .* prefetches 6 batches"):
        sampler.state_dict()
    by_id = pruner.sampler()
    next(iter(Prefetching(torch.utils.data.BatchSampler(by_id, BATCH, False))))
    with pytest.raises(ValueError, match=r"which samples were .*; use pruner\.batch_sampler\("):
        by_id.state_dict()
    pruner.set_epoch(1)  # whose iterator does not exist yet
    assert sampler.state_dict() == by_id.state_dict() == {"epoch": 1, "ids": 0}


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_a_left_loader_with_workers_counts_what_was_trained_on(persistent):
    pruner = Pruner(100, 0.5)
    sampler = pruner.batch_sampler(10)
    options = {"num_workers": 2, "prefetch_factor": 2, "persistent_workers": persistent}
    loader = DataLoader(IndexedDataset(torch.arange(100)), batch_sampler=sampler, **options)
    for stop in (1, 6, 10):
        seen = []
        for _, ids in loader:
            seen += ids.tolist()
            if len(seen) == 10 * stop:
                break
        position = sampler.state_dict()
        assert position == {"epoch": 0, "ids": 10 * stop}
        resumed = pruner.batch_sampler(10)
        resumed.load_state_dict(position)
        assert sorted(seen + [i for batch in resumed for i in batch]) == list(range(100))
    unordered = DataLoader(
        IndexedDataset(torch.arange(100)), batch_sampler=sampler, num_workers=2, in_order=False
    )
    next(iter(unordered))
    with pytest.raises(ValueError, match="prefetches 4 batches"):
        sampler.state_dict()
    by_id = pruner.sampler()
    next(iter(DataLoader(IndexedDataset(torch.arange(100)), 10, sampler=by_id, num_workers=2)))
    with pytest.raises(ValueError, match="prefetches 4 batches"):
        by_id.state_dict()


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_persistent_workers_draw_anew_each_epoch(kind):
    seen = [noise for _, noise, _ in Run(kind, 2, persistent_workers=True).train()]
    assert len(set(seen)) == len(seen)
    # The same as in new workers, until the losses differ: each new worker's seed is drawn.
    assert [noise for _, noise, _ in Run(kind, 2).train(8)] == seen[:8]
    varied = {noise for _, noise, _ in Run(kind, 2, seed=1).train()}
    assert not varied.intersection(seen)


@pytest.mark.parametrize("position", [0, 8])
def test_only_the_draw_of_a_resumed_loader_is_taken_back(position):
    pruner = Pruner(N, 0.5)
    sampler = pruner.batch_sampler(BATCH)
    if position:
        sampler.load_state_dict({"epoch": 0, "ids": position})
    loader = DataLoader(torch.arange(N), batch_sampler=sampler)
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before) == (position > 0)
    own = DataLoader(torch.arange(N), batch_sampler=sampler, generator=torch.Generator())
    before = torch.get_rng_state()
    next(iter(own))
    assert torch.equal(torch.get_rng_state(), before)
    # What others draw or set between is theirs.
    for change in (lambda: torch.rand(3), lambda: torch.manual_seed(5)):
        batches = iter(loader)
        change()
        before = torch.get_rng_state()
        next(batches)
        assert torch.equal(torch.get_rng_state(), before)
    before = torch.get_rng_state()
    assert len(list(sampler)) > 2
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_lists_that_know_their_place():
    pruner = Pruner(N, 0.5)
    batches = list(islice(pruner.batch_sampler(BATCH), 3))
    assert all(isinstance(batch, PlacedBatch) for batch in batches)
    assert [batch.place for batch in batches] == [
        (torch.initial_seed(), 0, BATCH * number) for number in range(3)
    ]
    assert batches[0] == pruner.epoch_order()[:BATCH].tolist()
    before = torch.get_rng_state()
    IndexedDataset(torch.arange(N)).__getitems__(batches[0])  # in no worker
    assert torch.equal(torch.get_rng_state(), before)
