# SPDX-License-Identifier: Apache-2.0
"""The same small data set in the format of each streaming library, and how to read it there."""

import io
import os
import tarfile
from importlib.util import find_spec

import pytest

N = 61
KEYS = [(17 * i + 5) % N for i in range(N)]  # sample ids in the order of the files
SHARD = 16
MODULES = {
    "webdataset": "webdataset",
    "datasets": "datasets",
    "mosaicml": "streaming",
    "litdata": "litdata",
    "grain": "grain",
}
STREAMS = ("webdataset", "datasets")  # whose items have a key
SEEKABLE = ("mosaicml", "litdata")
INSTALLED = [name for name, module in MODULES.items() if find_spec(module) is not None]

# Neither asks the internet for anything.
os.environ |= {"LITDATA_DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}


def needs(library):
    """Skips a test where a library is not installed."""
    if library not in INSTALLED:
        pytest.skip(f"needs {MODULES[library]}")


def shards():
    return [KEYS[start : start + SHARD] for start in range(0, N, SHARD)]


def write(library, folder):
    """Writes all samples, in several shards."""
    {
        "webdataset": write_tar,
        "datasets": write_text,
        "mosaicml": write_mosaicml,
        "litdata": write_litdata,
    }[library](folder)


def write_tar(folder):
    for number, keys in enumerate(shards()):
        with tarfile.open(folder / f"{number:03}.tar", "w") as tar:
            for key in keys:
                for name, content in (("half.txt", f"{key / 2}"), ("cls", f"{key % 10}")):
                    member = tarfile.TarInfo(f"{key:06}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content.encode()))


def write_text(folder):
    for number, keys in enumerate(shards()):
        (folder / f"{number:03}.txt").write_text("".join(f"{key} {key / 2}\n" for key in keys))


def write_mosaicml(folder):
    from streaming import MDSWriter

    columns = {"half": "float64", "cls": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=400) as writer:
        for i in range(N):
            writer.write({"half": i / 2, "cls": i % 10})


def write_litdata(folder):
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=SHARD)
    for i in range(N):
        writer[i] = {"half": i / 2, "cls": i % 10}
    writer.done()
    writer.merge()


def read_lines(files):
    for file in files:
        with open(file) as lines:
            for line in lines:
                sample_id, half = line.split()
                yield {"id": int(sample_id), "raw": half}


def open_stream(library, folder, **more):
    """The library's own object."""
    if library == "webdataset":
        import webdataset

        urls = str(folder / f"{{000..{len(shards()) - 1:03}}}.tar")
        options = {"shardshuffle": False, "nodesplitter": None, **more}
        return webdataset.WebDataset(urls, **options)
    if library == "datasets":
        import datasets

        files = [str(file) for file in sorted(folder.glob("*.txt"))]
        return datasets.IterableDataset.from_generator(read_lines, gen_kwargs={"files": files})
    if library == "mosaicml":
        import streaming

        return streaming.StreamingDataset(local=str(folder), batch_size=4, **more)
    import litdata

    return litdata.StreamingDataset(str(folder), **more)


def key_of_tar(item):
    return int(item["__key__"])


def decode_tar(item):
    return float(item["half.txt"]), int(item["cls"])


def key_of_line(item):
    return item["id"]


def decode_line(item):
    return float(item["raw"]), item["id"] % 10


KEY = {"webdataset": key_of_tar, "datasets": key_of_line}
DECODE = {"webdataset": decode_tar, "datasets": decode_line}


def filtered(pruner, library, folder):
    """What a user writes to filter a stream of the library."""
    from dynprune_cuda.data import SeekableDataset

    stream = open_stream(library, folder)
    if library in STREAMS:
        return pruner.filter(stream, KEY[library], decode=DECODE[library])
    view = SeekableDataset(stream)
    return pruner.filter(range(len(view)), decode=view.__getitem__)


def order_of(library):
    """Sample ids in the order of the library's files."""
    return KEYS if library in STREAMS else list(range(N))


def halves_and_ids(batch):
    """Of a batch of tuples, or of one of dicts."""
    if isinstance(batch, dict):
        return batch["half"].tolist(), batch["sample_id"].tolist()
    return batch[0].tolist(), batch[-1].tolist()
