# SPDX-License-Identifier: Apache-2.0
"""`Pruner.filter`: which samples of a stream each worker of each process gets, and which decode."""

import copy
import gc
import itertools
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from dynprune_cuda import Pruner, distributed
from dynprune_cuda.data import FilteredStream
from dynprune_cuda.data.streams import StreamIterator

N = 50
KEYS = [(17 * i + 5) % N for i in range(N)]  # of the items in the order of the stream
pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")


class Raw(IterableDataset):
    """Undecoded items with keys."""

    def __iter__(self):
        return iter([{"__key__": f"{key:06d}", "raw": b"%d" % key} for key in KEYS])


def key(item):
    return int(item["__key__"])


class Decoder:
    """Counts what is decoded."""

    def __init__(self):
        self.keys = []

    def __call__(self, item):
        self.keys.append(key(item))
        return float(item["raw"]), 2


def make(keep=0.3, **more):
    return Pruner(N, keep, "uniform", seed=3, **more)


def parts(stream, size, workers, epoch=1):
    """What all workers of all processes yield, by `StreamIterator` alone."""
    number, (_, total) = size * workers, stream._current()
    return [
        [ids for *_, ids in StreamIterator(stream, epoch, total, i, number, stream._mask.clone())]
        for i in range(number)
    ]


