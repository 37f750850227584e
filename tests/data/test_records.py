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

N = 61
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
    share = whole[rank::2][:7] if drop_last else whole[rank::2]
    if rank == 1 and not drop_last:
        share = [*share, share[0]]  # repeats its first one
    assert records.ids.tolist() == share


def test_records_of_an_epoch_that_is_over_are_refused():
    pruner = make()
    records = EpochRecords(pruner, Halves())
    in_worker = pickle.loads(pickle.dumps(records))
    pruner.set_epoch(2)
    for use in (lambda: records[0], lambda: pickle.dumps(records)):
        with pytest.raises(RuntimeError, match="of epoch 1, and the pruner is in epoch 2: "):
            use()
    assert in_worker[0] == {"half": in_worker.ids[0] / 2, "sample_id": in_worker.ids[0]}
    assert repr(in_worker) == repr(records) != repr(EpochRecords(pruner, Halves()))


def test_records_of_another_choice_in_the_same_epoch_are_refused():
    pruner = make()
    state = pruner.state_dict()
    records = EpochRecords(pruner, Halves())
    pruner.set_epoch(1)  # as it is
    assert records[0]["sample_id"] == records.ids[0]
    pruner.load_state_dict(state)
    with pytest.raises(RuntimeError, match="of epoch 1, and the pruner was resized, or loaded"):
        records[0]
    pruner.set_epoch(0)
    records = EpochRecords(pruner, Halves())
    pruner.resize(libraries.N - 1)  # and is before epoch 0
    with pytest.raises(RuntimeError, match="of epoch 0, and the pruner was resized, or loaded"):
        pickle.dumps(records)


def test_wrong_arguments_are_named():
    pruner = make()
    with pytest.raises(ValueError, match="dataset must have 61 samples, as the pruner"):
        EpochRecords(pruner, [1, 2, 3])
    with pytest.raises(TypeError, match="drop_last must be a bool"):
        EpochRecords(pruner, Halves(), drop_last=1)
    with pytest.raises(TypeError, match="place must be an int"):
        EpochRecords(pruner, Halves())[0.5]


@pytest.fixture
def loaders():
    libraries.needs("grain")
    import grain_loaders

    return grain_loaders


@pytest.mark.parametrize("name", ["MapDataset", "DataLoader"])
def test_grain_reads_an_epoch(loaders, name):
    pruner = make()
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        batches = loaders.ids_of(loaders.LOADERS[name](pruner, 0))
        assert [i for batch in batches for i in batch] == pruner.epoch_order().tolist()
        assert [len(batch) for batch in batches] == [4, 4, 4, 2]


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("MapDataset", 0),
        ("DataLoader", 0),
        # Of MapDataset, see test_library_ranks.py: these workers take some 10 s to start.
        pytest.param("DataLoader", 2, marks=pytest.mark.slow),
    ],
)
def test_grain_resumes(loaders, name, workers):
    pruner, other = make(), make()
    iterator = iter(loaders.LOADERS[name](pruner, workers))
    before = loaders.ids_of([next(iterator), next(iterator)])
    state = iterator.get_state()
    rest = loaders.ids_of(iterator)
    resumed = iter(loaders.LOADERS[name](other, workers))
    resumed.set_state(state)
    assert loaders.ids_of(resumed) == rest
    assert sorted(i for batch in before + rest for i in batch) == pruner.selected.tolist()


def test_grain_refuses_a_state_of_another_epoch(loaders):
    pruner = make()
    iterator = iter(loaders.of_data_loader(pruner, 0))
    next(iterator)
    state = iterator.get_state()
    pruner.set_epoch(2)
    with pytest.raises(ValueError, match="DataSource in checkpoint does not match"):
        iter(loaders.of_data_loader(pruner, 0)).set_state(state)
