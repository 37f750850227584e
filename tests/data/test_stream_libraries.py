# SPDX-License-Identifier: Apache-2.0
"""`Pruner.filter` and index feeds with the streaming libraries themselves, in one process."""

import itertools
import pickle

import pytest
import stream_libraries as libraries
import torch
from stream_libraries import SEEKABLE, STREAMS, N
from torch.utils.data import DataLoader, get_worker_info

from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.data import SeekableDataset
from dynprune_cuda.data.stream_sources import library_of, read_whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    # Of the libraries: a tar that is not read to its end, a fork with threads, their own use.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FILTERED = [*STREAMS, *SEEKABLE]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}

    def folder(library):
        libraries.needs(library)
        if library not in found:
            found[library] = tmp_path_factory.mktemp(library)
            libraries.write(library, found[library])
        return found[library]

    return folder


def make(keep=14):
    pruner = Pruner(N, keep, "uniform", seed=3)
    pruner.set_epoch(1)
    return pruner


def dealt_out(pruner, library, consumers):
    """Ids of each consumer, in the order of the files."""
    kept, order = pruner.selected.tolist(), libraries.order_of(library)
    dealt = [sorted(kept[i::consumers], key=order.index) for i in range(consumers)]
    most = max(map(len, dealt))
    return [ids + [-1] * (most - len(ids)) for ids in dealt]


def check_samples(batches):
    """Every sample is the one that its id names; returns the ids, by batch."""
    found = []
    for batch in batches:
        halves, ids = libraries.halves_and_ids(batch)
        assert all(half == i / 2 for half, i in zip(halves, ids, strict=True) if i >= 0)
        found.append(ids)
    return found


@pytest.mark.parametrize("library", FILTERED)
def test_a_stream_is_filtered(folders, library):
    pruner = make()
    stream = libraries.filtered(pruner, library, folders(library))
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        batches = check_samples(DataLoader(stream, 4))
        assert list(itertools.chain(*batches)) == dealt_out(pruner, library, 1)[0]
        assert len(batches) == stream.steps(4)


