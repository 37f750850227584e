# SPDX-License-Identifier: Apache-2.0
"""The loss of a last layer whose logits are never whole, with scores."""

from __future__ import annotations

import warnings
from typing import Literal

from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import FLOATING, INTEGER, check_tensor, check_vector
from dynprune_cuda._schedule.seeds import as_int64, derive_seed
from dynprune_cuda.functional.cross_entropy import ignored_rows, refuse_gradient
from dynprune_cuda.functional.linear_cross_entropy import linear_rows
from dynprune_cuda.pruner.scoring import Scoring
from dynprune_cuda.pruner.visits import Visits

__all__ = ["LinearScoring"]

# Odd factors, from splitmix64 (https://prng.di.unimi.it/splitmix64.c).
_FACTORS = (as_int64(0xBF58476D1CE4E5B9), as_int64(0x94D049BB133111EB))


class LinearScoring(Scoring):
    """The part of a `Pruner` for layers with many classes."""

    def linear_cross_entropy(
        self,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        bias: Tensor | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "sum", "sample"] = "mean",
        sample_weight: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        token_weight: Tensor | None = None,
        num_items: float | Tensor | None = None,
        softcap: float | None = None,
        z_loss: float = 0.0,
        keep_tokens: float | None = None,
        reference_loss: Tensor | None = None,
        seed: int | Tensor | None = None,
        chunk_rows: int | None = None,
    ) -> Tensor:
        """Computes the cross-entropy of `hidden @ weight.T + bias`, without whole logits.

            loss = pruner.linear_cross_entropy(hidden[:, :-1], head.weight, tokens[:, 1:], ids)

        The samples' scores are those of `cross_entropy` with these logits. All rows of a sample are
        one visit, and `row_reduction` makes its score of theirs. The factors of a policy that
        rescales, and `sample_weight`, multiply the rows' losses before the forward pass, so that
        three matrix products suffice. See `functional.scored_linear_cross_entropy`. With
        `keep_tokens`, the scores are those of all rows. One backward pass per call; call it outside
        of checkpointed regions.

        Args:
            hidden: [rows, features] or [batch, d1, ..., features], floating point on `device`.
            weight: [num_classes, features], the layer's.
            target: Class indices, int64, int32 or uint8, in the shape of `hidden` without features.
            ids: Sample ids, any integer dtype, on the CPU or on `device`: [batch]. For packed
                documents, one per row, in the shape of `target`, or [sequences] with `cu_seqlens`.
                -1 for rows that belong to no sample, and only train.
            bias: [num_classes], or None.
            class_weight: [num_classes], or None.
            ignore_index: Target of rows that count for nothing.
            label_smoothing: In [0, 1].
            reduction: "mean" (weighted by the targets' class weights), "sum", or "sample": the mean
                over the samples of each one's own mean. With `keep_tokens`, of the rows that are
                kept.
            sample_weight: Factors of the samples' losses, in the shape of `ids`; they change
                neither the scores nor what "mean" divides by.
            cu_seqlens: As in `cross_entropy`.
            token_weight: Factors of the rows' losses, in the shape of `target`, beside those of the
                samples.
            num_items: What "mean" or "sample" divides by, instead of what is in this batch: a
                number, or a 0-d tensor.
            softcap: Bound of the logits, or None; see `functional.scored_linear_cross_entropy`.
            z_loss: Factor of the squared logarithm of the normaliser, likewise. It is in the loss,
                and not in the scores.
            keep_tokens: Share of all rows of the batch that are trained on, in (0, 1]: those with
                the greatest losses, `ceil(keep_tokens * rows)`; ignored rows come last.
            reference_loss: Losses of a reference model in the shape of `target`, or None: the
                greatest excess over them is kept. Needs `keep_tokens`.
            seed: Breaks ties of `keep_tokens`. None: it is made of the pruner's seed, the epoch and
                the batch's ids, so that a run that is resumed breaks them as before.
            chunk_rows: Rows of a chunk; None: see `functional.scored_linear_cross_entropy`.

        Returns:
            The loss, 0-d; float32, or float64 for products in float64.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong dtype, shape, device or value.
            IndexError: A target or an id is out of range. On a GPU the row is skipped, and the next
                call that may wait raises, such as `set_epoch`.
        """
        rows, rows_per_id = linear_rows(hidden, target), 1
        check_tensor("ids", ids, INTEGER)
        for name, values in (
            ("sample_weight", sample_weight),
            ("token_weight", token_weight),
            ("reference_loss", reference_loss),
        ):
            if values is not None:
                check_tensor(name, values, FLOATING)
                refuse_gradient(name, values)
        if cu_seqlens is None:
            ids, rows_per_id = rows.entries(ids, "ids")
            sample_weight = rows.like_entries("sample_weight", sample_weight, rows_per_id)
        number = len(rows.target)
        visits = self._visits(
            ids, sample_weight, cu_seqlens, num_rows=number, rows_per_id=rows_per_id
        )
        if rows_per_id > 1:
            visits = visits.by_row(rows_per_id)
        factors = visits.weight
        if factors is not None:
            check_vector("sample_weight", factors, FLOATING, rows.target)
        if token_weight is not None:
            token_weight = rows.flat("token_weight", token_weight)
            factors = token_weight if factors is None else factors * token_weight
        if seed is None:
            seed = 0 if keep_tokens is None else self._seed_of_ties(visits.ids)
        if reference_loss is not None:
            reference_loss = rows.flat("reference_loss", reference_loss)
        scored = functional.scored_linear_cross_entropy(
            rows.logits,
            weight,
            rows.target,
            bias=bias,
            sample_weight=factors,
            sample_ids=visits.row_ids if reduction == "sample" else None,
            reduction=reduction,
            num_items=num_items,
            class_weight=class_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap,
            z_loss=z_loss,
            keep_tokens=keep_tokens,
            reference_loss=reference_loss,
            seed=seed,
            chunk_rows=chunk_rows,
        )
        labels = rows.target.long()
        counts = ~ignored_rows(labels, ignore_index) & (labels >= 0) & (labels < len(weight))
        self._enter(visits, counts, functional.ScoredLoss(*scored[1:-1]))
        if rows_per_id > 1 or cu_seqlens is not None:
            self._tells_accuracy = False
        if message := self._run.commit(visits.target, visits.ids):
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return scored.loss

    def _enter(self, visits: Visits, counts: Tensor, scored: functional.ScoredLoss) -> None:
        """Writes the scores of the rows that count, bool [R], where the visits go."""
        columns, table = visits.target.columns, self.table
        functional.update_scores_(
            **columns._asdict(),
            sample_ids=visits.table_rows.masked_fill(~counts, -1),
            values=self._score_of(scored),
            alpha=table.alpha,
            first_visit=table.first_visit,
            correct=None if columns.last_correct is None else scored.correct,
            row_reduction=table.row_reduction,
        )

    def _seed_of_ties(self, ids: Tensor) -> Tensor:
        """Returns a seed of this batch in this epoch, int64 0-d, without waiting.

        It needs no counter that a saved state would have to hold. Batches of an epoch differ in
        their ids, and an id that comes again comes in another epoch.
        """
        base = as_int64(derive_seed(self.seed, "kept tokens", self._run.state.epoch or 0))
        words = (ids + base) * _FACTORS[0]
        words = (words ^ (words >> 29)) * _FACTORS[1]
        return (words ^ (words >> 32)).sum()
