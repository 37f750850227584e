# SPDX-License-Identifier: Apache-2.0
"""Grain over the records of an epoch; its workers import this file, so it imports no test tool."""

import grain

from dynprune_cuda.data import EpochRecords

N, BATCH = 61, 4


class Halves:
    """A map-style data set of plain numbers."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"half": index / 2}


def of_map_dataset(pruner, workers):
    dataset = grain.MapDataset.source(EpochRecords(pruner, Halves())).batch(BATCH)
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    dataset = dataset.to_iter_dataset()
    return dataset.mp_prefetch(options) if workers else dataset


def of_data_loader(pruner, workers):
    records = EpochRecords(pruner, Halves())
    sampler = grain.samplers.SequentialSampler(len(records), grain.sharding.NoSharding(), seed=1)
    return grain.DataLoader(
        data_source=records,
        sampler=sampler,
        operations=[grain.transforms.Batch(BATCH)],
        worker_count=workers,
    )


LOADERS = {"MapDataset": of_map_dataset, "DataLoader": of_data_loader}


def ids_of(batches):
    """Ids by batch; each sample is the one that its id names."""
    found = []
    for batch in batches:
        assert (batch["half"] == batch["sample_id"] / 2).all()
        found.append(batch["sample_id"].tolist())
    return found
