# SPDX-License-Identifier: Apache-2.0
"""A scored training step against what one would write without it, in one run.

    python -m benchmarks.scoring.bench_scoring                                    # CPU
    python -m benchmarks.scoring.bench_scoring --shapes 8x262144 1000000x10 --rounds 10
    python -m benchmarks.scoring.bench_scoring --device cuda --dtype bfloat16

Every step computes the loss, EL2N and correctness, updates moving averages, counts and forgetting
events of its samples, and goes backward to the logits: Pruner.cross_entropy, the same by torch's
operators, that under torch.compile, and where they are installed Liger-Kernel and quack, which
compute the loss and its gradient alone. "loss alone" is F.cross_entropy, forward and backward:
what the step costs without any score. Prints a Markdown table of the lower quartiles, which other
work on the machine disturbs least; ratios are medians over rounds in which every rival ran once.
The last column tells whether what was promised of a ratio holds, see scoring_targets.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as TF

from benchmarks.common.timing import Call, machine, time_rounds, write_json
from benchmarks.scoring import targets
from dynprune_cuda import Pruner

NUM_SAMPLES = 50_000  # or as many as a batch has
SHAPES = ["512x10", "512x100", "256x1000", "64x32768"]
ALPHA = 0.8
RIVALS = ("eager", "torch.compile", "loss alone", "Liger", "quack")


class Table:
    """A score table of plain tensors."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.mean, self.variance, self.el2n = torch.zeros(3, samples, device=device).unbind()
        self.count, self.forgets = torch.zeros(
            2, samples, dtype=torch.int32, device=device
        ).unbind()
        self.last_correct = torch.zeros(samples, dtype=torch.bool, device=device)


def obvious_step(logits: Tensor, target: Tensor, ids: Tensor, t: Table) -> Tensor:
    """Loss, scores and state by torch's operators."""
    loss = TF.cross_entropy(logits, target, reduction="none")
    with torch.no_grad():
        x, value = logits.detach(), loss.detach().float()
        errors = torch.softmax(x.float(), 1) - TF.one_hot(target, x.shape[1])
        correct = x.argmax(1) == target
        old, last = t.mean[ids], t.last_correct[ids]
        spread = (1 - ALPHA) * t.variance[ids] + ALPHA * (value - old) ** 2
        t.variance.index_put_((ids,), spread)
        t.mean.index_put_((ids,), (1 - ALPHA) * old + ALPHA * value)
        t.el2n.index_put_((ids,), errors.norm(dim=1))
        t.count.index_put_((ids,), t.count[ids] + 1)
        t.forgets.index_put_((ids,), t.forgets[ids] + (last & ~correct).int())
        t.last_correct.index_put_((ids,), correct)
    return loss.mean()


def losses(samples: int, device: torch.device, compiled: bool) -> dict[str, Callable[..., Tensor]]:
    """Loss functions of (logits, target, ids) by name."""
    pruner = Pruner(samples, 0.5, device=device)
    pruner.set_epoch(0)
    table = Table(samples, device)
    found: dict[str, Callable[..., Tensor]] = {
        "ours": pruner.cross_entropy,
        "eager": lambda x, y, i: obvious_step(x, y, i, table),
    }
    if compiled:
        other = Table(samples, device)
        step = torch.compile(obvious_step, dynamic=False)
        found["torch.compile"] = lambda x, y, i: step(x, y, i, other)
    found["loss alone"] = lambda x, y, _: TF.cross_entropy(x, y)
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        liger = LigerCrossEntropyLoss()
        # It writes the gradient over the logits.
        found["Liger"] = lambda x, y, _: liger(x.clone(), y)
    if device.type == "cuda" and importlib.util.find_spec("quack"):
        from quack.cross_entropy import cross_entropy

        found["quack"] = lambda x, y, _: cross_entropy(x, y).mean()
    return found


def calls(x: Tensor, y: Tensor, ids: Tensor, loss: Callable[..., Tensor]) -> dict[str, Call]:
    """forward, forward with backward."""

    def full() -> None:
        x.grad = None
        loss(x, y, ids).backward()

    return {"fwd": lambda: loss(x, y, ids), "full": full}


def host_and_launches(call: Call, device: torch.device) -> tuple[float, int]:
    """Microseconds until the call returns, and the kernels and copies it launched (0 on a CPU)."""
    seconds = []
    for _ in range(30):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    launches = 0
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        launches = sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())
    return min(seconds) * 1e6, launches


