# SPDX-License-Identifier: Apache-2.0
"""What selecting a subset costs on this machine, beside what one would write without these ops.

    python -m benchmarks.selection.bench_selection    # a CPU: 1.5 minutes on 2 cores
    python -m benchmarks.selection.bench_selection --device cuda --out results/my_gpu
    python -m benchmarks.selection.bench_selection --parts ops --num-samples 1e8 --keep 0.1

Prints Markdown tables: every op against every rival, on several N, k and distributions of scores,
with the limit that memory sets and, where a speed was promised, whether it is reached. Every ratio
is one of medians of rounds that took turns. On a machine that does other work threads wait for each
other, which hits threaded calls (ours, torch) harder than numpy: there OMP_NUM_THREADS=1 gives
ratios that can be trusted. --out DIR writes the tables, the raw seconds (JSON) and a figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import dynprune_cuda
from benchmarks.common.timing import Call, machine, time_rounds, write_json
from benchmarks.selection import cases, gpu_timing, report, rivals
from benchmarks.selection.cases import Case
from benchmarks.selection.gpu_timing import Gpu

PARTS = ("ops", "weighted", "distributions", "shares", "order")
NAME = "bench_selection"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", type=_device, help="cpu or cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--num-samples",
        nargs="+",
        type=_count,
        help="N of the part ops; the greatest serves distributions and order as well",
    )
    parser.add_argument("--weighted-samples", nargs="+", type=_count, help="N of the part weighted")
    parser.add_argument("--shares-samples", type=_count, help="N of the part shares")
    parser.add_argument("--keep", type=_share, help="k / N (default: 0.3, on a GPU 1/3)")
    parser.add_argument(
        "--keeps", nargs="+", type=_share, default=[0.01, 0.1, 0.3, 0.5, 0.9], help="of shares"
    )
    parser.add_argument("--batch-size", type=_count, default=512, help="of the part order")
    parser.add_argument("--rounds", type=_count, default=7)
    parser.add_argument(
        "--slow-after",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="calls that take longer run in three rounds only (default: 0.5; inf: none)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it all run?")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write .md, .json and .png there")
    options = parser.parse_args(arguments)
    cuda = options.device.type == "cuda"
    if cuda and not (torch.cuda.is_available() and dynprune_cuda.build_info()["cuda"]):
        parser.error("--device cuda needs a GPU and a dynprune_cuda that was built with CUDA")
    sizes = [50_000, 1_000_000, 10_000_000, *([100_000_000] if cuda else [])]
    defaults: dict[str, Any] = {
        "num_samples": sizes,
        "weighted_samples": [16_000_000, 20_000_000],
        "shares_samples": sizes[-1] if cuda else 1_000_000,
        "keep": 1 / 3 if cuda else 0.3,
    }
    if options.quick:
        defaults |= {
            "num_samples": [1_000, 20_000],
            "weighted_samples": [5_000],
            "shares_samples": 5_000,
        }
        options.rounds = min(options.rounds, 3)
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _device(text: str) -> torch.device:
    if text.split(":")[0] not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text} is neither cpu nor cuda")
    return torch.device(text)


def _count(text: str) -> int:
    """A positive whole number, also as 1e7."""
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is no positive whole number")
    return int(value)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def all_cases(options: argparse.Namespace) -> Iterator[Case]:
    """One at a time, so that the memory of one is free before the next."""
    device, greatest = options.device, max(options.num_samples)

    def kept(n: int) -> int:
        return max(1, int(n * options.keep))

    if "ops" in options.parts:
        for n in options.num_samples:
            yield from cases.ops(n, kept(n), device)
    if "weighted" in options.parts:
        for n in options.weighted_samples:
            yield from cases.weighted(n, kept(n), device)
    if "distributions" in options.parts:
        yield from cases.distributions(greatest, kept(greatest), device)
    if "shares" in options.parts:
        yield from cases.shares(options.shares_samples, options.keeps, device)
    if "order" in options.parts:
        yield from cases.order(greatest, kept(greatest), options.batch_size, device)


def measure(case: Case, options: argparse.Namespace, gpu: Gpu | None) -> dict[str, Any]:
    """A row: the seconds of our call, of each rival and, on a CPU, of a read of the same bytes."""
    device = options.device
    calls: dict[str, Call] = {"ours": case.call, **case.rivals}
    if gpu is None:
        calls["read"] = torch.ones(max(1, case.limit_bytes // 4)).sum
    refused: dict[str, str] = {}
    seconds = time_rounds(
        calls,
        device,
        options.rounds,
        slow_after=options.slow_after,
        before_each=gpu.flush if gpu else None,
        refused=refused,
    )
    if "ours" in refused:
        raise RuntimeError(f"{case.op}, N = {case.num_samples}: {refused['ours']}")
    row: dict[str, Any] = {
        "part": case.part,
        "op": case.op,
        "scores": case.scores,
        "num_samples": case.num_samples,
        "k": case.k,
        "keep": case.k / case.num_samples if case.part == "shares" else options.keep,
        "limit_bytes": case.limit_bytes,
        "refused": refused,
        "seconds": seconds,
    }
    if gpu is not None:
        row["copy_rate"] = gpu.copy_rate
        row["host_syncs"] = {
            name: gpu_timing.host_syncs(call, device)
            for name, call in calls.items()
            if name not in refused
        }
        if case.part != "order":  # thousands of small launches: nobody would capture them
            row["graph_seconds"] = gpu_timing.graph_seconds(
                case.call, device, options.rounds, gpu.flush
            )
            row |= gpu_timing.profile(case.call, device)
        torch.cuda.empty_cache()  # what a rival took is free for the next
    return row


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = options.device
    torch.manual_seed(0)
    gpu = gpu_timing.prepare(device, options.rounds) if device.type == "cuda" else None
    lines: list[str] = []

    def tell(*told: str) -> None:
        lines.extend(told)
        print("\n".join(told), flush=True)

    facts = machine(device)  # before the run: its load average is that of other work
    tell(*report.preamble(facts, gpu.copy_rate if gpu else None, rivals.packages(device)))
    rows: list[dict[str, Any]] = []
    for case in all_cases(options):
        row = measure(case, options, gpu)
        if not rows or report.table_of(rows[-1]) != report.table_of(row):
            tell(*report.header(row))
        tell(*report.lines(row))
        rows.append(row)
    tell(*report.summary(rows))
    if options.out:
        settings = {name: str(value) for name, value in vars(options).items()}
        write_json(options.out / f"{NAME}.json", facts, rows, settings=settings)
        (options.out / f"{NAME}.md").write_text("\n".join(lines) + "\n")
        plot(rows, options.out / f"{NAME}.png")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        from benchmarks.selection import plot as selection_plot
    except ModuleNotFoundError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return
    selection_plot.plot(rows, path)


if __name__ == "__main__":
    main()
