# SPDX-License-Identifier: Apache-2.0
"""How fast an epoch's batches of ids leave the sampler, and what it adds to the host's memory.

    python -m benchmarks.loading.bench_samplers --samples 100_000_000 --keep 30_000_000

Memory is the peak of the resident set from before the epoch's order is drawn to the end of the
epoch, less what was resident before (Linux: the kernel's own counter, reset through
/proc/self/clear_refs). The rivals are torch's SubsetRandomSampler under its BatchSampler, on at
most a million ids, because it keeps a Python list of all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import BatchSampler, SubsetRandomSampler

from dynprune_cuda import Pruner


def number(text: str) -> int:
    return int(text.replace("_", ""))


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory, or their peak since `forget_peak`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {wanted}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def drain(sampler: Iterable[list[int]]) -> tuple[int, float, float]:
    """Ids, seconds to the first batch, seconds in all."""
    start = time.perf_counter()
    iterator = iter(sampler)
    ids = len(next(iterator))
    first = time.perf_counter() - start
    for batch in iterator:
        ids += len(batch)
    return ids, first, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=number, default=2_000_000)
    parser.add_argument("--keep", type=number, default=600_000)
    parser.add_argument("--batch-size", type=number, default=512)
    parser.add_argument("--rounds", type=number, default=3)
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
        before = resident()
        forget_peak()
        ids, first, seconds = drain(sampler)
        added = resident(peak=True) - before
        rates.append(ids / seconds)
        print(
            f"epoch {epoch}: {ids / seconds / 1e6:6.1f} million ids/s; first batch after "
            f"{first:.3f} s; {added / ids:5.2f} bytes per id added to the host's memory at the peak"
        )
    print(f"median {statistics.median(rates) / 1e6:.1f} million ids/s")
    few = min(arguments.keep, 1_000_000)
    torchs = BatchSampler(
        SubsetRandomSampler(torch.randperm(few).tolist()), arguments.batch_size, False
    )
    ids, _, seconds = drain(torchs)
    print(f"torch's BatchSampler of {few:,} ids: {ids / seconds / 1e6:.1f} million ids/s")


if __name__ == "__main__":
    main()
