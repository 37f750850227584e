# SPDX-License-Identifier: Apache-2.0
"""Fake kernels: shapes and dtypes of every operator's results, without computing them.

Each function has the name and the parameters of its operator. Their defaults are the schema's,
since the dispatcher leaves out arguments that equal their default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._ops.contract import GradientTime, Reduction, SavedColumn, StepColumn

FAKES: dict[str, Callable[..., Any]] = {}  # by the operator's name


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    FAKES[function.__name__] = function
    return function


def register() -> None:
    """Registers the fake kernels; the operators must be there already."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"dynprune_cuda::{name}", fake)


def _ids(like: Tensor, count: int) -> Tensor:
    return like.new_empty((count,), dtype=torch.int64)


def _keys(values: Tensor) -> Tensor:
    return values.new_empty((values.shape[0],), dtype=torch.int32)


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


# ---- selection


@_fake
def select_ranked(
    values: Tensor,
    second: Tensor | None,
    ranking: int,
    c: float,
    log_step: float,
    k: int,
    num_random: int,
    seed_tensor: Tensor | None,
    seed: int,
    ascending: bool,
) -> Tensor:
    return _ids(values, k)


@_fake
def select_uniform(
    like: Tensor,
    num_samples: int,
    k: int,
    seed_tensor: Tensor | None,
    seed: int,
    ascending: bool,
) -> Tensor:
    return _ids(like, k)


# ---- sharding


@_fake
def shard_keys(
    values: Tensor,
    second: Tensor | None,
    ranking: int,
    c: float,
    log_step: float,
    first: int,
    stride: int,
    seed_tensor: Tensor | None,
    seed: int,
) -> Tensor:
    return _keys(values)


@_fake
def shard_digit_counts(
    keys: Tensor,
    state: Tensor,
    greedy: Tensor | None,
    explore: bool,
    round: int,
    first: int,
    stride: int,
    seed_tensor: Tensor | None,
    seed: int,
) -> Tensor:
    # A 32-bit key has digits of 11, 11 and 10 bits.
    bits = 10 if round % 3 == 2 else 11
    return keys.new_empty((1 << bits,), dtype=torch.int64)


@_fake
def shard_positions(
    keys: Tensor,
    greedy: Tensor | None,
    random: Tensor | None,
    k: int,
    first: int,
    stride: int,
    seed_tensor: Tensor | None,
    seed: int,
) -> Tensor:
    return _ids(keys, k)


@_fake
def shard_sample(
    values: Tensor,
    second: Tensor | None,
    ranking: int,
    c: float,
    log_step: float,
    num_samples: int,
    size: int,
    first: int,
    stride: int,
    seed: int,
) -> Tensor:
    return _ids(values, size)


@_fake
def shard_bracket(
    values: Tensor,
    second: Tensor | None,
    ranking: int,
    c: float,
    log_step: float,
    sample: Tensor | None,
    excluded: Tensor | None,
    num_samples: int,
    wanted: int,
    capacity: int,
    first: int,
    stride: int,
    seed: int,
) -> tuple[Tensor, ...]:
    bits = values.new_empty(((values.shape[0] + 63) // 64,), dtype=torch.int64)
    words = values.new_empty((capacity,), dtype=torch.int64)
    positions = values.new_empty((capacity,), dtype=torch.int32)
    facts = values.new_empty((4,), dtype=torch.int64)
    return bits, words, positions, facts


@_fake
def shard_candidate_counts(words: Tensor, state: Tensor, shift: int, bits: int) -> Tensor:
    return words.new_empty((1 << bits,), dtype=torch.int64)


@_fake
def shard_add_candidates_(bits: Tensor, words: Tensor, positions: Tensor, state: Tensor) -> None:
    return None


@_fake
def shard_list(bits: Tensor, k: int, count: int, first: int, stride: int) -> Tensor:
    return _ids(bits, k)


@_fake
def permutation_part(
    like: Tensor,
    num_samples: int,
    first: int,
    stride: int,
    count: int,
    inverse: bool,
    seed_tensor: Tensor | None,
    seed: int,
) -> Tensor:
    return _ids(like, count)


# ---- scoring


def in_columns(logits: Tensor) -> bool:
    """Returns whether the classes of logits [B, D, C] lie apart and the rows D do not.

    Their gradient is [B, C, D] then, as `logits_are_in_columns` in csrc/bindings/cross_entropy.cpp
    has it.
    """
    return (
        logits.dim() == 3
        and logits.shape[2] > 1
        and logits.stride(2) != 1
        and (logits.stride(1) == 1 or logits.shape[1] <= 1)
    )


def _gradient(logits: Tensor) -> Tensor:
    shape = logits.transpose(1, 2).shape if in_columns(logits) else logits.shape
    return logits.new_empty(shape)


@_fake
def scored_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    second_target: Tensor | None = None,
    lam: Tensor | None = None,
) -> tuple[Tensor, ...]:
    rows, dtype = target.shape[0], _compute_dtype(logits)
    loss, el2n, entropy, margin = (logits.new_empty((rows,), dtype=dtype) for _ in range(4))
    correct = logits.new_empty((rows,), dtype=torch.bool)
    saved = logits.new_empty((rows, len(SavedColumn)), dtype=dtype)
    return loss, el2n, entropy, margin, correct, saved


@_fake
def scored_cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    saved: Tensor,
    second_target: Tensor | None = None,
    lam: Tensor | None = None,
) -> Tensor:
    return _gradient(logits)


