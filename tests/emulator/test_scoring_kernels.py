# SPDX-License-Identifier: Apache-2.0
"""The cross-entropy and score-update kernels on the emulator give what the CPU ops give."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from emulator import EmulatorError
from kernels import SCALAR_TYPES, Kernels
from torch import Tensor

from dynprune_cuda import functional as F

DTYPES = list(SCALAR_TYPES)
# Sums run in another order than on the CPU; a 16-bit gradient may round to the neighbour.
TOLERANCES = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float64: {"rtol": 1e-13, "atol": 1e-13},
    torch.float16: {"rtol": 2e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-6},
}


def make_logits(rows: int, classes: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(classes)
    return (torch.randn(rows, classes, generator=generator) * 4).to(dtype)


def make_target(rows: int, classes: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return (torch.arange(rows) * 7 % classes).to(dtype)


def on_cpu(logits: Tensor, target: Tensor, grad_loss: Tensor, **options: object) -> list[Tensor]:
    leaf = logits.clone().requires_grad_()
    scored = F.scored_cross_entropy(leaf, target, **options)
    scored.loss.backward(grad_loss.expand(len(logits)))
    return [t.detach() for t in scored] + [leaf.grad]


def assert_same(actual: tuple[Tensor, ...], expected: list[Tensor], dtype: torch.dtype) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        is_gradient = i == 5
        score_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        tolerance = TOLERANCES[dtype if is_gradient else score_dtype]
        torch.testing.assert_close(a, e, **tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 10, 31, 33, 1000, 1025, 2500])
def test_cross_entropy_equals_cpu(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    rows = 9 if classes <= 1000 else 3
    logits, target = make_logits(rows, classes, dtype), make_target(rows, classes)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad_loss = torch.linspace(-1, 2, rows, dtype=compute)
    grad_loss[0] = 0
    actual = kernels.scored_cross_entropy(logits, target, grad_loss=grad_loss)
    assert_same(actual, on_cpu(logits, target, grad_loss), dtype)


@pytest.mark.parametrize(
    ("weighted", "smoothing", "ignore_index"),
    list(itertools.product([False, True], [0.0, 0.2], [-100, 2])),
)
def test_cross_entropy_options_equal_cpu(
    kernels: Kernels,
    weighted: bool,
    smoothing: float,
    ignore_index: int,
) -> None:
    for rows, classes in [(13, 5), (4, 1200)]:
        logits, target = make_logits(rows, classes, torch.float32), make_target(rows, classes)
        target[-1] = ignore_index
        weight = torch.linspace(0.1, 3, classes) if weighted else None
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": smoothing}
        grad_loss = torch.tensor([0.25])  # one gradient for all rows, as mean() gives
        actual = kernels.scored_cross_entropy(logits, target, grad_loss=grad_loss, **options)
        assert_same(actual, on_cpu(logits, target, grad_loss, **options), torch.float32)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_target_dtypes_and_strided_rows(kernels: Kernels, dtype: torch.dtype) -> None:
    for classes in (7, 1030):
        logits, target = (
            make_logits(5, classes, torch.float32),
            make_target(5, min(classes, 200), dtype),
        )
        grad_loss = torch.ones(5)
        actual = kernels.scored_cross_entropy(logits, target, grad_loss=grad_loss, padding=3)
        assert_same(actual, on_cpu(logits, target, grad_loss), torch.float32)


def test_special_values_equal_cpu(kernels: Kernels) -> None:
    values = [0.0, 3.0, -40.0, 1e4, math.inf, -math.inf, math.nan]
    logits = torch.tensor(list(itertools.product(values, repeat=3)))
    target = torch.zeros(len(logits), dtype=torch.int64)
    actual = kernels.scored_cross_entropy(logits, target)
    assert_same(actual, on_cpu(logits, target, torch.ones(1))[:5], torch.float32)


def test_targets_out_of_range_touch_nothing_else(kernels: Kernels) -> None:
    logits, target = make_logits(6, 4, torch.float32), torch.tensor([0, 4, 1, -1, 2, 1 << 40])
    good = torch.tensor([0, 2, 4])
    grad_loss = torch.ones(6)
    actual = kernels.scored_cross_entropy(logits, target, grad_loss=grad_loss)
    count, example = kernels.errors[0]
    assert count == 3 and example in (4, -1, 1 << 40)
    bad = torch.tensor([1, 3, 5])
    for scores in actual[:4]:
        assert scores[bad].isnan().all()
    assert not actual[4][bad].any() and not actual[5][bad].any()
    expected = on_cpu(logits[good], target[good], grad_loss[good])
    assert_same(tuple(t[good] for t in actual), expected, torch.float32)


def test_rows_without_gradient_are_not_read(kernels_in_turn: Kernels) -> None:
    rows, classes = 64, 1000
    logits, target = make_logits(rows, classes, torch.float32), make_target(rows, classes)

    def sectors_read(grad_loss: Tensor | None) -> int:
        kernels_in_turn.emulator.traffic()
        kernels_in_turn.scored_cross_entropy(logits, target, grad_loss=grad_loss)
        return kernels_in_turn.emulator.traffic()["sectors_read"]

    logits_sectors = rows * classes * 4 // 32
    forward = sectors_read(None)
    assert logits_sectors <= forward <= 1.03 * logits_sectors  # each logit once
    assert sectors_read(torch.ones(rows)) - forward >= logits_sectors
    assert sectors_read(torch.zeros(rows)) - forward <= 0.05 * logits_sectors


# ---- score updates


def make_columns(n: int, count_dtype: torch.dtype = torch.int32) -> dict[str, Tensor]:
    return {
        "mean": torch.full((n,), math.nan),
        "variance": torch.zeros(n),
        "count": torch.zeros(n, dtype=count_dtype),
        "non_finite_count": torch.zeros(n, dtype=torch.int32),
        "last_non_finite": torch.zeros(n, dtype=torch.bool),
    }


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("count_dtype", [torch.int32, torch.int64], ids=str)
def test_updates_equal_cpu(kernels: Kernels, count_dtype: torch.dtype, published: bool) -> None:
    n = 50
    emulated, expected = make_columns(n, count_dtype), make_columns(n, count_dtype)
    generator = torch.Generator().manual_seed(4)
    for rows in (1, 31, 33, 400, 0):
        ids = torch.randint(
            -1, n, (rows,), generator=generator
        )  # duplicates, and rows without a sample
        values = torch.randn(rows, generator=generator)
        values[torch.rand(rows, generator=generator) < 0.2] = math.inf
        kernels.update_scores_(emulated, ids, values, 0.8, published)
        F.update_scores_(
            **expected,
            sample_ids=ids,
            values=values,
            alpha=0.8,
            first_visit="published" if published else "zero",
        )
        for name, column in expected.items():
            assert torch.equal(emulated[name].nan_to_num(9.0), column.nan_to_num(9.0)), name
        assert not kernels.errors.any()


def test_ids_out_of_range_are_skipped_and_recorded(kernels: Kernels) -> None:
    columns, expected = make_columns(10), make_columns(10)
    ids = torch.tensor([3, 10, -2, 4, 1 << 40])
    values = torch.arange(5.0)
    kernels.update_scores_(columns, ids, values, 0.5)
    keep = torch.tensor([0, 3])
    F.update_scores_(**expected, sample_ids=ids[keep], values=values[keep], alpha=0.5)
    for name, column in expected.items():
        assert torch.equal(columns[name].nan_to_num(9.0), column.nan_to_num(9.0)), name
    count, example = kernels.errors[1]
    assert count == 3 and example in (10, -2, 1 << 40)


def test_columns_shorter_than_claimed_are_reported(kernels_in_turn: Kernels) -> None:
    columns = make_columns(10)
    columns["variance"] = columns["variance"][:5].clone()
    with pytest.raises(EmulatorError, match="OUT OF BOUNDS"):
        kernels_in_turn.update_scores_(columns, torch.tensor([7]), torch.tensor([1.0]), 0.5)
