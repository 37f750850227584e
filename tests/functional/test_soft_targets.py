# SPDX-License-Identifier: Apache-2.0
"""Class probabilities as targets: loss, scores and gradient by their definitions, and the step."""

import itertools
import math

import numpy as np
import pytest
import reference
import torch
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import BatchSelector, Pruner
from dynprune_cuda import functional as F
from dynprune_cuda.static_scores import ForgettingCounter

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SIXTEEN_BITS = {torch.float16: {"rtol": 1.5e-3, "atol": 1e-6}, torch.bfloat16: {"rtol": 8e-3}}
# EL2N is the norm of a difference: where p and t are close, its error is that of p.
EL2N_ERROR = {torch.float32: 3e-7, torch.float64: 1e-15}


def batch(rows, classes, dtype=torch.float32, seed=0, scale=3.0):
    """Rows that are mixed of two classes, spread over all, or certain."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    first, second = torch.randint(classes, (2, rows), generator=generator)
    share = torch.rand(rows, 1, generator=generator)
    target = share * one_hot(first, classes) + (1 - share) * one_hot(second, classes)
    target[1::3] = torch.rand(rows, classes, generator=generator).softmax(1)[1::3]
    target[2::3] = one_hot(first, classes)[2::3].float()
    return logits.to(dtype), target


def table(n, device="cpu"):
    return {
        "mean": torch.zeros(n, device=device),
        "variance": torch.zeros(n, device=device),
        "count": torch.zeros(n, dtype=torch.int32, device=device),
    }


def assert_same(a, b):
    """The same bits on the CPU; on a GPU, a row that lies elsewhere is added in another order."""
    tolerance = {"rtol": 0.0, "atol": 0.0} if a.device.type == "cpu" else {}
    torch.testing.assert_close(a, b, **tolerance, equal_nan=True)


def assert_exact(scored, gradient, logits, target, **options):
    """All of a result against 60 decimal digits."""
    rows = [
        reference.exact_soft_row(x, t, **options)
        for x, t in zip(logits.double().tolist(), target.double().tolist(), strict=True)
    ]
    compute = scored.loss.dtype
    for name in ("loss", "entropy", "margin"):
        reference.assert_close(getattr(scored, name), [row[name] for row in rows], name)
    el2n = [row["el2n"] for row in rows]
    rtol, _ = reference.TOLERANCES[compute]["el2n"]
    np.testing.assert_allclose(
        scored.el2n.detach().cpu().double(), el2n, rtol=rtol, atol=EL2N_ERROR[compute]
    )
    assert scored.correct.tolist() == [row["margin"] > 0 for row in rows]
    exact = torch.tensor([row["gradient"] for row in rows], dtype=torch.float64)
    if logits.dtype in SIXTEEN_BITS:
        tolerance = {"atol": 1e-6, **SIXTEEN_BITS[logits.dtype]}
        torch.testing.assert_close(gradient.cpu().double(), exact, **tolerance)
    else:
        reference.assert_close(gradient, exact.numpy(), "smoothed_gradient")


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 10, 15, 16, 17, 33, 100])
def test_loss_scores_and_gradient_are_exact(device, classes, dtype):
    logits, target = batch(12, classes, dtype)
    weight = torch.linspace(0, 2, classes)
    for w, smoothing, kind in itertools.product((None, weight), (0.0, 0.25), DTYPES):
        stored = target.to(kind)
        x = logits.to(device).clone().requires_grad_()
        scored = F.scored_cross_entropy(
            x,
            stored.to(device),
            weight=None if w is None else w.to(device),
            label_smoothing=smoothing,
        )
        scored.loss.sum().backward()
        read = stored.to(torch.promote_types(torch.float32, dtype)) if kind != dtype else stored
        options = {"weight": w if w is None else w.tolist(), "label_smoothing": smoothing}
        assert_exact(scored, x.grad, logits, read, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1000, 1024, 1025, 2500])
def test_long_rows_are_exact(device, classes, dtype):
    logits, target = batch(3, classes, dtype)
    x = logits.to(device).clone().requires_grad_()
    scored = F.scored_cross_entropy(x, target.to(device), label_smoothing=0.1)
    scored.loss.sum().backward()
    assert_exact(scored, x.grad, logits, target, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_easy_rows_keep_their_relative_precision(device, dtype):
    """One-hot rows have the loss and the EL2N that class indices give, however small."""
    gap = torch.tensor([2.0, 8, 14, 20, 30, 60], dtype=dtype)
    logits = torch.stack([gap, -gap / 3, torch.zeros_like(gap)], 1)
    target = torch.zeros(len(gap), dtype=torch.int64)
    soft = F.scored_cross_entropy(logits.to(device), one_hot(target, 3).to(device, dtype))
    hard = F.scored_cross_entropy(logits.to(device), target.to(device))
    rtol = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    for name in ("loss", "el2n", "entropy", "margin"):
        a, b = getattr(soft, name), getattr(hard, name)
        # EL2N is a sum of squares, which end at 1e-38 in float32.
        atol = {"entropy": 1e-7, "el2n": 1e-19}.get(name, 0.0)
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    assert torch.equal(soft.correct, hard.correct)


@every_dtype
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_it_is_torch_s_loss(device, reduction, dtype):
    logits, target = batch(9, 7, dtype)
    weight = torch.linspace(0.5, 2, 7)
    target = target.to(dtype)
    for w, smoothing in itertools.product((None, weight), (0.0, 0.1, 1.0)):
        got = F.scored_cross_entropy(
            logits.to(device),
            target.to(device),
            weight=None if w is None else w.to(device),
            label_smoothing=smoothing,
            reduction=reduction,
        )
        expected = cross_entropy(
            logits.double(),
            target.double(),
            weight=None if w is None else w.double(),
            label_smoothing=smoothing,
            reduction=reduction,
        )
        torch.testing.assert_close(got.loss.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_gradcheck():
    logits, target = batch(5, 6, torch.float64, scale=1.0)
    weight = torch.linspace(0.5, 2, 6, dtype=torch.float64)

    def losses(x):
        return F.scored_cross_entropy(x, target, weight=weight, label_smoothing=0.1).loss

    assert torch.autograd.gradcheck(losses, logits.requires_grad_())
    with pytest.raises(RuntimeError, match="differentiated twice"):
        (first,) = torch.autograd.grad(losses(logits).sum(), logits, create_graph=True)
        first.sum().backward()


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 1000])
@pytest.mark.parametrize("classes", [3, 40, 1200])
def test_rows_do_not_depend_on_each_other_or_on_threads(device, rows, classes):
    if rows == 1000 and classes == 1200:
        rows = 100
    logits, target = (t.to(device) for t in batch(rows, classes))
    x = logits.clone().requires_grad_()
    together = F.scored_cross_entropy(x, target)
    together.loss.sum().backward()
    for row in range(0, rows, max(1, rows // 5)):
        y = logits[row : row + 1].clone().requires_grad_()
        alone = F.scored_cross_entropy(y, target[row : row + 1])
        alone.loss.sum().backward()
        for a, b in zip(together, alone, strict=True):
            assert_same(a[row : row + 1], b)
        assert_same(x.grad[row : row + 1], y.grad)


def test_strided_rows_are_read_where_they_are(device):
    logits, target = (t.to(device) for t in batch(6, 37))
    wide = torch.full((6, 50), math.nan, device=device)
    wide[:, 3:40] = logits
    apart = target.t().contiguous().t()
    expected = F.scored_cross_entropy(logits, target)
    for got in (
        F.scored_cross_entropy(wide[:, 3:40], target),
        F.scored_cross_entropy(logits, apart),
        F.scored_cross_entropy(logits.t().contiguous().t(), target.expand(1, 6, 37)[0]),
    ):
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)


def test_special_values(device):
    inf, nan = math.inf, math.nan
    x = torch.tensor(
        [
            [1.0, -inf, 0.0],  # an impossible class that does not count
            [1.0, -inf, 0.0],  # and one that does
            [inf, 0.0, 0.0],
            [nan, 0.0, 0.0],
            [-inf, -inf, -inf],
            [0.0, 1.0, 2.0],  # NaN as a probability
            [0.0, 1.0, 2.0],  # infinity
            [1.0, 1.0, 0.0],  # ties
        ],
        device=device,
    )
    t = torch.tensor(
        [
            [0.5, 0, 0.5],
            *[[0.5, 0.5, 0]] * 4,
            [nan, 0.2, 0.8],
            [0.0, 0.0, inf],
            [0.5, 0.5, 0],
        ],
        device=device,
    )
    leaf = x.clone().requires_grad_()
    got = F.scored_cross_entropy(leaf, t)
    got.loss.sum().backward()
    p = torch.tensor([math.e, 0, 1], dtype=torch.float64) / (math.e + 1)
    assert got.loss[0].item() == pytest.approx(math.log(1 + math.e) - 0.5, rel=1e-6)
    assert got.loss[1].item() == inf and got.el2n[1].isfinite()
    torch.testing.assert_close(leaf.grad[1].cpu().double(), p - t[1].cpu().double())
    for row in (2, 3, 4):
        assert all(v[row].isnan() for v in (got.loss, got.el2n, got.entropy, got.margin))
        assert not got.correct[row] and leaf.grad[row].isnan().all()
    assert got.loss[5].isnan() and got.el2n[5].isnan()
    assert got.margin[5].item() == 1 and got.entropy[5].isfinite()
    assert got.loss[6].isnan() and got.el2n[6].item() == inf
    assert leaf.grad[5:7].isnan().all()
    # The first of the greatest probabilities is the class; its logit is not the only greatest.
    assert got.margin[7].item() == 0 and not got.correct[7]


def test_other_shapes_are_torch_s(device):
    generator = torch.Generator().manual_seed(1)
    for shape, class_dim in (((4,), 1), ((2, 4, 3), 1), ((2, 3, 5, 4), -1), ((0, 4, 3), 1)):
        x = torch.randn(shape, generator=generator).to(device).requires_grad_()
        t = torch.rand(shape, generator=generator).to(device)
        first = x if class_dim == 1 else x.movedim(-1, 1)
        expected = cross_entropy(first, t if class_dim == 1 else t.movedim(-1, 1), reduction="none")
        (wanted,) = torch.autograd.grad(expected.sum(), x)
        got = F.scored_cross_entropy(x, t, class_dim=class_dim)
        torch.testing.assert_close(got.loss, expected)
        assert got.el2n.shape == expected.shape
        (gradient,) = torch.autograd.grad(got.loss.sum(), x)
        torch.testing.assert_close(gradient, wanted)
        if got.loss.numel() > 1:
            mean = F.scored_cross_entropy(x, t, class_dim=class_dim, reduction="sample").loss
            torch.testing.assert_close(mean, expected.mean())
    columns = table(9, device)
    x = torch.randn(2, 4, 3, generator=generator).to(device)
    t = torch.rand(2, 4, 3, generator=generator).softmax(1).to(device)
    ids = torch.tensor([7, 2], device=device)
    step = F.scored_cross_entropy_step_(x, t, ids, **columns, alpha=1.0, reduction="sample")
    by_row = cross_entropy(x, t, reduction="none")
    torch.testing.assert_close(columns["mean"][ids], by_row.mean(1))
    torch.testing.assert_close(step.loss, by_row.mean())


@every_dtype
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
def test_the_step_is_the_loss_and_an_update(device, reduction, dtype):
    rows, n = 23, 30
    logits, target = (t.to(device) for t in batch(rows, 11, dtype))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(-1, 12, (rows,), generator=generator).to(device)  # with repeats
    weight = torch.linspace(0.5, 2, 11, device=device)
    factors = torch.linspace(0, 2, rows, device=device)
    tracked = {
        "last_correct": torch.arange(n, device=device) % 2 == 0,
        "forget_count": torch.zeros(n, dtype=torch.int32, device=device),
    }
    for score, row_reduction in itertools.product(("loss", "el2n", "margin"), ("mean", "max", 0.5)):
        columns, expected = ({**table(n, device), **tracked} for _ in range(2))
        columns = {k: v.clone() for k, v in columns.items()}
        expected = {k: v.clone() for k, v in expected.items()}
        x = logits.clone().requires_grad_()
        step = F.scored_cross_entropy_step_(
            x,
            target,
            ids,
            **columns,
            alpha=0.75,
            score=score,
            row_reduction=row_reduction,
            reduction=reduction,
            weight=weight,
            label_smoothing=0.1,
            sample_weight=None if reduction == "sample" else factors,
        )
        step.loss.sum().backward()
        y = logits.clone().requires_grad_()
        one = F.scored_cross_entropy(y, target, weight=weight, label_smoothing=0.1)
        values = -one.margin if score == "margin" else getattr(one, score).detach()
        F.update_scores_(
            **expected,
            sample_ids=ids,
            values=values,
            correct=one.correct,
            alpha=0.75,
            row_reduction=row_reduction,
        )
        for name, column in expected.items():
            assert_same(columns[name], column)
        for a, b in zip(step[1:], one[1:], strict=True):
            assert_same(a, b)
        if reduction == "sample":
            own = torch.where(ids == -1, -2 - torch.arange(rows, device=device), ids)
            _, place, number = own.unique(return_inverse=True, return_counts=True)
            wanted = (one.loss / number[place]).sum() / len(number)
        else:
            wanted = one.loss * factors
            wanted = {"none": wanted, "mean": wanted.mean(), "sum": wanted.sum()}[reduction]
        torch.testing.assert_close(step.loss, wanted)
        wanted.sum().backward()
        places = {torch.float16: (1.5e-3, 1e-6), torch.bfloat16: (1.2e-2, 1e-6)}
        rtol, atol = places.get(dtype, (1e-5, 1e-6))
        torch.testing.assert_close(x.grad, y.grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_of_weight_0_are_ignored(device, reduction):
    """Whatever they hold: weight and id are what `ignore_index` is for class indices."""
    logits, target = (t.to(device) for t in batch(4, 5))
    logits[1], logits[2, 0], target[2, 0] = torch.nan, -torch.inf, 0.5
    weight = torch.tensor([1.0, 0, 0, 2], device=device)
    ids = torch.tensor([3, -1, -1, 0], device=device)
    columns, leaf = table(4, device), logits.clone().requires_grad_()
    step = F.scored_cross_entropy_step_(
        leaf, target, ids, **columns, alpha=0.5, sample_weight=weight, reduction=reduction
    )
    step.loss.sum().backward()
    losses = cross_entropy(logits[[0, 3]], target[[0, 3]].float(), reduction="none")
    losses = losses * weight[[0, 3]]
    if reduction == "none":
        torch.testing.assert_close(step.loss[[0, 3]], losses)
        assert step.loss[[1, 2]].tolist() == [0, 0]
    else:
        torch.testing.assert_close(step.loss, losses.sum() / (4 if reduction == "mean" else 1))
    assert not leaf.grad[[1, 2]].any() and leaf.grad[[0, 3]].all()
    assert columns["count"].tolist() == [1, 0, 0, 1]


def test_accumulation_and_loss_scales(device):
    logits, target = (t.to(device) for t in batch(8, 5, torch.float16))
    ids = torch.arange(8, device=device)
    scale = torch.tensor(1024.0, device=device)
    gradients = []
    for grad_scale in (None, scale):
        x = logits.clone().requires_grad_()
        step = F.scored_cross_entropy_step_(
            x, target, ids, **table(8, device), alpha=0.5, num_items=16, grad_scale=grad_scale
        )
        (step.loss * scale).backward()
        gradients.append(x.grad)
    expected = F.scored_cross_entropy(logits, target).loss.sum() / 16
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(*gradients, rtol=1.5e-3, atol=1e-6)


def test_the_pruner_takes_probabilities(device):
    pruner = Pruner(20, policy="infobatch", device=device)
    pruner.set_epoch(0)
    logits, target = (t.to(device) for t in batch(6, 4))
    ids = torch.arange(6, device=device)
    loss = pruner.cross_entropy(logits.requires_grad_(), target, ids)
    torch.testing.assert_close(loss, cross_entropy(logits, target))
    loss.backward()
    losses = cross_entropy(logits, target, reduction="none").detach()
    torch.testing.assert_close(pruner.table.mean[:6], losses)


def test_what_else_takes_targets_takes_probabilities(device):
    logits, target = (t.to(device) for t in batch(9, 4))
    scored = F.scored_cross_entropy(logits, target)
    selector = BatchSelector(3, by="el2n", device=device)
    rows = selector(logits, target).rows.cpu().tolist()
    assert sorted(rows) == sorted(scored.el2n.topk(3).indices.tolist())
    counter = ForgettingCounter(9, device=device)
    ids = torch.arange(9, device=device)
    for sign in (1, -1):
        loss = counter.cross_entropy(sign * logits, target, ids)
        torch.testing.assert_close(loss, cross_entropy(sign * logits, target))
    now_wrong = ~F.scored_cross_entropy(-logits, target).correct
    assert torch.equal(counter.forget_count.bool(), scored.correct & now_wrong)
    pruner = Pruner(9, 0.5, device=device)
    data = TensorDataset(logits.cpu(), target.cpu(), torch.arange(9))
    pruner.rescore(torch.nn.Identity(), DataLoader(data, batch_size=4))
    torch.testing.assert_close(pruner.table.mean, scored.loss)


def test_what_is_refused_changes_nothing(device):
    logits, target = (t.to(device) for t in batch(4, 3))
    classes = torch.zeros(4, dtype=torch.int64, device=device)
    ids = torch.arange(4, device=device)
    for match, given, options in (
        ("target must be int64, or probabilities in the shape of logits", target[:3], {}),
        ("target must be int64, or probabilities in the shape of logits", target[:, :2], {}),
        ("target must be int64, or probabilities in the shape of logits", target[:, 0], {}),
        ("target must not require a gradient", target.clone().requires_grad_(), {}),
        ("ignore_index must be negative", target, {"ignore_index": 1}),
        ("mix the probabilities", target, {"target_b": classes, "lam": 0.5}),
        ("mix the probabilities", target, {"lam": 0.5}),
        ("target must have dtype int64", target > 0, {}),
    ):
        with pytest.raises(ValueError, match=match):
            F.scored_cross_entropy(logits, given, **options)
        columns = table(4, device)
        with pytest.raises(ValueError, match=match):
            F.scored_cross_entropy_step_(logits, given, ids, **columns, alpha=0.5, **options)
        assert not columns["count"].any()
    if device.type == "cpu":
        columns = table(4)
        with pytest.raises(IndexError, match="sample_ids"):
            F.scored_cross_entropy_step_(logits, target, ids + 1, **columns, alpha=0.5)
        assert not columns["count"].any()


FEW = (torch.arange(8), torch.full((8, 5), 0.2))


@every_dtype
@pytest.mark.parametrize(
    ("ids", "target", "options", "error"),
    [
        (FEW[0], FEW[1].double(), {}, None),
        (FEW[0], FEW[1].bfloat16(), {}, None),
        (FEW[0].int(), FEW[1], {}, None),
        (FEW[0], FEW[1][:, :4], {}, "in the shape of logits"),
        (FEW[0][:7], FEW[1], {}, "8"),
        (FEW[0] + 30, FEW[1], {}, "out of range"),
        (FEW[0], FEW[1].clone().requires_grad_(), {}, "must not require a gradient"),
        (FEW[0], FEW[1], {"label_smoothing": 2.0}, "label_smoothing must be"),
        (FEW[0], FEW[1], {"ignore_index": 0}, "ignore_index must be negative"),
        (FEW[0], FEW[1], {"ignore_index": -(2**70)}, "ignore_index must be at least"),
    ],
)
def test_what_the_operator_refuses_is_checked_in_python(ids, target, options, error, dtype):
    """An ordinary step goes to the operator first, which takes less, and names less."""
    pruner = Pruner(32, 0.5)
    pruner.set_epoch(0)
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    version = pruner.table.mean._version
    if error is None:
        loss = pruner.cross_entropy(logits, target, ids, **options)
        expected = cross_entropy(logits.double(), target.double())
        torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
        assert pruner.table.count.sum() == 8
        return
    with pytest.raises((IndexError, ValueError), match=error):
        pruner.cross_entropy(logits, target, ids, **options)
    assert pruner.table.count.sum() == 0 and pruner.table.mean._version == version


@pytest.mark.slow
def test_it_compiles(device):
    logits, target = (t.to(device) for t in batch(8, 5))
    ids = torch.arange(8, device=device)

    def step(x, t, mean, variance, count):
        scored = F.scored_cross_entropy(x, t, label_smoothing=0.1, reduction="mean")
        stepped = F.scored_cross_entropy_step_(x, t, ids, mean, variance, count, alpha=0.5)
        return scored.loss + stepped.loss, scored.el2n

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        columns, x = table(8, device), logits.clone().requires_grad_()
        loss, el2n = function(x, target, *columns.values())
        loss.backward()
        results.append((loss.detach(), el2n, x.grad, *columns.values()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
