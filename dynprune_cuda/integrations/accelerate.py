# SPDX-License-Identifier: Apache-2.0
"""Accelerate: a loader that is prepared without being divided among the processes again."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from dynprune_cuda.data.samplers import EpochBatchSampler, EpochSampler
from dynprune_cuda.data.streams import FilteredStream
from dynprune_cuda.integrations.batches import check_saved_by_all

try:
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader
except ImportError as error:
    raise ImportError(
        "dynprune_cuda.integrations.accelerate needs Accelerate: pip install accelerate"
    ) from error

__all__ = ["prepare_loader"]


def prepare_loader(accelerator: Accelerator, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Does for a pruner's loader what `accelerator.prepare(loader)` does for others.

        pruner = Pruner(len(train_set), keep=0.3, device=accelerator.device)
        loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(64))
        model, optimizer = accelerator.prepare(model, optimizer)
        loader = prepare_loader(accelerator, loader)
        accelerator.register_for_checkpointing(pruner)

    The result puts batches on the device and ends gradient accumulation with the epoch.
    `accelerator.prepare(loader)` would do so too, but give each process only a part of its share,
    since the pruner's samplers have divided the epoch already. It leaves a loader from here alone.
    A stream from `pruner.filter` is divided already, too.

    The pruner must be made after the accelerator, which initialises torch.distributed.

    Args:
        accelerator: The run's accelerator.
        loader: Built on `pruner.batch_sampler(...)` or `pruner.sampler(...)`, or of the stream that
            `pruner.filter(...)` returned.

    Returns:
        The prepared loader.

    Raises:
        TypeError: `loader` is no `DataLoader`.
        ValueError: `loader` uses another sampler, or the accelerator would have one process load
            the batches of all. Or the pruner has sharding="shard" and several processes, or
            processes that share its epochs train on the same samples.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a DataLoader, got {type(loader).__name__}")
    pruner = _divider(loader)
    plan = getattr(accelerator, "parallelism_config", None)
    copies = getattr(plan, "non_data_parallel_size", 1)
    if copies > 1 and pruner.ranks.size * copies > accelerator.num_processes:
        raise ValueError(
            f"the pruner must divide its epochs among {accelerator.num_processes // copies} "
            f"processes, got {pruner.ranks.size}. With tensor, context or sequence parallelism, "
            f"{copies} processes train on the same samples. Make the pruner with process_group= "
            "the data-parallel group, or False if that is one process"
        )
    if accelerator.dispatch_batches or accelerator.split_batches:
        raise ValueError(
            "dispatch_batches and split_batches must be off, got "
            f"dispatch_batches={accelerator.dispatch_batches} and "
            f"split_batches={accelerator.split_batches}: every process loads its own share"
        )
    prepared: Any = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=accelerator.non_blocking,
        dispatch_batches=False,  # or one process would read a stream for all
        use_stateful_dataloader=accelerator.use_stateful_dataloader,
    )
    prepared._is_accelerate_prepared = True  # so that it is not done once more
    registered: DataLoader[Any] = accelerator.prepare_data_loader(prepared)
    return registered


def _divider(loader: DataLoader[Any]) -> Any:
    """Returns what divides the loader's samples among processes: the pruner, or its stream.

    Raises:
        ValueError: There is neither, or the pruner cannot be saved by one process.
    """
    if isinstance(loader.dataset, FilteredStream):
        return loader.dataset
    # A DataLoader with a sampler puts it into a plain BatchSampler.
    sampler = getattr(loader.batch_sampler, "source", None) and loader.batch_sampler
    sampler = sampler or loader.sampler
    if not isinstance(sampler, EpochBatchSampler | EpochSampler):
        raise ValueError(
            "loader must use a sampler of the pruner, or a stream of pruner.filter, got "
            f"{type(loader.batch_sampler).__name__} and {type(loader.sampler).__name__}"
        )
    pruner: Any = sampler.source
    check_saved_by_all(pruner)
    return pruner
