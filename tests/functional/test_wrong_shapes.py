# SPDX-License-Identifier: Apache-2.0
"""Losses that refuse a shape or a dtype name what to use instead."""

import pytest
import torch

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F

NUMBERS = [torch.int8, torch.int16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]


def columns():
    return Pruner(8, 0.5).table.columns()._asdict()


def of_kind(shape, dtype):
    return torch.zeros(shape).to(dtype)


def wrong_shapes_and_dtypes():
    """Logits [6, 5], hidden [6, 5] and targets [6], and one of them wrong: (of what, changes)."""
    for dtype in NUMBERS:
        yield "any", {"logits": of_kind((6, 5), dtype)}
        if dtype != torch.int64:
            yield "classes", {"target": of_kind(6, dtype)}
        if dtype != torch.bool:
            yield "labels", {"target": of_kind((6, 5), dtype)}
    for shape in ((), (5,), (6, 1), (6, 5), (6, 4), (7,), (6, 1, 1)):
        yield "classes", {"target": of_kind(shape, torch.int64)}
    for shape in ((), (6,), (6, 1), (6, 4), (5, 5)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            yield "any", {"target": of_kind(shape, dtype)}
    yield "linear", {"target": torch.zeros(6, 5)}
    yield "linear", {"logits": torch.zeros(6, 5, dtype=torch.float64)}
    yield "any", {"logits": torch.tensor(1.0)}
    yield "any", {"logits": torch.zeros(2, 3, 4)}
    yield "labels", {"logits": torch.zeros(6, 0), "target": torch.zeros(6, 0)}
    yield "classes only", {"logits": torch.zeros(6, 0)}
    yield "classes only", {"logits": torch.zeros(6, 0), "target": torch.zeros(6, 0)}


def functions():
    """The functions that take logits and targets, by what the targets are."""
    ids, weight = torch.arange(6), torch.zeros(7, 5)

    def of_pruner(name, *more, **settings):
        def call(logits, target):
            pruner = Pruner(8, 0.5, **settings)
            getattr(pruner, name)(logits, *more, target, ids)

        return call

    def step(function):
        return lambda logits, target: function(logits, target, ids, **columns(), alpha=0.5)

    yield "classes", "scored_cross_entropy", F.scored_cross_entropy
    yield "classes", "its step", step(F.scored_cross_entropy_step_)
    yield "classes", "Pruner.cross_entropy", of_pruner("cross_entropy")
    yield "classes", "of a share", of_pruner("cross_entropy", row_reduction=0.5)
    yield "labels", "scored_binary_cross_entropy", F.scored_binary_cross_entropy
    yield "labels", "its step", step(F.scored_binary_cross_entropy_step_)
    yield "labels", "Pruner.binary_cross_entropy", of_pruner("binary_cross_entropy")
    yield (
        "linear",
        "scored_linear_cross_entropy",
        lambda logits, target: F.scored_linear_cross_entropy(logits, weight, target),
    )
    yield "linear", "Pruner.linear_cross_entropy", of_pruner("linear_cross_entropy", weight)


@pytest.mark.parametrize(
    ("kind", "call"), [pytest.param(k, c, id=f"{k}, {n}") for k, n, c in functions()]
)
def test_every_wrong_shape_and_dtype_names_the_way_out(kind, call):
    right = {"logits": torch.zeros(6, 5), "target": torch.zeros(6, dtype=torch.int64)}
    if kind == "labels":
        right["target"] = torch.zeros(6, 5)
    call(**right)
    kinds = {
        "classes": ("any", "classes", "classes only"),
        "labels": ("any", "labels"),
        "linear": ("any", "classes", "linear"),
    }[kind]
    refusals = [changes for of_what, changes in wrong_shapes_and_dtypes() if of_what in kinds]
    assert len(refusals) > 25
    missing = []
    for changes in refusals:
        with pytest.raises(ValueError) as caught:
            call(**{**right, **changes})
        message = str(caught.value)
        if not ("observe" in message and "update_scores_" in message and "rescale" in message):
            given = {name: (x.dtype, tuple(x.shape)) for name, x in changes.items()}
            missing.append(f"{given}: {message}")
    assert missing == []
