# SPDX-License-Identifier: Apache-2.0
"""How sample ids travel: into a loader by a sampler, and out of it with the batch."""

from dynprune_cuda.data.bucketing import BucketBatchSampler
from dynprune_cuda.data.collate import CollateWithIds
from dynprune_cuda.data.device_loader import DeviceLoader
from dynprune_cuda.data.indexed import IndexedDataset
from dynprune_cuda.data.records import EpochRecords
from dynprune_cuda.data.samplers import EpochBatchSampler, EpochSampler
from dynprune_cuda.data.seekable import SeekableDataset
from dynprune_cuda.data.streams import FilteredStream

__all__ = [
    "BucketBatchSampler",
    "CollateWithIds",
    "DeviceLoader",
    "EpochBatchSampler",
    "EpochRecords",
    "EpochSampler",
    "FilteredStream",
    "IndexedDataset",
    "SeekableDataset",
]
