# SPDX-License-Identifier: Apache-2.0
"""The kernels of the binary cross-entropy on the emulator give what the CPU ops give."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from binary_kernels import LABEL_TYPES, BinaryKernels
from kernels import SCALAR_TYPES, Kernels
from steps import TOLERANCES, make_columns, make_logits
from torch import Tensor

from dynprune_cuda import functional as F
from dynprune_cuda._ops.contract import Reduction, RowReduction, Score, StepColumn

DTYPES = list(SCALAR_TYPES)
# On both sides of where teams of 8, of a warp and of a block begin.
LABELS = [1, 2, 7, 31, 33, 80, 128, 129, 1000, 2049, 4500]
# The powers of 2 of a GPU are 2 units in the last place off, and those of the CPU's vectors 4e-6
# where they are small.
SCORES = {"rtol": 1e-5, "atol": 1e-6}


def make_targets(rows: int, labels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(labels)
    soft = torch.rand(rows, labels, generator=generator)
    hard = (soft < 0.3).to(dtype)
    return hard if dtype == torch.bool else torch.where(soft > 0.7, soft.to(dtype), hard)


def make_weights(rows: int, labels: int, dtype: torch.dtype) -> dict[str, Tensor]:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(labels)
    weight = torch.rand(rows, labels, generator=generator, dtype=compute) * 2
    weight[weight < 0.3] = 0
    weight[-1] = 0
    pos_weight = torch.rand(labels, generator=generator, dtype=compute) * 3
    return {"weight": weight, "pos_weight": pos_weight}


def tolerance_of(dtype: torch.dtype) -> dict[str, float]:
    return TOLERANCES[dtype] if dtype == torch.float64 else SCORES


def on_cpu(logits: Tensor, target: Tensor, grad_loss: Tensor, **options: Tensor) -> list[Tensor]:
    leaf = logits.clone().requires_grad_()
    scored = F.scored_binary_cross_entropy(leaf, target, **options)
    scored.loss.backward(grad_loss.expand(len(logits)))
    return [t.detach() for t in scored] + [leaf.grad]


def assert_same(actual: tuple[Tensor, ...], expected: list[Tensor], dtype: torch.dtype) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        tolerance = TOLERANCES[dtype] if i == 5 else tolerance_of(dtype)
        torch.testing.assert_close(a, e, **tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labels", LABELS)
def test_binary_cross_entropy_equals_cpu(kernels: Kernels, labels: int, dtype: torch.dtype) -> None:
    rows = 35 if labels <= 33 else 3
    logits, target = make_logits(rows, labels, dtype), make_targets(rows, labels)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad_loss = torch.linspace(-1, 2, rows, dtype=compute)
    grad_loss[0] = 0
    binary = BinaryKernels(kernels)
    for options in ({}, make_weights(rows, labels, dtype)):
        actual = binary.scored_binary_cross_entropy(logits, target, grad_loss=grad_loss, **options)
        assert_same(actual, on_cpu(logits, target, grad_loss, **options), dtype)
    assert not kernels.errors.any()


@pytest.mark.parametrize("target_dtype", list(LABEL_TYPES), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_target_types_and_rows_apart(
    kernels_in_turn: Kernels, dtype: torch.dtype, target_dtype: torch.dtype
) -> None:
    """Rows that begin anywhere after a boundary, and targets that do so elsewhere."""
    binary = BinaryKernels(kernels_in_turn)
    for labels, padding in ((5, 0), (40, 0), (43, 0), (41, 3), (300, 1), (2100, 5)):
        logits, target = make_logits(9, labels, dtype), make_targets(9, labels, target_dtype)
        grad_loss = torch.ones(1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        weights = make_weights(9, labels, dtype)
        weights["weight"] = weights["weight"][0]
        for options in ({}, weights):
            actual = binary.scored_binary_cross_entropy(
                logits, target, grad_loss=grad_loss, padding=padding, **options
            )
            assert_same(actual, on_cpu(logits, target, grad_loss, **options), dtype)


def test_special_values_equal_cpu(kernels: Kernels) -> None:
    values = [0.0, 3.0, -40.0, 1e4, math.inf, -math.inf, math.nan]
    logits = torch.tensor(list(itertools.product(values, repeat=2)))
    for targets in itertools.product([0.0, 0.25, 1.0], repeat=2):
        target = torch.tensor(targets).expand_as(logits).contiguous()
        grad_loss = torch.ones(1)
        binary = BinaryKernels(kernels)
        actual = binary.scored_binary_cross_entropy(logits, target, grad_loss=grad_loss)
        assert_same(actual, on_cpu(logits, target, grad_loss), torch.float32)


@pytest.mark.parametrize("labels", [6, 100, 300, 3000])
def test_wrong_targets_touch_nothing_else(kernels: Kernels, labels: int) -> None:
    rows, bad = 6, torch.tensor([1, 3, 4])
    good = torch.tensor([0, 2, 5])
    logits, target = make_logits(rows, labels, torch.float32), make_targets(rows, labels)
    target[1, labels - 1], target[3, 0], target[4, labels // 2] = 1.5, -0.25, math.nan
    binary, ids = BinaryKernels(kernels), torch.arange(rows)
    one = torch.ones(1)
    actual = binary.scored_binary_cross_entropy(logits, target, grad_loss=one)
    assert_same(
        tuple(t[good] for t in actual), on_cpu(logits[good], target[good], one), torch.float32
    )
    columns = make_columns(rows)
    loss, scores, correct, gradient = binary.step(logits, target, ids, columns, reduction=2)
    count, example = kernels.errors[3]
    value = torch.tensor(int(example)).view(torch.float64).item()
    assert count == 3 and (value in (1.5, -0.25) or math.isnan(value))
    assert not kernels.errors[:3].any()
    for results in (actual[:4], scores[:4]):
        for values in results:
            assert values[bad].isnan().all()
    for flags, grad in ((actual[4], actual[5]), (correct, gradient)):
        assert not flags[bad].any() and not grad[bad].any()
    assert loss.isfinite() and columns["count"].tolist() == [1, 0, 1, 0, 0, 1]


def check_step(
    kernels: Kernels, rows: int, labels: int, dtype: torch.dtype, weighted: bool, **options: object
) -> None:
    """The step on the emulator against the step on the CPU."""
    n = 40
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits, target = make_logits(rows, labels, dtype), make_targets(rows, labels)
    ids = torch.randint(-1, n, (rows,), generator=torch.Generator().manual_seed(rows))
    common: dict[str, object] = {}
    if weighted and rows:
        common |= make_weights(rows, labels, dtype)
        common["sample_weight"] = torch.linspace(0, 2, rows, dtype=compute)
        common["grad_scale"] = torch.ones(1, dtype=compute)
    score, reduction = options.get("score", "loss"), options.get("reduction", "mean")
    row_reduction = options.get("row_reduction", "mean")
    items = options.get("num_items")
    emulated, expected = make_columns(n), make_columns(n)
    for columns in (emulated, expected):
        columns["last_correct"] = torch.arange(n) % 2 == 0
        columns["forget_count"] = torch.zeros(n, dtype=torch.int32)
    loss, scores, correct, gradient = BinaryKernels(kernels).step(
        logits,
        target,
        ids,
        emulated,
        score=Score[score.upper()],
        reduction=Reduction[reduction.upper()],
        row_reduction=RowReduction[row_reduction.upper()],
        divisor=None if items is None else torch.tensor([items], dtype=compute),
        padding=options.get("padding", 0),
        **common,
    )
    leaf = logits.clone().requires_grad_()
    got = F.scored_binary_cross_entropy_step_(
        leaf, target, ids, **expected, alpha=0.8, score=score, reduction=reduction,
        row_reduction=row_reduction, num_items=items, **common,
    )  # fmt: skip
    got.loss.backward(torch.ones_like(got.loss))
    wanted, tolerance = got.loss.detach(), tolerance_of(dtype)
    torch.testing.assert_close(loss.view(wanted.shape), wanted, **tolerance, equal_nan=True)
    for column in (StepColumn.EL2N, StepColumn.ENTROPY, StepColumn.MARGIN):
        torch.testing.assert_close(scores[column], getattr(got, column.name.lower()), **tolerance)
    assert torch.equal(correct, got.correct)
    torch.testing.assert_close(gradient, leaf.grad, **TOLERANCES[dtype])
    for name, column in expected.items():
        exact = tolerance if column.is_floating_point() else {}
        torch.testing.assert_close(emulated[name], column, **exact, equal_nan=True, msg=name)
    assert not kernels.errors.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_step_equals_cpu(kernels: Kernels, dtype: torch.dtype, weighted: bool) -> None:
    for rows, labels in ((0, 5), (1, 3), (33, 9), (31, 80), (7, 300), (3, 2100)):
        check_step(kernels, rows, labels, dtype, weighted)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("score", ["loss", "el2n", "entropy", "margin"])
def test_step_options_equal_cpu(kernels: Kernels, score: str, reduction: str) -> None:
    options = {"score": score, "reduction": reduction, "row_reduction": "max", "padding": 3}
    check_step(kernels, 50, 12, torch.float32, True, **options)
    if reduction == "mean":
        check_step(kernels, 50, 12, torch.float32, True, num_items=7.0, **options)


def test_more_rows_than_one_block_finishes(kernels_in_turn: Kernels) -> None:
    check_step(kernels_in_turn, 8200, 2, torch.float32, False)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_launches_of_a_step(kernels_in_turn: Kernels, reduction: str) -> None:
    """The divisor of a mean is known: losses, and their sum; three for the table."""
    launches = []
    for rows in (1, 512, 513, 2000):
        kernels_in_turn.emulator.statistics()
        check_step(kernels_in_turn, rows, 2, torch.float32, False, reduction=reduction)
        launches.append(kernels_in_turn.emulator.statistics()["launches"])
    more = {"mean": 5, "sum": 5, "none": 3}[reduction]
    assert launches == [1, 1, 1 + more, 1 + more]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bool], ids=str)
def test_logits_and_targets_are_read_once_and_the_gradient_written_once(
    kernels_in_turn: Kernels, dtype: torch.dtype, target_dtype: torch.dtype
) -> None:
    rows, labels = 64, 1024
    logits, target = make_logits(rows, labels, dtype), make_targets(rows, labels, target_dtype)
    kernels_in_turn.emulator.traffic()
    BinaryKernels(kernels_in_turn).step(logits, target, torch.arange(rows), make_columns(rows))
    traffic = kernels_in_turn.emulator.traffic()
    size = logits.element_size()
    read, written = rows * labels * (size + target.element_size()), rows * labels * size
    extra = rows * 1000  # scores, the table and its update, in sectors of their own
    assert read <= traffic["unique_sectors_read"] * 32 <= read + extra
    assert written <= traffic["unique_sectors_written"] * 32 <= written + extra
    # Eight targets of 4 bytes beside eight logits of 2 take two loads of a half of each sector.
    halves = rows * labels * target.element_size() if target.element_size() > size else 0
    requests = (traffic["sectors_read"] + traffic["sectors_written"]) * 32
    # A second read adds a ninth, a sixth or a fifth, or more.
    most = 1.1 if dtype == torch.float32 else 1.15 if target_dtype == torch.float32 else 1.18
    assert requests <= most * (read + written + halves)
