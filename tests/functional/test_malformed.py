# SPDX-License-Identifier: Apache-2.0
"""Malformed arguments of the operators and the table: refused by name, before anything changes."""

import re

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from dynprune_cuda import Pruner, sharded
from dynprune_cuda import functional as F
from dynprune_cuda.scores.table import ScoreTable
from dynprune_cuda.sharded import Shard, select_uniform
from dynprune_cuda.static_scores import ForgettingCounter

LOGITS, TARGET, IDS = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)
LABELS = torch.zeros(4, 3)


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


def pruner_step(logits=LOGITS, target=TARGET, ids=IDS):
    return Pruner(10, 0.5).cross_entropy(logits, target, ids)


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


def test_the_ticket_must_not_be_a_negated_view():
    with pytest.raises(ValueError, match=r"ticket .*ticket\.resolve_neg\(\)"):
        step(ticket=torch._neg_view(torch.zeros(1, dtype=torch.int32)))


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
    weights = scores + 0.1
    expected = F.inclusion_probabilities(weights, 3)
    assert torch.equal(F.inclusion_probabilities(negated(-weights), 3), expected)
    table = columns()
    F.update_scores_(*table, negated(-IDS), negated(torch.ones(4)), alpha=0.5)
    assert table[0].tolist() == [-1.0] * 4 + [0.0] * 6


