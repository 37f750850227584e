# SPDX-License-Identifier: Apache-2.0
"""What streaming libraries do with a stream by themselves, and how to read one whole.

Libraries split a stream among the workers of a `DataLoader` and among processes. A filter deals out
the selected samples itself, so each of its workers must read the whole stream. No library is
imported here: its streams are known by the names of their classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker as torch_worker

__all__ = ["check_whole", "library_of", "read_whole"]

MOSAICML, LITDATA, DATASETS, WEBDATASET = "mosaicml-streaming", "litdata", "datasets", "webdataset"
_PACKAGES = {
    "streaming": (MOSAICML, "StreamingDataset"),
    "litdata": (LITDATA, "StreamingDataset"),
    "datasets": (DATASETS, "IterableDataset"),
    "webdataset": (WEBDATASET, "DataPipeline"),
}
_SPLIT_BY_PROCESS = ("split_by_node", "single_node_only")  # stages of webdataset
_END = object()


def library_of(stream: Any) -> str | None:
    """Returns the name of the library that a stream is of, None if it is of none known here."""
    for base in type(stream).__mro__:
        library, name = _PACKAGES.get(base.__module__.split(".")[0], (None, None))
        if base.__name__ == name:
            return library
    return None


def check_whole(stream: Any, num_processes: int) -> None:
    """Raises if a library would give each process a part of a stream, or decode all of it.

    Args:
        stream: What a filter is to read.
        num_processes: How many processes train together.

    Raises:
        TypeError: `stream` is a data set of mosaicml-streaming or litdata, which splits itself.
        ValueError: `stream` was told to split itself among several processes.
    """
    library = library_of(stream)
    if library in (MOSAICML, LITDATA):
        raise TypeError(
            f"stream must not be a StreamingDataset of {library}, which decodes before it yields "
            "and splits itself among processes. With view = data.SeekableDataset(stream), use "
            "pruner.filter(range(len(view)), decode=view.__getitem__), or pruner.wrap(view) with "
            "pruner.batch_sampler"
        )
    if num_processes == 1:
        return
    distributed = getattr(stream, "_distributed", None) if library == DATASETS else None
    if distributed is not None and distributed.world_size > 1:
        raise ValueError(
            "stream must be whole in each process, got one that split_dataset_by_node split among "
            f"{distributed.world_size}: leave that call out"
        )
    if library == WEBDATASET:
        for stage in stream.pipeline:
            if getattr(stage, "__name__", None) in _SPLIT_BY_PROCESS:
                raise ValueError(
                    "stream must be whole in each process, got a WebDataset with nodesplitter="
                    f"{stage.__name__}: use nodesplitter=None"
                )


def read_whole(stream: Iterable[Any]) -> Iterator[Any]:
    """Yields all items of a stream, also in a worker of a `DataLoader`.

    Libraries split a stream by `torch.utils.data.get_worker_info`. Some have no option against it,
    such as Hugging Face datasets. While the stream runs, that function returns None. It is as
    before while the caller of this generator runs.
    """
    info = get_worker_info()
    if info is None:
        yield from stream
        return
    iterator = None
    while True:
        torch_worker._worker_info = None
        try:
            iterator = iter(stream) if iterator is None else iterator
            item = next(iterator, _END)
        finally:
            torch_worker._worker_info = info
        if item is _END:
            return
        yield item
