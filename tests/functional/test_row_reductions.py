# SPDX-License-Identifier: Apache-2.0
"""Several rows of one sample in a batch: one visit, whose value no order of the rows changes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from score_columns import assert_columns, empty_columns, run, used_columns

from dynprune_cuda import Pruner, ScoreTable, track_gradient_norm
from dynprune_cuda import functional as F

INF, NAN = float("inf"), float("nan")
N = 70
REDUCTIONS = ["mean", "sum", "max", 0.3, 1.0]
every_reduction = pytest.mark.parametrize("row_reduction", REDUCTIONS)


def make_batch(rows, classes, device):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator) * 3
    target = torch.randint(classes, (rows,), generator=generator)
    ids = torch.randint(-1, N, (rows,), generator=generator)
    return logits.to(device), target.to(device), ids.to(device)


def tracking_columns(device):
    columns = used_columns(N)
    columns["last_correct"] = torch.arange(N) % 3 > 0
    columns["forget_count"] = torch.zeros(N, dtype=torch.int32)
    return {name: column.to(device) for name, column in columns.items()}


def awkward_values(rows, generator):
    """Of both signs, over 60 orders of magnitude, with ties, zeros of both signs and subnormals."""
    values = torch.randn(rows, generator=generator)
    values *= 10.0 ** torch.randint(-30, 31, (rows,), generator=generator)
    kind = torch.randint(12, (rows,), generator=generator)
    for number, value in enumerate((0.0, -0.0, 1e-45, 1.5, -1.5)):
        values[kind == number] = value
    return values


def expected_columns(columns, ids, values, **options):
    expected = {name: column.numpy().copy() for name, column in columns.items()}
    reference.update_scores(expected, ids.tolist(), values.numpy(), 0.8, **options)
    return expected


@every_reduction
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 1000, 30_000])
def test_a_visit_has_the_exact_value_of_its_rows(device, row_reduction, rows):
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(-1, 40, (rows,), generator=generator)
    values = torch.randn(rows, generator=generator).abs()  # no cancellation
    columns = used_columns(40)
    got = run(columns, ids, values, device, alpha=0.8, row_reduction=row_reduction)
    expected = expected_columns(columns, ids, values, row_reduction=row_reduction)
    assert_columns(got, expected)


@every_reduction
def test_awkward_rows(device, row_reduction):
    """A mean is that of the exact sum, whatever cancels."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(30, (900,), generator=generator)
    values = awkward_values(900, generator)
    values[(ids == 4) & (torch.arange(900) % 3 == 0)] = torch.tensor(NAN)
    values[ids == 5] = -INF
    columns = empty_columns(30)
    got = run(columns, ids, values, device, alpha=0.8, row_reduction=row_reduction)
    expected = expected_columns(columns, ids, values, row_reduction=row_reduction)
    for name in ("count", "non_finite_count", "last_non_finite"):
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert got["last_non_finite"].nonzero().flatten().tolist() == [4, 5]
    for i in range(30):
        exact = float(expected["mean"][i])
        assert abs(float(got["mean"][i]) - exact) <= 2.0**-24 * abs(exact) + 1e-45


@every_reduction
def test_the_order_of_rows_and_the_threads_change_no_bit(device, row_reduction):
    generator = torch.Generator().manual_seed(5)
    rows = 20_000
    ids = torch.randint(-1, 300, (rows,), generator=generator)
    ids[:5000] = torch.arange(5000) // 700  # neighbours of one sample
    values, columns = awkward_values(rows, generator), used_columns(300)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for order in (
                torch.arange(rows),
                torch.randperm(rows, generator=generator),
                ids.argsort(stable=True),
            ):
                results.append(
                    run(
                        columns,
                        ids[order],
                        values[order],
                        device,
                        alpha=0.8,
                        row_reduction=row_reduction,
                    )
                )
    finally:
        torch.set_num_threads(before)
    for got in results[1:]:
        assert_columns(got, results[0])


@pytest.mark.parametrize("rows", [2, 3, 16, 17, 500])
@pytest.mark.parametrize("row_reduction", ["mean", "sum"])
def test_rows_that_cancel_leave_what_is_exact(device, row_reduction, rows):
    """From the greatest float to the least, with sums that a double or 128 bits would lose."""
    biggest = float(np.finfo(np.float32).max)
    pairs = torch.tensor([biggest, -biggest, 1e20, -1e20, 1.0, -1.0, 1e-30, -1e-30, 1e-45, -1e-45])
    values = pairs.repeat(rows // 10 + 1)[:rows]
    ids, columns = torch.zeros(rows + 1, dtype=torch.int64), empty_columns(1)
    for extra in (3e-45, -1e-40, 7.0, -2.5, 1e30):
        for order in (torch.arange(rows + 1), torch.arange(rows, -1, -1)):
            rows_and_one = torch.cat([values, torch.tensor([extra])])[order]
            got = run(columns, ids, rows_and_one, device, alpha=0.8, row_reduction=row_reduction)
            exact = sum(Fraction(float(v)) for v in rows_and_one)
            exact /= 1 if row_reduction == "sum" else rows + 1
            assert float(got["mean"][0]) == float(np.float32(float(exact)))


def test_equal_rows_are_worth_one(device):
    values = awkward_values(200, torch.Generator().manual_seed(6))
    ids = torch.arange(200)
    once = run(empty_columns(200), ids, values, device, alpha=0.8)
    for copies in (2, 3, 7):
        again = run(
            empty_columns(200), ids.repeat(copies), values.repeat(copies), device, alpha=0.8
        )
        np.testing.assert_array_equal(once["mean"], again["mean"])  # -0 is 0
        assert torch.equal(once["count"], again["count"])


@every_reduction
def test_a_sample_is_correct_if_all_of_its_rows_are(device, row_reduction):
    columns = {
        **{name: column.to(device) for name, column in empty_columns(5).items()},
        "last_correct": torch.tensor([True, True, True, True, False], device=device),
        "forget_count": torch.zeros(5, dtype=torch.int32, device=device),
    }
    ids = torch.tensor([0, 1, 0, 2, 1, 0, 4, 4, 4], device=device)
    correct = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.bool, device=device)
    values = torch.arange(9.0, device=device)
    F.update_scores_(
        **columns,
        sample_ids=ids,
        values=values,
        correct=correct,
        alpha=0.5,
        row_reduction=row_reduction,
    )
    assert columns["last_correct"].tolist() == [True, False, False, True, True]
    assert columns["forget_count"].tolist() == [0, 1, 1, 0, 0]


