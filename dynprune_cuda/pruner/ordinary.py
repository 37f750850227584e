# SPDX-License-Identifier: Apache-2.0
"""Ordinary steps: plain tensors, no options. They go to the operator without detours.

The operator checks its arguments before it changes anything, but names less of them. So a step that
it refuses is not ordinary, and takes the way with the checks in Python. bench_scoring measures what
a step takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynprune_cuda._epochs.run import Run
from dynprune_cuda._ops import (
    BINARY_STEP,
    CROSS_ENTROPY_STEP,
    REFUSALS,
    SOFT_CROSS_ENTROPY_STEP,
    BinaryArguments,
    BinaryStepLoss,
    StepLoss,
    apply_ordinary_step,
    is_refusal,
)
from dynprune_cuda._ops.contract import StepArguments
from dynprune_cuda.functional.cross_entropy import REDUCTIONS
from dynprune_cuda.functional.score_updates import ScoreColumns


def _is_ordinary(run: Run, logits: Any, target: Any, ids: Any, reduction: Any) -> bool:
    """Returns whether the operators check the rest of a step without other arguments.

    They refuse tensors that are sparse, nested, quantized or freed, but not those on the device
    meta, for which they have kernels that do nothing.
    """
    return (
        type(logits) is type(target) is type(ids) is Tensor
        and run.is_direct
        and type(reduction) is str
        and reduction in REDUCTIONS
        and type(run.table.row_rule) is int
        and not (logits.is_meta or target.is_meta or ids.is_meta)
        and logits.dim() == 2
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _recorded(
    step: Callable[..., Any], columns: ScoreColumns, logits: Tensor, *arguments: Any
) -> Tensor | None:
    """Returns the loss of a step that recorded the scores; None if the operator refused it."""
    try:
        loss: Tensor = step(logits, *arguments)
    except REFUSALS as error:
        if is_refusal(error):
            return None
        torch.autograd.graph.increment_version(columns.present())
        raise  # the scores are recorded
    torch.autograd.graph.increment_version(columns.present())
    return loss


def ordinary_cross_entropy(
    run: Run,
    ticket: Tensor | None,
    score: int,
    logits: Any,
    target: Any,
    ids: Any,
    reduction: Any,
    ignore_index: Any,
    label_smoothing: Any,
) -> Tensor | None:
    """Returns the loss of an ordinary step with classes or probabilities; it recorded the scores.

    Args:
        run: Whose table is written.
        ticket: Of the launches, on a GPU.
        score: Place of the score in `SCORES`.
        logits: As `Pruner.cross_entropy` was given them.
        target: Likewise.
        ids: Likewise.
        reduction: Likewise.
        ignore_index: Likewise.
        label_smoothing: Likewise.

    Returns:
        The loss; None if the step is not ordinary, and nothing happened.
    """
    if (
        not _is_ordinary(run, logits, target, ids, reduction)
        or target.requires_grad
        or type(ignore_index) is not int
        or type(label_smoothing) is not float
    ):
        return None
    soft = target.is_floating_point()
    if soft and not -(1 << 63) <= ignore_index < 0:
        return None
    table, columns = run.table, run.table.columns()
    shared = (  # a StepArguments, but for the time that it takes to make one
        target,
        ids,
        *columns,
        ticket,
        table.alpha,
        table.first_visit == "published",
        score,
        table.row_rule,
        1,
        REDUCTIONS.index(reduction),
        None,
        None,
        None,
        None,
    )
    arguments: tuple[Any, ...]
    if logits.dtype is torch.float16:  # whose gradient may have to wait for a loss scaler
        arguments = (*shared, ignore_index, label_smoothing, None, None, None)
        return _recorded(StepLoss.apply, columns, logits, StepArguments._make(arguments), True)
    if soft:
        arguments, step = (*shared, label_smoothing, None), SOFT_CROSS_ENTROPY_STEP
    else:
        arguments = (*shared, ignore_index, label_smoothing, None, None, None)
        step = CROSS_ENTROPY_STEP
    return _recorded(apply_ordinary_step, columns, logits, step, arguments)


def ordinary_binary_cross_entropy(
    run: Run, ticket: Tensor | None, score: int, logits: Any, target: Any, ids: Any, reduction: Any
) -> Tensor | None:
    """Returns the loss of an ordinary step with several labels; see `ordinary_cross_entropy`.

    Args:
        run: Whose table is written.
        ticket: Of the launches, on a GPU.
        score: Place of the score in `SCORES`.
        logits: As `Pruner.binary_cross_entropy` was given them.
        target: Likewise.
        ids: Likewise.
        reduction: Likewise.
    """
    if not _is_ordinary(run, logits, target, ids, reduction) or target.requires_grad:
        return None
    table, columns = run.table, run.table.columns()
    arguments = (
        target,
        ids,
        *columns,
        ticket,
        table.alpha,
        table.first_visit == "published",
        score,
        table.row_rule,
        REDUCTIONS.index(reduction),
        None,
        None,
        None,
        None,
        None,
    )
    if logits.dtype is torch.float16:
        given = BinaryArguments._make(arguments)
        return _recorded(BinaryStepLoss.apply, columns, logits, given, True)
    return _recorded(apply_ordinary_step, columns, logits, BINARY_STEP, arguments)
