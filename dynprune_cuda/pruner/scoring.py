# SPDX-License-Identifier: Apache-2.0
"""How the losses of a training step become scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import FLOATING, INTEGER, WAY_OUT, check_dense, check_vector
from dynprune_cuda._checks.batches import (
    check_ids,
    check_ids_and_values,
    check_range,
    first_of_each,
    move_without_waiting,
)
from dynprune_cuda.advice import BATCH_ALPHA, about_batch_values
from dynprune_cuda.functional.cross_entropy import SCORES, as_rows
from dynprune_cuda.functional.shapes import Rows, at_places, own_keys, per_row, places_of_rows
from dynprune_cuda.functional.step_loss import (
    PLAIN_TERMS,
    LossOptions,
    TableOptions,
    loss_terms,
    step_loss,
)
from dynprune_cuda.pruner.ordinary import ordinary_cross_entropy
from dynprune_cuda.pruner.status import RunStatus
from dynprune_cuda.pruner.visits import Visits
from dynprune_cuda.rescoring import (
    IGNORE_INDEX,
    Rescored,
    ScoreBatch,
    check_arguments,
    rescore,
)

__all__ = ["Scoring"]


class Scoring(RunStatus):
    """The part of a `Pruner` that a training step calls: losses in, scores into the table."""

    _ticket: Tensor | None  # of the step's launches, on a GPU
    _score: int  # place of `score` in `SCORES`
    _batch_alpha: float | None  # of 0-d values; None: the table's
    _warns_of_batch_values: bool

    def _prepare_scoring(self, alpha: float | None) -> None:
        """Allocates what a step needs, because the first step may be a captured one."""
        self._ticket = None
        if self.device.type == "cuda":
            self._ticket = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._score = SCORES.index(self.score)
        # Visits on their way to other shards carry no alpha.
        self._batch_alpha = BATCH_ALPHA if alpha is None and self.sharding != "shard" else None
        self._warns_of_batch_values = True

    def rescale(self, ids: Tensor, losses: Tensor) -> Tensor:
        """Multiplies losses by the factors of a policy that rescales, without waiting.

        These are `InfoBatch`, `RePB` and `Weighted(rescale=True)`.

        `cross_entropy` does it itself. For a loss of your own, where the mean of the batch was
        taken: `pruner.observe(ids, losses)`, then `pruner.rescale(ids, losses).mean()`.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`.
            losses: One loss per sample [batch], on `device`; not changed.

        Returns:
            `losses` itself under policies that do not rescale, otherwise a new tensor of the same
            dtype, differentiable; in warm-up and annealing every factor is 1.

        Raises:
            TypeError: `ids` or `losses` is no tensor.
            ValueError: A dtype or a shape is wrong, or the lengths differ.
            IndexError: An id on the CPU is out of range.
        """
        check_ids_and_values(ids, losses, "losses")
        check_range(ids, self.num_samples)
        factors = self._run.factors(ids)
        if factors is None:
            return losses
        if losses.device != factors.device:
            raise ValueError(f"losses must be on {factors.device}, got {losses.device}")
        return losses * factors.to(losses.dtype)

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        sample_weight: Tensor | None = None,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
        grad_scale: Tensor | None = None,
        class_dim: int = 1,
        cu_seqlens: Tensor | None = None,
        token_weight: Tensor | None = None,
        num_items: float | Tensor | None = None,
    ) -> Tensor:
        """Computes the cross-entropy and records the samples' scores, without waiting.

        The loss is that of `torch.nn.functional.cross_entropy` with the same options. Ignored rows
        leave their samples' scores alone. All rows of a sample in the batch are one visit, whose
        score is made of theirs by `row_reduction`. This call records the scores, not the backward
        pass: compute a validation loss with torch's own function. One backward pass per call; see
        `functional.scored_cross_entropy_step_`. Keep the call out of checkpointed regions, which
        would record the scores twice, and let no two calls on one pruner overlap.

        Args:
            logits: Floating point [batch, num_classes] on `device`; or [num_classes], or [batch,
                num_classes, d1, ...], or [batch, d1, ..., num_classes] with class_dim=-1.
            target: Class indices, int64, int32 or uint8: the shape of logits without num_classes.
                Or class probabilities, floating point in the shape of logits, without a gradient;
                see `functional.scored_cross_entropy`.
            ids: Sample ids, any integer dtype, on the CPU or on `device`: [batch], or [sequences]
                with `cu_seqlens`. For packed documents, one per row, in the shape of `target`. -1
                for rows that belong to no sample, and only train.
            weight: Class weights [num_classes].
            ignore_index: Target of rows that count for nothing.
            label_smoothing: In [0, 1].
            reduction: "mean" (weighted by the targets' class weights), "sum", "none" or "sample".
                "sample" is the mean of each sample's own mean, over the samples with a row that
                counts.
            sample_weight: Factors of the samples' losses, in the shape of `ids`, known before the
                forward pass; they change neither the scores nor what "mean" divides by.
            target_b: Second class indices [batch] of mixed samples; the scores are those of
                `target`, but for the score "loss".
            lam: Weight of the first target, with `target_b`: a float, or a 0-d or [batch] tensor.
            grad_scale: The factor that a loss scaler multiplies the loss with, as a 0-d tensor on
                `device`; it saves work in the backward pass. It must be the factor that comes: a
                float16 gradient is rounded with it, and may underflow or overflow under another.
            class_dim: Where the classes are: 1, or -1 for the last dimension.
            cu_seqlens: Where the packed sequences begin in the rows, and where the last one ends,
                any integer dtype [sequences + 1]. Rows outside belong to no sample.
            token_weight: Factors of the rows' losses, in the shape of `target`, beside those of the
                samples.
            num_items: What "mean" or "sample" divides by, instead of what is in this batch, such as
                the rows or samples of all accumulation steps. A number, or a 0-d tensor.

        Returns:
            The loss: 0-d, or in the shape of `target` for "none"; float32, or float64 for float64
            logits.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong dtype, shape, length or value.
            IndexError: A target or an id is out of range. On a GPU the row is skipped, and the next
                call that may wait, such as `set_epoch`, raises the error.
        """
        if (
            weight is sample_weight is target_b is lam is grad_scale is None
            and cu_seqlens is token_weight is num_items is None
            and type(class_dim) is int
            and class_dim == 1
        ):
            place, given = (self._run, self._ticket, self._score), (ignore_index, label_smoothing)
            step = ordinary_cross_entropy(*place, logits, target, ids, reduction, *given)
            if step is not None:
                if message := self._run.note(ids):
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
                return step
        table = self.table
        rows: Rows | None = None
        rows_per_id = 1
        is_usual = type(class_dim) is int and class_dim == 1
        if not is_usual or not isinstance(logits, Tensor) or logits.dim() != 2:
            rows, target_b, lam = as_rows(logits, target, class_dim, target_b, lam)
        if rows is not None:
            logits, target = rows.logits, rows.target
            if token_weight is not None:
                token_weight = rows.flat("token_weight", token_weight)
            if cu_seqlens is None:
                ids, rows_per_id = rows.entries(ids, "ids")
                sample_weight = rows.like_entries("sample_weight", sample_weight, rows_per_id)
        if not isinstance(target, Tensor):
            raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
        if target.is_nested:
            raise ValueError("target must be a dense tensor, got a nested tensor")
        if target.dim() == 0:
            raise ValueError(
                f"target must have {len(logits)} rows, as logits, got shape (); {WAY_OUT}"
            )
        is_flat = rows is None and cu_seqlens is None and isinstance(ids, Tensor)
        if is_flat and ids.dim() == 1 and len(ids) != len(target) == len(logits):
            raise ValueError(
                f"ids must have {len(target)} elements, one per row, got {len(ids)}: repeat them "
                "with ids.repeat_interleave, pass cu_seqlens, or keep the logits [batch, rows, "
                "classes] with class_dim=-1"
            )
        visits = self._visits(
            ids, sample_weight, cu_seqlens, num_rows=len(target), rows_per_id=rows_per_id
        )
        options = LossOptions._make((weight, ignore_index, label_smoothing, target_b, lam))
        is_plain = token_weight is None and num_items is None and isinstance(reduction, str)
        terms = PLAIN_TERMS.get(reduction) if is_plain else None
        if terms is None:
            terms = loss_terms(
                logits,
                target,
                visits.row_ids,
                rows_per_id,
                reduction,
                num_items,
                token_weight,
                options,
            )
        published = table.first_visit == "published"
        loss: Tensor = step_loss(
            logits,
            target,
            visits.table_rows,
            visits.target.columns,
            TableOptions._make(
                (self._ticket, table.alpha, published, self._score, table.row_rule, rows_per_id)
            ),
            options,
            terms,
            loss_only=True,
            sample_weight=visits.weight,
            grad_scale=grad_scale,
        )
        if rows_per_id > 1 or cu_seqlens is not None:
            self._tells_accuracy = False
        if message := self._run.commit(visits.target, visits.ids):
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return loss if rows is None or loss.dim() == 0 else loss.view(rows.shape)

    def observe(
        self,
        ids: Tensor,
        values: Tensor | functional.ScoredLoss,
        correct: Tensor | None = None,
    ) -> None:
        """Records values of losses that `cross_entropy` does not cover, without waiting.

        A 0-d value is credited to every sample of its batch. Only the moving average over the
        batches that a sample was in tells the samples apart, and it tells little of large batches.
        At batch size 64 its rank correlation with the true loss was 0.28 with alpha 0.1, and 0.09
        with alpha 0.8. So such values count with alpha 0.1, unless `Pruner` was given `alpha`. With
        sharding="shard" they count with the pruner's alpha: give it `alpha=0.1`. The first 0-d
        value of more than one sample is a RuntimeWarning. Give per-sample values where possible.

        Args:
            ids: Sample ids, any integer dtype [batch], on the CPU or on `device`. A row whose id
                is -1 belongs to no sample and is skipped. The rows of an id that occurs several
                times are one visit, see `row_reduction`.
            values: One value per row, floating point [batch]; bigger means more worth training on.
                Or the result of `functional.scored_cross_entropy`, of which the configured `score`
                is taken. The scores of ignored rows are 0: give those rows the id -1
                (`ids.masked_fill(target == ignore_index, -1)`). Its scores may have more
                dimensions, as those of pixels; `ids` are then [batch] or in their shape. Or a 0-d
                value of the whole batch, such as a loss that has no per-sample value; see below.
            correct: Was the sample classified correctly, bool [batch]; counts for nothing without
                `track_forgetting`. None: what a `ScoredLoss` says, or, with other values, unknown:
                the visit then counts as no forgetting event.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A dtype or a shape is wrong, or the lengths differ.
            IndexError: An id is out of range. On a GPU the row is skipped, and the next call that
                may wait, such as `set_epoch`, raises the error.
        """
        if isinstance(values, functional.ScoredLoss):
            if correct is None and self.table.track_forgetting:
                correct = values.correct
            values = self._score_of(values)
            if values.dim() > 1:
                ids = per_row(ids, values)
                ids, values = ids.flatten(), values.flatten()
                correct = None if correct is None else correct.flatten()
        is_shared = False  # by several samples
        if isinstance(values, Tensor) and values.dim() == 0:
            check_ids(ids)
            check_dense("values", values)
            is_shared = len(ids) > 1
            if self.table.row_reduction == "sum":
                ids = first_of_each(ids)  # else an id that occurs twice gets twice the value
            values = values.detach().expand(len(ids))
        check_ids_and_values(ids, values)
        alpha = self._batch_alpha if is_shared else None
        messages = [self._run.observe(ids, values, correct, alpha)]
        if is_shared and self._warns_of_batch_values:
            self._warns_of_batch_values = False
            used = self.table.alpha if alpha is None else alpha
            messages.append(about_batch_values(used, self.sharding))
        for message in filter(None, messages):
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def rescore(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        score: ScoreBatch | None = None,
        *,
        weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
    ) -> Rescored:
        """Scores samples by forward passes only, such as those that the epoch left out. Waits.

            rest = DataLoader(indexed_set, batch_sampler=pruner.unselected_sampler(512))
            ...
            pruner.rescore(model, rest)  # at the end of an epoch

        The model runs with `model.eval()` and without gradients. The modes of all its modules, and
        the random generators of Python, NumPy and torch in this process, are afterwards as before.
        Autocast is yours: `with torch.autocast("cuda", torch.bfloat16): pruner.rescore(...)`.

        The values enter the table as a training step's do: they count as visits, in `visits_gini`
        and in forgetting events, too. They are of the model in evaluation mode, so they may be
        lower than the losses of training. Pass the `weight` and `label_smoothing` of the training.

        With several processes each records what its own loader yields, and `set_epoch` shares it.
        With sharding="shard" the scores enter when the next epoch begins.

        Args:
            model: On `device`; of DistributedDataParallel, the module inside is used.
            loader: Yields (inputs, targets, ids), three tensors on any device: targets are class
                indices [batch] or [batch, d1, ...], or probabilities, whose sums must be 1. Ids are
                integers [batch], -1 for no sample.
            score: A function `(model, batch) -> (ids, values)` for other batches or other scores,
                such as of several labels, with ids and values as `observe` takes them.
            weight: Class weights [num_classes], on `device`.
            ignore_index: Target of rows that count for nothing.
            label_smoothing: In [0, 1].

        Returns:
            The seconds that it took, and how many batches and samples the loader had.

        Raises:
            TypeError: An argument or a batch has the wrong type.
            ValueError: An argument or a batch has the wrong dtype, shape or value. What was
                recorded before stays.
            IndexError: As `observe`.
        """
        options: Any = {
            "weight": weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        check_arguments(model, loader, score, **options)
        self._run.rescored()
        taken = rescore(self, model, loader, score, **options)
        self._rescore_seconds += taken.seconds
        return taken

    def _visits(
        self,
        ids: Tensor,
        sample_weight: Tensor | None,
        cu_seqlens: Tensor | None,
        *,
        num_rows: int,
        rows_per_id: int,
    ) -> Visits:
        """Returns where a batch's rows are recorded, and their factors; nothing changes.

        Args:
            ids: Sample ids, any integer dtype, 1-D.
            sample_weight: As `ids`, or None.
            cu_seqlens: See `cross_entropy`.
            num_rows: R, the rows of the batch.
            rows_per_id: Rows of an id, which follow each other; 1 with `cu_seqlens`.
        """
        check_ids(ids)
        if rows_per_id > 1 or cu_seqlens is not None:
            check_range(ids, self.num_samples)  # the operators would name a row's place
        device = self.table.mean.device
        if ids.dtype != torch.int64 or ids.device != device:
            ids = move_without_waiting("ids", ids.to(torch.int64), device)
        factors = self._run.factors(ids)
        if sample_weight is not None and (factors is not None or cu_seqlens is not None):
            check_vector("sample_weight", sample_weight, FLOATING, ids)
        if factors is not None:
            sample_weight = factors if sample_weight is None else sample_weight * factors
        target = self._run.update_target(ids, grouped=rows_per_id > 1 or cu_seqlens is not None)
        if cu_seqlens is None:
            return Visits._make((ids, target, target.rows, ids, sample_weight))
        check_vector("cu_seqlens", cu_seqlens, INTEGER)
        cu_seqlens = move_without_waiting("cu_seqlens", cu_seqlens, device)
        places = places_of_rows(cu_seqlens, len(ids), num_rows)
        if sample_weight is not None:
            sample_weight = at_places(sample_weight, places, 1.0)
        return Visits(
            ids,
            target,
            at_places(target.rows, places, -1),
            at_places(own_keys(ids), places, -1),
            sample_weight,
        )

    def _score_of(self, scored: functional.ScoredLoss) -> Tensor:
        """Returns the configured score, detached: bigger means more worth training on."""
        if self.score == "margin":
            return -scored.margin
        values: Tensor = getattr(scored, self.score)
        return values.detach()
