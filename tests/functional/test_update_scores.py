# SPDX-License-Identifier: Apache-2.0
"""update_scores_: the published rule to the last bit, and what it does with odd batches."""

import re

import pytest
import reference
import torch
from score_columns import COLUMNS, assert_columns, empty_columns, run, used_columns

from dynprune_cuda import functional as F

INF, NAN = float("inf"), float("nan")
every_count = pytest.mark.parametrize("count_dtype", [torch.int32, torch.int64], ids=str)
every_first_visit = pytest.mark.parametrize("first_visit", ["zero", "published"])


def assert_reference(columns, ids, values, device, alpha=0.8, first_visit="zero"):
    got = run(columns, ids, values, device, alpha=alpha, first_visit=first_visit)
    expected = {name: column.numpy().copy() for name, column in columns.items()}
    as_float32 = torch.as_tensor(values).float().numpy()
    reference.update_scores(expected, ids, as_float32, alpha, first_visit)
    assert_columns(got, expected)
    return got


@every_count
@every_first_visit
@pytest.mark.parametrize("alpha", [0.8, 1.0, 0.1, 1e-3])
def test_the_rule_is_exact_in_float32(device, alpha, first_visit, count_dtype):
    for n in (1, 2, 33, 257, 5000):
        columns = used_columns(n, count_dtype)
        generator = torch.Generator().manual_seed(n)
        ids = torch.randperm(n, generator=generator)[: n // 2 + 1].tolist()
        values = torch.randn(len(ids), generator=generator) * 3
        assert_reference(columns, ids, values, device, alpha, first_visit)


def test_the_rule_by_hand(device):
    """d = (value - mean)^2 by the old mean; alpha weighs the new value."""
    columns = empty_columns(3)
    columns["mean"][1], columns["variance"][1], columns["count"][1] = 2.0, 8.0, 4
    got = run(columns, [1], [6.0], device, alpha=0.25)
    assert got["mean"].tolist() == [0, 0.75 * 2 + 0.25 * 6, 0]
    assert got["variance"].tolist() == [0, 0.75 * 8 + 0.25 * 16, 0]
    assert got["count"].tolist() == [0, 5, 0]


def test_the_first_visit_both_ways(device):
    for first_visit, variance in (("zero", 0.0), ("published", 0.25 * 36)):
        columns = empty_columns(2)
        columns["mean"][1] = columns["variance"][1] = 99.0  # without a visit they mean nothing
        got = run(columns, [1], [-6.0], device, alpha=0.25, first_visit=first_visit)
        assert got["mean"].tolist() == [0, -6] and got["count"].tolist() == [0, 1]
        assert got["variance"].tolist() == [0, variance]
        again = run(got, [1], [-2.0], device, alpha=0.25, first_visit=first_visit)
        assert again["variance"].tolist() == [0, 0.75 * variance + 0.25 * 16]
    default = run(empty_columns(1), [0], [3.0], device, alpha=0.5)
    assert default["variance"].item() == 0


def test_the_rows_of_an_id_are_one_visit_with_their_mean(device):
    columns = used_columns(6)
    columns["count"][:] = torch.tensor([0, 1, 2, 0, 3, 4], dtype=torch.int32)
    ids, values = [1, 0, 1, 3, 1, 0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    got = assert_reference(columns, ids, values, device)
    assert_columns(got, run(columns, [3, 1, 0], [4.0, 3.0, 4.0], device, alpha=0.8))
    assert got["count"].tolist() == [1, 2, 2, 1, 3, 4]


@pytest.mark.parametrize("values", [[1.0, NAN, INF], [NAN, 1.0, 2.0], [1.0, 2.0, -INF]])
def test_one_row_that_is_not_finite_makes_the_visit_not_finite(device, values):
    columns = used_columns(4)
    columns["count"][2] = 7
    got = assert_reference(columns, [2, 2, 2], values, device)
    assert got["non_finite_count"][2] == columns["non_finite_count"][2] + 1
    assert got["mean"][2] == columns["mean"][2] and got["count"][2] == 7


def test_the_id_minus_1_is_no_sample(device):
    columns = used_columns(5)
    got = assert_reference(columns, [-1, 3, -1, -1], [1.0, 2.0, NAN, INF], device)
    assert_columns(got, run(columns, [3], [2.0], device, alpha=0.8))
    assert_columns(run(columns, [-1, -1], [NAN, 2.0], device, alpha=0.8), columns)
    F.check_errors(device)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("count_dtype", [torch.int32, torch.int64], ids=str)
def test_values_that_are_not_finite_enter_no_average(device, bad, count_dtype):
    columns = empty_columns(3, count_dtype)
    columns["mean"][1], columns["variance"][1], columns["count"][1] = 2.0, 8.0, 4
    got = run(columns, [1, 0], [bad, bad], device, alpha=0.5)
    for name in ("mean", "variance", "count"):
        assert torch.equal(got[name], columns[name])
    assert got["non_finite_count"].tolist() == [1, 1, 0]
    assert got["last_non_finite"].tolist() == [True, True, False]
    again = run(got, [1], [bad], device, alpha=0.5)
    assert again["non_finite_count"].tolist() == [1, 2, 0]
    # A finite value continues the old average, or is the first visit if there was none.
    finite = run(again, [1, 0], [6.0, 6.0], device, alpha=0.5, first_visit="published")
    assert finite["mean"].tolist() == [6, 4, 0] and finite["variance"].tolist() == [18, 12, 0]
    assert finite["count"].tolist() == [1, 5, 0]
    assert finite["non_finite_count"].tolist() == [1, 2, 0]
    assert not finite["last_non_finite"].any()


def test_the_non_finite_columns_are_optional(device):
    columns = used_columns(50)
    ids, values = torch.arange(0, 50, 2), torch.randn(25)
    values[3:6] = torch.tensor([NAN, INF, -INF])
    full = run(columns, ids.tolist(), values, device, alpha=0.8)
    for names in (COLUMNS[:3], COLUMNS[:4], (*COLUMNS[:3], "last_non_finite")):
        got = run({name: columns[name] for name in names}, ids.tolist(), values, device, alpha=0.8)
        for name in names:
            assert torch.equal(got[name], full[name])


def test_values_beyond_float32_are_not_finite(device):
    """Values are read as float32, whatever they come as."""
    values = torch.tensor([1e300, -1e39, 1e-300], dtype=torch.float64)
    got = assert_reference(empty_columns(3), [0, 1, 2], values, device)
    assert got["last_non_finite"].tolist() == [True, True, False]
    assert got["count"].tolist() == [0, 0, 1]


def test_averages_saturate_instead_of_becoming_infinite(device):
    columns = empty_columns(2)
    columns["mean"][0], columns["count"][0] = -3e38, 1
    got = run(columns, [0], [3e38], device, alpha=0.5)
    assert got["mean"][0].item() == 0
    assert got["variance"][0].item() == pytest.approx(0.5 * torch.finfo(torch.float32).max)
    assert got["count"][0] == 2 and not got["last_non_finite"].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_values_of_every_dtype(device, dtype):
    values = (torch.randn(40, generator=torch.Generator().manual_seed(1)) * 5).to(dtype)
    assert_reference(used_columns(100), list(range(0, 80, 2)), values, device)


def test_strided_ids_and_values_and_values_that_require_grad(device):
    columns = used_columns(100)
    ids, values = torch.arange(40), torch.randn(40)
    expected = run(columns, ids.tolist(), values, device, alpha=0.8)
    wide_ids = torch.stack([ids, ids + 50], dim=1)[:, 0]
    wide_values = torch.stack([values, values * 9], dim=1)[:, 0].detach().requires_grad_()
    on_device = {name: column.clone().to(device) for name, column in columns.items()}
    F.update_scores_(
        **on_device, sample_ids=wide_ids.to(device), values=wide_values.to(device), alpha=0.8
    )
    assert_columns({name: column.cpu() for name, column in on_device.items()}, expected)


def test_columns_may_begin_inside_an_allocation(device):
    """Views, as of one packed buffer; what lies around them stays."""
    columns = used_columns(10)
    expected = run(columns, [0, 9, 4], [1.0, 2.0, NAN], device, alpha=0.8)
    packed, views = {}, {}
    for name, column in columns.items():
        packed[name] = torch.ones(14, dtype=column.dtype, device=device)
        packed[name][3:13] = column.to(device)
        views[name] = packed[name][3:13]
    ids, values = torch.tensor([0, 9, 4], device=device), torch.tensor([1.0, 2.0, NAN])
    F.update_scores_(**views, sample_ids=ids, values=values.to(device), alpha=0.8)
    assert_columns({name: view.cpu() for name, view in views.items()}, expected)
    for buffer in packed.values():
        assert buffer[:3].all() and buffer[13:].all()


def test_empty_batches_and_tables_change_nothing(device):
    columns = used_columns(5)
    assert_columns(run(columns, [], torch.zeros(0), device, alpha=0.8), columns)
    assert_columns(run(empty_columns(0), [], torch.zeros(0), device, alpha=0.8), empty_columns(0))
    assert_columns(run(empty_columns(0), [-1], [1.0], device, alpha=0.8), empty_columns(0))


@pytest.mark.parametrize("bad", [-2, 100, 101, 2**31, 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("rows", [1, 3, 30_000])
def test_an_id_out_of_range_is_an_index_error_that_changes_nothing(device, rows, bad):
    columns = used_columns(100)
    ids = [i % 100 for i in range(rows)]
    ids[rows // 2 :: 7] = [bad] * len(ids[rows // 2 :: 7])
    values = torch.randn(rows)
    on_device = {name: column.clone().to(device) for name, column in columns.items()}
    batch = {"sample_ids": torch.tensor(ids, device=device), "values": values.to(device)}
    if device.type == "cuda":
        F.update_scores_(**on_device, **batch, alpha=0.8)
        with pytest.raises(IndexError, match=str(bad)):
            F.check_errors(device)
        kept = [-1 if i == bad else i for i in ids]
        expected = run(columns, kept, values, device, alpha=0.8)
        assert_columns({name: column.cpu() for name, column in on_device.items()}, expected)
        return
    with pytest.raises(IndexError, match=rf"sample_ids\[{rows // 2}\] = {bad}\b"):
        F.update_scores_(**on_device, **batch, alpha=0.8)
    assert_columns(on_device, columns)


@every_first_visit
def test_a_large_batch_with_duplicates_is_what_one_thread_does(device, first_visit):
    n, rows = 60_000, 200_000
    generator = torch.Generator().manual_seed(4)
    columns = used_columns(n)
    ids = torch.randint(-1, n, (rows,), generator=generator)
    ids[::50] = 7  # one sample 4000 times
    values = torch.randn(rows, generator=generator)
    values[::11] = torch.tensor([NAN, INF, -INF])[torch.arange(len(values[::11])) % 3]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(
                run(columns, ids.tolist(), values, device, alpha=0.8, first_visit=first_visit)
            )
    finally:
        torch.set_num_threads(before)
    for got in results[1:]:
        assert_columns(got, results[0])
    assert_reference(columns, ids.tolist(), values, device, 0.8, first_visit)


def test_many_updates_are_many_steps(device):
    """State carries over: 50 batches in turn."""
    columns = empty_columns(64)
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        ids = torch.randint(64, (20,), generator=generator).tolist()
        values = torch.randn(20, generator=generator).exp()
        columns = assert_reference(columns, ids, values, device, 0.3)
    assert columns["count"].sum() > 500


def call(**changed):
    columns = {name: column for name, column in used_columns(6).items() if name in COLUMNS[:3]}
    arguments = {
        **columns,
        "sample_ids": torch.tensor([0, 1]),
        "values": torch.ones(2),
        "alpha": 0.5,
    }
    F.update_scores_(**{**arguments, **changed})


STRIDED = torch.zeros(12)[::2]
ERRORS = [
    (ValueError, "mean", "float64", {"mean": torch.zeros(6, dtype=torch.float64)}),
    (ValueError, "mean", "(2, 3)", {"mean": torch.zeros(2, 3)}),
    (ValueError, "mean", "(2,)", {"mean": STRIDED}),
    (TypeError, "mean", "list", {"mean": [0.0] * 6}),
    (ValueError, "variance", "float16", {"variance": torch.zeros(6).half()}),
    (ValueError, "variance", "5", {"variance": torch.zeros(5)}),
    (ValueError, "variance", "(2,)", {"variance": STRIDED}),
    (ValueError, "variance", "meta", {"variance": torch.zeros(6, device="meta")}),
    (ValueError, "variance", "(0,)", {"variance": torch.zeros(1).expand(6)}),
    (ValueError, "count", "float32", {"count": torch.zeros(6)}),
    (ValueError, "count", "uint8", {"count": torch.zeros(6, dtype=torch.uint8)}),
    (ValueError, "count", "7", {"count": torch.zeros(7, dtype=torch.int32)}),
    (ValueError, "count", "(2,)", {"count": torch.zeros(12, dtype=torch.int32)[::2]}),
    (ValueError, "non_finite_count", "int64", {"non_finite_count": torch.zeros(6).long()}),
    (ValueError, "non_finite_count", "5", {"non_finite_count": torch.zeros(5).int()}),
    (ValueError, "non_finite_count", "(2,)", {"non_finite_count": torch.zeros(12).int()[::2]}),
    (ValueError, "last_non_finite", "uint8", {"last_non_finite": torch.zeros(6).byte()}),
    (ValueError, "last_non_finite", "5", {"last_non_finite": torch.zeros(5).bool()}),
    (ValueError, "last_non_finite", "(2,)", {"last_non_finite": torch.zeros(12).bool()[::2]}),
    (ValueError, "sample_ids", "int32", {"sample_ids": torch.tensor([0, 1]).int()}),
    (ValueError, "sample_ids", "(1, 2)", {"sample_ids": torch.tensor([[0, 1]])}),
    (TypeError, "sample_ids", "list", {"sample_ids": [0, 1]}),
    (ValueError, "values", "3", {"values": torch.ones(3)}),
    (ValueError, "values", "int64", {"values": torch.ones(2).long()}),
    (ValueError, "values", "(2, 1)", {"values": torch.ones(2, 1)}),
    (TypeError, "values", "float", {"values": 1.0}),
    (ValueError, "alpha", "0", {"alpha": 0}),
    (ValueError, "alpha", "0.0", {"alpha": 0.0}),
    (ValueError, "alpha", "-0.5", {"alpha": -0.5}),
    (ValueError, "alpha", "1.0001", {"alpha": 1.0001}),
    (ValueError, "alpha", "nan", {"alpha": NAN}),
    (TypeError, "alpha", "True", {"alpha": True}),
    (TypeError, "alpha", "'0.5'", {"alpha": "0.5"}),
    (ValueError, "first_visit", "'Zero'", {"first_visit": "Zero"}),
    (TypeError, "first_visit", "None", {"first_visit": None}),
]


@pytest.mark.parametrize(("error", "name", "value", "changed"), ERRORS)
def test_bad_arguments_are_named(error, name, value, changed):
    with pytest.raises(error) as caught:
        call(**changed)
    assert caught.type is error
    assert re.search(rf"\b{name}\b", str(caught.value)), caught.value
    assert value in str(caught.value), caught.value


def test_alpha_is_required():
    with pytest.raises(TypeError, match="alpha"):
        F.update_scores_(*(torch.zeros(1),) * 5)


def test_a_huge_value_is_forgotten_in_time(device):
    columns = [torch.zeros(1, device=device), torch.zeros(1, device=device)]
    count = torch.zeros(1, dtype=torch.int32, device=device)
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    for value in [3e38, -3e38] + [1.0] * 100:
        values = torch.tensor([value], device=device)
        F.update_scores_(*columns, count, ids, values, alpha=0.8)
        assert all(column.isfinite().all() for column in columns)
    assert columns[0].item() == pytest.approx(1.0) and columns[1].item() < 1e-3


def test_autograd_notices_that_the_columns_changed(device):
    mean, variance = torch.ones(3, device=device), torch.zeros(3, device=device)
    count = torch.ones(3, dtype=torch.int64, device=device)
    weight = torch.ones(3, device=device, requires_grad=True)
    out = (weight * mean).sum()
    ids = torch.tensor([0], device=device)
    F.update_scores_(mean, variance, count, ids, torch.ones(1, device=device), alpha=0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
