# SPDX-License-Identifier: Apache-2.0
"""timm: a loader that keeps the ids of its batches, and a task that scores by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

try:
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.task import TrainingTask

    from dynprune_cuda.integrations.timm_loader import PrunedLoader
    from dynprune_cuda.integrations.timm_losses import Losses, row_losses
except ImportError as error:
    raise ImportError(
        "dynprune_cuda.integrations.timm needs timm with its training tasks: "
        "pip install 'timm>=1.0.28'"
    ) from error

__all__ = ["PrunedLoader", "prune_task"]

KEY = "dynprune_cuda"  # in the task's state, which timm's checkpoints hold


def prune_task(task: TrainingTask, loader: PrunedLoader, losses: Losses | None = None) -> None:
    """Lets a training task of timm score the samples, rescale their losses, and save the pruner.

    The task's criterion is replaced by one that returns the same loss. Cross-entropy goes through
    `pruner.cross_entropy`, with class indices or with Mixup's probabilities; other losses are
    computed per sample and observed. A distillation task trains by its own sum, and is scored by
    its criterion alone. The score of a mixed image is that for the mixed target, and belongs to the
    image at its place.

    timm's checkpoints then hold the pruner in the task's state, and `--resume` restores it. With
    several processes, it is the state of the first.

    Call it before the checkpoint is loaded.

    Args:
        task: A task of `timm.task`; changed in place.
        loader: The task's training loader.
        losses: For a criterion that is not known here: a function of output and target. It returns
            one loss per sample [batch], whose mean is trained on.

    Raises:
        TypeError: An argument has the wrong type, or the criterion gives no loss per sample.
        ValueError: The criterion is no plain mean, the task has a pruner already, or the pruner's
            score or policy needs what the task cannot give.
    """
    if not isinstance(task, TrainingTask) or not hasattr(task, "criterion"):
        raise TypeError(
            f"task must be a TrainingTask of timm with a criterion, got {type(task).__name__}"
        )
    if not isinstance(loader, PrunedLoader):
        raise TypeError(f"loader must be a PrunedLoader, got {type(loader).__name__}")
    if isinstance(task.criterion, _ScoredCriterion):
        raise ValueError("task must have its own criterion, got one that scores already")
    if loader.pruner.rescales and hasattr(task, "teacher"):
        raise ValueError(
            f"{loader.pruner.policy!r} rescales the losses of single samples, and "
            f"{type(task).__name__} adds a distillation loss of the whole batch: use a policy that "
            "does not rescale"
        )
    task.criterion = _ScoredCriterion(task.criterion, loader, losses)
    saves, loads, averages = task.get_task_state, task.load_task_state, task.update_ema

    def get_task_state(module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        own = {} if ema else {KEY: loader.state_dict()}
        return {**saves(module=module, ema=ema), **own}

    def load_task_state(
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        rest = dict(state or {})
        own = rest.pop(KEY, None)
        if not ema:
            if own is None:
                raise ValueError("the checkpoint must hold a pruner, got one without")
            loader.load_state_dict(own)
        loads(rest, strict=strict, module=module, ema=ema)

    def update_ema(step: int | None = None) -> None:
        # timm's own number takes all earlier epochs to be as long as this one.
        loader.updates += 1
        averages(step=None if step is None else loader.updates)

    task.get_task_state = get_task_state
    task.load_task_state = load_task_state
    task.update_ema = update_ema


class _ScoredCriterion(nn.Module):
    """A criterion that records the scores of the loader's last batch."""

    def __init__(self, criterion: Any, loader: PrunedLoader, losses: Losses | None) -> None:
        super().__init__()
        self.criterion = criterion
        self._loader = loader
        self._losses = row_losses(criterion) if losses is None else losses
        # The smoothing of a plain cross-entropy, which the pruner can compute: of class indices,
        # and of probabilities.
        self._smoothing: float | None = None
        self._soft_smoothing: float | None = None
        kind = type(criterion)
        if losses is None and kind is nn.CrossEntropyLoss:
            self._smoothing = self._soft_smoothing = criterion.label_smoothing
        elif losses is None and kind is LabelSmoothingCrossEntropy:
            self._smoothing = criterion.smoothing
        elif losses is None and kind is SoftTargetCrossEntropy:
            self._soft_smoothing = 0.0
        else:
            self._check_score()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Returns the mean loss of the batch."""
        pruner, ids = self._loader.pruner, self._loader.take_ids()
        if target.is_floating_point():
            smoothing, shape = self._soft_smoothing, (len(ids), *output.shape[1:])
            is_plain = output.dim() == 2 and target.shape == shape and not target.requires_grad
        else:
            smoothing, is_plain = self._smoothing, target.shape == ids.shape
        if smoothing is not None and is_plain:
            return pruner.cross_entropy(output, target, ids, label_smoothing=smoothing)
        self._check_score()
        rows: Tensor = self._losses(output, target)
        if rows.dim() != 1 or len(rows) % len(ids):
            raise ValueError(
                f"the losses must be one per sample [{len(ids)}], or one per AugMix split of each, "
                f"got {list(rows.shape)}"
            )
        losses = rows.view(-1, len(ids)).mean(0)  # splits follow one another
        pruner.observe(ids, losses.detach())
        return pruner.rescale(ids, losses).mean()

    def _check_score(self) -> None:
        if self._loader.pruner.score != "loss":
            raise ValueError(
                f"score must be 'loss' for the criterion {type(self.criterion).__name__}, got a "
                f"pruner with score={self._loader.pruner.score!r}: other scores need "
                "cross-entropy"
            )
