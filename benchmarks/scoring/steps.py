# SPDX-License-Identifier: Apache-2.0
"""The training steps that bench_scoring.py compares, as loss functions of (logits, target, ids)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as TF

from dynprune_cuda import Pruner, functional

__all__ = [
    "CAPTURABLE",
    "KINDS",
    "OVERWRITES",
    "RIVALS",
    "SEVERAL_ROWS",
    "TWO_OPS",
    "Loss",
    "LossOptions",
    "losses",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
TWO_OPS = "two ops"  # ours, by the public operators for the loss and for the table
RIVALS = (TWO_OPS, "eager", "torch.compile", "loss alone", "Liger", "Liger on a copy", "quack")
# Liger's loss reads from the GPU.
CAPTURABLE = ("ours", TWO_OPS, "eager", "torch.compile", "loss alone")
OVERWRITES = "Liger"  # its gradient replaces the logits
ALPHA = 0.8
# What a row has: a class (""), probabilities or several labels. The others are samples of several
# rows: images [B, C, H, W] of classified pixels, and texts [B, T, V] of tokens.
KINDS = ("", "soft", "labels", "pixels", "tokens")
SEVERAL_ROWS = ("pixels", "tokens")


class Table:
    """A score table of plain tensors, with what ours has by default; forgetting events if asked."""

    def __init__(self, samples: int, device: torch.device, forgetting: bool) -> None:
        self.mean, self.variance = torch.zeros(2, samples, device=device).unbind()
        self.count = torch.zeros(samples, dtype=torch.int32, device=device)
        self.forgets = torch.zeros_like(self.count) if forgetting else None
        self.last_correct = torch.zeros(samples, dtype=torch.bool, device=device)

    def enter(self, ids: Tensor, value: Tensor, correct: Tensor) -> None:
        """One visit of each sample; the first one makes the mean."""
        number = self.count[ids]
        old = torch.where(number == 0, value, self.mean[ids])
        spread = (1 - ALPHA) * self.variance[ids] + ALPHA * (value - old) ** 2
        self.variance.index_put_((ids,), spread)
        self.mean.index_put_((ids,), (1 - ALPHA) * old + ALPHA * value)
        self.count.index_put_((ids,), number + 1)
        if self.forgets is not None:
            forgotten = (self.last_correct[ids] & ~correct).int()
            self.forgets.index_put_((ids,), self.forgets[ids] + forgotten)
            self.last_correct.index_put_((ids,), correct)


class LossOptions(NamedTuple):
    """What changes the loss of classes and probabilities, on all sides."""

    weight: Tensor | None = None  # of the classes
    label_smoothing: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether nothing changes."""
        return self.weight is None and self.label_smoothing == 0

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns torch's losses of the rows."""
        return TF.cross_entropy(logits, target, reduction="none", **self._asdict())

    def mean(self, losses: Tensor, target: Tensor) -> Tensor:
        """Returns the mean of these as torch defines it."""
        if self.weight is None or target.is_floating_point():
            return losses.mean()
        return losses.sum() / self.weight[target].to(losses.dtype).sum()


PLAIN = LossOptions()

# Loss, EL2N and correctness: ours returns all three, so the compiler may drop none of a rival's.
Scored = tuple[Tensor, Tensor, Tensor]


def eager_step(
    logits: Tensor, target: Tensor, ids: Tensor, table: Table, options: LossOptions = PLAIN
) -> Scored:
    """Loss, scores and table update by torch's operators."""
    loss = options.losses(logits, target)
    with torch.no_grad():
        x, value = logits.detach(), loss.detach().float()
        is_soft = target.is_floating_point()
        probabilities = target if is_soft else TF.one_hot(target, x.shape[1])
        el2n = (torch.softmax(x.float(), 1) - probabilities).norm(dim=1)
        correct = x.argmax(1) == (target.argmax(1) if is_soft else target)
        table.enter(ids, value, correct)
    return options.mean(loss, target), el2n, correct


def eager_rows_step(
    logits: Tensor, target: Tensor, ids: Tensor, table: Table, options: LossOptions = PLAIN
) -> Scored:
    """The same for several rows per sample: logits [B, C, H, W], or [B, T, V] of texts."""
    of_tokens = logits.dim() == 3
    x = logits.flatten(0, 1) if of_tokens else logits
    labels = target.flatten() if of_tokens else target
    loss = options.losses(x, labels)
    with torch.no_grad():
        x = x.detach()
        value = loss.detach().view(len(ids), -1).mean(1).float()
        probabilities = torch.softmax(x.float(), 1)
        at_target = torch.ones_like(labels, dtype=torch.float32).neg_().unsqueeze(1)
        el2n = probabilities.scatter_add_(1, labels.unsqueeze(1), at_target).norm(dim=1)
        correct = (x.argmax(1) == labels).view(len(ids), -1).all(1)
        table.enter(ids, value, correct)
    return options.mean(loss, labels), el2n, correct


