# SPDX-License-Identifier: Apache-2.0
"""The loss of samples with several labels, with scores."""

from __future__ import annotations

import warnings
from typing import Literal

from torch import Tensor

from dynprune_cuda.functional.binary_cross_entropy import binary_step, check_labels
from dynprune_cuda.functional.step_loss import TableOptions
from dynprune_cuda.pruner.linear_scoring import LinearScoring
from dynprune_cuda.pruner.ordinary import ordinary_binary_cross_entropy

__all__ = ["BinaryScoring"]


class BinaryScoring(LinearScoring):
    """The part of a `Pruner` for samples with several labels."""

    def binary_cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: Literal["mean", "sum", "none", "sample"] = "mean",
        sample_weight: Tensor | None = None,
        grad_scale: Tensor | None = None,
        num_items: float | Tensor | None = None,
    ) -> Tensor:
        """Computes the binary cross-entropy of several labels and records the samples' scores.

        The loss is that of `torch.nn.functional.binary_cross_entropy_with_logits`, and a sample's
        loss is the mean over its labels; see `functional.scored_binary_cross_entropy` for the
        scores. The rows of an id that occurs several times are one visit, whose score is made of
        theirs by `row_reduction`. Nothing waits for the device. One backward pass per call; call it
        outside of checkpointed regions.

        Args:
            logits: Floating point [batch, labels] on `device`, or [batch] for one label.
            target: In the shape of `logits`, floating point or bool: between 0 and 1.
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`. -1 for rows that
                belong to no sample, and only train.
            weight: Factors of the labels' losses, in a shape that is broadcast to that of `logits`;
                0 for labels that are unknown and count for nothing.
            pos_weight: Factors of the losses of positive labels [labels], or of one element.
            reduction: "mean" and "sum" as torch, over all labels. "none": one loss per row,
                [batch]. "sample": the mean over the samples of each one's own mean.
            sample_weight: Factors of the samples' losses [batch]; they change neither the scores
                nor what "mean" divides by.
            grad_scale: The factor that a loss scaler multiplies the loss with; see `cross_entropy`.
            num_items: What "mean" or "sample" divides by, instead of the rows or samples of this
                batch: the number in all accumulation steps. A number, or a 0-d tensor.

        Returns:
            The loss: 0-d, or [batch] for "none"; float32, or float64 for float64 logits.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong dtype, shape or device, or a target is NaN or
                outside [0, 1]. On a GPU the row of such a target is skipped, and the next call that
                may wait raises, such as `set_epoch`.
            IndexError: An id is out of range; likewise.
        """
        if weight is pos_weight is sample_weight is grad_scale is num_items is None:
            place = self._run, self._ticket, self._score
            step = ordinary_binary_cross_entropy(*place, logits, target, ids, reduction)
            if step is not None:
                self._tells_accuracy = False
                if message := self._run.note(ids):
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
                return step
        labels = check_labels(logits, target, weight, pos_weight)
        visits = self._visits(ids, sample_weight, None, num_rows=len(labels.target), rows_per_id=1)
        table = self.table
        published = table.first_visit == "published"
        loss: Tensor = binary_step(
            labels,
            visits.table_rows,
            visits.target.columns,
            TableOptions(
                self._ticket, table.alpha, published, self._score, table.row_rule, rows_per_id=1
            ),
            keys=visits.row_ids,
            reduction=reduction,
            num_items=num_items,
            sample_weight=visits.weight,
            grad_scale=grad_scale,
            loss_only=True,
        )
        self._tells_accuracy = False
        if message := self._run.commit(visits.target, visits.ids):
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return loss
