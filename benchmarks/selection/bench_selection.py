# SPDX-License-Identifier: Apache-2.0
"""How long a selection takes on this machine, beside other ways to select.

    python -m benchmarks.selection.bench_selection    # a CPU: 1.5 minutes on 2 cores
    python -m benchmarks.selection.bench_selection --device cuda --out results/my_gpu
    python -m benchmarks.selection.bench_selection --parts ops --num-samples 1e8 --keep 0.1

The program prints Markdown tables of every op and its rivals, for several N, k and distributions of
scores. They include the lower bound that memory traffic sets, and whether a stated target is
reached. Each ratio is one of medians over interleaved rounds. Other load on the machine slows
threaded calls (ours, torch) more than NumPy; OMP_NUM_THREADS=1 gives reliable ratios there.
--out DIR writes the tables and the raw seconds as JSON after each row, and a figure at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import dynprune_cuda
from benchmarks.common.arguments import positive_int, share
from benchmarks.common.machine_info import machine_info
from benchmarks.common.result_files import write_measurements, write_text
from benchmarks.common.timing import Call, first_line, time_rounds
from benchmarks.selection import cases, gpu_timing, report, rivals
from benchmarks.selection.cases import Case
from benchmarks.selection.gpu_timing import Gpu

PARTS = ("ops", "weighted", "distributions", "shares", "order")
NAME = "bench_selection"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", type=_device, help="cpu or cuda")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add(
        "--num-samples",
        nargs="+",
        type=positive_int,
        help="N of the part ops; the greatest is also N of order and, by default, distributions",
    )
    add("--weighted-samples", nargs="+", type=positive_int, help="N of the part weighted")
    add("--distributions-samples", nargs="+", type=positive_int, help="N of distributions")
    add("--shares-samples", type=positive_int, help="N of the part shares")
    add("--keep", type=share, help="k / N (default: 0.3, on a GPU 1/3)")
    add("--keeps", nargs="+", type=share, default=[0.01, 0.1, 0.3, 0.5, 0.9], help="of shares")
    add("--batch-size", type=positive_int, default=512, help="of the part order")
    add("--rounds", type=positive_int, default=7)
    add(
        "--slow-after",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="calls that take longer run in three rounds only (default: 0.5; inf: none)",
    )
    add("--ops", nargs="+", help="of the part ops, by their names in the tables (default: all)")
    add("--no-rivals", action="store_true", help="measure our own calls only")
    add("--no-host-rivals", action="store_true", help="leave out NumPy on scores from a GPU")
    add("--no-profile", action="store_true", help="leave out the kernel times of a GPU")
    add("--quick", action="store_true", help="tiny sizes, to see whether everything runs")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="write .md, .json and .png there; a name that ends in .json: that file alone",
    )
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, with the defaults that depend on the device and on --quick."""
    parser = make_parser()
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


def all_cases(options: argparse.Namespace) -> Iterator[Case]:
    """The cases one by one, so that the memory of each is free before the next."""
    device, greatest = options.device, max(options.num_samples)

    def kept(n: int) -> int:
        return max(1, int(n * options.keep))

    if "ops" in options.parts:
        for n in options.num_samples:
            for case in cases.ops(n, kept(n), device):
                if options.ops is None or case.op in options.ops:
                    yield case
    if "weighted" in options.parts:
        for n in options.weighted_samples:
            yield from cases.weighted(n, kept(n), device)
    if "distributions" in options.parts:
        for n in options.distributions_samples or [greatest]:
            yield from cases.distributions(n, kept(n), device)
    if "shares" in options.parts:
        yield from cases.shares(options.shares_samples, options.keeps, device)
    if "order" in options.parts:
        yield from cases.order(greatest, kept(greatest), options.batch_size, device)


def measure(case: Case, options: argparse.Namespace, gpu: Gpu | None) -> dict[str, Any]:
    """The row of a case: seconds of our call, of each rival and, on a CPU, of a plain read."""
    device = options.device
    calls: dict[str, Call] = {"ours": case.call}
    calls |= {
        name: call
        for name, call in case.rivals.items()
        if not options.no_rivals
        and not (options.no_host_rivals and name.startswith(rivals.HOST_ROUND_TRIP))
    }
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
        timed = {name: call for name, call in calls.items() if name not in refused}
        row |= measure_on_gpu(case, timed, options, gpu)
    return row


def measure_on_gpu(
    case: Case, calls: dict[str, Call], options: argparse.Namespace, gpu: Gpu
) -> dict[str, Any]:
    """What only the row of a GPU has: host waits, graph replays, kernels."""
    found: dict[str, Any] = {"copy_rate": gpu.copy_rate}
    found["host_syncs"] = {
        name: gpu_timing.host_syncs(call, options.device) for name, call in calls.items()
    }
    if case.part != "order":  # its thousands of small launches are no use case for graphs

        def replays(call: Call) -> list[float]:
            return gpu_timing.graph_seconds(call, options.device, options.rounds, gpu.flush)

        found["graph_seconds"] = replays(case.call)
        found |= {"rival_graph_seconds": {}, "not_captured": {}}
        for name in (name for name in rivals.CAPTURABLE if name in calls):
            try:
                found["rival_graph_seconds"][name] = replays(calls[name])
            except Exception as error:
                found["not_captured"][name] = first_line(error)
        if not options.no_profile:
            found |= gpu_timing.profile(case.call, options.device)
    torch.cuda.empty_cache()  # memory of a rival, for the next case
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = options.device
    torch.manual_seed(0)
    gpu = gpu_timing.prepare(device, options.rounds) if device.type == "cuda" else None
    lines: list[str] = []

    def tell(*told: str) -> None:
        lines.extend(told)
        print("\n".join(told), flush=True)

    machine = machine_info(device)  # first, because the run itself raises the load average
    tell(*report.preamble(machine, gpu.copy_rate if gpu else None, rivals.packages(device)))
    rows: list[dict[str, Any]] = []
    failed = 0
    for case in all_cases(options):
        try:
            row = measure(case, options, gpu)
        except Exception as error:  # the other cases may be fine
            failed += 1
            tell(f"FAILED: {case.op}, N = {case.num_samples}: {first_line(error)}")
            continue
        if not rows or report.table_of(rows[-1]) != report.table_of(row):
            tell(*report.header(row))
        tell(*report.lines(row))
        rows.append(row)
        write(options, machine, rows, lines)
    tell(*report.summary(rows))
    write(options, machine, rows, lines)
    if options.out and options.out.suffix != ".json":
        plot(rows, options.out / f"{NAME}.png")
    if failed:
        raise SystemExit(f"{failed} case{'s' * (failed > 1)} failed")


def write(
    options: argparse.Namespace,
    machine: dict[str, Any],
    rows: list[dict[str, Any]],
    lines: list[str],
) -> None:
    """Writes what is measured so far: a run that is killed keeps its rows."""
    if not options.out:
        return
    alone = options.out.suffix == ".json"
    settings = {name: str(value) for name, value in vars(options).items()}
    path = options.out if alone else options.out / f"{NAME}.json"
    write_measurements(path, machine, rows, settings=settings)
    if not alone:
        write_text(options.out / f"{NAME}.md", "\n".join(lines) + "\n")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the figure if matplotlib is installed."""
    try:
        from benchmarks.selection import plot as selection_plot
    except ModuleNotFoundError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return
    selection_plot.plot(rows, path)


if __name__ == "__main__":
    main()
