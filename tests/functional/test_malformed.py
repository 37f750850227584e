# SPDX-License-Identifier: Apache-2.0
"""Malformed arguments of the operators and the table: refused by name, before anything changes."""

import re

import numpy as np
import pytest
import torch

from dynprune_cuda import functional as F
from dynprune_cuda.scores.table import ScoreTable
from dynprune_cuda.sharded import Shard, select_uniform
from dynprune_cuda.static_scores import ForgettingCounter

LOGITS, TARGET, IDS = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)


def columns():
    return torch.zeros(10), torch.zeros(10), torch.zeros(10, dtype=torch.int32)


def freed(*shape, dtype=torch.float32):
    tensor = torch.ones(shape, dtype=dtype)
    tensor.untyped_storage().resize_(0)
    return tensor


def freed_rows():
    """The last four rows of logits whose storage is gone: their address is not 0."""
    logits = torch.ones(8, 3)
    rows = logits[4:]
    logits.untyped_storage().resize_(0)
    return rows


def step(logits=LOGITS, target=TARGET, ids=IDS, table=None, **options):
    table = columns() if table is None else table
    return F.scored_cross_entropy_step_(logits, target, ids, *table, alpha=0.5, **options)


@pytest.mark.parametrize("name", ["logits", "target", "ids"])
@pytest.mark.parametrize("value", [None, "x", 3, np.zeros(4)])
def test_the_step_refuses_what_is_no_tensor(name, value):
    wanted = "sample_ids" if name == "ids" else name
    with pytest.raises(TypeError, match=f"{wanted} must be a torch.Tensor"):
        step(**{name: value})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", F.cross_entropy.FLOATING)
@pytest.mark.parametrize("el2n", F.cross_entropy.FLOATING)
def test_last_layer_grand_takes_any_two_dtypes(el2n, features, bias):
    scores, inputs = torch.rand(5).to(el2n), torch.randn(5, 3).to(features)
    result = F.last_layer_grand(scores, inputs, bias=bias)
    norm = inputs.double().square().sum(1)
    expected = scores.double() * (norm + 1 if bias else norm).sqrt()
    assert result.dtype == el2n
    tolerance = 2 * max(torch.finfo(dtype).eps for dtype in (el2n, features))
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=0)


def test_a_part_of_a_table_names_its_ids():
    table = ScoreTable(10)
    for ids, error in (
        (None, TypeError),
        ([1, 2], TypeError),
        (torch.ones(3), ValueError),
        (torch.ones(3, dtype=torch.bool), ValueError),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError),
        (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError),
        (torch.tensor([3, 10]), IndexError),
        (torch.tensor([-1]), IndexError),
    ):
        with pytest.raises(error, match="sample_ids"):
            table.part(ids)
    assert table.part(torch.tensor([], dtype=torch.int64)).num_samples == 0


DEVICES = ["cud", "nonsense:0", "", "xpu", "hpu", "vulkan", -1, 1.5, ["cpu"]]
TAKE_DEVICES = {
    "ScoreTable": lambda device: ScoreTable(10, device=device),
    "ForgettingCounter": lambda device: ForgettingCounter(10, device=device),
    "select_uniform": lambda device: F.select_uniform(10, 3, device=device),
    "permutation": lambda device: F.permutation(10, device=device),
    "select": lambda device: F.select(F.Uniform(), 10, 10, device=device),
    "fixed ids": lambda device: F.select(F.FixedIds([1]), 10, 1, device=device),
    "check_errors": F.check_errors,
    "sharded": lambda device: select_uniform(3, shard=Shard(10, 0, 1), device=device),
}


@pytest.mark.parametrize("device", DEVICES, ids=repr)
@pytest.mark.parametrize("call", TAKE_DEVICES.values(), ids=TAKE_DEVICES)
def test_a_device_that_torch_refuses_is_named(call, device):
    with pytest.raises((TypeError, ValueError), match="device must be") as caught:
        call(device)
    assert repr(device) in str(caught.value)


def test_bools_of_numpy_and_torch_are_no_ints():
    for value in (np.True_, torch.tensor(True), True):
        with pytest.raises(TypeError, match="k must be an int"):
            F.select_uniform(5, value)


@pytest.mark.parametrize("position", range(3))
def test_columns_must_not_be_negated_views(position):
    table = list(columns())
    table[position] = torch._neg_view(table[position])
    name = ("mean", "variance", "count")[position]
    for call in (
        lambda: step(table=table),
        lambda: F.update_scores_(*table, IDS, torch.ones(4), alpha=0.5),
    ):
        with pytest.raises(ValueError, match=rf"{name} .*{name}\.resolve_neg\(\)"):
            call()
        assert all(bool((column == 0).all()) for column in table)


def test_negated_views_are_read_as_what_they_show():
    negated = torch._neg_view
    logits = torch.complex(LOGITS, LOGITS.flip(0)).conj().imag
    assert logits.is_neg()
    assert torch.equal(
        F.scored_cross_entropy(logits, TARGET).loss, step(logits, reduction="none")[0]
    )
    expected = F.scored_cross_entropy(logits.clone(), TARGET).loss
    torch.testing.assert_close(F.scored_cross_entropy(logits, TARGET).loss, expected)
    scores = torch.rand(9)
    assert torch.equal(F.select_top_k(negated(scores), 3), F.select_top_k(-scores, 3))
    table = columns()
    F.update_scores_(*table, negated(-IDS), negated(torch.ones(4)), alpha=0.5)
    assert table[0].tolist() == [-1.0] * 4 + [0.0] * 6


