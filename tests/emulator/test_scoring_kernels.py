# SPDX-License-Identifier: Apache-2.0
"""The cross-entropy kernels on the emulator give what the CPU ops give."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernels import SCALAR_TYPES, Kernels
from steps import TOLERANCES, check_step, make_columns, make_logits, make_target, step_bytes
from torch import Tensor

from dynprune_cuda import functional as F
from dynprune_cuda._ops.contract import Reduction, StepColumn

DTYPES = list(SCALAR_TYPES)


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


@pytest.mark.parametrize("classes", [1, 7, 33, 300, 1030])
def test_a_gradient_that_replaces_the_logits_has_the_same_bits(
    kernels: Kernels, classes: int
) -> None:
    """Whatever the order of the blocks and warps: no thread reads what another one wrote."""
    for dtype in DTYPES:
        logits, target = make_logits(5, classes, dtype), make_target(5, classes)
        target[1] = -100
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        given = logits, target, torch.linspace(0.1, 2, classes, dtype=compute), -100
        for smoothing in (0.0, 0.2):
            grad_loss = torch.linspace(0, 2, 5, dtype=compute)
            apart, in_place = (
                kernels.scored_cross_entropy(
                    *given, smoothing, grad_loss=grad_loss, in_place=in_place
                )[5]
                for in_place in (False, True)
            )
            assert torch.equal(apart, in_place)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [24, 1000, 4096])
def test_special_values_in_vectors_equal_cpu(
    kernels_in_turn: Kernels, classes: int, dtype: torch.dtype
) -> None:
    """At a class, at the target, at all others and everywhere."""
    values = [3e4, -3e4, math.inf, -math.inf, math.nan]
    logits = make_logits(4 * len(values), classes, torch.float32).view(4, len(values), classes)
    target = make_target(4 * len(values), classes)
    at_target = torch.nn.functional.one_hot(target.view(4, -1), classes).bool()
    for i, value in enumerate(values):
        logits[0, i, classes // 2] = value
        logits[1, i, at_target[1, i]] = value
        logits[2, i, ~at_target[2, i]] = value
        logits[3, i] = value
    logits = logits.view(-1, classes).to(dtype)
    grad_loss = torch.ones(1)
    actual = kernels_in_turn.scored_cross_entropy(logits, target, grad_loss=grad_loss)
    assert_same(actual, on_cpu(logits, target, grad_loss), dtype)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [10, 1001, 1025])
def test_two_targets_equal_cpu(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    rows = 5
    logits, target = make_logits(rows, classes, dtype), make_target(rows, classes)
    second = target.flip(0)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    lam = torch.linspace(0, 1, rows, dtype=compute)
    options = {"target_b": second, "lam": lam, "label_smoothing": 0.1}
    grad_loss = torch.linspace(-1, 2, rows, dtype=compute)
    actual = kernels.scored_cross_entropy(logits, target, grad_loss=grad_loss, **options)
    assert_same(actual, on_cpu(logits, target, grad_loss, **options), dtype)


# ---- the fused step

OPTIONS = [
    {},
    {"reduction": "sum", "score": "el2n", "label_smoothing": 0.2, "padding": 3},
    {"reduction": "none", "score": "margin", "ignore_index": 2, "grad_scale": 4.0},
    {"score": "entropy", "ignore_index": 2, "weighted": True, "mixed": True, "padding": 1},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 10, 33, 1000, 1025, 2500])
def test_step_equals_cpu(kernels: Kernels, classes: int, dtype: torch.dtype) -> None:
    for options in OPTIONS:
        rows = 41 if classes < 1000 else 4
        grad_loss = torch.linspace(-1, 1, rows, dtype=torch.float32)
        if options.get("reduction") != "none" or dtype == torch.float64:
            grad_loss = None
        if dtype == torch.float16 and "grad_scale" not in options:
            options = {**options, "grad_scale": 1.0}
        check_step(kernels, rows, classes, dtype, grad_loss=grad_loss, **options)


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 600])
def test_step_of_every_batch_size(kernels: Kernels, rows: int) -> None:
    for reduction in ("mean", "none"):
        check_step(kernels, rows, 3, torch.float32, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 21, 65, 150])
def test_step_on_rows_whose_classes_lie_apart(
    kernels: Kernels, classes: int, dtype: torch.dtype
) -> None:
    for number, options in enumerate(OPTIONS):
        if dtype == torch.float16 and "grad_scale" not in options:
            options = {**options, "grad_scale": 1.0}
        for rows, group_rows in ((44, 11), (300, 300)):
            if rows == 44 or number == 1:
                check_step(
                    kernels,
                    rows,
                    classes,
                    dtype,
                    group_rows=group_rows,
                    in_columns=True,
                    rows_per_id=group_rows,
                    **options,
                )


def test_step_on_columns_that_no_shared_memory_holds(kernels_in_turn: Kernels) -> None:
    for dtype, classes in ((torch.float32, 1000), (torch.float64, 64)):
        options = {"group_rows": 33, "in_columns": True, "weighted": True, "label_smoothing": 0.1}
        check_step(kernels_in_turn, 66, classes, dtype, **options)


def test_step_on_many_columns(kernels_in_turn: Kernels) -> None:
    """More rows than one block finishes."""
    options = {"group_rows": 513, "in_columns": True, "rows_per_id": 513, "ignore_index": 1}
    check_step(kernels_in_turn, 1026, 3, torch.bfloat16, **options)


@pytest.mark.parametrize("classes", [5, 40, 1030, 13_000])
def test_step_on_groups_with_gaps_between_them(kernels: Kernels, classes: int) -> None:
    """As logits[:, :-1] of a language model."""
    check_step(kernels, 6, classes, torch.bfloat16, group_rows=3, rows_per_id=3, padding=1)


def test_step_with_a_divisor_of_its_own(kernels: Kernels) -> None:
    check_step(kernels, 41, 10, torch.float32, divisor=12.5, weighted=True, ignore_index=2)
    check_step(kernels, 1500, 1030, torch.bfloat16, divisor=12.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 64, 65, 150])
def test_cross_entropy_in_columns_equals_cpu(
    kernels: Kernels, classes: int, dtype: torch.dtype
) -> None:
    rows, compute = 44, torch.float64 if dtype == torch.float64 else torch.float32
    logits, target = make_logits(rows, classes, dtype), make_target(rows, classes)
    grad_loss = torch.linspace(-1, 2, rows, dtype=compute)
    grad_loss[0] = 0
    for smoothing in (0.0, 0.2):
        options = {"weight": torch.linspace(0.1, 2, classes, dtype=compute)} if smoothing else {}
        options["label_smoothing"] = smoothing
        actual = kernels.scored_cross_entropy(
            logits, target, grad_loss=grad_loss, group_rows=11, in_columns=True, **options
        )
        assert_same(actual, on_cpu(logits, target, grad_loss, **options), dtype)


@pytest.mark.parametrize(
    ("classes", "group_rows", "reduction", "memory_bytes", "request_bytes"),
    [
        (21, 1024, Reduction.SUM, 80, 110),
        (21, 1024, Reduction.MEAN, 90, 120),
        (150, 256, Reduction.SUM, 80, 200),
        (150, 256, Reduction.MEAN, 80, 330),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_on_columns_reads_each_logit_once(
    kernels_in_turn: Kernels,
    classes: int,
    group_rows: int,
    reduction: int,
    memory_bytes: float,
    request_bytes: float,
    dtype: torch.dtype,
) -> None:
    """Beside so many bytes a row of losses, scores, weights and the update.

    Some are asked for again: for a mean, every block asks for all targets. A second read of the
    logits would be at least 42 bytes a row, or 300 of 150 classes.
    """
    rows = 2 * group_rows
    options = {"group_rows": group_rows, "in_columns": True, "rows_per_id": group_rows}
    options["reduction"] = reduction
    memory, requests = step_bytes(kernels_in_turn, rows, classes, dtype, **options)
    row_bytes = classes * torch.empty(0, dtype=dtype).element_size()
    assert memory <= 2 + memory_bytes / row_bytes
    assert requests <= 2 + request_bytes / row_bytes


def test_step_on_rows_that_need_leave_for_their_shared_memory(kernels_in_turn: Kernels) -> None:
    check_step(kernels_in_turn, 2, 12_289, torch.float32, label_smoothing=0.1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_step_with_more_rows_than_one_block_finishes(
    kernels_in_turn: Kernels, reduction: str
) -> None:
    check_step(kernels_in_turn, 513, 2, torch.float32, reduction=reduction, ignore_index=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_step_with_more_blocks_than_one_block_finishes(
    kernels_in_turn: Kernels, dtype: torch.dtype
) -> None:
    """600 blocks of one row."""
    check_step(kernels_in_turn, 600, 1030, dtype, weighted=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_launches_of_a_step(kernels: Kernels, reduction: str) -> None:
    """No block does more than 512 rows' worth of what one block does for the batch."""
    launches = []
    for rows in (1, 512, 513, 2000):
        kernels.emulator.statistics()
        check_step(kernels, rows, 2, torch.float32, reduction=reduction)
        launches.append(kernels.emulator.statistics()["launches"] - 1)  # of the backward pass
    # The divisor; losses, and their sum; the table is cleared; rows claim samples; enter them.
    more = {"mean": 6, "sum": 5, "none": 3}[reduction]
    assert launches == [1, 1, 1 + more, 1 + more]


