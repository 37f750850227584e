# SPDX-License-Identifier: Apache-2.0
"""Makes the runs of an experiment that are not done yet, and writes its report.

Every run is written when it is finished: a program that is killed loses one run at most. Several
programs may work on one folder at the same time; each run is made by one of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.machine_info import git_commit, machine_info
from benchmarks.common.result_files import append_line, read_lines
from benchmarks.equal_steps.config import Cell, Experiment, read_experiment
from benchmarks.equal_steps.data import make_task
from benchmarks.equal_steps.report import write_report
from benchmarks.equal_steps.train import train

__all__ = ["main"]


def done_keys(out: Path) -> set[str]:
    """The keys of the runs that are finished."""
    return {entry["key"] for entry in read_lines(out / "results.jsonl")}


@contextmanager
def claimed(out: Path, key: str) -> Iterator[bool]:
    """Claims a run; gives False if a process that lives has claimed it."""
    claim = out / f"{key}.claim"
    try:
        if claim.is_file() and not Path(f"/proc/{claim.read_text()}").exists():
            claim.unlink()  # of a process that was killed
        with claim.open("x") as file:
            file.write(str(os.getpid()))
    except (FileExistsError, FileNotFoundError):
        yield False
        return
    try:
        yield True
    finally:
        claim.unlink()


def make_runs(
    experiment: Experiment,
    cells: Sequence[Cell],
    out: Path,
    data_root: Path,
    *,
    device: str,
    end: float | None = None,
) -> int:
    """Makes the runs that are left, until `end` by the monotonic clock; returns how many."""
    made = 0
    machine = {**machine_info(torch.device(device)), "commit": git_commit()}
    for number, cell in enumerate(cells, 1):
        key = experiment.key(cell)
        if end is not None and time.monotonic() >= end:
            break
        if key in done_keys(out):
            continue
        with claimed(out, key) as mine:
            if not mine or key in done_keys(out):
                continue
            setting, method = experiment.settings[cell.setting], experiment.methods[cell.method]
            task = make_task(setting, data_root, cell.seed)
            result = train(setting, method, task, cell.seed, device)
            entry: dict[str, Any] = {
                "key": key,
                **asdict(cell),
                "label": method.label,
                **{k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()},
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "machine": machine,
            }
            append_line(out / "results.jsonl", entry)
            made += 1
        print(
            f"[{number}/{len(cells)}] {cell.setting} {cell.method} seed {cell.seed}: "
            f"test {result['test']:.2f} %, training {result['train']:.1f} %, gini "
            f"{result['gini']:.2f}, {result['seconds']:.0f} s",
            flush=True,
        )
    return made


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", type=Path, help="the TOML file, see configs/")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for results and report")
    add("--data-root", type=Path, default=Path("data"), metavar="DIR", help="where the data are")
    add("--settings", nargs="+", metavar="NAME", help="only these settings")
    add("--methods", nargs="+", metavar="NAME", help="only these methods")
    add("--seeds", nargs="+", type=int, metavar="N", help="only these seeds")
    add("--minutes", type=float, metavar="N", help="begin no run after so many minutes")
    add("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    add("--threads", type=int, default=1, help="of the CPU (default %(default)s)")
    add("--report-only", action="store_true", help="only the report, of what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the runs that are left and writes the report."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        experiment = read_experiment(args.config)
        args.out.mkdir(parents=True, exist_ok=True)
        cells = [
            cell
            for cell in experiment.cells
            if all(
                wanted is None or getattr(cell, name) in wanted
                for name, wanted in (
                    ("setting", args.settings),
                    ("method", args.methods),
                    ("seed", args.seeds),
                )
            )
        ]
        end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
        if not args.report_only:
            make_runs(experiment, cells, args.out, args.data_root, device=args.device, end=end)
        write_report(experiment, args.out)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"experiment.py: {error}")


if __name__ == "__main__":
    main()