def eager_binary_step(
    logits: Tensor, target: Tensor, ids: Tensor, table: Table, _: LossOptions = PLAIN
) -> Scored:
    """The same for several labels per sample."""
    losses = TF.binary_cross_entropy_with_logits(logits, target, reduction="none")
    with torch.no_grad():
        x, value = logits.detach().float(), losses.detach().mean(1).float()
        el2n = (torch.sigmoid(x) - target).norm(dim=1)
        correct = ((x > 0) == (target > 0.5)).all(1)
        table.enter(ids, value, correct)
    return losses.mean(), el2n, correct


def eager_step_of(kind: str) -> Callable[..., Scored]:
    """The obvious code for one of `KINDS`."""
    if kind in SEVERAL_ROWS:
        return eager_rows_step
    return eager_binary_step if kind == "labels" else eager_step


def our_step(pruner: Pruner, kind: str, options: LossOptions = PLAIN) -> Loss:
    """The pruner's method for one of `KINDS`."""
    if kind == "labels":
        return pruner.binary_cross_entropy
    given: dict[str, Any] = {} if options.is_plain else options._asdict()
    if kind == "tokens":
        given["class_dim"] = -1
    return functools.partial(pruner.cross_entropy, **given) if given else pruner.cross_entropy


def two_ops(
    logits: Tensor,
    target: Tensor,
    ids: Tensor,
    table: Table,
    kind: str,
    options: LossOptions = PLAIN,
) -> Tensor:
    """The same by the package's operators for the loss and for the table."""
    if kind == "labels":
        scored = functional.scored_binary_cross_entropy(logits, target)
    else:
        class_dim = -1 if kind == "tokens" else 1
        given = options._asdict()
        scored = functional.scored_cross_entropy(logits, target, class_dim=class_dim, **given)
    if kind in SEVERAL_ROWS:
        ids = ids.repeat_interleave(target.numel() // len(ids))
    tracks = table.forgets is not None
    functional.update_scores_(
        table.mean,
        table.variance,
        table.count,
        ids,
        scored.loss.detach().flatten(),
        alpha=ALPHA,
        correct=scored.correct.flatten() if tracks else None,
        last_correct=table.last_correct if tracks else None,
        forget_count=table.forgets,
    )
    return options.mean(scored.loss, target)


def losses(
    samples: int,
    device: torch.device,
    compiled: bool,
    kind: str = "",
    forgetting: bool = False,
    options: LossOptions = PLAIN,
) -> dict[str, Loss]:
    """Our step as "ours", and those of RIVALS that are available here, by name.

    Args:
        samples: Size of the score tables.
        device: Where all happens.
        compiled: Whether torch.compile takes part.
        kind: One of `KINDS`: what a row or a sample is trained on.
        forgetting: All count forgetting events, too.
        options: Of the loss.
    """
    if kind == "labels" and not options.is_plain:
        raise ValueError("several labels have no class weights and no label smoothing here")
    pruner = Pruner(samples, 0.5, track_forgetting=forgetting, device=device)
    pruner.set_epoch(0)
    tables = [Table(samples, device, forgetting) for _ in range(3)]
    obvious = eager_step_of(kind)
    found: dict[str, Loss] = {
        "ours": our_step(pruner, kind, options),
        TWO_OPS: lambda x, y, i: two_ops(x, y, i, tables[0], kind, options),
        "eager": lambda x, y, i: obvious(x, y, i, tables[1], options)[0],
    }
    if compiled:
        step = torch.compile(obvious, dynamic=False)
        found["torch.compile"] = lambda x, y, i: step(x, y, i, tables[2], options)[0]
    found["loss alone"] = lambda x, y, _: loss_alone(x, y, kind, options)
    plain = not kind and options.is_plain
    return found | (_gpu_packages() if device.type == "cuda" and plain else {})


def loss_alone(logits: Tensor, target: Tensor, kind: str, options: LossOptions = PLAIN) -> Tensor:
    """torch's loss, without any score."""
    if kind == "labels":
        return TF.binary_cross_entropy_with_logits(logits, target)
    if kind == "tokens":
        logits, target = logits.flatten(0, 1), target.flatten()
    return TF.cross_entropy(logits, target, **options._asdict())


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
