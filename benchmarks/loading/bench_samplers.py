# SPDX-License-Identifier: Apache-2.0
"""How fast an epoch's batches of ids leave the sampler, and how much host memory they take.

    python -m benchmarks.loading.bench_samplers --samples 100_000_000 --keep 30_000_000

The memory is the peak of the resident set during an epoch, from before its order is drawn, less the
resident set before that. The comparison is torch's SubsetRandomSampler in its BatchSampler. It gets
at most a million ids, because it keeps a Python list of all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable

import torch
from torch.utils.data import BatchSampler, SubsetRandomSampler

from benchmarks.common.arguments import positive_int
from benchmarks.common.memory import peak_bytes, reset_peak, resident_bytes
from dynprune_cuda import Pruner

TORCH_IDS = 1_000_000  # at most, for torch's sampler


def drain(sampler: Iterable[list[int]]) -> tuple[int, float, float]:
    """Ids, seconds to the first batch, seconds of the whole epoch."""
    start = time.perf_counter()
    iterator = iter(sampler)
    ids = len(next(iterator))
    first = time.perf_counter() - start
    for batch in iterator:
        ids += len(batch)
    return ids, first, time.perf_counter() - start


def measure_epoch(sampler: Iterable[list[int]], epoch: int) -> float:
    """Ids per second of one epoch; prints them with the memory per id."""
    before = resident_bytes()
    reset_peak()
    ids, first, seconds = drain(sampler)
    added = peak_bytes() - before
    print(
        f"epoch {epoch}: {ids / seconds / 1e6:6.1f} million ids/s; first batch after "
        f"{first:.3f} s; {added / ids:5.2f} bytes per id added to the host's memory at the peak"
    )
    return ids / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--samples", type=positive_int, default=2_000_000)
    parser.add_argument("--keep", type=positive_int, default=600_000)
    parser.add_argument("--batch-size", type=positive_int, default=512)
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    pruner = Pruner(arguments.samples, arguments.keep, "uniform", device=arguments.device)
    sampler = pruner.batch_sampler(arguments.batch_size)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {pruner.device}, "
        f"N={arguments.samples:,}, k={arguments.keep:,}, batches of {arguments.batch_size}"
    )
    pruner.set_epoch(1)
    rates = []
    for epoch in range(1, 1 + arguments.rounds):
        pruner.set_epoch(epoch)
        rates.append(measure_epoch(sampler, epoch))
    print(f"median {statistics.median(rates) / 1e6:.1f} million ids/s")
    ids = torch.randperm(min(arguments.keep, TORCH_IDS)).tolist()
    count, _, seconds = drain(BatchSampler(SubsetRandomSampler(ids), arguments.batch_size, False))
    print(f"torch's BatchSampler of {count:,} ids: {count / seconds / 1e6:.1f} million ids/s")


if __name__ == "__main__":
    main()
