# SPDX-License-Identifier: Apache-2.0
"""IndexedDataset and the samplers, alone and under a DataLoader."""

import collections
import copy
import pickle
import tracemalloc
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from dynprune_cuda import Pruner
from dynprune_cuda.data import EpochBatchSampler, EpochSampler, IndexedDataset, samplers

Pair = collections.namedtuple("Pair", ["image", "label"])


class Squares(Dataset):
    """Sample i is (i * i, i % 3), in the form that `form` makes of it."""

    classes = ("a", "b", "c")

    def __init__(self, size, form=lambda image, label: (image, label)):
        self.size = size
        self.form = form

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.form(torch.tensor(float(index * index)), index % 3)


class BatchedSquares(Squares):
    """The same, with a batched fetch that counts its calls."""

    calls = 0

    def __getitems__(self, indices):
        self.calls += 1
        return [self[index] for index in indices]


class Epoch:
    """An EpochSource: the ids of one epoch, and how often the order was asked for."""

    def __init__(self, order, device):
        self.order = torch.as_tensor(order, dtype=torch.int64, device=device)

    def share_length(self, drop_last=False):
        return len(self.order)

    epoch = 0

    @property
    def num_samples(self):
        return len(self.order)

    @property
    def device(self):
        return self.order.device

    def epoch_order(self):
        return self.order


def as_dict(image, label):
    return {"image": image, "label": label}


def as_list(image, label):
    return [image, label]


def as_image(image, label):
    return image


def test_a_tuple_gets_the_id_appended():
    image, label, sample_id = IndexedDataset(Squares(5))[3]
    assert (float(image), label, sample_id) == (9.0, 0, 3)
    assert type(IndexedDataset(Squares(5))[3]) is tuple
    assert IndexedDataset(Squares(5, lambda image, label: ()))[4] == (4,)


def test_a_dict_gets_a_key_and_stays_what_it_was():
    stored = collections.OrderedDict(image=1, label=2)
    dataset = IndexedDataset([stored, stored])
    assert dataset[1] == {"image": 1, "label": 2, "sample_id": 1}
    assert dataset[0]["sample_id"] == 0 and type(dataset[0]) is collections.OrderedDict
    assert "sample_id" not in stored
    with pytest.raises(ValueError, match="sample 0 already has the key 'sample_id'"):
        IndexedDataset([{"sample_id": 7}])[0]


def test_other_mappings_get_the_key_too():
    sample = IndexedDataset([collections.UserDict(image=1)])[0]
    assert sample["sample_id"] == 0 and sample["image"] == 1


def test_anything_else_becomes_a_pair():
    assert IndexedDataset([10, 20])[1] == (20, 1)
    assert IndexedDataset(["text"])[0] == ("text", 0)
    assert IndexedDataset([[1, 2]])[0] == ([1, 2], 0)
    assert IndexedDataset([None])[0] == (None, 0)


def test_a_named_tuple_keeps_its_names():
    sample, sample_id = IndexedDataset(Squares(5, Pair))[2]
    assert isinstance(sample, Pair) and sample.label == 2 and sample_id == 2
    batch, ids = next(iter(DataLoader(IndexedDataset(Squares(5, Pair)), batch_size=3)))
    assert batch.image.tolist() == [0.0, 1.0, 4.0] and ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("index", [3, np.int64(3), torch.tensor(3), -2])
def test_the_id_is_a_python_int_whatever_the_index(index):
    sample_id = IndexedDataset(Squares(5))[index][-1]
    assert type(sample_id) is int and sample_id == 3


def test_a_bad_index_is_an_error():
    dataset = IndexedDataset(Squares(5))
    with pytest.raises(TypeError, match="index"):
        dataset[1.0]
    for index in (5, -6):
        with pytest.raises(IndexError):
            dataset[index]
    assert [sample[-1] for sample in dataset] == [0, 1, 2, 3, 4]  # ends by IndexError


@pytest.mark.parametrize("make", [Squares, BatchedSquares])
def test_batched_fetching(make):
    inner = make(9)
    samples = IndexedDataset(inner).__getitems__([4, 0, 4])
    assert [(float(image), sample_id) for image, _, sample_id in samples] == [
        (16.0, 4),
        (0.0, 0),
        (16.0, 4),
    ]
    if make is BatchedSquares:
        assert inner.calls == 1


def test_a_batched_fetch_of_the_wrong_length_is_not_paired_with_ids():
    class Short(Squares):
        def __getitems__(self, indices):
            return [self[index] for index in indices[1:]]

    with pytest.raises(ValueError):
        IndexedDataset(Short(5)).__getitems__([1, 2, 3])


