# SPDX-License-Identifier: Apache-2.0
"""Which rows of a Transformers model's outputs belong to which sample, and their losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dynprune_cuda import functional
from dynprune_cuda.integrations.sequence_batches import IGNORED
from dynprune_cuda.pruner import Pruner

_CLASSES = (torch.int64, torch.int32, torch.uint8)
# Losses of one target per row that is where the label is.
_UNSHIFTED = ("ForMaskedLM", "ForTokenClassification")


class RowLosses(NamedTuple):
    """The rows of a batch: samples, or tokens of sequences.

    Attributes:
        target: Class indices [B] or [B, T]; `IGNORED` for rows that count for nothing.
        ids: Sample ids, [B], or in the shape of `target`.
        logits: In the shape of `target` and the classes; None with `losses`.
        losses: Losses of the rows, in the shape of `target`, as a fused head has them; or None.
        entropy: Likewise, or None.
        correct: Likewise, bool, or None.
    """

    target: Tensor
    ids: Tensor
    logits: Tensor | None = None
    losses: Tensor | None = None
    entropy: Tensor | None = None
    correct: Tensor | None = None

    def plain(self, num_items: Tensor | int | None, label_smoothing: float) -> Tensor:
        """Returns the mean loss with equal row weights, 0-d, detached."""
        if self.losses is not None:
            total = self.losses.detach().sum()
        else:
            assert self.logits is not None
            total = functional.scored_cross_entropy(
                self.logits.detach(),
                self.target,
                label_smoothing=label_smoothing,
                reduction="sum",
                class_dim=-1,
            ).loss
        return total / self._number(num_items)

    def enter(
        self,
        pruner: Pruner,
        num_items: Tensor | int | None,
        label_smoothing: float,
        *,
        trains: bool,
    ) -> Tensor:
        """Records the scores; returns the loss with the factors of the policy, 0-d.

        Args:
            pruner: Has the scores.
            num_items: What the sum of the losses is divided by; None: what counts in this batch.
            label_smoothing: In [0, 1].
            trains: Whether the loss is trained on. If not, no gradient is computed.
        """
        if self.losses is None:
            assert self.logits is not None
            return pruner.cross_entropy(
                self.logits if trains else self.logits.detach(),
                self.target,
                self.ids,
                label_smoothing=label_smoothing,
                num_items=num_items,
                class_dim=-1,
            )
        values = {"loss": self.losses, "entropy": self.entropy}.get(pruner.score)
        if values is None:
            raise ValueError(
                f"score={pruner.score!r} needs logits, and the trainer's fused head returns none: "
                "use score='loss', or override compute_loss"
            )
        ids = self.ids if self.ids.dim() == 2 else self.ids[:, None].expand_as(self.target)
        ids = ids.masked_fill(self.target == IGNORED, -1).flatten()
        correct = None if self.correct is None else self.correct.bool().flatten()
        pruner.observe(ids, values.detach().flatten(), correct)
        return pruner.rescale(ids, self.losses.flatten()).sum() / self._number(num_items)

    def _number(self, num_items: Tensor | int | None) -> Tensor | int:
        return (self.target != IGNORED).sum() if num_items is None else num_items


def rows_of_outputs(
    outputs: Any, inputs: Mapping[str, Any], ids: Tensor, shifts: bool | None, *, has_loss: bool
) -> RowLosses | None:
    """Returns the rows of a model's outputs, None if they are not one class index each.

    Args:
        outputs: Outputs of the model: a mapping, or a tuple; None if it was not called.
        inputs: Inputs of the model, with `labels`.
        ids: Sample ids [B], or [B, T] in the shape of the labels.
        shifts: Whether a token's label stands at the token after it; None: not known.
        has_loss: Whether the first element of a tuple is the loss.
    """
    labels, shifted = inputs.get("labels"), inputs.get("shift_labels")
    logits = log_probs = None
    if isinstance(outputs, Mapping):
        logits, log_probs = outputs.get("logits"), outputs.get("log_probs")
    elif isinstance(outputs, tuple) and len(outputs) > int(has_loss):
        logits = outputs[int(has_loss)]
    if isinstance(shifted, Tensor):
        labels, shifts = shifted, False
    if not isinstance(labels, Tensor) or labels.dtype not in _CLASSES:
        return None
    if isinstance(log_probs, Tensor) and labels.dim() == 2:  # of TRL's fused head
        if log_probs.shape != labels.shape:
            labels, ids = labels[:, 1:], ids if ids.dim() == 1 else ids[:, 1:]
        if log_probs.shape != labels.shape:
            return None
        entropy, correct = outputs.get("entropy"), outputs.get("is_top1")
        return RowLosses(labels, ids, None, -log_probs, entropy, correct)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        return None
    if logits.shape[-1] == 1:  # a regression on whole numbers
        return None
    if labels.dim() == 1:
        return RowLosses(labels, ids, logits)
    if labels.dim() != 2 or shifts is None:
        return None
    if shifts:
        labels, ids = _next(labels, IGNORED), ids if ids.dim() == 1 else _next(ids, -1)
    return RowLosses(labels.to(logits.device), ids, logits)


def _next(values: Tensor, last: int) -> Tensor:
    """Returns what stands at the token after each token, [B, T]."""
    return nn.functional.pad(values, (0, 1), value=last)[:, 1:]


def shifts_labels(model: nn.Module) -> bool | None:
    """Returns whether a model predicts the label of the next token; None: its class does not tell.

    Args:
        model: A model of Transformers, without wrappers.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        unwrapped: Any = model
        model = unwrapped.get_base_model()
    loss_type = getattr(model, "loss_type", None)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return True
    if LOSS_MAPPING.get(loss_type) is ForCausalLMLoss:
        return True
    return False if loss_type in _UNSHIFTED else None