@_fake
def scored_cross_entropy_with_gradient_(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, ...]:
    scored: tuple[Tensor, ...] = scored_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing
    )
    return scored


@_fake
def scored_cross_entropy_step_(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    non_finite_count: Tensor | None,
    last_non_finite: Tensor | None,
    last_correct: Tensor | None,
    forget_count: Tensor | None,
    ticket: Tensor | None,
    alpha: float,
    published_first_visit: bool,
    score: int,
    row_reduction: int,
    rows_per_id: int,
    reduction: int,
    sample_weight: Tensor | None,
    token_weight: Tensor | None,
    divisor: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    second_target: Tensor | None,
    lam: Tensor | None,
    grad_scale: Tensor | None,
    gradient: int,
) -> tuple[Tensor, ...]:
    rows, dtype = target.shape[0], _compute_dtype(logits)
    columns = len(StepColumn) + (len(SavedColumn) if gradient == GradientTime.LATER else 0)
    loss = logits.new_empty((rows,) if reduction == Reduction.NONE else (), dtype=dtype)
    scores = logits.new_empty((columns, rows), dtype=dtype)
    correct = logits.new_empty((rows,), dtype=torch.bool)
    grad_logits = _gradient(logits) if gradient == GradientTime.NOW else logits.new_empty((0,))
    return loss, scores, correct, grad_logits


@_fake
def soft_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, ...]:
    rows, dtype = target.shape[0], _compute_dtype(logits)
    loss, el2n, entropy, margin = (logits.new_empty((rows,), dtype=dtype) for _ in range(4))
    correct = logits.new_empty((rows,), dtype=torch.bool)
    saved = logits.new_empty((rows, len(SavedColumn)), dtype=dtype)
    return loss, el2n, entropy, margin, correct, saved


@_fake
def soft_cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    saved: Tensor,
) -> Tensor:
    return logits.new_empty(logits.shape)


@_fake
def soft_cross_entropy_step_(
    logits: Tensor,
    target: Tensor,
    sample_ids: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    non_finite_count: Tensor | None,
    last_non_finite: Tensor | None,
    last_correct: Tensor | None,
    forget_count: Tensor | None,
    ticket: Tensor | None,
    alpha: float,
    published_first_visit: bool,
    score: int,
    row_reduction: int,
    rows_per_id: int,
    reduction: int,
    sample_weight: Tensor | None,
    token_weight: Tensor | None,
    divisor: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    grad_scale: Tensor | None,
    gradient: int,
) -> tuple[Tensor, ...]:
    rows, dtype = target.shape[0], _compute_dtype(logits)
    columns = len(StepColumn) + (len(SavedColumn) if gradient == GradientTime.LATER else 0)
    loss = logits.new_empty((rows,) if reduction == Reduction.NONE else (), dtype=dtype)
    scores = logits.new_empty((columns, rows), dtype=dtype)
    correct = logits.new_empty((rows,), dtype=torch.bool)
    grad_logits = logits.new_empty(logits.shape if gradient == GradientTime.NOW else (0,))
    return loss, scores, correct, grad_logits


@_fake
def scale_gradient_(grad_logits: Tensor, grad_loss: Tensor, grad_scale: Tensor | None) -> None:
    return None


@_fake
def update_scores_(
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    sample_ids: Tensor,
    values: Tensor,
    alpha: float,
    published_first_visit: bool,
    non_finite_count: Tensor | None,
    last_non_finite: Tensor | None,
    correct: Tensor | None = None,
    last_correct: Tensor | None = None,
    forget_count: Tensor | None = None,
    row_reduction: int = 0,
) -> None:
    return None


@_fake
def take_errors(like: Tensor) -> Tensor:
    return like.new_empty((4, 2), dtype=torch.int64)
