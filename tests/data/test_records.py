# SPDX-License-Identifier: Apache-2.0
"""`EpochRecords`: the samples of one epoch by their place, alone and in Grain."""

import pickle

import numpy as np
import pytest
import stream_libraries as libraries
import torch
from torch.utils.data import TensorDataset

from dynprune_cuda import Pruner
from dynprune_cuda.data import EpochRecords

N, BATCH = 61, 4
pytestmark = [
    pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Grain forks with threads
]


class Halves:
    """A map-style data set of plain numbers."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"half": index / 2}


def make(keep=14):
    pruner = Pruner(N, keep, "uniform", seed=3)
    pruner.set_epoch(1)
    return pruner


@pytest.mark.parametrize("keep", [1.0, 14, 1])
def test_records_are_the_epochs_samples_in_order(keep):
    pruner = make(keep)
    records = EpochRecords(pruner, TensorDataset(torch.arange(N) / 2))
    order = pruner.epoch_order().tolist()
    assert len(records) == len(order) and records.epoch == 1
    assert records.ids.tolist() == order and records.ids.dtype == np.int64
    assert [records[i] for i in range(len(records))] == [(i / 2, i) for i in order]
    assert [records[i][1] for i in range(len(records))] == list(dict.fromkeys(order))
    for wrong in (-1, len(records)):
        with pytest.raises(IndexError, match=f"place {wrong} is out of range"):
            records[wrong]
    with pytest.raises(ValueError, match="read-only"):
        records.ids[0] = 5


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_process_has_its_share(rank, drop_last):
    pruner = make(15)
    pruner._run.ranks.size, pruner._run.ranks.rank = 2, rank
    records = EpochRecords(pruner, Halves(), drop_last=drop_last)
    whole = pruner.whole_order().tolist()
    share = whole[rank::2][: 7 if drop_last else 8]
    assert records.ids.tolist() == (share if len(share) >= 7 + (not drop_last) else [*share, *whole[1:2]])


def test_records_of_an_epoch_that_is_over_are_refused():
    pruner = make()
    records = EpochRecords(pruner, Halves())
    in_worker = pickle.loads(pickle.dumps(records))
    pruner.set_epoch(2)
    for use in (lambda: records[0], lambda: pickle.dumps(records)):
        with pytest.raises(RuntimeError, match="of epoch 1, and the pruner is in epoch 2: make new"):
            use()
    assert in_worker[0] == {"half": in_worker.ids[0] / 2, "sample_id": in_worker.ids[0]}
    assert repr(in_worker) == repr(records) != repr(EpochRecords(pruner, Halves()))


def test_wrong_arguments_are_named():
    pruner = make()
    with pytest.raises(ValueError, match="dataset must have 61 samples, as the pruner"):
        EpochRecords(pruner, [1, 2, 3])
    with pytest.raises(TypeError, match="drop_last must be a bool"):
        EpochRecords(pruner, Halves(), drop_last=1)
    with pytest.raises(TypeError, match="place must be an int"):
        EpochRecords(pruner, Halves())[0.5]


def ids_of(batches):
    """Ids by batch; each sample is the one that its id names."""
    found = []
    for batch in batches:
        assert (batch["half"] == batch["sample_id"] / 2).all()
        found.append(batch["sample_id"].tolist())
    return found


def of_map_dataset(pruner, workers):
    import grain

    dataset = grain.MapDataset.source(EpochRecords(pruner, Halves())).batch(BATCH)
    dataset = dataset.to_iter_dataset()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    return dataset.mp_prefetch(options) if workers else dataset


def of_data_loader(pruner, workers):
    import grain

    records = EpochRecords(pruner, Halves())
    sampler = grain.samplers.SequentialSampler(len(records), grain.sharding.NoSharding(), seed=1)
    return grain.DataLoader(
        data_source=records,
        sampler=sampler,
        operations=[grain.transforms.Batch(BATCH)],
        worker_count=workers,
    )


@pytest.mark.parametrize("loader", [of_map_dataset, of_data_loader])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_grain_reads_an_epoch(loader, workers):
    libraries.needs("grain")
    pruner = make()
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        batches = ids_of(loader(pruner, workers))
        delivered = [i for batch in batches for i in batch]
        order = pruner.epoch_order().tolist()
        if loader is of_map_dataset or not workers:
            assert delivered == order  # Grain's workers each batch their own records
        assert sorted(delivered) == sorted(order) == pruner.selected.tolist()


@pytest.mark.parametrize("loader", [of_map_dataset, of_data_loader])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_grain_resumes(loader, workers):
    libraries.needs("grain")
    pruner = make()
    iterator = iter(loader(pruner, workers))
    before = ids_of([next(iterator), next(iterator)])
    state = iterator.get_state()
    rest = ids_of(iterator)
    other = make(5)
    other = make()
    resumed = iter(loader(other, workers))
    resumed.set_state(state)
    assert ids_of(resumed) == rest
    assert sorted(i for batch in before + rest for i in batch) == pruner.selected.tolist()


def test_grain_refuses_a_state_of_another_epoch():
    libraries.needs("grain")
    pruner = make()
    iterator = iter(of_data_loader(pruner, 0))
    next(iterator)
    state = iterator.get_state()
    pruner.set_epoch(2)
    with pytest.raises(ValueError, match="DataSource in checkpoint does not match"):
        iter(of_data_loader(pruner, 0)).set_state(state)
