# SPDX-License-Identifier: Apache-2.0
"""Compares every op on a GPU with the CPU, each in a process of its own, several at once.

python scripts/gpu/smoke.py [--device cpu] [--sizes 1e3 1e6 2e7] [--out rows.jsonl]

An op that crashes or hangs takes nothing else with it. A row is written when its process ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F

SIZES = (1e3, 1e6, 2e7)
SHAPES = ("512x10", "512x100", "1024x1000", "64x32768", "8x128256", "1000x7")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Select = Callable[[Tensor, int], Tensor]

SELECTIONS: dict[str, Select] = {
    "select_top_k": lambda x, k: F.select_top_k(x, k, seed=1),
    "select_top_k, equal": lambda x, k: F.select_top_k(torch.ones_like(x), k, seed=1),
    "select_top_k, bfloat16": lambda x, k: F.select_top_k(x.bfloat16(), k, seed=1),
    "select_ucb": lambda x, k: F.select_ucb(x, x.flip(0), k, seed=1),
    "select_ucb1": lambda x, k: F.select_ucb1(x, (x * 9).int() + 1, k, step=500.0, seed=1),
    "select_epsilon_greedy": lambda x, k: F.select_epsilon_greedy(x, k, 0.1, seed=1),
    "select_weighted": lambda x, k: F.select_weighted(x, k, seed=1),
    "select_uniform": lambda x, k: F.select_uniform(len(x), k, seed=1, device=x.device),
    "permutation": lambda x, k: F.permutation(len(x), seed=1, device=x.device),
}
STEP = "step "


def compare_selection(name: str, device: torch.device, sizes: list[float]) -> None:
    """The same ids in the same order, ascending and random; raises otherwise."""
    for size in map(int, sizes):
        x = torch.rand(size, generator=torch.Generator().manual_seed(size))
        wanted = SELECTIONS[name](x, size // 3)
        got = SELECTIONS[name](x.to(device), size // 3).cpu()
        differing = int((wanted != got).sum())
        assert differing == 0, f"N = {size:,}: {differing:,} of {len(wanted):,} ids differ"
        print(f"N = {size:,}: equal", flush=True)


def compare_step(shape: str, device: torch.device) -> None:
    """Loss, gradient and table of two steps, within the rounding of the logits' type."""
    rows, classes = map(int, shape.split("x"))
    for name, dtype in DTYPES.items():
        generator = torch.Generator().manual_seed(0)
        logits = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
        target = torch.randint(classes, (rows,), generator=generator)
        wanted, got = (step(logits, target, place) for place in (torch.device("cpu"), device))
        for what, value in wanted.items():
            # A gradient may be rounded to the other of two neighbours.
            rounding = 2 * torch.finfo(dtype).eps if what == "gradient" else 0.0
            torch.testing.assert_close(
                got[what],
                value,
                rtol=max(1e-4, rounding),
                atol=1e-7,
                equal_nan=True,  # the mean of a sample that was never visited
                msg=lambda text, what=what: f"{what}: {text}",  # type: ignore[misc]
            )
        print(f"{shape} {name}: equal", flush=True)


def step(logits: Tensor, target: Tensor, device: torch.device) -> dict[str, Tensor]:
    pruner = Pruner(2 * len(logits), 0.3, device=device)
    x = logits.to(device).requires_grad_()
    ids = torch.arange(1, 2 * len(logits), 2, device=device)
    for _ in range(2):
        x.grad = None
        loss = pruner.cross_entropy(x, target.to(device), ids)
        torch.autograd.backward(loss)
    assert x.grad is not None
    F.check_errors(device)
    table = pruner.table
    found = {"loss": loss.detach(), "gradient": x.grad, "mean": table.mean}
    found |= {"variance": table.variance, "count": table.count.float()}
    return {name: value.cpu() for name, value in found.items()}


def run_all(options: argparse.Namespace) -> int:
    """Starts a process for each check, and writes a row for each; returns how many failed."""
    waiting = [*options.selections, *(STEP + shape for shape in options.shapes)]
    running: dict[str, tuple[subprocess.Popen[str], float]] = {}
    failed = 0
    arguments = ["--device", str(options.device), "--sizes", *map(str, options.sizes)]
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            command = [sys.executable, __file__, *arguments, "--only", name]
            running[name] = (
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                ),
                time.monotonic(),
            )
        for name, (process, begin) in list(running.items()):
            seconds = time.monotonic() - begin
            if process.poll() is None and seconds < options.time_limit:
                continue
            timed_out = process.poll() is None
            process.kill()
            told = process.communicate()[0].strip()
            del running[name]
            passed = process.returncode == 0
            failed += not passed
            row: dict[str, Any] = {"check": name, "passed": passed, "seconds": round(seconds, 1)}
            if not passed:
                row["told"] = f"{'time-out; ' * timed_out}{told[-2000:]}"
            print("pass" if passed else "FAIL", json.dumps(row), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        time.sleep(0.05)
    return failed


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--selections", nargs="+", default=list(SELECTIONS), choices=SELECTIONS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--time-limit", type=float, default=30, help="seconds of each process")
    parser.add_argument("--out", type=Path, help="append a JSON line for each check")
    parser.add_argument("--only", help="one check, in this process")
    return parser


def main() -> int:
    options = make_parser().parse_args()
    if options.only is None:
        return min(1, run_all(options))
    torch.set_num_threads(2)
    if options.only.startswith(STEP):
        compare_step(options.only.removeprefix(STEP), options.device)
    else:
        compare_selection(options.only, options.device, options.sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