def expected(selected, consumers, drop_last):
    """The selected keys, dealt out in ascending order, in that of the stream; fillers are -1."""
    kept = sorted(selected)
    if drop_last:
        kept = kept[: len(kept) // consumers * consumers]
    dealt = [sorted(kept[i::consumers], key=KEYS.index) for i in range(consumers)]
    most = max(map(len, dealt))
    return [ids + [-1] * (most - len(ids)) for ids in dealt]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("keep", [1.0, 15, 14, 3, 1])
@pytest.mark.parametrize(("size", "workers"), [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_selected_samples_are_dealt_out(size, workers, keep, drop_last):
    pruner = make(keep)
    decoder = Decoder()
    stream = pruner.filter(Raw(), key, decode=decoder, drop_last=drop_last)
    pruner.set_epoch(1)
    selected = pruner.selected.tolist()
    dealt = parts(stream, size, workers)
    assert dealt == expected(selected, size * workers, drop_last)
    stream._size = size  # as on that many processes
    assert {len(ids) for ids in dealt} == {stream.samples_per_worker(workers)}
    for batch_size, cut in ((4, False), (4, True), (1, False)):
        lengths = [len(ids) for ids in dealt[:workers]]
        batches = [n // batch_size if cut else -(-n // batch_size) for n in lengths]
        assert stream.steps(batch_size, workers, cut) == sum(batches)
    # Only what is yielded is decoded; fillers are samples of their own.
    assert len(decoder.keys) == sum(map(len, dealt)) and set(decoder.keys) <= set(selected)


def test_a_filler_is_the_workers_own_first_sample():
    pruner = make(5)
    stream = pruner.filter(Raw(), key)
    pruner.set_epoch(1)
    iterator = StreamIterator(stream, 1, 5, 1, 2, stream._mask.clone())
    items = list(iterator)
    assert [item["sample_id"] for item in items[:2]] == [key(item) for item in items[:2]]
    assert items[2]["sample_id"] == -1 and items[2]["raw"] == items[0]["raw"]
    pruner.observe(torch.tensor([-1]), torch.tensor([1.0]))  # enters nothing
    assert int(pruner.table.count.sum()) == 0


def test_it_follows_epochs_states_and_sizes():
    pruner = make()
    stream = pruner.filter(KEYS, int)
    with pytest.raises(RuntimeError, match="set_epoch"):
        iter(stream)
    for epoch in range(4):
        pruner.set_epoch(epoch)
        assert sorted(i for _, i in stream) == pruner.selected.tolist()
    state, selected = pruner.state_dict(), pruner.selected
    pruner.set_epoch(4)
    pruner.load_state_dict(state)
    assert sorted(i for _, i in stream) == selected.tolist()
    other = make()
    followed = other.filter(KEYS, int)
    other.load_state_dict(state)
    assert list(followed) == list(stream)
    worker = pickle.loads(pickle.dumps(stream))  # knows what was selected then
    pruner.set_epoch(5)
    assert sorted(i for _, i in worker) == selected.tolist()
    pruner.resize(40)
    with pytest.raises(RuntimeError, match="set_epoch"):
        iter(stream)
    pruner.set_epoch(6)
    with pytest.raises(ValueError, match="key must give ids from 0 to 39, got"):
        list(stream)
    assert len(list(pruner.filter(range(40)))) == pruner.num_selected


def test_a_deep_copy_follows():
    pruner = make()
    stream = pruner.filter(KEYS, int)
    pruner.set_epoch(1)
    copied = copy.deepcopy(copy.deepcopy(stream))
    assert copied._stream is not stream._stream
    del stream
    gc.collect()
    pruner.set_epoch(2)
    assert sorted(i for _, i in copied) == pruner.selected.tolist()
    pruner.resize(N + 1)
    with pytest.raises(RuntimeError, match="make a new DataLoader"):
        iter(copied)


def test_a_worker_notices_that_the_pruner_was_resized():
    pruner = make()
    stream = pruner.filter(KEYS, int)
    pruner.set_epoch(1)
    in_worker = pickle.loads(pickle.dumps(stream))
    in_worker._mask, in_worker._header = stream._mask, stream._header  # as a worker shares them
    pruner.set_epoch(2)
    assert list(in_worker) == list(stream)
    pruner.resize(N + 1)
    with pytest.raises(RuntimeError, match="make a new DataLoader"):
        iter(in_worker)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("consumer", [0, 1, 2, 3])
def test_a_position_resumes(consumer, drop_last):
    pruner = make(14)
    decoder = Decoder()
    stream = pruner.filter(Raw(), key, decode=decoder, drop_last=drop_last)
    pruner.set_epoch(1)

    def start():
        return StreamIterator(stream, 1, 14, consumer, 4, stream._mask.clone())

    whole, iterator = list(start()), start()
    for done in range(len(whole) + 1):
        resumed = start()
        next(resumed)
        resumed.load_state_dict(iterator.state_dict())
        decoder.keys.clear()
        again = resumed.state_dict()
        assert list(resumed) == whole[done:] and len(decoder.keys) == len(whole) - done
        assert again == iterator.state_dict()
        assert next(iterator, None) == (whole[done] if done < len(whole) else None)
    with pytest.raises(ValueError, match="of epoch 2, and the pruner is in epoch 1"):
        start().load_state_dict({"epoch": 2, "read": 0, "checksum": 0})
    with pytest.raises(ValueError, match="read"):
        start().load_state_dict({"epoch": 1, "read": -1, "checksum": 0})


class Shuffled:
    """Comes in another order each time, as a library's unseeded shuffling buffer."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([KEYS[i] for i in torch.randperm(N, generator=seeded(self.passes)).tolist()])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("drop_last", [False, True])
def test_consumers_may_read_in_different_orders(drop_last):
    pruner, raw = make(14), Shuffled()
    stream = pruner.filter(raw, int, drop_last=drop_last)
    pruner.set_epoch(1)
    dealt = parts(stream, 2, 2)
    assert raw.passes == 4
    ids = [i for part in dealt for i in part if i >= 0]
    left_out = pruner.selected.tolist()[12:] if drop_last else []
    assert sorted(ids + left_out) == pruner.selected.tolist()
    assert {len(part) for part in dealt} == {3 if drop_last else 4}


@pytest.mark.parametrize("done", [1, 5, 14])
def test_another_order_is_not_resumed(done):
    pruner = make(14)
    stream = pruner.filter(Shuffled(), int)
    pruner.set_epoch(1)
    iterator = iter(stream)
    for _ in range(done):
        next(iterator)
    resumed = iter(stream)
    resumed.load_state_dict(iterator.state_dict())
    with pytest.raises(RuntimeError, match="must have the order that it had when the state"):
        list(resumed)


def test_a_position_behind_the_stream_is_refused():
    pruner = make(14)
    stream = pruner.filter(KEYS, int)
    pruner.set_epoch(1)
    iterator = iter(stream)
    list(iterator)
    state = iterator.state_dict()
    resumed = iter(stream)
    resumed.load_state_dict(state)
    assert list(resumed) == []
    resumed.load_state_dict({**state, "read": N + 7})
    with pytest.raises(RuntimeError, match=f"worker's first {N + 7} items"):
        next(resumed)


def test_an_epoch_that_changes_while_a_worker_begins_is_noticed():
    pruner = make(14)
    stream = pruner.filter(KEYS, int)
    pruner.set_epoch(1)
    stream._mask[pruner.selected[0]] = False  # as inside of set_epoch
    with pytest.raises(RuntimeError, match="call it before the loader is iterated"):
        iter(stream)


class Endless:
    """Begins again at its end."""

    def __init__(self, keys):
        self.keys = keys

    def __iter__(self):
        return itertools.cycle(self.keys)


def test_a_split_stream_is_noticed():
    pruner = make()
    stream = pruner.filter(KEYS[::2], int)
    pruner.set_epoch(1)
    with pytest.raises(RuntimeError, match=r"of the 15 samples of epoch 1: .* not to split it"):
        list(stream)
    with pytest.raises(RuntimeError, match=r"of the 15 samples of epoch 1"):
        list(pruner.filter(Endless(KEYS[::2]), int))
    assert sorted(i for _, i in pruner.filter(Endless(KEYS), int)) == pruner.selected.tolist()
    twice = pruner.filter(KEYS + KEYS, int)
    assert sorted(i for _, i in twice) == pruner.selected.tolist()


def test_streams_are_not_kept_and_copies_have_none():
    pruner = make()
    stream = pruner.filter(KEYS, int)
    copied = pickle.loads(pickle.dumps(pruner))
    copied.set_epoch(0)
    with pytest.raises(RuntimeError, match="set_epoch"):
        iter(stream)
    assert len(pruner._streams._streams) == 1
    del stream
    gc.collect()
    assert len(pruner._streams._streams) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5,), TypeError, "stream must be an iterable .* got int"),
        ((iter(KEYS),), TypeError, "can be iterated again, got list_iterator"),
        ((KEYS, "__key__"), TypeError, "key must be callable, got '__key__'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make().filter(*arguments)


def test_keys_are_ints():
    pruner = make()
    pruner.set_epoch(0)
    with pytest.raises(TypeError, match=r"key\(item\) must be an int, got '000005'"):
        list(pruner.filter(Raw(), lambda item: item["__key__"]))
    with pytest.raises(TypeError, match="drop_last must be a bool"):
        pruner.filter(KEYS, drop_last=1)


def test_shards_of_several_processes_are_refused():
    pruner = make()

    class Source:
        num_samples, sharding, ranks = N, "shard", distributed.Ranks(None, 1, 2)

    with pytest.raises(ValueError, match="filter needs sharding='replicate' with 2 processes"):
        FilteredStream(Source(), KEYS)
    assert len(list(FilteredStream(pruner, KEYS)._stream)) == N


def decode(item):
    return float(item["raw"]), 2


def ids_of(loader):
    return [ids.tolist() for *_, ids in loader]


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_loader_follow(persistent):
    pruner = make(14)
    stream = pruner.filter(Raw(), key, decode=decode)
    loader = DataLoader(stream, 4, num_workers=2, persistent_workers=persistent)
    for epoch in range(4):
        pruner.set_epoch(epoch)
        batches = ids_of(loader)
        assert len(batches) == stream.steps(4, 2)
        both = expected(pruner.selected.tolist(), 2, False)
        chunks = [[ids[i : i + 4] for i in range(0, len(ids), 4)] for ids in both]
        assert batches == [batch for pair in zip(*chunks, strict=True) for batch in pair]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes(workers):
    StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def run():
        pruner = make(14)
        stream = pruner.filter(Raw(), key, decode=decode)
        pruner.set_epoch(1)
        return pruner, StatefulDataLoader(stream, 2, num_workers=workers)

    _, loader = run()
    whole = ids_of(loader)
    _, loader = run()
    list(itertools.islice(iter(loader), 3))
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    _, resumed = run()
    resumed.load_state_dict(state)
    assert ids_of(resumed) == whole[3:]
