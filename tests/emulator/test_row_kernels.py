# SPDX-License-Identifier: Apache-2.0
"""Score updates on the emulator, and steps with several rows of a sample, against the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from emulator import EmulatorError
from kernels import Kernels
from steps import check_step, make_columns, make_logits, make_target, step_bytes
from torch import Tensor

from dynprune_cuda import functional as F
from dynprune_cuda._ops.contract import Reduction, RowReduction, Score, StepColumn


def row_values(rows: int, generator: torch.Generator) -> Tensor:
    """Of both signs, from the least float to the greatest, and some that are not finite."""
    values = torch.randn(rows, generator=generator)
    values *= 10.0 ** torch.randint(-30, 31, (rows,), generator=generator)
    kind = torch.randint(100, (rows,), generator=generator)
    for number, value in enumerate((math.inf, -math.inf, math.nan, -0.0, 0.0, 1e-45, 3e38, -3e38)):
        values[kind == number] = value
    return values


@pytest.mark.parametrize("row_reduction", RowReduction)
@pytest.mark.parametrize("count_dtype", [torch.int32, torch.int64], ids=str)
def test_updates_equal_cpu(
    kernels: Kernels, count_dtype: torch.dtype, row_reduction: RowReduction
) -> None:
    """Bit for bit: ids that occur once, often, in neighbouring rows, or never."""
    n, published = 50, row_reduction == RowReduction.MEAN
    emulated, expected = make_columns(n, count_dtype), make_columns(n, count_dtype)
    for columns in (emulated, expected):
        columns["last_correct"] = torch.arange(n) % 2 == 0
        columns["forget_count"] = torch.zeros(n, dtype=torch.int32)
    generator = torch.Generator().manual_seed(4)
    for rows in (1, 31, 33, 400, 300, 1500, 0):
        ids = torch.randint(-1, n, (rows,), generator=generator)
        if rows == 300:  # warps of one sample, with gaps, and of two
            ids = (torch.arange(rows) // 40).where(torch.arange(rows) % 7 > 0, -1)
        values, correct = row_values(rows, generator), torch.rand(rows, generator=generator) < 0.9
        kernels.update_scores_(
            emulated, ids, values, 0.8, published, row_reduction, correct=correct
        )
        F.update_scores_(
            **expected,
            sample_ids=ids,
            values=values,
            correct=correct,
            alpha=0.8,
            first_visit="published" if published else "zero",
            row_reduction=row_reduction.name.lower(),
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


def test_taking_errors_clears_the_counts(kernels: Kernels) -> None:
    records = np.array([[3, -1], [0, 7], [1 << 40, 1 << 33], [1, 5]], np.int64)
    taken, left = kernels.take_errors(records)
    assert taken.tolist() == [[3, -1], [0, 0], [1 << 40, 1 << 33], [1, 5]]
    assert left[:, 0].tolist() == [0, 0, 0, 0]
    again, _ = kernels.take_errors(left)
    assert not again.any()


def test_columns_shorter_than_claimed_are_reported(kernels_in_turn: Kernels) -> None:
    columns = make_columns(10)
    columns["variance"] = columns["variance"][:5].clone()
    with pytest.raises(EmulatorError, match="OUT OF BOUNDS"):
        kernels_in_turn.update_scores_(columns, torch.tensor([7]), torch.tensor([1.0]), 0.5)


# ---- steps


@pytest.mark.parametrize("row_reduction", RowReduction)
@pytest.mark.parametrize("in_columns", [False, True])
@pytest.mark.parametrize(
    ("rows_per_id", "parts"), [(1, 480), (1, 600), (7, 80), (8, 80), (33, 80)], ids=str
)
def test_a_step_enters_what_its_rows_give(
    kernels: Kernels, rows_per_id: int, parts: int, in_columns: bool, row_reduction: RowReduction
) -> None:
    """Bit for bit. Sample 1 is ignored as a whole, 3 is correct, and an id is out of range."""
    times = [1, 2, 15, 16, 17, 18]  # as often the samples have an id
    times.append(parts - sum(times))
    rows, n = parts * rows_per_id, len(times)
    generator = torch.Generator().manual_seed(rows)
    ids = torch.arange(n).repeat_interleave(torch.tensor(times))
    ids = ids[torch.randperm(parts, generator=generator)]
    of_row = ids.repeat_interleave(rows_per_id)
    logits, target = make_logits(rows, 3, torch.float32), make_target(rows, 3)
    target[(of_row == 1) | (torch.rand(rows, generator=generator) < 0.1)] = -100
    is_correct = (of_row == 3) & (target >= 0)
    logits[is_correct, target[is_correct]] = 50.0
    outside = int((ids == 6).nonzero()[0])
    given = ids.clone()
    given[outside] = n
    columns, expected = make_columns(n), make_columns(n)
    for each in (columns, expected):
        each["last_correct"] = torch.arange(n) % 2 == 0
        each["forget_count"] = torch.zeros(n, dtype=torch.int32)
    _, scores, correct, _ = kernels.scored_cross_entropy_step_(
        *(logits, target, given, columns),
        group_rows=rows_per_id,
        in_columns=in_columns,
        score=Score.MARGIN,
        row_reduction=row_reduction,
    )
    bad = (torch.arange(rows) // rows_per_id == outside) & (target >= 0)
    F.update_scores_(
        **expected,
        sample_ids=of_row.masked_fill((target < 0) | bad, -1),
        values=-scores[StepColumn.MARGIN],
        correct=correct,
        alpha=0.8,
        row_reduction=row_reduction.name.lower(),
    )
    assert columns["last_correct"].tolist()[3] and not columns["count"][1]
    for name, column in expected.items():
        assert torch.equal(columns[name].nan_to_num(9.0), column.nan_to_num(9.0)), name
    in_parts = rows > 512 and rows_per_id >= 8
    assert kernels.errors[1, 0] == (bool(bad.any()) if in_parts else int(bad.sum()))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("row_reduction", ["mean", "sum", "max"])
def test_step_with_one_id_for_several_rows(
    kernels: Kernels, row_reduction: str, weighted: bool
) -> None:
    """With weights of classes, samples and rows in the same launch."""
    options = {"row_reduction": row_reduction, "ignore_index": 1, "score": "margin"}
    options["weighted"] = weighted
    for rows_per_id, rows in ((3, 9), (40, 480), (40, 600), (300, 600)):
        kernels.emulator.statistics()
        check_step(kernels, rows, 3, torch.float32, rows_per_id=rows_per_id, **options)
        launches = kernels.emulator.statistics()["launches"] - 1  # of the backward pass
        assert launches == 1 or rows > 512


def test_step_with_one_id_for_more_rows_than_one_block_finishes(kernels_in_turn: Kernels) -> None:
    check_step(kernels_in_turn, 520, 2, torch.float32, rows_per_id=65, ignore_index=1)


@pytest.mark.parametrize("row_reduction", ["mean", "sum", "max"])
@pytest.mark.parametrize("in_columns", [False, True])
def test_step_with_a_sample_several_times_in_parts(
    kernels: Kernels, in_columns: bool, row_reduction: str
) -> None:
    """Rows are added within the step: to 20 parts of 2 samples, listed, and to 60, not listed."""
    for parts, rows_per_id in ((20, 33), (60, 32)):
        check_step(
            *(kernels, parts * rows_per_id, 3, torch.float32),
            rows_per_id=rows_per_id,
            group_rows=rows_per_id,
            in_columns=in_columns,
            row_reduction=row_reduction,
            score="margin",
            ignore_index=1,
            n=2,
        )


# ---- bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_more_rows_an_id_has_the_fewer_bytes(
    kernels_in_turn: Kernels, dtype: torch.dtype
) -> None:
    """Also where the step begins to add up rows, at 8, and where lists end, at 16."""
    memory = [
        step_bytes(
            *(kernels_in_turn, 1344, 21, dtype),
            rows_per_id=rows_per_id,
            group_rows=rows_per_id,
            in_columns=True,
            reduction=Reduction.SUM,
        )[0]
        for rows_per_id in (1, 2, 4, 7, 8, 16, 32, 64, 672)
    ]
    assert memory == sorted(memory, reverse=True)


@pytest.mark.parametrize(("classes", "group_rows"), [(21, 1024), (150, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pixels_of_a_sample_add_less_than_2_percent(
    kernels_in_turn: Kernels, classes: int, group_rows: int, dtype: torch.dtype
) -> None:
    """Against a step that updates no sample. With an id per pixel, sorted or mixed, it is 5 bytes a
    row: 2.5 % of 21 classes in 16 bits."""
    rows, row_bytes = 2 * group_rows, classes * torch.empty(0, dtype=dtype).element_size()
    options = {"group_rows": group_rows, "in_columns": True, "reduction": Reduction.SUM}
    ids = torch.arange(2)
    by_pixel = ids.repeat_interleave(group_rows)
    mixed = by_pixel[torch.randperm(rows, generator=torch.Generator().manual_seed(1))]
    for given in (ids, by_pixel, mixed):
        options["rows_per_id"] = rows // len(given)
        together, none = (
            step_bytes(kernels_in_turn, rows, classes, dtype, ids=its_ids, **options)
            for its_ids in (given, torch.full_like(given, -1))
        )
        more_memory, more_requests = (a - b for a, b in zip(together, none, strict=True))
        assert more_memory > 0 and more_requests > 0
        if given is ids:
            assert together[0] <= 1.01 * none[0] and together[1] <= 1.03 * none[1]
            assert classes > 21 or more_memory <= 0.5 / row_bytes  # rows are added within the step
        else:
            assert more_memory <= 6.5 / row_bytes and more_requests <= 30 / row_bytes
            assert together[0] <= (1.025 if row_bytes < 84 else 1.02) * none[0]


def test_a_block_adds_its_pixels_by_few_atomic_operations(kernels_in_turn: Kernels) -> None:
    """At most four digits of their sum, their number, and whether one is not correct."""
    kernels_in_turn.emulator.traffic()
    kernels_in_turn.scored_cross_entropy_step_(
        *(make_logits(2048, 21, torch.float32), make_target(2048, 21), torch.arange(2)),
        make_columns(2),
        group_rows=1024,
        in_columns=True,
    )
    blocks, samples = 8, 2
    assert blocks < kernels_in_turn.emulator.traffic()["atomics"] <= 6 * blocks + 2 * samples


@pytest.mark.parametrize("rows_per_sample", [2, 3, 16, 17, 128])
@pytest.mark.parametrize(
    ("rows", "classes", "dtype", "more_requests"),
    [
        (128, 4096, torch.bfloat16, 1.01),
        (512, 21, torch.bfloat16, 1.14),
        (1024, 512, torch.bfloat16, 1.07),
        (1024, 21, torch.bfloat16, 1.3),
        (1024, 21, torch.float32, 1.3),
    ],
    ids=str,
)
def test_several_rows_of_a_sample_add_nothing_to_one_each(
    kernels_in_turn: Kernels,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    rows_per_sample: int,
    more_requests: float,
) -> None:
    """In one launch and in several, with ids sorted and mixed: fewer bytes, few more requests."""
    alone = step_bytes(kernels_in_turn, rows, classes, dtype)
    sorted_ids = torch.arange(rows) // rows_per_sample
    mixed_ids = sorted_ids[torch.randperm(rows, generator=torch.Generator().manual_seed(1))]
    for ids in (sorted_ids, mixed_ids):
        together = step_bytes(kernels_in_turn, rows, classes, dtype, ids=ids)
        assert together[0] <= alone[0] and together[1] <= more_requests * alone[1]
