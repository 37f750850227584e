# SPDX-License-Identifier: Apache-2.0
"""The training steps that bench_scoring.py compares, as loss functions of (logits, target, ids)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as TF

from dynprune_cuda import Pruner

__all__ = ["CAPTURABLE", "OVERWRITES", "RIVALS", "Loss", "binary_losses", "losses"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
RIVALS = ("eager", "torch.compile", "loss alone", "Liger", "Liger on a copy", "quack")
CAPTURABLE = ("ours", "eager", "torch.compile", "loss alone")  # Liger's loss reads from the GPU
OVERWRITES = "Liger"  # its gradient replaces the logits
ALPHA = 0.8


class Table:
    """A score table of plain tensors."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.mean, self.variance, self.el2n = torch.zeros(3, samples, device=device).unbind()
        self.count, self.forgets = torch.zeros(
            2, samples, dtype=torch.int32, device=device
        ).unbind()
        self.last_correct = torch.zeros(samples, dtype=torch.bool, device=device)


def eager_step(logits: Tensor, target: Tensor, ids: Tensor, t: Table) -> Tensor:
    """Loss, scores and table update by torch's operators."""
    loss = TF.cross_entropy(logits, target, reduction="none")
    with torch.no_grad():
        x, value = logits.detach(), loss.detach().float()
        is_soft = target.is_floating_point()
        probabilities = target if is_soft else TF.one_hot(target, x.shape[1])
        errors = torch.softmax(x.float(), 1) - probabilities
        correct = x.argmax(1) == (target.argmax(1) if is_soft else target)
        old, last = t.mean[ids], t.last_correct[ids]
        spread = (1 - ALPHA) * t.variance[ids] + ALPHA * (value - old) ** 2
        t.variance.index_put_((ids,), spread)
        t.mean.index_put_((ids,), (1 - ALPHA) * old + ALPHA * value)
        t.el2n.index_put_((ids,), errors.norm(dim=1))
        t.count.index_put_((ids,), t.count[ids] + 1)
        t.forgets.index_put_((ids,), t.forgets[ids] + (last & ~correct).int())
        t.last_correct.index_put_((ids,), correct)
    return loss.mean()


def eager_binary_step(logits: Tensor, target: Tensor, ids: Tensor, t: Table) -> Tensor:
    """The same for several labels per sample."""
    losses = TF.binary_cross_entropy_with_logits(logits, target, reduction="none")
    with torch.no_grad():
        x, value = logits.detach().float(), losses.detach().mean(1).float()
        errors = torch.sigmoid(x) - target
        correct = ((x > 0) == (target > 0.5)).all(1)
        old, last = t.mean[ids], t.last_correct[ids]
        spread = (1 - ALPHA) * t.variance[ids] + ALPHA * (value - old) ** 2
        t.variance.index_put_((ids,), spread)
        t.mean.index_put_((ids,), (1 - ALPHA) * old + ALPHA * value)
        t.el2n.index_put_((ids,), errors.norm(dim=1))
        t.count.index_put_((ids,), t.count[ids] + 1)
        t.forgets.index_put_((ids,), t.forgets[ids] + (last & ~correct).int())
        t.last_correct.index_put_((ids,), correct)
    return losses.mean()


def binary_losses(samples: int, device: torch.device, compiled: bool) -> dict[str, Loss]:
    """As `losses`, for targets [B, L] of several labels."""
    pruner = Pruner(samples, 0.5, device=device)
    pruner.set_epoch(0)
    table = Table(samples, device)
    found: dict[str, Loss] = {
        "ours": pruner.binary_cross_entropy,
        "eager": lambda x, y, i: eager_binary_step(x, y, i, table),
    }
    if compiled:
        other = Table(samples, device)
        step = torch.compile(eager_binary_step, dynamic=False)
        found["torch.compile"] = lambda x, y, i: step(x, y, i, other)
    found["loss alone"] = lambda x, y, _: TF.binary_cross_entropy_with_logits(x, y)
    return found


def losses(samples: int, device: torch.device, compiled: bool) -> dict[str, Loss]:
    """Our step as "ours", and those of RIVALS that are available here, by name."""
    pruner = Pruner(samples, 0.5, device=device)
    pruner.set_epoch(0)
    table = Table(samples, device)
    found: dict[str, Loss] = {
        "ours": pruner.cross_entropy,
        "eager": lambda x, y, i: eager_step(x, y, i, table),
    }
    if compiled:
        other = Table(samples, device)
        step = torch.compile(eager_step, dynamic=False)
        found["torch.compile"] = lambda x, y, i: step(x, y, i, other)
    found["loss alone"] = lambda x, y, _: TF.cross_entropy(x, y)
    return found | (_gpu_packages() if device.type == "cuda" else {})


def _gpu_packages() -> dict[str, Loss]:
    """Liger-Kernel and quack, if they are installed.

    Liger keeps the logits only if it works on a copy of them.
    """
    found: dict[str, Loss] = {}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        liger = LigerCrossEntropyLoss()
        found[OVERWRITES] = lambda x, y, _: liger(x, y)
        found["Liger on a copy"] = lambda x, y, _: liger(x.clone(), y)
    if importlib.util.find_spec("quack"):
        from quack.cross_entropy import cross_entropy

        found["quack"] = lambda x, y, _: cross_entropy(x, y).mean()
    return found
