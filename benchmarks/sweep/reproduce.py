# SPDX-License-Identifier: Apache-2.0
"""Runs a sweep: every method with every keep and seed of a TOML file, unattended.

The same command resumes a sweep that was stopped. See docs/benchmarks/reproduce.md.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision

from benchmarks.common.machine_info import git_commit, machine_info
from benchmarks.common.records import Run, run_from_json
from benchmarks.common.result_files import append_line, locked, read_lines, write_text
from benchmarks.sweep.config import Cell, SweepConfig, read_config
from benchmarks.sweep.estimate import Forecast, describe_speed, hours, measure_speed
from benchmarks.sweep.static_subsets import StaticSubsets
from benchmarks.training.image_datasets import load_dataset
from benchmarks.training.images import ImageTask
from benchmarks.training.methods import METHODS
from benchmarks.training.plans import make_plan
from benchmarks.training.source import Settings, Source, warm_up
from benchmarks.training.trainer import Trainer

__all__ = ["main"]

Report = Callable[[Path, list[dict[str, Any]]], None]


class OutOfTime(Exception):
    """The minutes of --minutes are over."""


class Sweep:
    """A sweep in a folder; calls `report` after each complete seed."""

    def __init__(
        self, config: SweepConfig, out: Path, minutes: float | None, report: Report
    ) -> None:
        self.config, self.out, self.report = config, out, report
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self.settings = make_settings(config)
        device = self.settings.device
        self.task = load_task(config)
        self.source = Source(self.task, self.settings)
        self.fingerprint = config.fingerprint(
            device.type,
            threads=torch.get_num_threads(),
            data=(self.task.name, len(self.task.train), len(self.task.test)),
        )
        about = f"{self.task.name}, {self.settings.model}, configuration {self.fingerprint}"
        self.static = StaticSubsets(
            self.source, config.static, out / "static", about, self._in_time
        )
        self.machine = {
            **machine_info(device),
            "torchvision": torchvision.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "git": git_commit(),
        }

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    def finished(self) -> list[Run]:
        """The runs in the folder; raises a ValueError if it holds another configuration."""
        begun, entries = self.out / "fingerprint", read_lines(self.results)
        found = {entry["fingerprint"] for entry in entries}
        if begun.is_file():
            found.add(begun.read_text())
        if found - {self.fingerprint}:
            raise ValueError(
                f"{self.out} holds runs of another configuration: give another --out, or move the "
                "folder away"
            )
        write_text(begun, self.fingerprint)
        return [run_from_json(entry["run"]) for entry in entries]

    def run(self) -> list[str]:
        """Does the runs that are left, within the time; returns the names of runs that failed."""
        done = {Cell(run.method, run.keep, run.seed): run for run in self.finished()}
        forecast = Forecast(self.config, len(self.task.train), len(self.task.test))
        for run in done.values():
            forecast.observe(run)
        cells = self.config.cells()
        left = [cell for cell in cells if cell not in done]
        if left:
            warm_up(self.source)
        total, failed = len(left) + len(done), []
        for number, cell in enumerate(left):
            try:
                if number > 0:  # each start completes at least one epoch
                    self._in_time()
                    if cell.seed != left[number - 1].seed:
                        self._report_so_far()
                run = self._train(cell)
            except OutOfTime:
                print(f"stopped: {len(done)} of {total} runs are done; start again to go on")
                break
            except ImportError as error:
                print(f"{cell.name} is left out: {error}")
                continue
            except Exception:  # go on with the other runs; the next start repeats this one
                traceback.print_exc()
                failed.append(cell.name)
                continue
            self._write(cell, run)
            done[cell] = run
            forecast.observe(run)
            rest = forecast.seconds(left[number + 1 :], self._computed_scores(cells))
            remaining = "" if rest is None else f"; about {hours(rest)} left"
            print(
                f"[{len(done)}/{total}] {cell.name}: {100 * run.accuracy:.2f} %, "
                f"{run.seconds:.0f} s with {run.static_seconds:.0f} s of static scoring{remaining}",
                flush=True,
            )
        return failed

    def _train(self, cell: Cell) -> Run:
        """Trains one cell, from its checkpoint if there is one."""
        method, ids, cost = METHODS[cell.method], None, None
        if method.scores is not None:
            assert cell.keep is not None
            scores, cost = self.static.scores(method.scores, cell.seed)
            ids = scores.top(cell.keep, seed=cell.seed)
        plan = make_plan(
            cell.method,
            self.source.num_samples,
            self.settings,
            keep=cell.keep,
            seed=cell.seed,
            static_ids=ids,
        )
        run = Run(cell.method, plan.label, cell.seed, cell.keep, static=cost)
        trainer = Trainer(self.source, plan, run)
        checkpoint = self.out / f"{cell.name}.checkpoint"
        if checkpoint.is_file():
            trainer.load(checkpoint)
        saved = time.monotonic()

        def after_epoch() -> None:
            nonlocal saved
            last = len(trainer.run.epochs) == plan.epochs
            out_of_time = self._end is not None and time.monotonic() >= self._end
            if last:
                return
            if out_of_time or time.monotonic() - saved >= self.config.training.checkpoint_seconds:
                trainer.save(checkpoint)
                saved = time.monotonic()
                print(f"  epoch {len(trainer.run.epochs)}/{plan.epochs}", flush=True)
            if out_of_time:
                raise OutOfTime

        return trainer.train(after_epoch=after_epoch)

    def _in_time(self) -> None:
        if self._end is not None and time.monotonic() >= self._end:
            raise OutOfTime

    def _computed_scores(self, cells: Sequence[Cell]) -> set[tuple[str, int]]:
        """Kind and seed of the static scores that are on the disk."""
        wanted = {(METHODS[cell.method].scores, cell.seed) for cell in cells}
        return {(kind, seed) for kind, seed in wanted if kind and self.static.has(kind, seed)}

    def _report_so_far(self) -> None:
        """Reports the seeds that are done; an error here does not stop the sweep."""
        try:
            if entries := read_lines(self.results):
                self.report(self.out, entries)
        except Exception:
            traceback.print_exc()

    def _write(self, cell: Cell, run: Run) -> None:
        """Appends a finished run to the results, and removes its checkpoint."""
        entry = {
            "fingerprint": self.fingerprint,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "run": asdict(run),
            "config": asdict(self.config),
            "data": {
                "name": self.task.name,
                "note": self.task.note,
                "train": len(self.task.train),
                "test": len(self.task.test),
            },
            "machine": self.machine,
        }
        append_line(self.results, entry)
        (self.out / f"{cell.name}.checkpoint").unlink(missing_ok=True)


def make_settings(config: SweepConfig) -> Settings:
    """The settings of all runs; also sets torch's threads and cuDNN's choice of algorithms."""
    training = config.training
    name = training.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if training.threads:
        torch.set_num_threads(training.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    same = (
        "model epochs batch_size lr weight_decay precision channels_last compile resident "
        "num_workers evaluations"
    )
    return Settings(
        device=device,
        rules=config.pruning,
        **{name: getattr(training, name) for name in same.split()},
    )


def load_task(config: SweepConfig) -> ImageTask:
    data = config.data
    return load_dataset(
        data.dataset,
        data_root=Path(data.root).expanduser() if data.root else None,
        download=data.download,
        limit=data.limit or None,
        image_size=data.image_size,
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", type=Path, nargs="?", help="the TOML file; not needed with --report-only")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all that is written")
    add("--data-root", metavar="PATH", help="where the data are: replaces data.root of the file")
    add(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="TABLE.NAME=VALUE",
        help="other entries that differ, as training.epochs=2; give the TOML file before it",
    )
    add("--minutes", type=float, metavar="N", help="stop after so many minutes, ready to go on")
    add("--estimate", action="store_true", help="measure for some seconds how long it will take")
    add("--report-only", action="store_true", help="only tables and figures, of what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is left of a sweep, and writes the report of what is there."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.config is None and not args.report_only:
        parser.error("the TOML file is needed, before --set, which takes all that follows it")
    report = find_report()
    failed: list[str] = []
    try:
        if not args.report_only:
            config = read_config(args.config, [*args.set, *data_root(args.data_root)])
            args.out.mkdir(parents=True, exist_ok=True)
            with locked(args.out):
                sweep = Sweep(config, args.out, args.minutes, report)
                print(introduction(sweep), flush=True)
                if args.estimate:
                    print(describe_speed(config, sweep.source, measure_speed(sweep.source, config)))
                    return
                failed = sweep.run()
        entries = read_lines(args.out / "results.jsonl")
        if entries:
            report(args.out, entries)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"reproduce.py: {error}")
    if not entries and args.report_only:
        sys.exit(f"reproduce.py: there is nothing to report: no run is finished in {args.out}")
    if not entries:
        print(f"no run is finished in {args.out}")
    if failed:
        sys.exit(
            f"reproduce.py: these runs failed, start again to repeat them: {', '.join(failed)}"
        )


def find_report() -> Report:
    """The function that writes tables and figures.

    Prints a warning, before anything is trained, if a package for them is missing.
    """
    try:
        from benchmarks.sweep.report import write_report
    except ImportError as error:
        missing = str(error)

        def explain(out: Path, entries: list[dict[str, Any]]) -> None:
            print(f"no report here ({missing}): copy results.jsonl to a machine that has all of")
            print(f"the extra demo, and write it there with --report-only --out {out}")

        print(f"this machine can only train, and write no report: {missing}", flush=True)
        return explain

    def write(out: Path, entries: list[dict[str, Any]]) -> None:
        write_report(out, entries)
        print(f"written: {out / 'report.md'} and its figures", flush=True)

    return write


def data_root(path: str | None) -> list[str]:
    # A literal TOML string has no escapes, so it can hold any path without a quote.
    return [] if path is None else [f"data.root='{path}'"]


def introduction(sweep: Sweep) -> str:
    task, settings, machine = sweep.task, sweep.settings, sweep.machine
    return (
        f"{task.name}: {len(task.train):,} training and {len(task.test):,} test images; "
        f"{settings.model}, {settings.epochs} epochs, {settings.precision}, on "
        f"{machine.get('gpu', machine['cpu'])} with {machine['threads']} threads; "
        f"{len(sweep.config.cells())} runs, configuration {sweep.fingerprint}"
    )


if __name__ == "__main__":
    main()