def test_ids_count_positions_in_what_was_wrapped():
    inner = ConcatDataset([Subset(Squares(9), [8, 7, 6]), Squares(2)])
    dataset = IndexedDataset(inner)
    assert len(dataset) == 5
    assert [(float(dataset[i][0]), dataset[i][-1]) for i in range(5)] == [
        (64.0, 0),
        (49.0, 1),
        (36.0, 2),
        (0.0, 3),
        (1.0, 4),
    ]


def test_attributes_are_those_of_the_wrapped_dataset():
    dataset = IndexedDataset(Squares(4))
    assert dataset.classes == ("a", "b", "c") and dataset.size == 4
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = dataset.nothing_of_the_kind
    assert not hasattr(dataset, "__array__")


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("form", [as_dict, as_list])
def test_copies_work(clone, form):
    dataset = clone(IndexedDataset(Squares(4, form)))
    assert len(dataset) == 4 and dataset.classes == ("a", "b", "c")
    assert "IndexedDataset(" in repr(dataset)


def test_an_object_without_its_dataset_does_not_recurse():
    empty = IndexedDataset.__new__(IndexedDataset)
    with pytest.raises(AttributeError, match="dataset"):
        _ = empty.classes


def test_only_map_style_datasets_can_be_indexed():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    class Sized(Stream):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return i

    for wrong in (Stream(), Sized(), ChainDataset([Sized()])):
        with pytest.raises(TypeError, match=r"must be map-style, got the iterable (Stream|S|Ch)"):
            IndexedDataset(wrong)
    for wrong in (iter([1]), 3):
        with pytest.raises(TypeError, match=r"dataset must be map-style.*__len__"):
            IndexedDataset(wrong)


def test_a_dataset_of_another_length_is_refused_when_it_is_wrapped():
    pruner = Pruner(7, 0.5)
    for size in (6, 8):
        for wrap in (
            pruner.wrap,
            lambda data: IndexedDataset(data, 7),
            lambda data: IndexedDataset(data, pruner),
        ):
            with pytest.raises(ValueError, match=f"must have 7 samples.* got list of {size}"):
                wrap(list(range(size)))
    wrapped = pruner.wrap(list("abcdefg"))
    assert type(wrapped) is IndexedDataset and wrapped[2] == ("c", 2)
    with pytest.raises(TypeError, match="must be map-style"):
        pruner.wrap(3)
    with pytest.raises(TypeError, match="num_samples must be an int"):
        IndexedDataset([1], "7")


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [5, 9, 100])
@pytest.mark.parametrize("wrap", [IndexedDataset, lambda data: data])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated:UserWarning")
@pytest.mark.parametrize("kind", ["plain", "stateful"])
def test_a_loader_of_another_length_fails_at_its_first_batch(
    kind, batched, wrap, size, num_workers
):
    make = DataLoader
    if kind == "stateful":
        make = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    pruner = Pruner(7, 3, "uniform")
    how = {"batch_size": 2, "sampler": pruner.sampler()}
    if batched:
        how = {"batch_sampler": pruner.batch_sampler(2)}
    loader = make(wrap(TensorDataset(torch.arange(size))), num_workers=num_workers, **how)
    for epoch in range(2):
        pruner.set_epoch(epoch)
        text = rf"must have 7 samples, as the pruner, got \w+Dataset of {size}: .*Pruner\({size}, "
        with pytest.raises(ValueError, match=text):
            next(iter(loader))
    assert not pruner.table.count.any()


def test_a_batch_of_ids_of_another_length_is_refused_without_a_loader():
    pruner = Pruner(7, 0.5)
    batch = next(iter(pruner.batch_sampler(2)))
    with pytest.raises(ValueError, match="must have 7 samples, as the pruner, got list of 9"):
        IndexedDataset(list(range(9))).__getitems__(batch)
    assert len(IndexedDataset(list(range(7))).__getitems__(batch)) == 2


def test_a_dataset_without_a_length_is_loaded():
    class Endless(Dataset):
        def __getitem__(self, i):
            return i

    loader = DataLoader(Endless(), batch_sampler=Pruner(7, 0.5).batch_sampler(7))
    assert sorted(next(iter(loader)).tolist()) == list(range(7))


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", [None, as_dict, as_list, as_image])
def test_a_loader_delivers_every_sample_with_its_id(num_workers, form):
    inner = Squares(23) if form is None else Squares(23, form)
    loader = DataLoader(IndexedDataset(inner), batch_size=5, shuffle=True, num_workers=num_workers)
    seen = []
    for batch in loader:
        if form is as_dict:
            images, ids = batch["image"], batch["sample_id"]
        elif form is as_list:
            (images, _), ids = batch
        else:
            images, *_, ids = batch
        assert ids.dtype == torch.int64
        torch.testing.assert_close(images, (ids * ids).float())
        seen += ids.tolist()
    assert sorted(seen) == list(range(23))


