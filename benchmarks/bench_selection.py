# SPDX-License-Identifier: Apache-2.0
"""The selection ops against what one would write without them, in one run.

    python benchmarks/bench_selection.py                      # N = 50,000 and 10,000,000, keep 0.3
    python benchmarks/bench_selection.py --device cuda --num-samples 1e8

Prints a Markdown table: median milliseconds, the ratio to each rival, and the ratio to a plain read
of the same bytes. On a machine that does other work, read the ratios only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Call, machine, median_ms, time_rounds, write_json
from torch import Tensor

from dynprune_cuda import functional as F

MULTINOMIAL_LIMIT = 2**24


def make_scores(kind: str, n: int, device: torch.device) -> Tensor:
    """Scores as training gives them: see csrc/cpu/radix_select.h for why the kinds matter."""
    x = torch.empty(n, device=device).log_normal_(-1.0, 1.2)
    if kind == "equal":  # every run's first epoch
        x.fill_(1.5)
    elif kind == "zeros":  # a nearly solved data set
        x = torch.where(torch.rand_like(x) < 0.01, x, 0.0)
    elif kind == "early":  # ten classes, hardly trained
        x = 2.3 + 0.15 * torch.randn_like(x)
    return x


def compared(n: int, k: int, device: torch.device) -> list[tuple[str, Call, dict[str, Call]]]:
    """(name, our call, rivals by name) for every op."""
    x, variance = make_scores("lognormal", n, device), torch.rand(n, device=device)

    def top_k() -> Tensor:
        return torch.topk(x, k, sorted=False).indices

    def top_k_shuffled() -> Tensor:
        ids = top_k()
        return ids[torch.randperm(k, device=device)]

    def epsilon_greedy(epsilon: float = 0.1) -> Tensor:
        num_random = int(epsilon * k)
        greedy = torch.topk(x, k - num_random).indices
        rest = torch.arange(n, device=device)
        rest = rest[~torch.isin(rest, greedy)]
        return torch.cat([greedy, rest[torch.randperm(len(rest), device=device)[:num_random]]])

    partition: dict[str, Call] = {}
    partition_shuffled: dict[str, Call] = {}
    if device.type == "cpu":
        values, generator = x.numpy(), np.random.default_rng(0)
        partition["np.argpartition"] = lambda: np.argpartition(values, n - k)[n - k :]

        def shuffled() -> Any:
            ids = np.argpartition(values, n - k)[n - k :]
            generator.shuffle(ids)
            return ids

        partition_shuffled["np.argpartition + shuffle"] = shuffled
    multinomial: dict[str, Call] = {}
    if n < MULTINOMIAL_LIMIT:
        multinomial["torch.multinomial"] = lambda: torch.multinomial(x, k, replacement=False)

    def ours(op: Any, *arguments: Any, **options: Any) -> Call:
        return lambda: op(*arguments, **options)

    ascending = {"order": "ascending"}
    rows = [
        (
            "select_top_k, ascending",
            ours(F.select_top_k, x, k, **ascending),
            {"torch.topk": top_k, **partition},
        ),
        (
            "select_top_k, random",
            ours(F.select_top_k, x, k),
            {"torch.topk + randperm": top_k_shuffled, **partition_shuffled},
        ),
        (
            "select_ucb, ascending",
            ours(F.select_ucb, x, variance, k, **ascending),
            {"select_top_k": ours(F.select_top_k, x, k, **ascending)},
        ),
        (
            "select_epsilon_greedy, ascending",
            ours(F.select_epsilon_greedy, x, k, 0.1, **ascending),
            {"topk + isin + randperm": epsilon_greedy},
        ),
        (
            "select_uniform, random",
            ours(F.select_uniform, n, k, device=device),
            {"torch.randperm[:k]": lambda: torch.randperm(n, device=device)[:k]},
        ),
        ("select_weighted, ascending", ours(F.select_weighted, x, k, **ascending), multinomial),
    ]
    for kind in ("equal", "zeros", "early"):
        scores = make_scores(kind, n, device)
        rows.append(
            (
                f"select_top_k, ascending, {kind} scores",
                ours(F.select_top_k, scores, k, **ascending),
                {"select_top_k, lognormal scores": ours(F.select_top_k, x, k, **ascending)},
            )
        )
    half = x.bfloat16()
    rows.append(
        (
            "select_top_k, ascending, bfloat16 scores",
            ours(F.select_top_k, half, k, **ascending),
            {"torch.topk": lambda: torch.topk(half, k, sorted=False).indices},
        )
    )
    return rows


def measure(n: int, k: int, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Times every row with its rivals and a plain read of N floats, and prints the table."""
    x = make_scores("lognormal", n, device)
    print(f"\nN = {n:,}, k = {k:,}, {device}, {torch.get_num_threads()} threads\n")
    print("| op | ms | times a read of N floats | faster than |")
    print("|---|---|---|---|")
    results = []
    for name, call, rivals in compared(n, k, device):
        calls = {name: call, **rivals, "read": lambda: x.sum()}
        seconds = time_rounds(calls, device, rounds)
        own, read = median_ms(seconds[name]), median_ms(seconds["read"])
        ratios = {rival: median_ms(seconds[rival]) / own for rival in rivals}
        told = ", ".join(f"{rival} {ratio:.2f}x" for rival, ratio in ratios.items()) or "-"
        print(f"| {name} | {own:.3f} | {own / read:.1f} | {told} |", flush=True)
        results.append({"num_samples": n, "k": k, "op": name, "ratios": ratios, "seconds": seconds})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=float, nargs="+", default=[5e4, 1e7])
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the raw numbers to this JSON file")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    print(machine(device))
    results = []
    for size in options.num_samples:
        n = int(size)
        results += measure(n, int(n * options.keep), device, options.rounds)
    if options.out:
        write_json(options.out, device, results)


if __name__ == "__main__":
    main()
