# SPDX-License-Identifier: Apache-2.0
"""ScoreTable: moving averages, first visits, broken values, moving between devices."""

import copy
import math
import pickle

import pytest
import torch
from waiting import no_cuda_waiting

from dynprune_cuda.scores import ScoreTable

FIELDS = ("mean", "variance", "count", "non_finite_count", "last_non_finite")


def snapshot(table):
    return {name: getattr(table, name).clone() for name in FIELDS}


def assert_unchanged(table, before):
    for name, old in before.items():
        torch.testing.assert_close(getattr(table, name), old, rtol=0, atol=0, equal_nan=True)


def enter(table, *rows):
    ids, values = zip(*rows, strict=True)
    table.update(
        torch.tensor(ids, device=table.device),
        torch.tensor(values, dtype=torch.float32, device=table.device),
    )


def recurrence(values, alpha, first_visit):
    """The published update in Python floats: (mean, variance) after `values`."""
    mean, variance = values[0], alpha * values[0] ** 2 if first_visit == "published" else 0.0
    for value in values[1:]:
        variance = (1 - alpha) * variance + alpha * (value - mean) ** 2
        mean = (1 - alpha) * mean + alpha * value
    return mean, variance


def test_a_new_table_has_seen_nothing(device):
    table = ScoreTable(5, device=device)
    assert table.mean.isnan().all() and table.ranking_mean().isnan().all()
    dtypes = [getattr(table, name).dtype for name in FIELDS]
    assert dtypes == [torch.float32, torch.float32, torch.int32, torch.int32, torch.bool]
    for name in FIELDS:
        assert getattr(table, name).shape == (5,)
        assert getattr(table, name).device.type == torch.device(device).type
    for name in FIELDS[1:]:
        assert not getattr(table, name).any(), name


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0])
@pytest.mark.parametrize("first_visit", ["zero", "published"])
def test_update_follows_the_published_recurrence(device, alpha, first_visit):
    generator = torch.Generator().manual_seed(1)
    table = ScoreTable(50, device=device, alpha=alpha, first_visit=first_visit)
    history = {}
    for _ in range(12):
        ids = torch.randperm(50, generator=generator)[:17]
        values = torch.randn(17, generator=generator) * 3
        table.update(ids.to(device), values.to(device))
        for sample_id, value in zip(ids.tolist(), values.tolist(), strict=True):
            history.setdefault(sample_id, []).append(value)
    assert 0 < len(history) <= 50
    for sample_id in range(50):
        seen = history.get(sample_id, [])
        assert table.count[sample_id] == len(seen)
        if seen:
            mean, variance = recurrence(seen, alpha, first_visit)
            assert float(table.mean[sample_id]) == pytest.approx(mean, rel=1e-5, abs=1e-6)
            assert float(table.variance[sample_id]) == pytest.approx(variance, rel=1e-5, abs=1e-6)
        else:
            assert table.mean[sample_id].isnan() and table.variance[sample_id] == 0


@pytest.mark.parametrize(
    ("row_reduction", "value"), [("mean", 6.0), ("sum", 12.0), ("max", 9.0), (0.5, 9.0)]
)
def test_repeated_ids_are_one_visit(device, row_reduction, value):
    table = ScoreTable(4, device=device, row_reduction=row_reduction)
    enter(table, (2, 9.0), (1, 5.0), (2, 3.0))
    assert table.mean[2] == value and table.variance[2] == 0 and table.count[2] == 1
    assert table.mean[1] == 5.0 and table.count.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_counted_and_ranks_first(device, broken):
    table = ScoreTable(3, device=device, alpha=0.5)
    enter(table, (0, 1.0), (1, 2.0))
    enter(table, (0, 4.0))
    before = snapshot(table)
    enter(table, (0, broken))
    for name in ("mean", "variance", "count"):
        assert getattr(table, name)[0] == before[name][0], name
    assert table.non_finite_count.tolist() == [1, 0, 0]
    assert table.last_non_finite.tolist() == [True, False, False]
    assert table.ranking_mean()[0].isnan() and table.ranking_mean()[1] == 2.0
    enter(table, (0, 0.5))
    assert table.ranking_mean()[0] == 1.5 and table.count[0] == 3
    assert table.non_finite_count[0] == 1 and not table.last_non_finite[0]


def test_the_first_finite_value_after_broken_ones_is_the_first_visit(device):
    table = ScoreTable(2, device=device)
    enter(table, (1, math.nan))
    enter(table, (1, math.inf))
    assert table.count[1] == 0 and table.ranking_mean()[1].isnan()
    enter(table, (1, 7.0))
    assert table.mean[1] == 7.0 and table.variance[1] == 0 and table.non_finite_count[1] == 2


def test_rows_without_a_sample_are_skipped(device):
    table = ScoreTable(3, device=device)
    enter(table, (-1, 9.0), (2, 1.0), (-1, math.nan))
    assert table.count.tolist() == [0, 0, 1] and not table.non_finite_count.any()


