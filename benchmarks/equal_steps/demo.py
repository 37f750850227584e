# SPDX-License-Identifier: Apache-2.0
"""Trains on all data and on chosen samples, for equally many steps, and compares the accuracies.

Fashion-MNIST is taken from --data-root, from Debian's package dataset-fashion-mnist, or downloaded
by torchvision. Without any of these: 5,000 MNIST digits, where nothing is to be gained. A run takes
17 s on one CPU thread, and there are two for each seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import markdown
from benchmarks.common.result_files import read_lines, write_text
from benchmarks.equal_steps.config import Difference, Experiment, read_experiment
from benchmarks.equal_steps.data import fashion_folder, make_task
from benchmarks.equal_steps.differences import paired
from benchmarks.equal_steps.report import description
from benchmarks.equal_steps.train import train

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "benchmarks" / "equal_steps" / "configs"
COMMITTED = {  # experiment: folder of its committed results
    "small": ROOT / "benchmarks" / "results" / "equal_steps_small",
    "cifar10": ROOT / "benchmarks" / "results" / "equal_steps_cifar10",
    "words": ROOT / "benchmarks" / "results" / "equal_steps_words",
}
METHOD = "default"

Runs = dict[str, dict[int, dict[str, Any]]]  # by method and seed


def available(root: Path) -> str:
    """Returns the setting whose data are there, after a download if that is needed and possible."""
    try:
        fashion_folder(root)
    except FileNotFoundError:
        from torchvision.datasets import FashionMNIST

        try:
            FashionMNIST(str(root), download=True)
            fashion_folder(root)
        except (OSError, RuntimeError):  # no network, or the folder cannot be written
            print(
                "Fashion-MNIST is not here and cannot be downloaded: MNIST digits instead. The "
                "network almost memorises them, so that no gain is to be expected."
            )
            return "digits"
    return "fashion"


def train_all(
    experiment: Experiment, setting: str, seeds: Sequence[int], root: Path, device: str
) -> Runs:
    """Makes all runs of a setting, and prints a line for each."""
    runs: Runs = {name: {} for name in experiment.methods}
    for seed in seeds:
        task = make_task(experiment.settings[setting], root, seed)
        for name, method in experiment.methods.items():
            run = train(experiment.settings[setting], method, task, seed, device)
            runs[name][seed] = run
            print(
                f"seed {seed}, {method.label}: {run['steps']:,} steps in {run['seconds']:.0f} s, "
                f"test accuracy {run['test']:.2f} %",
                flush=True,
            )
    return runs


def table(experiment: Experiment, runs: Runs) -> str:
    """One row for each method."""
    rows: list[Sequence[str]] = [
        ("trained on", "test accuracy", "difference", "training accuracy", "steps", "seconds")
    ]
    for name, method in experiment.methods.items():
        own = list(runs[name].values())

        def mean(column: str, own: Sequence[dict[str, Any]] = own) -> float:
            return statistics.fmean(run[column] for run in own)

        difference = paired(runs[name], runs[experiment.baseline], "test")
        rows.append(
            (
                method.label,
                f"{mean('test'):.2f} %",
                "" if name == experiment.baseline or difference is None else text(*difference),
                f"{mean('train'):.1f} %",
                f"{mean('steps'):,.0f}",
                f"{mean('seconds'):.1f}",
            )
        )
    return markdown.table(rows)


def text(mean: float, error: float, number: int) -> str:
    """A paired difference in words."""
    return f"{mean:+.2f}" + (f" ± {error:.2f}" if number > 1 else "")


def verdict(difference: tuple[float, float, int]) -> str:
    """What a difference shows: two standard errors are taken as noise."""
    mean, error, number = difference
    if number < 2:
        return "One seed tells nothing of the noise: take --seeds 0 1 2."
    if abs(mean) <= 2 * error:
        return "The difference is within the noise."
    return f"Choosing {'gained' if mean > 0 else 'lost'} more than the noise."


def committed() -> list[Difference]:
    """The differences of the default policy in the committed results, two seeds or more."""
    found: list[Difference] = []
    for name, folder in COMMITTED.items():
        experiment = read_experiment(CONFIGS / f"{name}.toml")
        keys = {experiment.key(cell) for cell in experiment.cells}
        entries = [e for e in read_lines(folder / "results.jsonl") if e["key"] in keys]
        for setting in experiment.settings:
            own = [entry for entry in entries if entry["setting"] == setting]
            runs = {
                method: {e["seed"]: e for e in own if e["method"] == method}
                for method in (METHOD, experiment.baseline)
            }
            difference = paired(runs[METHOD], runs[experiment.baseline], "test")
            if difference is not None and difference[2] > 1:
                data = experiment.settings[setting].data
                found.append((f"{data}, {setting}", METHOD, *difference))
    return found


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-root", type=Path, default=Path("data"), metavar="DIR", help="where data are")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default 0 1 2")
    add("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    add("--threads", type=int, default=1, help="of the CPU (default %(default)s)")
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="default %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the runs, prints the table, and writes it with a picture."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    experiment = read_experiment(CONFIGS / "demo.toml")
    setting = available(args.data_root)
    print(f"{description(experiment, setting)}\n", flush=True)
    try:
        runs = train_all(experiment, setting, args.seeds, args.data_root, args.device)
    except (ImportError, ValueError) as error:
        sys.exit(f"demo.py: {error}")
    difference = paired(runs[METHOD], runs[experiment.baseline], "test")
    assert difference is not None  # both have all seeds
    others = committed()
    before = markdown.table(
        [
            ("committed result", "difference", "seeds"),
            *((name, text(mean, error, n), str(n)) for name, _, mean, error, n in others),
        ]
    )
    report = f"{table(experiment, runs)}\n\n{verdict(difference)}\n\n{before}\n"
    print(
        f"\n{report}\nbudget10 is 10 epochs' worth of steps, and lr01 a learning rate of 0.1. "
        "docs/guides/choosing.md tells of all settings."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "demo.md", report)
    try:
        from benchmarks.equal_steps.plots import plot_differences
    except ImportError as error:
        print(f"No picture: {error}.")
        return
    here = (f"this run: {setting}", METHOD, *difference)
    both: list[Difference] = [here, *others]
    plot_differences(experiment, both, args.out / "demo.png", {name: name for name, *_ in both})
    print(f"The picture is {args.out / 'demo.png'}.")


if __name__ == "__main__":
    main()
