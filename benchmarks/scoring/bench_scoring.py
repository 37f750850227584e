# SPDX-License-Identifier: Apache-2.0
"""What a scored training step takes, beside the same step by other means.

    python -m benchmarks.scoring.bench_scoring                                    # CPU
    python -m benchmarks.scoring.bench_scoring --shapes 8x262144 1000000x10 --rounds 10
    python -m benchmarks.scoring.bench_scoring --device cuda --dtype bfloat16

Each step computes loss, EL2N and correctness, updates mean, variance and count of its samples, and
runs the backward pass to the logits. --forgetting adds forgetting events, --label-smoothing and
--class-weights change the loss, on all sides. "two ops" is our loss and our table update one after
the other. The rivals are torch's operators, eager and under torch.compile.
Liger-Kernel and quack take part where they are installed; they compute loss and gradient only.
"Liger" overwrites its logits with the gradient; "Liger on a copy" keeps them, as all others do.
"loss alone" is F.cross_entropy, forward and backward, without any score. A shape such as
512x1000/soft has probabilities as targets, 512x80/labels several labels a row. Samples of
8x21x128x128/pixels and 16x128x8192/tokens have many rows: their score is the mean of these.

The program prints a Markdown table. "replay" is the step in a CUDA graph, without the cost of its
launches, for those that a graph can capture. Times are lower quartiles, which other load on the
machine affects least. Ratios are medians over rounds in which every rival ran once. The last column
says whether the target of a ratio is reached (targets.py).
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as TF

from benchmarks.common import markdown
from benchmarks.common.arguments import positive_int, share
from benchmarks.common.machine_info import machine_info
from benchmarks.common.result_files import write_measurements
from benchmarks.common.timing import Call, first_line, graph_seconds, time_rounds
from benchmarks.scoring import targets
from benchmarks.scoring.steps import (
    CAPTURABLE,
    OVERWRITES,
    RIVALS,
    TWO_OPS,
    Loss,
    LossOptions,
    losses,
)

NUM_SAMPLES = 50_000  # or the size of the batch, if it is larger
# The shape of the logits, and what is trained on: see KINDS.
SHAPE = re.compile(r"\d+x\d+(/soft|/labels)?|\d+(x\d+){3}/pixels|\d+(x\d+){2}/tokens")
SHAPES = ["512x10", "512x100", "256x1000", "64x32768", "512x1000/soft", "512x80/labels"]
SHAPES += ["8x21x128x128/pixels", "16x128x8192/tokens"]
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}
COLUMNS = ["shape", "step", "fwd µs", "bwd µs", "full µs", "replay µs", "GB/s of 2E"]
COLUMNS += ["host µs", "launches", "times ours", "target"]


def calls(x: Tensor, y: Tensor, ids: Tensor, loss: Loss) -> dict[str, Call]:
    """The forward pass as "fwd", forward and backward as "full"."""

    def full() -> None:
        x.grad = None
        loss(x, y, ids).backward()

    return {"fwd": lambda: loss(x, y, ids), "full": full}


def replays(
    x: Tensor, y: Tensor, ids: Tensor, by_name: Mapping[str, Loss], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each replay of forward and backward in a CUDA graph, for those of CAPTURABLE."""
    found = {}
    for name in (name for name in CAPTURABLE if name in by_name):

        def step(loss: Loss = by_name[name]) -> Tensor:
            # backward() would add to x.grad on the stream of its first use.
            return torch.autograd.grad(loss(x, y, ids), x)[0]

        try:
            found[name] = graph_seconds(step, x.device, rounds)
        except Exception as error:
            print(f"{tuple(x.shape)}: {name} in a graph: {first_line(error)}", file=sys.stderr)
    return found


def host_and_launches(call: Call, device: torch.device, profiled: bool = True) -> tuple[float, int]:
    """Microseconds until the call returns, and its kernels and copies (0 if not counted)."""
    seconds = []
    for _ in range(30):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    launches = 0
    if device.type == "cuda" and profiled:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        launches = sum(e.device_type.name == "CUDA" for e in profile.events())
    return min(seconds) * 1e6, launches