@pytest.mark.slow
@pytest.mark.parametrize("library", FILTERED)
def test_workers_of_a_library_get_equal_parts(folders, library):
    """Though the libraries would split the stream, and Hugging Face's cannot be told not to."""
    pruner = make()
    stream = libraries.filtered(pruner, library, folders(library))
    loader = DataLoader(stream, 4, num_workers=2, persistent_workers=True)
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        chunks = [
            [ids[i : i + 4] for i in range(0, len(ids), 4)] for ids in dealt_out(pruner, library, 2)
        ]
        expected = [batch for pair in zip(*chunks, strict=True) for batch in pair]
        assert check_samples(loader) == expected
        assert len(expected) == stream.steps(4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("library", FILTERED)
def test_a_filtered_stream_resumes(folders, library, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader():
        pruner = make()
        stream = libraries.filtered(pruner, library, folders(library))
        return pruner, stateful(stream, 2, num_workers=workers)  # keep the pruner

    pruner, first = loader()
    iterator = iter(first)
    before = check_samples(itertools.islice(iterator, 3))
    state = pickle.loads(pickle.dumps(first.state_dict()))
    rest = check_samples(iterator)
    other, resumed = loader()
    resumed.load_state_dict(state)
    assert check_samples(resumed) == rest
    trained = [i for i in itertools.chain(*before, *rest) if i >= 0]
    assert sorted(trained) == pruner.selected.tolist() == other.selected.tolist()


def test_only_selected_samples_of_a_tar_are_decoded(folders):
    pruner, decoded = make(), []

    def decode(item):
        assert isinstance(item["half.txt"], bytes)
        decoded.append(int(item["__key__"]))
        return libraries.decode_tar(item)

    raw = libraries.open_stream("webdataset", folders("webdataset"))
    assert len(list(pruner.filter(raw, libraries.key_of_tar, decode=decode))) == len(decoded)
    assert sorted(decoded) == pruner.selected.tolist()


def test_webdatasets_own_decoder_runs_behind_the_filter(folders):
    raw = libraries.open_stream("webdataset", folders("webdataset"))
    from webdataset.autodecode import Decoder, basichandlers

    pruner = make()
    items = list(pruner.filter(raw, libraries.key_of_tar, decode=Decoder([basichandlers])))
    assert [item["cls"] for item in items] == [item["sample_id"] % 10 for item in items]
    assert sorted(item["sample_id"] for item in items) == pruner.selected.tolist()


def test_a_stream_without_an_end_is_left(folders):
    pruner = make(9)
    raw = libraries.open_stream("webdataset", folders("webdataset"), shardshuffle=2, seed=1)
    ids = [i for *_, i in pruner.filter(raw.repeat(), libraries.key_of_tar, decode=dict_free)]
    assert sorted(ids) == pruner.selected.tolist()


def dict_free(item):
    return item["__key__"]


@pytest.mark.slow
def test_workers_that_shuffle_apart_share_the_epoch(folders):
    """WebDataset's buffer shuffles by the process and the time, other than in another worker."""
    pruner = make()
    raw = libraries.open_stream("webdataset", folders("webdataset")).shuffle(N)
    stream = pruner.filter(raw, libraries.key_of_tar, decode=libraries.decode_tar)
    ids = itertools.chain(*check_samples(DataLoader(stream, 4, num_workers=2)))
    assert sorted(ids) == pruner.selected.tolist()


@pytest.mark.parametrize("split", ["split_by_node", "single_node_only"])
def test_a_stream_split_by_process_is_refused(folders, split):
    folder = folders("webdataset")
    import webdataset

    raw = libraries.open_stream(
        "webdataset", folder, nodesplitter=getattr(webdataset.shardlists, split)
    )
    assert len(list(make().filter(raw, libraries.key_of_tar))) == 14  # one process
    with pytest.raises(ValueError, match=f"got a WebDataset with nodesplitter={split}: use"):
        two_processes().filter(raw, libraries.key_of_tar)


def test_a_data_set_split_by_node_is_refused(folders):
    raw = libraries.open_stream("datasets", folders("datasets"))
    from datasets.distributed import split_dataset_by_node

    part = split_dataset_by_node(raw, rank=0, world_size=2)
    with pytest.raises(ValueError, match="split_dataset_by_node split among 2: leave that call"):
        two_processes().filter(part, libraries.key_of_line)
    alone = make().filter(part, libraries.key_of_line)
    with pytest.raises(RuntimeError, match="of the 14 samples"):
        list(alone)


def two_processes():
    """A pruner that takes itself for one of two, and does not exchange anything."""
    pruner = make()
    pruner._run.ranks.size = 2
    return pruner


@pytest.mark.parametrize("library", SEEKABLE)
def test_streams_that_seek_are_not_filtered_as_they_are(folders, library):
    stream = libraries.open_stream(library, folders(library))
    with pytest.raises(TypeError, match=r"must not be a StreamingDataset of .*SeekableDataset"):
        make().filter(stream)
    with pytest.raises(TypeError, match=r"wrap it in data\.SeekableDataset"):
        IndexedDataset(stream)


@pytest.mark.parametrize("library", SEEKABLE)
def test_a_view_has_all_samples(folders, library):
    view = SeekableDataset(libraries.open_stream(library, folders(library)))
    assert len(view) == N
    assert [float(view[i]["half"]) for i in range(N)] == [i / 2 for i in range(N)]
    for wrong in (-1, N):
        with pytest.raises(IndexError, match=f"index {wrong} is out of range for a stream of 61"):
            view[wrong]
    assert f"{N} samples" in repr(view)
    copied = pickle.loads(pickle.dumps(view))
    assert float(copied[7]["half"]) == 3.5 and len(copied) == N


def test_a_view_counts_what_was_subsampled(folders):
    stream = libraries.open_stream("litdata", folders("litdata"), subsample=0.5)
    view = SeekableDataset(stream)
    assert len(view) == 30
    assert [float(view[i]["half"]) for i in range(30)] == [i / 2 for i in range(30)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("library", SEEKABLE)
def test_a_view_is_read_in_the_order_of_the_epoch(folders, library, workers):
    view = SeekableDataset(libraries.open_stream(library, folders(library)))
    view[3]  # opened here, and used in workers that are forked
    pruner = make()
    sampler = pruner.batch_sampler(4)
    loader = DataLoader(pruner.wrap(view), batch_sampler=sampler, num_workers=workers)
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        ids = list(itertools.chain(*check_samples(loader)))
        assert ids == pruner.epoch_order().tolist()
    iterator = iter(loader)
    check_samples(itertools.islice(iterator, 2))
    state = sampler.state_dict()
    rest = check_samples(iterator)
    sampler.load_state_dict(state)
    assert check_samples(loader) == rest and len(rest) == 2


def test_other_streams_have_no_view():
    with pytest.raises(TypeError, match="must be a StreamingDataset of mosaicml-streaming or"):
        SeekableDataset([1, 2])
    assert library_of(torch.utils.data.TensorDataset(torch.zeros(1))) is None


@pytest.mark.slow
def test_a_stream_sees_no_worker_and_its_reader_does():
    class Watch(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(read_whole(inner))

    class Inner:
        def __iter__(self):
            seen = get_worker_info()
            for _ in range(2):
                yield [info is None for info in (seen, get_worker_info())]

    inner = Inner()

    def outside(items):
        return [(item, get_worker_info() is not None) for item in items]

    seen = list(DataLoader(Watch(), num_workers=2, batch_size=1, collate_fn=outside))
    assert seen == [[([True, True], True)]] * 4
    assert list(read_whole([1, 2])) == [1, 2]