def test_bad_rows_of_a_step_count_for_nothing(kernels: Kernels) -> None:
    logits = make_logits(6, 4, torch.float32)
    target, ids = torch.tensor([0, 4, 1, -1, 2, 3]), torch.tensor([0, 1, 2, 3, 99, 5])
    columns, expected = make_columns(10), make_columns(10)
    loss, scores, correct, gradient = kernels.scored_cross_entropy_step_(
        logits, target, ids, columns
    )
    assert kernels.errors[0, 0] == 2 and kernels.errors[0, 1] in (4, -1)
    assert kernels.errors[1].tolist() == [1, 99]
    good, table = torch.tensor([0, 2, 4, 5]), torch.tensor([0, 2, -1, 5])
    leaf = logits[good].requires_grad_()
    got = F.scored_cross_entropy_step_(leaf, target[good], table, **expected, alpha=0.8)
    got.loss.backward()
    torch.testing.assert_close(loss[0], got.loss.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient[good], leaf.grad, rtol=2e-6, atol=1e-8)
    bad = torch.tensor([1, 3])
    assert not gradient[bad].any() and not correct[bad].any()
    assert scores[: StepColumn.ROW_WEIGHT, bad].isnan().all()
    for name, column in expected.items():
        torch.testing.assert_close(columns[name], column, rtol=2e-6, atol=0, equal_nan=True)


