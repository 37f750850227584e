# SPDX-License-Identifier: Apache-2.0
"""Pruner.linear_cross_entropy against Pruner.cross_entropy of the whole logits."""

import copy
import itertools

import linear_ranks
import pytest
import ranks
import torch
import torch.distributed as dist
from torch.nn.functional import linear

from dynprune_cuda import Pruner, functional

N, BATCH, LENGTH, WIDTH, CLASSES = 9, 6, 7, 5, 13


def make_batch(dtype=torch.float32, device="cpu"):
    """Six sequences: padded, one ignored, two of one sample, one of none."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((BATCH, LENGTH, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    leaves = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    target = torch.randint(CLASSES, (BATCH, LENGTH), generator=generator)
    target[torch.rand(BATCH, LENGTH, generator=generator) < 0.3] = -100
    target[3] = -100
    ids = torch.tensor([4, 2, 4, 0, 1, -1])
    return [x.requires_grad_() for x in leaves], target.to(device), ids.to(device)


def forms(hidden, target, ids):
    """The same batch in all forms that there are."""
    yield hidden, target, ids, {}
    yield hidden, target, ids[:, None].expand(BATCH, LENGTH), {}
    flat = hidden.flatten(0, 1), target.flatten()
    yield *flat, ids[:, None].expand(BATCH, LENGTH).flatten(), {}
    ends = torch.arange(0, BATCH * LENGTH + 1, LENGTH)
    yield *flat, ids, {"cu_seqlens": ends}


def make_pruner(device="cpu", **options):
    pruner = Pruner(N, 0.5, "ucb", warmup_epochs=2, device=device, **options)
    pruner.set_epoch(0)
    return pruner


def assert_same_tables(first, second):
    for name in first.column_types:
        a, b = getattr(first, name), getattr(second, name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("keep_tokens", [None, 0.4])
def test_compiles_into_one_graph(device, keep_tokens, backend):
    leaves, target, ids = make_batch(device=device)
    options = {"keep_tokens": keep_tokens, "reduction": "sample", "num_items": 7}
    if keep_tokens is not None:
        options["reference_loss"] = torch.linspace(0, 4, target.numel(), device=device).view(6, 7)
    if backend == "inductor" and keep_tokens is None:
        options = {"sample_weight": torch.linspace(0, 2, BATCH, device=device)}
    plain, pruner = make_pruner(device), make_pruner(device)

    def step(pruner, hidden, weight, bias):
        loss = pruner.linear_cross_entropy(hidden.tanh(), weight, target, ids, bias=bias, **options)
        return loss * 2

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(2):
        found, expected = compiled(pruner, *leaves), step(plain, *leaves)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
        )
    assert pruner.table.count.sum() == 6
    assert_same_tables(pruner.table, plain.table)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample"])
@pytest.mark.parametrize("score", ["loss", "el2n", "entropy", "margin"])
def test_equals_the_loss_of_the_whole_logits(device, score, reduction):
    rules = itertools.cycle(["mean", "max", 0.4])
    leaves, target, ids = make_batch(device=device)
    for sharding in ("replicate", "shard"):
        options = {"score": score, "row_reduction": next(rules), "sharding": sharding}
        options["track_forgetting"] = sharding == "replicate"
        for form in forms(leaves[0], target, ids):
            whole, part = (make_pruner(device, **options) for _ in range(2))
            hidden, its_target, its_ids, more = form
            weights = torch.linspace(0.5, 2, its_ids.numel(), device=device).view(its_ids.shape)
            tokens = torch.linspace(0, 2, target.numel(), device=device).view(its_target.shape)
            more = {**more, "sample_weight": weights, "token_weight": tokens}
            more |= {"reduction": reduction, "label_smoothing": 0.1}
            by_class = torch.linspace(0.5, 2, CLASSES, device=device)
            for num_items in (None, 11) if reduction != "sum" else (None,):
                more["num_items"] = num_items
                logits = linear(hidden, leaves[1], leaves[2])
                class_dim = {} if logits.dim() == 2 else {"class_dim": -1}
                expected = whole.cross_entropy(
                    logits, its_target, its_ids, weight=by_class, **class_dim, **more
                )
                loss = part.linear_cross_entropy(
                    hidden,
                    leaves[1],
                    its_target,
                    its_ids,
                    bias=leaves[2],
                    class_weight=by_class,
                    chunk_rows=10,
                    **more,
                )
                torch.testing.assert_close(loss, expected)
                torch.testing.assert_close(
                    torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
                )
            for pruner in (whole, part):
                pruner.set_epoch(1)
            assert_same_tables(part.table, whole.table)
    assert part.table.count.tolist() == [
        0,
        *([part.table.count[1]] * 2),
        0,
        part.table.count[4],
        *[0] * 4,
    ]
    assert part.table.count[1] > 0


def test_factors_of_a_policy_come_before_the_forward_pass(device):
    leaves, target, ids = make_batch(device=device)
    pruner = Pruner(N, policy="infobatch", epochs=9, device=device)
    pruner.set_epoch(0)
    pruner.observe(torch.arange(N), torch.arange(float(N), device=device))
    pruner.set_epoch(1)
    factors = pruner.rescale(ids, torch.ones(BATCH, device=device))
    assert (factors > 1).any()
    plain = functional.scored_linear_cross_entropy(leaves[0], leaves[1], target)
    expected = (plain.row_loss * factors[:, None]).sum() / (target != -100).sum()
    for hidden, its_target, its_ids, more in forms(leaves[0], target, ids):
        loss = pruner.linear_cross_entropy(hidden, leaves[1], its_target, its_ids, **more)
        torch.testing.assert_close(loss, expected)


def test_under_autocast(device):
    leaves, target, ids = make_batch(device=device)
    whole, part = make_pruner(device), make_pruner(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        logits = linear(*leaves)
        expected = whole.cross_entropy(logits, target, ids, class_dim=-1)
        loss = part.linear_cross_entropy(*leaves[:2], target, ids, bias=leaves[2])
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    for a, b in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=5e-2, atol=5e-3)
    torch.testing.assert_close(
        part.table.mean, whole.table.mean, rtol=2e-2, atol=2e-2, equal_nan=True
    )


def test_accumulated_batches_are_one(device):
    leaves, target, ids = make_batch(device=device)
    whole, parts = make_pruner(device), make_pruner(device)
    expected = whole.linear_cross_entropy(*leaves[:2], target, ids)
    wanted = torch.autograd.grad(expected, leaves[:2])
    items = (target != -100).sum()
    for part in (slice(0, 4), slice(4, None)):  # the two sequences of sample 4 are in the first
        loss = parts.linear_cross_entropy(
            leaves[0][part], leaves[1], target[part], ids[part], num_items=items
        )
        loss.backward()
    torch.testing.assert_close([x.grad for x in leaves[:2]], list(wanted))
    assert_same_tables(parts.table, whole.table)


def test_kept_tokens(device):
    leaves, target, ids = make_batch(device=device)
    pruner, plain = make_pruner(device), make_pruner(device)
    reference = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)).to(device)
    for more in ({}, {"reference_loss": reference}):
        loss = pruner.linear_cross_entropy(*leaves[:2], target, ids, keep_tokens=0.3, **more)
        expected = functional.scored_linear_cross_entropy(
            *leaves[:2], target, keep_tokens=0.3, **more
        )
        torch.testing.assert_close(loss, expected.loss)
        plain.linear_cross_entropy(*leaves[:2], target, ids)
    assert_same_tables(pruner.table, plain.table)  # the scores are of all tokens


def kept(pruner, ids):
    """Which of 40 equal tokens a step trains on, by the gradient."""
    hidden, weight = torch.zeros(4, 10, WIDTH, requires_grad=True), torch.zeros(CLASSES, WIDTH)
    weight[0] = 1
    target = torch.ones(4, 10, dtype=torch.int64)
    loss = pruner.linear_cross_entropy(hidden, weight, target, ids, keep_tokens=0.25)
    (grad,) = torch.autograd.grad(loss, hidden)
    return grad.abs().sum(-1).flatten().nonzero().flatten().tolist()


def test_ties_of_kept_tokens_are_broken_as_before_in_a_resumed_run():
    pruner = make_pruner()
    first, ids = kept(pruner, torch.arange(4)), torch.tensor([5, 4, 8, 7])
    state = copy.deepcopy(pruner.state_dict())
    second = kept(pruner, ids)
    assert len(first) == len(second) == 10 and first != second
    resumed = make_pruner(seed=5)
    resumed.load_state_dict(state)
    assert kept(resumed, ids) == second
    assert kept(make_pruner(seed=5), ids) != second
    pruner.set_epoch(1)
    assert kept(pruner, ids) != second


def test_awkward_batches():
    for number in (0, 1, 31, 32, 33):
        generator = torch.Generator().manual_seed(number)
        wide = torch.randn(number, 2, 2 * WIDTH, generator=generator)
        weight = torch.randn(CLASSES, WIDTH, generator=generator)
        target = torch.randint(CLASSES, (number, 2), generator=generator, dtype=torch.int32)
        whole, part = (Pruner(40, 0.5) for _ in range(2))
        ids = torch.randperm(40, generator=generator)[:number].int()
        if number:
            wide[0, 0, 0] = float("nan")
        hidden = wide[..., ::2]
        expected = whole.cross_entropy(linear(hidden, weight), target, ids, class_dim=-1)
        loss = part.linear_cross_entropy(hidden, weight, target, ids)
        torch.testing.assert_close(loss, expected, equal_nan=True)
        assert_same_tables(part.table, whole.table)


def test_narrow_targets_are_compared_by_value():
    """156 as uint8 is -100 modulo 256, and 300 classes are 44."""
    hidden, weight = torch.randn(6, WIDTH), torch.randn(300, WIDTH)
    target = torch.tensor([156, 0, 43, 44, 45, 255], dtype=torch.uint8)
    narrow, wide = Pruner(N, 0.5), Pruner(N, 0.5)
    losses = [
        pruner.linear_cross_entropy(hidden, weight, labels, torch.arange(6))
        for pruner, labels in ((narrow, target), (wide, target.long()))
    ]
    assert torch.equal(*losses) and narrow.table.count.tolist() == [1] * 6 + [0] * 3
    assert_same_tables(narrow.table, wide.table)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ids": [1]}, TypeError, "ids must be"),
        ({"ids": torch.zeros(6)}, ValueError, "ids must"),
        ({"ids": torch.zeros(5, dtype=torch.int64)}, ValueError, "ids must have shape"),
        ({"ids": torch.full((6,), N)}, IndexError, str(N)),
        ({"target": torch.zeros(6, dtype=torch.int64)}, ValueError, "target must have shape"),
        ({"target": torch.full((6, 7), CLASSES)}, IndexError, str(CLASSES)),
        ({"sample_weight": torch.ones(5)}, ValueError, "sample_weight must have the shape of"),
        (
            {"sample_weight": torch.ones(6, requires_grad=True)},
            ValueError,
            "sample_weight must not",
        ),
        ({"token_weight": torch.ones(6)}, ValueError, "token_weight must have"),
        ({"reference_loss": torch.ones(6, 7)}, ValueError, "reference_loss needs keep_tokens"),
        ({"reference_loss": torch.ones(6), "keep_tokens": 0.5}, ValueError, "reference_loss must"),
        ({"reduction": "none"}, ValueError, "reduction must be"),
        ({"cu_seqlens": torch.arange(3)}, ValueError, "cu_seqlens must have shape"),
        (
            {"cu_seqlens": torch.arange(7), "sample_weight": torch.ones(7)},
            ValueError,
            "sample_weight must have 6 elements",
        ),
    ],
)
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_what_is_refused_changes_nothing(sharding, changes, error, message):
    leaves, target, ids = make_batch()
    pruner = Pruner(N, 0.5, sharding=sharding)
    arguments = {"hidden": leaves[0], "weight": leaves[1], "target": target, "ids": ids, **changes}
    with pytest.raises(error, match=message):
        pruner.linear_cross_entropy(**arguments)
    pruner.set_epoch(0)
    assert not pruner.table.count.any()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")
def test_two_processes_train_as_one(tmp_path):
    """DDP on two ranks, with whole tables and with shards, against one process."""
    found = ranks.run_world(2, tmp_path, linear_ranks.work)
    alone = linear_ranks.train(None, "replicate")
    for sharding in ("replicate", "shard"):
        for rank in found:
            mean, weights = rank[sharding]
            torch.testing.assert_close(weights, alone[1])
            torch.testing.assert_close(mean, alone[0], rtol=1e-4, atol=1e-5, equal_nan=True)
