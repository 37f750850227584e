# SPDX-License-Identifier: Apache-2.0
"""Batches of sequences in the Trainer: of like lengths, and without padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynprune_cuda.data.indexed import ID_KEY

IGNORED = -100  # the label of what counts for nothing, in all of Transformers


def lengths_for_batches(trainer: Any) -> list[int] | None:
    """Returns the lengths of all samples, if a Trainer is to make batches of like lengths.

    Raises:
        ValueError: `train_sampling_strategy` is an order that no pruner has.
    """
    strategy = trainer.args.train_sampling_strategy
    if strategy == "random":
        return None
    if strategy != "group_by_length":
        raise ValueError(
            "train_sampling_strategy must be 'random' or 'group_by_length', got "
            f"{strategy!r}: the pruner draws the order of an epoch"
        )
    dataset, column = trainer.train_dataset, trainer.args.length_column_name
    columns = getattr(dataset, "column_names", ())
    if column in columns:
        return [int(length) for length in dataset[column]]
    processing = trainer.processing_class
    name = "input_ids" if processing is None else processing.model_input_names[0]
    if name in columns:
        return [len(sample) for sample in dataset[name]]
    return [len(dataset[index][name]) for index in range(len(dataset))]


def with_ids_of_tokens(batch: dict[str, Any], lengths: list[int] | None) -> dict[str, Any]:
    """Returns a batch whose ids are [1, T] if its samples were joined into one row of T tokens.

    That is what collate functions without padding do (DataCollatorWithFlattening, `padding_free` of
    TRL). Other batches come back as they are.

    Args:
        batch: With ids [samples].
        lengths: The tokens of each sample; None: not known.

    Raises:
        ValueError: Nothing tells which tokens are whose.
    """
    labels, ids = batch.get("labels"), batch[ID_KEY]
    joined = isinstance(labels, Tensor) and labels.dim() == 2 and len(labels) == 1 < len(ids)
    if not joined:
        return batch
    assert isinstance(labels, Tensor)
    positions, total = batch.get("position_ids"), labels.shape[1]
    begins = None
    if isinstance(positions, Tensor) and positions.shape == labels.shape:
        begins = positions[0] == 0
    if lengths is not None and sum(lengths) <= total:
        used = sum(lengths)
        ends = torch.tensor(lengths).cumsum(0)
        fits = bool((labels[0, used:] == IGNORED).all())
        if begins is not None:  # a sample may hold several documents, not a part of one
            fits = fits and bool(begins[ends[:-1]].all())
        if fits:
            rows = ids.repeat_interleave(torch.tensor(lengths))
            return {**batch, ID_KEY: nn.functional.pad(rows, (0, total - used), value=-1)[None]}
    if begins is not None and begins[0] and int(begins.sum()) == len(ids):
        return {**batch, ID_KEY: ids[begins.cumsum(0) - 1][None]}
    raise ValueError(
        f"labels of shape {tuple(labels.shape)} are of {len(ids)} samples, and neither the lengths "
        "of their input_ids nor position_ids tell which tokens are whose. Give the batch "
        "position_ids that begin at 0 with each sample"
    )