@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("values_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_converted(device, ids_dtype, values_dtype):
    table = ScoreTable(4, device=device)
    table.update(
        torch.tensor([3, 1], dtype=ids_dtype, device=device),
        torch.tensor([0.5, 2.0], dtype=values_dtype, device=device),
    )
    assert table.mean.dtype == torch.float32
    assert table.mean[1] == 2.0 and table.mean[3] == 0.5 and table.count.sum() == 2


def test_strided_inputs(device):
    table = ScoreTable(8, device=device)
    table.update(
        torch.arange(8, device=device)[::2], torch.arange(8.0, device=device).view(4, 2)[:, 1]
    )
    assert table.mean[::2].tolist() == [1.0, 3.0, 5.0, 7.0] and not table.count[1::2].any()


def test_ids_above_2_to_the_24_stay_exact(device):
    table = ScoreTable(2**24 + 3, device=device)
    enter(table, (2**24 + 1, 1.0))
    assert table.count[-3:].tolist() == [0, 1, 0]


def test_values_are_detached(device):
    table = ScoreTable(2, device=device)
    values = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    table.update(torch.tensor([0, 1], device=device), values * 2)
    assert not table.mean.requires_grad and table.mean.tolist() == [2.0, 4.0]
    (values * 2).sum().backward()  # the table holds no part of the graph


@pytest.mark.parametrize(
    ("ids", "values", "error", "message"),
    [
        ([0, 1], torch.zeros(2), TypeError, "ids must be a tensor, got list"),
        (torch.tensor([0, 1]), [0.0, 1.0], TypeError, "values must be a tensor, got list"),
        (torch.zeros(2), torch.zeros(2), ValueError, "ids .* integer dtype, got torch.float32"),
        (torch.ones(2) > 0, torch.zeros(2), ValueError, "ids .* integer dtype, got torch.bool"),
        (torch.tensor([0, 1]), torch.tensor([0, 1]), ValueError, "values .* got torch.int64"),
        (torch.tensor([0, 1]), torch.zeros(3), ValueError, "2 ids and 3 values"),
        (torch.tensor([[0, 1]]), torch.zeros(2), ValueError, r"ids must be 1-D.*\(1, 2\)"),
        (torch.tensor([0, 1]), torch.zeros(()), ValueError, "one value per sample.*'none'"),
        (torch.tensor([0, 1]), torch.zeros(2, 1), ValueError, r"one value per sample.*\(2, 1\)"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(device, ids, values, error, message):
    table = ScoreTable(3, device=device)
    enter(table, (0, 1.0))
    before = snapshot(table)
    with pytest.raises(error, match=message):
        table.update(ids, values)
    assert_unchanged(table, before)


@pytest.mark.parametrize("bad", [3, -2, 2**40])
def test_an_id_out_of_range_changes_nothing(bad):
    table = ScoreTable(3)
    before = snapshot(table)
    with pytest.raises(IndexError, match=str(bad)):
        enter(table, (0, 1.0), (bad, 1.0))
    assert_unchanged(table, before)


def test_an_empty_batch_is_no_error(device):
    table = ScoreTable(3, device=device)
    table.update(torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device))
    assert not table.count.any()


def test_stats_describe_the_visited_samples(device):
    table = ScoreTable(6, device=device, alpha=0.5)
    empty = table.stats()
    assert (empty["visited"], empty["never_visited"]) == (0, 6)
    for name in ("score_mean", "score_min", "score_max", "score_variance"):
        assert math.isnan(empty[name]), name
    enter(table, (0, 1.0), (1, -4.0), (2, 3.0))
    enter(table, (0, 3.0), (1, math.nan), (5, math.inf))
    expected = {
        "visited": 3,
        "never_visited": 3,
        "values": 4,
        "non_finite_values": 2,
        "non_finite_samples": 2,
        "score_mean": pytest.approx((2.0 - 4.0 + 3.0) / 3),
        "score_min": -4.0,
        "score_max": 3.0,
        "score_variance": pytest.approx(2.0 / 3),
    }
    stats = table.stats()
    assert {name: stats[name] for name in expected} == expected


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal_and_independent(device, clone):
    table = ScoreTable(3, device=device, alpha=0.3, first_visit="published")
    enter(table, (0, 1.0), (1, math.nan))
    before = snapshot(table)
    other = clone(table)
    assert_unchanged(other, before)
    enter(other, (0, 2.0), (2, 1.0))
    assert_unchanged(table, before)
    enter(table, (0, 2.0), (2, 1.0))
    assert_unchanged(table, snapshot(other))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples .* got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples .* 2.0"),
        ({"num_samples": True}, TypeError, "num_samples .* True"),
        ({"alpha": 0.0}, ValueError, r"alpha .* \(0, 1\].* 0.0"),
        ({"alpha": 1.5}, ValueError, "alpha .* 1.5"),
        ({"alpha": math.nan}, ValueError, "alpha .* nan"),
        ({"alpha": "0.8"}, TypeError, "alpha .* '0.8'"),
        ({"first_visit": "none"}, ValueError, "first_visit .*'zero', 'published'.* 'none'"),
        ({"first_visit": None}, TypeError, "first_visit .* None"),
    ],
)
def test_bad_parameters_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ScoreTable(**{"num_samples": 3, **arguments})


@pytest.mark.needs_cuda
def test_cpu_batches_enter_a_table_on_the_gpu_without_waiting():
    device = torch.device("cuda")
    table = ScoreTable(4, device=device)
    table.update(torch.tensor([0]), torch.tensor([0.0]))  # first use may initialise and wait
    with no_cuda_waiting():
        table.update(torch.tensor([1, 2]), torch.tensor([1.0, 2.0]))
        table.update(torch.tensor([3]), torch.tensor([3.0], device=device))
        table.ranking_mean()
    assert table.mean.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.needs_cuda
def test_gpu_batches_are_refused_by_a_table_on_the_cpu():
    device = torch.device("cuda")
    table = ScoreTable(4)
    with pytest.raises(ValueError, match="device='cuda'"):
        table.update(torch.tensor([1]), torch.tensor([1.0], device=device))
    assert not table.count.any()