# ---- bytes


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (1000, torch.float32),
        (1024, torch.bfloat16),
        (4096, torch.bfloat16),
        (12_288, torch.float32),
        (1001, torch.bfloat16),
        (1001, torch.float32),
        (2049, torch.float16),
        (21_841, torch.bfloat16),
    ],
    ids=str,
)
def test_a_step_reads_each_logit_once_and_writes_each_gradient_once(
    kernels_in_turn: Kernels, classes: int, dtype: torch.dtype
) -> None:
    rows = 64 if classes < 10_000 else 4
    memory, requests = step_bytes(kernels_in_turn, rows, classes, dtype)
    assert memory <= 2.1 and requests <= 2.6  # nvcc's code: 2.59 at 1001 classes in bfloat16
    memory, requests = step_bytes(kernels_in_turn, rows, classes, dtype, with_gradient=False)
    assert memory <= 1.1 and requests <= 1.6


@pytest.mark.parametrize("classes", [1000, 1001, 4099])
def test_a_gradient_of_1_costs_nothing(kernels_in_turn: Kernels, classes: int) -> None:
    one, two = torch.ones(1), torch.full((1,), 2.0)

    def memory(**options: object) -> float:
        return step_bytes(kernels_in_turn, 32, classes, torch.bfloat16, **options)[0]

    step = memory()
    assert memory(grad_loss=one) - step <= 0.01
    assert memory(grad_loss=two, grad_scale=two) - step <= 0.01
    assert 1.9 <= memory(grad_loss=two) - step <= 2.1