FREED = {
    "logits": lambda: F.scored_cross_entropy(freed(4, 3), TARGET),
    "logits of a step": lambda: step(freed(4, 3)),
    "logits of a step, as a view": lambda: step(freed_rows()),
    "target": lambda: F.scored_cross_entropy(LOGITS, freed(4, dtype=torch.int64)),
    "target of a step": lambda: step(target=freed(4, dtype=torch.int64)),
    "sample_ids": lambda: step(ids=freed(4, dtype=torch.int64)),
    "weight": lambda: F.scored_cross_entropy(LOGITS, TARGET, weight=freed(3)),
    "weight of a step": lambda: step(weight=freed(3)),
    "sample_weight": lambda: step(sample_weight=freed(4)),
    "lam": lambda: F.scored_cross_entropy(LOGITS, TARGET, target_b=TARGET, lam=freed(4)),
    "target_b": lambda: F.scored_cross_entropy(
        LOGITS, TARGET, target_b=freed(4, dtype=torch.int64), lam=0.5
    ),
    "grad_scale": lambda: step(grad_scale=freed(1)),
    "ticket": lambda: step(ticket=freed(1, dtype=torch.int32)),
    "mean": lambda: step(table=(freed(10), *columns()[1:])),
    "count": lambda: step(table=(*columns()[:2], freed(10, dtype=torch.int32))),
    "values": lambda: F.update_scores_(*columns(), IDS, freed(4), alpha=0.5),
    "correct": lambda: F.update_scores_(
        *columns(),
        IDS,
        torch.ones(4),
        alpha=0.5,
        correct=freed(4, dtype=torch.bool),
        last_correct=torch.zeros(10, dtype=torch.bool),
    ),
    "scores": lambda: F.select_top_k(freed(9), 3),
    "variance": lambda: F.select_ucb(torch.zeros(9), freed(9), 3),
    "weights": lambda: F.select_weighted(freed(9), 3),
    "seed": lambda: F.select_uniform(9, 3, seed=freed(dtype=torch.int64)),
    "el2n": lambda: F.last_layer_grand(freed(4), torch.ones(4, 2)),
    "features": lambda: F.last_layer_grand(torch.ones(4), freed(4, 2)),
}


@pytest.mark.parametrize("name", FREED)
def test_tensors_whose_storage_was_freed_are_refused(name):
    with pytest.raises(ValueError, match="storage was freed") as caught:
        FREED[name]()
    wanted = re.sub(" of a step(, as a view)?", "", name)
    assert re.search(rf"(?<!\w){wanted}(?!\w)", str(caught.value)), str(caught.value)


def test_empty_tensors_without_storage_are_no_error():
    assert len(F.select_top_k(freed(0), 0)) == 0
    step(freed(0, 3), freed(0, dtype=torch.int64), freed(0, dtype=torch.int64), reduction="sum")


def loss_of(logits):
    return F.scored_cross_entropy(logits, TARGET, reduction="sum").loss


TRANSFORMED = {
    "grad": lambda: torch.func.grad(loss_of)(LOGITS),
    "vjp": lambda: torch.func.vjp(loss_of, LOGITS),
    "grad of vmap": lambda: torch.func.grad(lambda x: torch.func.vmap(loss_of)(x).sum())(
        LOGITS[None]
    ),
    "step under grad": lambda: torch.func.grad(lambda x: step(x).loss)(LOGITS),
    "step under vmap": lambda: torch.func.vmap(lambda x: step(x).loss)(LOGITS[None]),
    "update under vmap": lambda: torch.func.vmap(
        lambda x: F.update_scores_(*columns(), IDS, x, alpha=0.5)
    )(torch.ones(2, 4)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_of_torch_func_are_refused_with_a_way_out(name):
    with pytest.raises(NotImplementedError, match=r"torch\.func.* use torch\.nn\.functional"):
        TRANSFORMED[name]()


# torch 2.15 says it as a Python warning, earlier ones write it to stderr.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_what_works_inside_transforms_of_torch_func():
    batches = torch.randn(2, 4, 3)
    losses = torch.func.vmap(lambda x: F.scored_cross_entropy(x, TARGET).loss)(batches)
    for found, batch in zip(losses, batches, strict=True):
        torch.testing.assert_close(found, F.scored_cross_entropy(batch, TARGET).loss)
    rows = torch.rand(2, 9)
    for found, row in zip(torch.func.vmap(lambda x: F.select_top_k(x, 3))(rows), rows, strict=True):
        assert torch.equal(found, F.select_top_k(row, 3))
    table = columns()

    def recorded(x):
        losses = torch.nn.functional.cross_entropy(x, TARGET, reduction="none")
        F.update_scores_(*table, IDS, losses, alpha=0.5)
        return losses.sum()

    torch.func.grad(recorded)(LOGITS)
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGET, reduction="none")
    torch.testing.assert_close(table[0][:4], expected)
