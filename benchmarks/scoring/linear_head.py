# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a language model's head: hidden states to loss, scores and gradients.

    python -m benchmarks.scoring.linear_head --out FILE

Ours computes the scores of every token too. The others compute the loss and its gradients only.
`F.linear` and `F.cross_entropy` take the whole logits. "compiled chunks" does the same in chunks of
rows, compiled by `torch.compile`. `F.linear_cross_entropy` is torch's own, in torch releases that
have it. "the three products" is the matrix products alone, once in our chunks and once of the whole
matrix. Times are medians of interleaved rounds. The peak is that of a process of its own, above
what hidden states, weight and their gradients take.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.common import markdown
from benchmarks.common.arguments import positive_int
from benchmarks.common.machine_info import machine_info
from benchmarks.common.memory import peak_bytes, reset_peak, resident_bytes
from benchmarks.common.result_files import write_measurements
from benchmarks.common.timing import time_rounds
from dynprune_cuda._ops.linear_cross_entropy import chunk_logits, fits_columns
from dynprune_cuda.functional import scored_linear_cross_entropy
from dynprune_cuda.functional.linear_cross_entropy import default_chunk_rows

OURS = "scored_linear_cross_entropy"
PRODUCTS, WHOLE = "the three products, in our chunks", "the three products, whole"
EAGER, COMPILED = "F.linear + F.cross_entropy", "compiled chunks"
TORCH = "F.linear_cross_entropy"
SHAPES = ((4096, 512, 32_768), (1024, 1024, 128_256))  # tokens, features, classes

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return scored_linear_cross_entropy(hidden, weight, target).loss


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target)


def chunk_sum(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target, reduction="sum")


def compiled_chunks(hidden: Tensor, weight: Tensor, target: Tensor, part: Loss) -> Tensor:
    """The logits of a chunk are computed again in the backward pass."""
    rows, total = default_chunk_rows(hidden, weight, weight.dtype), hidden.new_zeros(())
    for first in range(0, len(hidden), rows):
        pieces = hidden[first : first + rows], weight, target[first : first + rows]
        loss = checkpoint(part, *pieces, use_reentrant=False)
        assert isinstance(loss, Tensor)
        total = total + loss
    return total / len(hidden)


def three_products(hidden: Tensor, weight: Tensor, rows: int) -> None:
    """The matrix products of a step, in chunks of so many rows that share a buffer.

    Chunks are laid out as ours. The whole logits are laid out by row, as torch has them.
    """
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)
    buffer = hidden.new_empty(rows * len(weight))
    for first in range(0, len(hidden), rows):
        part = hidden[first : first + rows]
        in_columns = rows < len(hidden) and fits_columns(buffer, len(part), weight)
        logits = chunk_logits(buffer, len(part), len(weight), in_columns=in_columns)
        torch.mm(part, weight.t(), out=logits)
        torch.mm(logits, weight, out=grad_hidden[first : first + rows])
        torch.addmm(grad_weight, logits.t(), part, beta=min(first, 1), out=grad_weight)


def losses() -> dict[str, Loss]:
    """The ways to compute the loss, by name."""
    part: Loss = torch.compile(chunk_sum, dynamic=False)
    found: dict[str, Loss] = {
        OURS: ours,
        EAGER: eager,
        COMPILED: functools.partial(compiled_chunks, part=part),
    }
    if hasattr(F, "linear_cross_entropy"):
        found[TORCH] = F.linear_cross_entropy
    return found


def make(rows: int, features: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, features, requires_grad=True)
    weight = (torch.randn(classes, features) / features**0.5).requires_grad_()
    return hidden, weight, torch.randint(classes, (rows,))


def step(loss: Loss, hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    """Forward and backward; the gradients are thrown away."""
    torch.autograd.grad(loss(hidden, weight, target), (hidden, weight))


def times(shape: tuple[int, int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round."""
    inputs = make(*shape)
    calls: dict[str, Any] = {
        name: functools.partial(step, loss, *inputs) for name, loss in losses().items()
    }
    hidden, weight = (x.detach() for x in inputs[:2])
    in_chunks = default_chunk_rows(hidden, weight, weight.dtype)
    for name, rows in ((PRODUCTS, in_chunks), (WHOLE, len(hidden))):
        calls[name] = functools.partial(three_products, hidden, weight, rows)
    return time_rounds(calls, torch.device("cpu"), rounds)


def extra_bytes(name: str, shape: tuple[int, int, int]) -> int:
    """Peak of a step above the inputs and the gradients, in this process."""
    inputs, loss = make(*shape), losses()[name]
    step(loss, *make(min(64, shape[0]), *shape[1:]))  # compiles, and starts the thread pools
    step(loss, *inputs) if name == COMPILED else None
    before = resident_bytes()
    reset_peak()
    step(loss, *inputs)
    gradients = 4 * sum(x.numel() for x in inputs[:2])
    return max(0, peak_bytes() - before - gradients)


def measured_apart(name: str, shape: tuple[int, int, int], threads: int) -> int:
    """`extra_bytes` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scoring.linear_head", "--threads", str(threads)]
    command += ["--peak", name, "--shape", *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table of all shapes."""
    lines: list[Sequence[str]] = [
        (
            "tokens, features, classes",
            "way",
            "ms",
            "to the products in chunks",
            "to the whole products",
            "extra peak, MiB",
        )
    ]
    for row in rows:
        seconds = statistics.median(row["seconds"])
        peak = row["extra_bytes"]
        lines.append(
            (
                " × ".join(f"{n:,}" for n in row["shape"]),
                row["name"],
                f"{1e3 * seconds:,.0f}",
                f"{seconds / statistics.median(row['products']):.2f}",
                f"{seconds / statistics.median(row['whole_products']):.2f}",
                "" if peak is None else f"{peak / 2**20:,.0f}",
            )
        )
    return markdown.table(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=positive_int, default=5)
    add("--threads", type=positive_int, default=1)
    add("--shape", nargs=3, type=positive_int, help="one shape instead of all")
    add("--peak", choices=[OURS, EAGER, COMPILED, TORCH], help="prints only this one's peak")
    add("--out", type=Path, metavar="FILE", help="for the raw numbers, as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    shapes = [tuple(arguments.shape)] if arguments.shape else list(SHAPES)
    if arguments.peak:
        print(extra_bytes(arguments.peak, shapes[0]))
        return
    rows: list[dict[str, Any]] = []
    machine = machine_info(torch.device("cpu"))
    for shape in shapes:
        seconds = times(shape, arguments.rounds)
        for name, taken in seconds.items():
            peak = None
            if name not in (PRODUCTS, WHOLE):
                peak = measured_apart(name, shape, arguments.threads)
            rows.append(
                {
                    "shape": shape,
                    "name": name,
                    "seconds": taken,
                    "products": seconds[PRODUCTS],
                    "whole_products": seconds[WHOLE],
                    "extra_bytes": peak,
                }
            )
            if arguments.out:
                write_measurements(arguments.out, machine, rows)
    print(report(rows))
    print(json.dumps({k: machine[k] for k in ("cpu", "torch", "threads") if k in machine}))


if __name__ == "__main__":
    main()