def measure(
    shape: str, device: torch.device, dtype: torch.dtype, rounds: int, compiled: bool
) -> list[dict[str, Any]]:
    """Times every rival at one shape and prints its rows of the table."""
    rows, classes = (int(part) for part in shape.split("x"))
    x = torch.randn(rows, classes, device=device).to(dtype).requires_grad_()
    y = torch.randint(classes, (rows,), device=device)
    samples = max(NUM_SAMPLES, rows)
    ids = torch.randperm(samples, device=device)[:rows]
    by_rival = {n: calls(x, y, ids, f) for n, f in losses(samples, device, compiled).items()}
    flat = {f"{n}/{part}": c for n, parts in by_rival.items() for part, c in parts.items()}
    copy = torch.empty_like(x.detach())
    flat["copy/full"] = lambda: copy.copy_(x.detach())
    for call in flat.values():
        call()  # torch.compile's first call compiles
    seconds = time_rounds(flat, device, rounds)
    own = np.array(seconds["ours/full"])
    results = []
    for name in (*by_rival, "copy"):
        full = np.array(seconds[f"{name}/full"])
        forward = np.array(seconds.get(f"{name}/fwd", full))
        ratio = float(np.median(full / own))
        host, launches = host_and_launches(flat[f"{name}/full"], device)
        quartile = [float(np.quantile(v, 0.25)) * 1e6 for v in (forward, full)]
        gigabytes = 2 * x.numel() * x.element_size() / 1e9 / (quartile[1] / 1e6)
        target = targets.find(device.type, str(dtype).split(".")[1], (rows, classes), name)
        verdict = ""
        if target is not None:
            verdict = f"{target.text}: {'reached' if target.reached(ratio) else 'missed'}"
        print(
            f"| {shape} | {name} | {quartile[0]:.1f} | {quartile[1] - quartile[0]:.1f} "
            f"| {quartile[1]:.1f} | {gigabytes:.1f} | {host:.1f} | {launches} | {ratio:.2f} "
            f"| {verdict} |",
            flush=True,
        )
        results.append(
            {
                "shape": [rows, classes],
                "dtype": str(dtype),
                "name": name,
                "microseconds": {"fwd": quartile[0], "full": quartile[1]},
                "gigabytes_per_second_of_read_once_and_write_once": gigabytes,
                "host_microseconds": host,
                "launches": launches,
                "times_ours": ratio,
                "target": verdict,
                "seconds": {"fwd": forward.tolist(), "full": full.tolist()},
            }
        )
    return results


def plot(results: list[dict[str, Any]], path: Path, note: str) -> None:
    """Bars: each rival's full step in units of ours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = sorted({tuple(r["shape"]) for r in results}, key=lambda s: s[0] * s[1])
    names = [n for n in RIVALS if any(r["name"] == n for r in results)]
    figure, axis = plt.subplots(figsize=(8, 4), dpi=150)
    for k, name in enumerate(names):
        ratios = [
            next(r["times_ours"] for r in results if r["name"] == name and tuple(r["shape"]) == s)
            for s in shapes
        ]
        axis.bar(
            np.arange(len(shapes)) + 0.8 * k / len(names), ratios, 0.75 / len(names), label=name
        )
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(np.arange(len(shapes)) + 0.3, [f"{b} × {c}" for b, c in shapes])
    axis.set_ylabel("time of a step, in units of ours")
    axis.set_title("Scored training step, forward and backward", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.01, note, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x classes, as 512x10")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="write the raw numbers to this JSON file")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    facts = machine(device)
    print(facts)
    print(
        "\n| shape | step | fwd µs | bwd µs | full µs | GB/s of 2E | host µs | launches "
        "| times ours | target |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    results = []
    for shape in options.shapes:
        results += measure(shape, device, dtype, options.rounds, not options.no_compile)
    stated = [r["target"] for r in results if r["target"]]
    if stated:
        print(f"\n{sum(t.endswith('reached') for t in stated)} of {len(stated)} targets reached")
    if options.out:
        write_json(options.out, facts, results)
    if options.plot:
        where = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"
        plot(results, options.plot, f"{where}, {options.dtype}, torch {facts['torch']}")


if __name__ == "__main__":
    main()
