# SPDX-License-Identifier: Apache-2.0
"""How accurate the scores of easy samples are: this package beside the obvious torch code.

    python -m benchmarks.scoring.accuracy            # writes docs/images/accuracy.png

Each row has 1000 classes and a target with a probability p from 1e-30 to 1 - 1e-12. Dynamic pruning
ranks easy samples by loss and EL2N, whose exact values there are about 1 - p. A subtraction of p
from 1 cancels all digits of such a value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.plots import COLOURS, plt, save, tidy
from dynprune_cuda import functional as F

NUM_CLASSES = 1000
# d = log((1 - p) / p): p from 1e-30 to 1 - 1e-12
DISTANCES = np.linspace(np.log(1e30), -np.log(1e12), 193)


def rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of one row per distance, rounded to dtype, and the targets."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(len(DISTANCES), NUM_CLASSES)) * 2
    target = generator.integers(NUM_CLASSES, size=len(DISTANCES))
    every = np.arange(len(DISTANCES))
    logits[every, target] = -np.inf
    logits[every, target] = np.log(np.exp(logits).sum(axis=1)) - DISTANCES
    return torch.from_numpy(logits).to(dtype), torch.from_numpy(target)


def exact(logits: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    """1 - p, loss and EL2N of the stored logits, in float64 without a subtraction from 1."""
    x, y, every = logits.double().numpy(), target.numpy(), np.arange(len(target))
    others = x.copy()
    others[every, y] = -np.inf
    greatest = others.max(axis=1)
    powers = np.exp(others - greatest[:, None])
    total = powers.sum(axis=1)
    d = greatest + np.log(total) - x[every, y]
    miss = np.exp(-np.logaddexp(0, -d))
    spread = np.sqrt(1 + (powers**2).sum(axis=1) / total**2)
    return {"miss": miss, "loss": np.logaddexp(0, d), "el2n": miss * spread}


def obvious(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and EL2N by torch's operators."""
    loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    onehot = torch.nn.functional.one_hot(target, logits.shape[1])
    return loss, (torch.softmax(logits, dim=1) - onehot).norm(dim=1)


def ours(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and EL2N of this package."""
    scored = F.scored_cross_entropy(logits, target)
    return scored.loss, scored.el2n


METHODS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "obvious torch code": obvious,
    "dynprune_cuda": ours,
}


def relative_errors(
    dtype: torch.dtype, device: str = "cpu"
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Exact 1 - p of every row, and by method and score the relative errors."""
    logits, target = rows(dtype)
    right = exact(logits, target)
    errors: dict[str, dict[str, np.ndarray]] = {}
    for name, method in METHODS.items():
        got = dict(zip(("loss", "el2n"), method(logits.to(device), target.to(device)), strict=True))
        errors[name] = {
            score: np.abs(value.double().cpu().numpy() - right[score]) / right[score]
            for score, value in got.items()
        }
    return right["miss"], errors


def plot(path: Path) -> None:
    """Relative error of EL2N against 1 - p, for float32 and bfloat16 logits."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150, sharey=True)
    for axis, dtype in zip(axes, (torch.float32, torch.bfloat16), strict=True):
        miss, errors = relative_errors(dtype)
        for (name, by_score), colour in zip(errors.items(), (COLOURS[4], COLOURS[2]), strict=True):
            for score, style in (("el2n", "-"), ("loss", ":")):
                values = np.maximum(by_score[score], 1e-9)
                label = f"{'EL2N' if score == 'el2n' else 'loss'}, {name}"
                axis.plot(miss, values, style, color=colour, linewidth=1.5, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.invert_xaxis()
        axis.set_xlabel("1 - probability of the target (easy samples on the right)")
        axis.set_title(f"{str(dtype).removeprefix('torch.')} logits", loc="left", fontsize=10)
        tidy(axis, grid="both")
    axes[0].set_ylabel("relative error against float64")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "docs" / "images" / "accuracy.png"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--device", default="cpu", help="where to compute")
    parser.add_argument("--no-figure", action="store_true", help="print the greatest errors only")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        _, errors = relative_errors(dtype, options.device)
        for name, by_score in errors.items():
            worst = ", ".join(f"{score} {value.max():.1e}" for score, value in by_score.items())
            print(f"{dtype}, {name}: greatest relative error {worst}", flush=True)
    if not options.no_figure:
        plot(options.out)


if __name__ == "__main__":
    main()