def measure(shape: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The results of every rival at one shape, and why a rival has none."""
    device, dtype = options.device, DTYPES[options.dtype]
    size, _, kind = shape.partition("/")
    dims = tuple(map(int, size.split("x")))
    rows, classes = dims[0], dims[-1] if kind == "tokens" else dims[1]
    x = torch.randn(dims, device=device).to(dtype).requires_grad_()
    per_row = {"pixels": dims[2:], "tokens": dims[1:2]}.get(kind, ())
    y = torch.randint(classes, (rows, *per_row), device=device)
    if kind == "soft":
        first, second = (TF.one_hot(labels, classes).to(dtype) for labels in (y, y.flip(0)))
        y = 0.7 * first + 0.3 * second
    elif kind == "labels":
        y = (torch.rand(rows, classes, device=device) < 0.05).float()
    samples = max(NUM_SAMPLES, rows)
    ids = torch.randperm(samples, device=device)[:rows]
    weight = None
    if options.class_weights:
        weight = (torch.rand(classes, device=device) + 0.5).to(dtype)
    loss_options = LossOptions(weight, options.label_smoothing)
    by_name = losses(
        samples, device, not options.no_compile, kind, options.forgetting, loss_options
    )
    by_rival = {}
    for name, loss in by_name.items():
        # Its second call would read its first gradient, and so would all others.
        logits = x.detach().clone().requires_grad_() if name == OVERWRITES else x
        by_rival[name] = calls(logits, y, ids, loss)
    flat = {f"{n}/{part}": c for n, parts in by_rival.items() for part, c in parts.items()}
    copy = torch.empty_like(x.detach())
    flat["copy/full"] = lambda: copy.copy_(x.detach())
    refused = warm_up(by_rival)
    flat = {name: call for name, call in flat.items() if name.split("/")[0] not in refused}
    seconds = time_rounds(flat, device, options.rounds)
    measured = []
    for name in (name for name in (*by_rival, "copy") if name not in refused):
        host = host_and_launches(flat[f"{name}/full"], device, not options.no_profile)
        row = result(name, x, kind, seconds, host)
        if not loss_options.is_plain:  # the targets are for the loss without options
            row["target"] = ""
        row["label_smoothing"] = options.label_smoothing
        row["class_weights"] = options.class_weights
        measured.append(row)
    if device.type == "cuda":  # last: a capture that fails may leave the device in disorder
        usable = {name: loss for name, loss in by_name.items() if name not in refused}
        replayed = replays(x.detach().requires_grad_(), y, ids, usable, options.rounds)
        for row in measured:
            row["replay_seconds"] = replayed.get(row["name"])
    return measured, refused


def warm_up(by_rival: Mapping[str, Mapping[str, Call]]) -> dict[str, str]:
    """Calls everything once, which compiles what is compiled; why a rival failed, if it did."""
    refused = {}
    for name, parts in by_rival.items():
        try:
            for call in parts.values():
                call()
        except Exception as error:
            if name == "ours":
                raise
            refused[name] = first_line(error)
    return refused


def result(
    name: str, x: Tensor, kind: str, seconds: Mapping[str, list[float]], host: tuple[float, int]
) -> dict[str, Any]:
    """What is written to the JSON file about one rival at one shape."""
    full = np.array(seconds[f"{name}/full"])
    forward = np.array(seconds.get(f"{name}/fwd", full))
    ratio = float(np.median(full / np.array(seconds["ours/full"])))
    quartile = {
        "fwd": float(np.quantile(forward, 0.25)) * 1e6,
        "full": float(np.quantile(full, 0.25)) * 1e6,
    }
    dtype = str(x.dtype).split(".")[1]
    shape = tuple(x.shape)
    target = targets.find(x.device.type, dtype, shape, name, kind)
    reached = target is not None and target.reached(ratio)
    if name == TWO_OPS and "torch.compile/full" in seconds:
        target = targets.find_for_two_ops(x.device.type, dtype, shape, kind)
        times = np.median(np.array(seconds["torch.compile/full"]) / full)
        reached = target is not None and target.reached(float(times))
    verdict = ""
    if target is not None:
        verdict = f"{target.text}: {'reached' if reached else 'missed'}"
    moved = 2 * x.numel() * x.element_size()
    return {
        "shape": list(shape),
        "kind": kind,
        "dtype": str(x.dtype),
        "name": name,
        "microseconds": quartile,
        "gigabytes_per_second_of_read_once_and_write_once": moved / 1e9 / (quartile["full"] / 1e6),
        "host_microseconds": host[0],
        "launches": host[1],
        "times_ours": ratio,
        "target": verdict,
        "seconds": {"fwd": forward.tolist(), "full": full.tolist()},
    }


def shape_name(r: Mapping[str, Any]) -> str:
    """As `--shapes` takes it."""
    return "x".join(map(str, r["shape"])) + (f"/{r['kind']}" if r.get("kind") else "")


def table_row(r: Mapping[str, Any]) -> str:
    """The line of one result in the Markdown table."""
    forward, full = r["microseconds"]["fwd"], r["microseconds"]["full"]
    rate = r["gigabytes_per_second_of_read_once_and_write_once"]
    cells = [shape_name(r), r["name"]]
    cells += [f"{value:.1f}" for value in (forward, full - forward, full)]
    replayed = r.get("replay_seconds")
    cells += [f"{np.quantile(replayed, 0.25) * 1e6:.1f}" if replayed else "-", f"{rate:.1f}"]
    cells += [f"{r['host_microseconds']:.1f}", str(r["launches"]), f"{r['times_ours']:.2f}"]
    return markdown.row([*cells, r["target"]])


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """How many targets are reached; empty if none applies."""
    stated = [r["target"] for r in results if r["target"]]
    reached = sum(text.endswith("reached") for text in stated)
    return f"\n{reached} of {len(stated)} targets reached" if stated else ""


def plot(results: Sequence[Mapping[str, Any]], path: Path, note: str) -> None:
    """Writes a PNG with a bar per rival: the time of its full step divided by ours."""
    from benchmarks.common.plots import plt, save, tidy

    shapes = list(dict.fromkeys(map(shape_name, results)))
    names = [n for n in RIVALS if any(r["name"] == n for r in results)]
    figure, axis = plt.subplots(figsize=(8, 4), dpi=150)
    for k, name in enumerate(names):
        ratios = [
            next((r["times_ours"] for r in results if (r["name"], shape_name(r)) == (name, s)), 0)
            for s in shapes
        ]
        places = np.arange(len(shapes)) + 0.8 * k / len(names)
        axis.bar(places, ratios, 0.75 / len(names), label=name)
    axis.axhline(1, color="black", linewidth=0.8)
    labels = [shape.replace("/", "\n") for shape in shapes]
    axis.set_xticks(np.arange(len(shapes)) + 0.3, labels, fontsize=8)
    axis.set_ylabel("time of a step, in units of ours")
    axis.set_title("Scored training step, forward and backward", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8)
    tidy(axis, grid=None)
    save(figure, path, note=note)


def checked_shape(text: str) -> str:
    """The argument of `--shapes`."""
    if SHAPE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape such as 512x10, 512x1000/soft, 512x80/labels, "
            "8x21x128x128/pixels or 16x128x8192/tokens"
        )
    return text


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=SHAPES,
        type=checked_shape,
        help="rows x classes, as 512x10; /soft: probabilities, /labels: several labels a row; "
        "BxCxHxW/pixels and BxTxV/tokens: samples of several rows",
    )
    parser.add_argument("--forgetting", action="store_true", help="count forgetting events, too")
    parser.add_argument(
        "--label-smoothing", type=share, default=0.0, help="of classes and probabilities"
    )
    parser.add_argument("--class-weights", action="store_true", help="weigh the classes")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--rounds", type=positive_int, default=60)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-profile", action="store_true", help="leave out counts of launches")
    parser.add_argument("--out", type=Path, help="write the raw numbers to this JSON file")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    torch.manual_seed(0)
    machine = machine_info(options.device)
    print(machine)
    print("\n" + "\n".join(markdown.head(COLUMNS)))
    results: list[dict[str, Any]] = []
    failed = []
    for shape in options.shapes:
        if shape.endswith("/labels") and (options.class_weights or options.label_smoothing):
            print(f"{shape}: left out, several labels have no such options", file=sys.stderr)
            continue
        try:
            measured, refused = measure(shape, options)
        except Exception as error:  # the other shapes may be fine
            print(f"{shape}: {first_line(error)}", file=sys.stderr)
            failed.append(shape)
            continue
        print("\n".join(map(table_row, measured)), flush=True)
        for name, reason in refused.items():
            print(f"{shape}: {name} failed: {reason}", file=sys.stderr)
        results += measured
        if options.out:  # after each shape: a run that is killed keeps its rows
            write_measurements(options.out, machine, results)
    if text := summary(results):
        print(text)
    if options.plot:
        where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
        plot(results, options.plot, f"{where}, {options.dtype}, torch {machine['torch']}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