@pytest.mark.parametrize("chunk_ids", [1, 6, 1 << 20])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 12, 29])
def test_batches_are_the_epoch_cut_into_lists(device, monkeypatch, size, drop_last, chunk_ids):
    monkeypatch.setattr(samplers, "CHUNK_IDS", chunk_ids)
    monkeypatch.setattr(samplers, "PIECE_IDS", 3)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size)) + 2**40
    sampler = EpochBatchSampler(Epoch(order, device), 4, drop_last)
    batches = list(sampler)
    expected = order[: size // 4 * 4] if drop_last else order
    assert [i for batch in batches for i in batch] == expected.tolist()
    assert all(isinstance(batch, list) and len(batch) == 4 for batch in batches[:-1])
    assert all(type(i) is int for batch in batches for i in batch)
    assert len(batches) == len(sampler) == (size // 4 if drop_last else -(-size // 4))
    assert list(sampler.sampler) == list(EpochSampler(Epoch(order, device))) == order.tolist()
    assert len(sampler.sampler) == size


def test_iterating_again_or_at_once_or_half_gives_the_same_epoch(device, monkeypatch):
    monkeypatch.setattr(samplers, "CHUNK_IDS", 7)
    source = Epoch(torch.arange(50).flip(0), device)
    for sampler in (EpochBatchSampler(source, 3), EpochSampler(source)):
        whole = list(sampler)
        assert list(islice(sampler, 4)) == whole[:4]
        assert [item for _, item in zip(range(5), sampler, strict=False)] == whole[:5]
        one, other = iter(sampler), iter(sampler)
        assert one is not other
        assert [(next(one), next(other)) for _ in whole] == list(zip(whole, whole, strict=True))
        assert list(sampler) == whole and len(sampler) == len(whole)


def test_an_iterator_keeps_the_epoch_that_it_began(device):
    source = Epoch(torch.arange(10), device)
    iterators = [iter(EpochBatchSampler(source, 4)), iter(EpochSampler(source))]
    source.order = torch.arange(100, 110, device=device)
    assert [list(iterator) for iterator in iterators] == [
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]],
        list(range(10)),
    ]


@pytest.mark.parametrize(
    "make", [lambda source: EpochBatchSampler(source, 512), EpochSampler], ids=["batches", "ids"]
)
def test_no_list_of_the_whole_epoch_is_made(device, make):
    size = 200_000  # as Python ints in a list: 7 MB
    sampler = make(Epoch(torch.arange(size), device))
    tracemalloc.start()
    try:
        number = sum(1 for _ in sampler)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == len(sampler) and peak < 500_000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "batch_size .* got 0"),
        ((-1,), ValueError, "batch_size .* -1"),
        ((2.0,), TypeError, "batch_size .* 2.0"),
        ((True,), TypeError, "batch_size .* True"),
        ((4, 1), TypeError, "drop_last .* 1"),
    ],
)
def test_bad_batch_samplers_are_refused(device, arguments, error, message):
    with pytest.raises(error, match=message):
        EpochBatchSampler(Epoch(torch.arange(3), device), *arguments)


def test_chunks_survive_later_work_on_the_device(device, monkeypatch):
    """On a GPU the copies overlap with training and with reused memory."""
    monkeypatch.setattr(samplers, "CHUNK_IDS", 1 << 10)
    expected = torch.randperm(1 << 15, generator=torch.Generator().manual_seed(0))
    source = Epoch(expected, device)
    iterator = iter(EpochBatchSampler(source, 100))
    source.order = None  # only the iterator holds the epoch now
    seen = []
    for batch in iterator:
        seen += batch
        torch.zeros(1 << 15, dtype=torch.int64, device=device).add_(1)
    assert seen == expected.tolist()


@pytest.mark.parametrize("index", [10, -11, 2**40])
def test_an_index_outside_the_dataset_is_no_other_sample(index):
    dataset = IndexedDataset(list(range(100, 110)))
    with pytest.raises(IndexError, match=str(index)):
        dataset[index]
    with pytest.raises(IndexError, match=str(index)):
        dataset.__getitems__([0, index])
    assert dataset[-10] == (100, 0)


def test_a_batch_sampler_of_something_else_is_refused():
    """As Lightning tries to make one, around its own sampler."""
    inner = torch.utils.data.SequentialSampler(range(9))
    with pytest.raises(TypeError, match=r"source must be a pruner, got SequentialSampler.*=False"):
        EpochBatchSampler(inner, batch_size=3, drop_last=False)