FREED = {
    "logits": lambda: F.scored_cross_entropy(freed(4, 3), TARGET),
    "logits of a step": lambda: step(freed(4, 3)),
    "logits of a step, as a view": lambda: step(freed_rows()),
    "logits of a pruner": lambda: pruner_step(freed(4, 3)),
    "logits of a pruner, as a view": lambda: pruner_step(freed_rows()),
    "target of a pruner": lambda: pruner_step(target=freed(4, dtype=torch.int64)),
    "ids of a pruner": lambda: pruner_step(ids=freed(4, dtype=torch.int64)),
    "logits of labels": lambda: Pruner(10, 0.5).binary_cross_entropy(freed(4, 3), LABELS, IDS),
    "target of labels": lambda: Pruner(10, 0.5).binary_cross_entropy(LOGITS, freed(4, 3), IDS),
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
    wanted = re.sub(" of (a step|a pruner|labels)(, as a view)?", "", name)
    assert re.search(rf"(?<!\w){wanted}(?!\w)", str(caught.value)), str(caught.value)


OPS, NO = torch.ops.dynprune_cuda, None
HARD, SOFT = (LOGITS, TARGET, NO, -100, 0.0), (LOGITS, LABELS, NO, 0.0)


def raw_step(place, value):
    """An ordinary step has no check in Python before the operator."""
    arguments = [LOGITS, TARGET, IDS, *columns(), *(NO,) * 5, 0.5, False, 0, 0, 1, 1, *(NO,) * 4]
    arguments += [-100, 0.0, *(NO,) * 3, 1]
    arguments[place] = value
    OPS.scored_cross_entropy_step_(*arguments)


FREED_IN_OPERATORS = {
    "logits": lambda: raw_step(0, freed(4, 3)),
    "logits, as a view": lambda: raw_step(0, freed_rows()),
    "target": lambda: raw_step(1, freed(4, dtype=torch.int64)),
    "sample_ids": lambda: raw_step(2, freed(4, dtype=torch.int64)),
    "mean": lambda: raw_step(3, freed(10)),
    "divisor": lambda: raw_step(19, freed()),
    "grad_scale": lambda: raw_step(25, freed()),
    "lam": lambda: OPS.scored_cross_entropy(*HARD, TARGET, freed()),
    "saved": lambda: OPS.scored_cross_entropy_backward(torch.ones(4), *HARD, freed(4, 4)),
    "soft logits": lambda: OPS.soft_cross_entropy(freed(4, 3), *SOFT[1:]),
    "soft target": lambda: OPS.soft_cross_entropy(LOGITS, freed(4, 3), *SOFT[2:]),
    "soft saved": lambda: OPS.soft_cross_entropy_backward(torch.ones(4), *SOFT, freed(4, 4)),
    "labels": lambda: OPS.scored_binary_cross_entropy(LOGITS, freed(4, 3), NO, NO),
    "weight": lambda: OPS.scored_binary_cross_entropy(LOGITS, LABELS, freed(4, 3), NO),
    "pos_weight": lambda: OPS.scored_binary_cross_entropy(LOGITS, LABELS, NO, freed(3)),
    "grad_logits": lambda: OPS.scale_gradient_(freed(4, 3), torch.ones(()), NO),
    "grad_loss": lambda: OPS.scale_gradient_(torch.ones(4, 3), freed(), NO),
    "seed": lambda: OPS.select_uniform(LOGITS, 9, 3, freed(dtype=torch.int64), 0, False),
}


@pytest.mark.parametrize("name", FREED_IN_OPERATORS)
def test_the_operators_refuse_freed_tensors(name):
    with pytest.raises(RuntimeError, match="its storage was freed"):
        FREED_IN_OPERATORS[name]()


def test_a_freed_gradient_is_refused():
    loss = pruner_step(LOGITS.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="grad_loss has no memory"):
        loss.backward(freed())


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_pruner_refuses_meta_tensors(place, labels):
    """The operators have kernels for them, which do nothing."""
    tensors = [LOGITS, LABELS if labels else TARGET, IDS]
    tensors[place] = tensors[place].to("meta")
    pruner = Pruner(10, 0.5)
    with pytest.raises(ValueError, match="meta"):
        (pruner.binary_cross_entropy if labels else pruner.cross_entropy)(*tensors)
    assert pruner.table.count.sum() == 0


def several_rows(ids=IDS[None], **options):
    """A sample of four rows."""
    Pruner(10, 0.5).cross_entropy(LOGITS[None], TARGET[None], ids, class_dim=-1, **options)


NOT_DENSE = {
    "target, classes last": lambda x: F.scored_cross_entropy(LOGITS, x(LOGITS), class_dim=-1),
    "target, several rows": lambda x: F.scored_cross_entropy(LOGITS[None], x(TARGET[None])),
    "target of a pruner": lambda x: Pruner(10, 0.5).cross_entropy(LOGITS, x(LOGITS), IDS),
    "target_b": lambda x: several_rows(target_b=x(TARGET[None])),
    "lam": lambda x: several_rows(target_b=TARGET[None], lam=x(torch.rand(1, 4))),
    "ids": lambda x: several_rows(ids=x(IDS[None])),
    "sample_weight": lambda x: several_rows(sample_weight=x(torch.rand(1, 4))),
    "token_weight": lambda x: several_rows(token_weight=x(torch.rand(1, 4))),
    "seed": lambda x: F.select_top_k(torch.ones(9), 3, seed=x(torch.tensor(4))),
    "seed of a permutation": lambda x: F.permutation(9, seed=x(torch.tensor(4))),
}


@pytest.mark.parametrize("name", NOT_DENSE)
@pytest.mark.parametrize(
    "form", [torch.Tensor.to_sparse, lambda x: torch.nested.nested_tensor([x, x])]
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_sparse_and_nested_tensors_are_refused(name, form):
    wanted = name.split(",")[0].split(" ")[0]
    with pytest.raises((TypeError, ValueError), match=rf"{wanted} must be a dense tensor, got"):
        NOT_DENSE[name](form)


@pytest.mark.parametrize("name", ["ids", "sample_weight", "token_weight"])
@pytest.mark.parametrize("value", [3, [1.0], "x"])
def test_what_is_no_tensor_is_refused_for_several_rows(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a torch.Tensor, got"):
        several_rows(**{name: value})


def test_values_of_8_bits_are_refused():
    pruner = Pruner(10, policy="infobatch")
    for name, call in (("values", pruner.observe), ("losses", pruner.rescale)):
        with pytest.raises(ValueError, match=f"^{name} must have a floating-point dtype of 16"):
            call(IDS, torch.ones(4).to(torch.float8_e4m3fn))


def test_fake_ids_are_refused_where_ids_are_read():
    with FakeTensorMode():
        ids = torch.arange(4)
    pruner = Pruner(10, 0.5, sharding="shard")
    with pytest.raises(ValueError, match="ids must have values, got a fake or meta tensor"):
        pruner.binary_cross_entropy(LOGITS, torch.ones(4, 3), ids, reduction="sample")


def test_wrappers_of_two_tensors_count_once():
    weights = torch.rand(100) + 0.1
    expected = F.inclusion_probabilities(weights, 16)
    found = F.inclusion_probabilities(TwoTensor(weights, weights.clone()), 16)
    assert torch.equal(found.a, expected) and torch.equal(found.b, expected)


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


UNREADABLE = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
}
READ = {
    "logits": lambda f: F.scored_cross_entropy(f(LOGITS), TARGET),
    "logits of a step": lambda f: step(f(LOGITS)),
    "target of a step": lambda f: step(target=f(TARGET)),
    "sample_ids of a step": lambda f: step(ids=f(IDS)),
    "weight": lambda f: step(weight=f(torch.ones(3))),
    "mean": lambda f: step(table=(f(torch.zeros(10)), *columns()[1:])),
    "values": lambda f: F.update_scores_(*columns(), IDS, f(torch.ones(4)), alpha=0.5),
    "scores": lambda f: F.select_top_k(f(torch.rand(9)), 3),
    "weights": lambda f: F.inclusion_probabilities(f(torch.rand(9)), 3),
    "features": lambda f: F.last_layer_grand(torch.ones(4), f(torch.ones(4, 2))),
    "ids": lambda f: ScoreTable(9).update(f(IDS), torch.ones(4)),
    "correct": lambda f: ScoreTable(9).update(IDS, torch.ones(4), f(IDS > 1)),
    "ids of a rule": lambda f: F.FixedIds(f(IDS)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", READ)
def test_tensors_that_lie_in_no_memory_of_their_own_are_refused(name, kind):
    with pytest.raises((TypeError, ValueError)) as caught:
        READ[name](UNREADABLE[kind])
    wanted = name.split(" of ")[0]
    assert re.search(rf"(?<!\w){wanted}(?!\w)", str(caught.value)), str(caught.value)


def without_values():
    with FakeTensorMode():
        fake = torch.empty((), dtype=torch.int64)
    marked = freed(dtype=torch.int64).as_subclass(type("Marked", (torch.Tensor,), {}))
    return {
        "meta": torch.tensor(3, device="meta"),
        "fake": fake,
        "freed": freed(dtype=torch.int64),
        "freed of a subclass": marked,
    }


TAKE_NUMBERS = {
    "k": lambda number: F.select_uniform(9, number),
    "num_samples": lambda number: F.select(F.Uniform(), number, 1),
    "num_samples of a ranking": lambda number: F.select_rescaled(
        F.Ranking.by_weight(torch.ones(3)), number, 1
    ),
    "epsilon": lambda number: F.select_epsilon_greedy(torch.rand(9), 3, number),
    "random_share": lambda number: F.Ranking.by_score(torch.rand(9), random_share=number),
    "ignore_index": lambda number: F.scored_cross_entropy(LOGITS, TARGET, ignore_index=number),
    "ignore_index of a step": lambda number: step(ignore_index=number),
    "label_smoothing": lambda number: step(label_smoothing=number),
    "alpha": lambda number: ScoreTable(9, alpha=number),
}


@pytest.mark.parametrize("kind", without_values())
@pytest.mark.parametrize("name", TAKE_NUMBERS)
def test_numbers_are_not_read_from_tensors_without_values(name, kind):
    with pytest.raises((TypeError, ValueError), match=name.split(" of ")[0]):
        TAKE_NUMBERS[name](without_values()[kind])


def test_sharded_selections_name_what_is_wrong():
    values = torch.rand(9)
    rules = (F.Uniform(), F.FixedIds([1]), F.Trimmed(F.Tilted(values), 0.1), F.Tilted(values))
    for shard in (None, 3, torch.zeros(3), F.Uniform(), Shard):
        for call in (sharded.select_top_k, sharded.select_weighted):
            with pytest.raises(TypeError, match="shard must be a Shard"):
                call(values, 3, shard=shard)
        with pytest.raises(TypeError, match="shard must be a Shard"):
            sharded.select_uniform(3, shard=shard)
        for rule in rules:
            with pytest.raises(TypeError, match="shard must be a Shard"):
                sharded.select(rule, 1, shard=shard)
    for rule in rules:
        with pytest.raises(TypeError, match="seed must be an int"):
            sharded.select(rule, 1, shard=Shard(9, 0, 1), seed="x")
    with pytest.raises(TypeError, match="seed must be an int"):
        F.select_rescaled(rules[2], 9, 1, seed="x")
    with FakeTensorMode():
        fake = torch.rand(9)
    for values in (fake, torch.rand(9, device="meta")):
        with pytest.raises(ValueError, match="scores must have values"):
            sharded.select_top_k(values, 3, shard=Shard(9, 0, 1))
    with pytest.raises(ValueError, match="device must be"):
        Shard(9, 0, 1).ids("")


def test_the_bias_of_last_layer_grand_is_a_bool():
    for bias in (None, 1, torch.tensor([True, False])):
        with pytest.raises(TypeError, match="bias must be a bool"):
            F.last_layer_grand(torch.ones(4), torch.ones(4, 2), bias=bias)


def test_columns_share_no_memory():
    mean, variance, count = torch.zeros(10), torch.zeros(10), torch.zeros(10, dtype=torch.int64)
    values = torch.ones(4)
    for table, ids, given, named in (
        ((mean, mean, count), IDS, values, "variance|mean"),
        ((mean, mean.view(-1), count), IDS, values, "variance|mean"),
        ((mean, variance, count), count[:4], values, "sample_ids"),
        ((mean, variance, count), IDS, mean[3:7], "values"),
        ((mean, variance, count), IDS, mean[9:].expand(4), "values"),
    ):
        with pytest.raises(ValueError, match=rf"({named}) must not share memory with"):
            F.update_scores_(*table, ids, given, alpha=0.5)
    with pytest.raises(ValueError, match="sample_weight must not share memory with variance"):
        step(table=(mean, variance, count), sample_weight=variance[:4])
    assert not mean.any() and not variance.any() and not count.any()
    # Neighbours in one storage are no overlap.
    both = torch.zeros(2, 10)
    F.update_scores_(*both.unbind(0), count, IDS, values, alpha=0.5)
    assert both[0].tolist() == [1.0] * 4 + [0.0] * 6


def test_a_count_of_numpy_is_one_for_shards():
    rule = F.Ranking.by_weight(torch.rand(9))
    for function, rest in ((F.select_rescaled, {"num_samples": 9}), (sharded.select_rescaled, {})):
        more = rest or {"shard": Shard(9, 0, 1)}
        ids, factors = function(rule, k=np.array(3), **more)
        assert len(ids) == len(factors) == 3


@pytest.mark.parametrize("class_dim", [None, 1.0, torch.zeros(3), torch.tensor(1, device="meta")])
def test_the_dimension_of_the_classes_is_an_int(class_dim):
    for call in (step, lambda **options: F.scored_cross_entropy(LOGITS, TARGET, **options)):
        with pytest.raises(TypeError, match="class_dim must be an int"):
            call(class_dim=class_dim)


@pytest.mark.parametrize("cu_seqlens", [(), [0, 4], 0.5, torch.ones(2)], ids=repr)
def test_the_ends_of_sequences_are_a_tensor_of_ints(cu_seqlens):
    pruner = Pruner(10, 0.5, "uniform")
    with pytest.raises((TypeError, ValueError), match="cu_seqlens must"):
        pruner.cross_entropy(LOGITS, TARGET, IDS[:1], cu_seqlens=cu_seqlens)