@every_reduction
@pytest.mark.parametrize("score", ["loss", "margin"])
def test_the_step_enters_what_update_scores_enters(device, row_reduction, score):
    logits, target, ids = make_batch(120, 7, device)
    target[::5] = -100
    target[ids.clamp(min=0) % 10 == 3] = -100  # all rows of some samples
    stepped, updated = tracking_columns(device), tracking_columns(device)
    got = F.scored_cross_entropy_step_(
        logits, target, ids, **stepped, alpha=0.7, score=score, row_reduction=row_reduction
    )
    rows = F.scored_cross_entropy(logits, target)
    F.update_scores_(
        **updated,
        sample_ids=torch.where(target == -100, -1, ids),
        values=rows.loss if score == "loss" else -rows.margin,
        correct=rows.correct,
        alpha=0.7,
        row_reduction=row_reduction,
    )
    for name, column in updated.items():
        torch.testing.assert_close(stepped[name], column, rtol=0, atol=0, msg=name)
    assert torch.equal(got.margin, rows.margin)


def test_a_sample_whose_rows_are_all_ignored_keeps_its_score(device):
    logits, columns = torch.randn(6, 3, device=device), tracking_columns(device)
    before = {name: column.clone() for name, column in columns.items()}
    ids = torch.tensor([7, 8, 7, 8, 9, 7], device=device)
    target = torch.tensor([-100, 1, -100, -100, -100, -100], device=device)
    F.scored_cross_entropy_step_(logits, target, ids, **columns, alpha=0.5)
    for name, column in columns.items():
        assert torch.equal(column[[7, 9]], before[name][[7, 9]]), name
    assert columns["count"][8] == before["count"][8] + 1


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@every_reduction
def test_a_pruner_takes_views_and_tokens(device, sharding, row_reduction):
    options = {"sharding": sharding, "row_reduction": row_reduction, "alpha": 0.5}
    pruner = Pruner(N, 0.5, "ucb", warmup_epochs=3, device=device, **options)
    table = ScoreTable(N, device=device, alpha=0.5, row_reduction=row_reduction)
    for epoch in range(2):
        pruner.set_epoch(epoch)
        logits, target, ids = make_batch(90, 5, device)
        losses = F.scored_cross_entropy(logits, target).loss
        for rows in (ids % 20, ids % 7):
            pruner.cross_entropy(logits, target, rows)
            table.update(rows, losses)
            pruner.observe(rows.flip(0), losses)
            table.update(rows.flip(0), losses)
    pruner.set_epoch(2)
    for name in table.column_types:
        a, b = getattr(pruner.table, name), getattr(table, name)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)


def test_views_count_as_rows_of_gradient_norms(device):
    x = torch.randn(6, 4, device=device, requires_grad=True)
    ids, table = torch.tensor([3, 1, 3, 1, 3, 2]), ScoreTable(5, device=device)
    track_gradient_norm(x, ids, table)
    weight = torch.randn(6, 4, device=device)
    (x * weight).sum().backward()
    norms = weight.norm(dim=1).cpu()
    for i in (1, 2, 3):
        assert float(table.mean[i]) == pytest.approx(float(norms[ids == i].mean()), rel=1e-6)
    assert table.count.tolist() == [0, 1, 1, 1, 0]


def test_a_saved_state_knows_how_its_rows_were_reduced():
    plain, greatest = Pruner(9, 0.5), Pruner(9, 0.5, row_reduction="max")
    assert "row_reduction" not in plain.state_dict()  # as states of 0.1.0
    for here, other in ((plain, greatest), (greatest, plain)):
        with pytest.raises(ValueError, match="row_reduction"):
            here.load_state_dict(other.state_dict())
    greatest.load_state_dict(greatest.state_dict())


@pytest.mark.parametrize("bad", ["median", 0.0, 1.5, -1, math.nan, True, None])
def test_other_reductions_are_refused(bad):
    for make in (
        lambda: Pruner(9, 0.5, row_reduction=bad),
        lambda: ScoreTable(9, row_reduction=bad),
        lambda: F.update_scores_(
            **empty_columns(3),
            sample_ids=torch.arange(3),
            values=torch.ones(3),
            alpha=0.5,
            row_reduction=bad,
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=f"row_reduction must be.*{bad}"):
            make()


def test_ids_of_some_rows_only_are_refused():
    """Two views of a batch need the ids twice."""
    logits, target = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    for number in (0, 1, 3, 5, 7, 12):
        columns = empty_columns(20)
        with pytest.raises(ValueError, match=rf"sample_ids.*6.*{number}"):
            F.scored_cross_entropy_step_(logits, target, torch.arange(number), **columns, alpha=0.5)
        assert not columns["count"].any()
