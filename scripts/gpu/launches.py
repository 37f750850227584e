# SPDX-License-Identifier: Apache-2.0
"""Launches every kernel of the package once or twice, for compute-sanitizer and ncu.

python scripts/gpu/launches.py [--device cpu] [--samples 2e4] [--shapes 64x10] [--profile]

Nothing is checked here; smoke.py does that. With --profile these are the step and top-k alone,
twice, and only the second round is in ncu's range.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F


def select(device: torch.device, samples: int) -> None:
    x, variance = torch.rand(2, samples, device=device).unbind()
    count, k = torch.ones(samples, dtype=torch.int32, device=device), samples // 3
    F.select_top_k(x, k)
    F.select_ucb(x, variance, k)
    F.select_ucb1(x, count, k, step=100.0)
    F.select_epsilon_greedy(x, k, 0.1)
    F.select_weighted(x, k)
    F.select_uniform(samples, k, device=device)
    F.permutation(samples, device=device)


def launch(device: torch.device, samples: int, shapes: list[str]) -> None:
    F.select_top_k(torch.rand(samples, device=device), samples // 3, order="ascending")
    for shape in shapes:
        rows, classes = map(int, shape.split("x"))
        pruner = Pruner(max(rows, 1000), 0.3, device=device)
        logits = torch.randn(rows, classes, device=device, dtype=torch.bfloat16)
        target, ids = torch.arange(rows, device=device) % classes, torch.arange(rows, device=device)
        torch.autograd.backward(pruner.cross_entropy(logits.requires_grad_(), target, ids))
        scored = F.scored_cross_entropy(logits, target)
        pruner.observe(ids, scored.loss)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--samples", default=20_000, type=lambda text: int(float(text)))
    parser.add_argument("--shapes", nargs="*", default=["64x10", "64x1000", "8x40000"])
    parser.add_argument("--profile", action="store_true")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    if options.profile:
        launch(options.device, options.samples, options.shapes)
    else:
        select(options.device, options.samples)
    cuda = options.device.type == "cuda"
    with torch.cuda.profiler.profile() if cuda and options.profile else nullcontext():
        launch(options.device, options.samples, options.shapes)
        if cuda:
            torch.cuda.synchronize()
    F.check_errors(options.device)
    print("launched everything")


if __name__ == "__main__":
    main()
