# SPDX-License-Identifier: Apache-2.0
"""scored_binary_cross_entropy against an independent reference in float64, and as torch sees it."""

import itertools
import math

import pytest
import torch
from binary_labels import (
    DTYPES,
    EXACT,
    GRADIENT_TOLERANCES,
    N,
    every_dtype,
    make,
    make_columns,
    make_weights,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from dynprune_cuda import functional as F

SIZES = [0, 1, 2, 15, 16, 17, 31, 32, 33, 80, 513, 1100]
SCORE_TOLERANCES = {"rtol": 1e-5, "atol": 1e-30}


def times(factor, values):
    """A factor of 0 wins over infinity and NaN."""
    return torch.where(factor == 0, 0.0, factor * values)


def reference(logits, target, weight=None, pos_weight=None):
    """loss, el2n, entropy, margin and correct of each row, and the slopes of the losses.

    Written from the definition of the two classes' probabilities, in float64.
    """
    x, t = logits.detach().double(), target.double()
    if x.dim() == 1:
        x, t = x[:, None], t[:, None]
    w = torch.ones_like(x)
    if weight is not None:
        weight = weight.double()
        w = (weight.expand(len(x))[:, None] if logits.dim() == 1 else weight).expand_as(x)
    v = torch.ones(x.shape[1]) if pos_weight is None else pos_weight
    v = v.double().to(x.device).expand_as(x)
    known = w != 0
    t = torch.where(known, t, 0.0)
    x = torch.where(known, x, -math.inf)
    zero = torch.zeros_like(x)
    surprise, denied = torch.logaddexp(zero, -x), torch.logaddexp(zero, x)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    loss = times(w, times(1 - t, denied) + times(v * t, surprise)).mean(1)
    el2n = ((1 - t) * p - t * q).square().sum(1).sqrt()
    entropy = (times(p, surprise) + times(q, denied)).mean(1)
    margin = torch.where(known, torch.where(t > 0.5, x, -x), math.inf).amin(1)
    broken = x.isnan().any(1)
    rows = [torch.where(broken, math.nan, s) for s in (loss, el2n, entropy, margin)]
    any_known = known.any(1)
    rows = [torch.where(any_known, s, 0.0) for s in rows]
    correct = (rows[3] > 0) & any_known
    slopes = times(w, (1 - t) * p - v * t * q) / x.shape[1]
    return *rows, correct, slopes


def assert_scores(scored, expected, dtype, **tolerance):
    tolerance = tolerance or (EXACT if dtype == torch.float64 else SCORE_TOLERANCES)
    for name, actual, wanted in zip(scored._fields, scored, expected, strict=False):
        wanted = wanted.to(actual.dtype)
        torch.testing.assert_close(
            actual.detach(), wanted, **(tolerance if actual.is_floating_point() else {}),
            equal_nan=True, msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


@every_dtype
@pytest.mark.parametrize("labels", SIZES[1:])
@pytest.mark.parametrize("rows", [0, 1, 31, 33])
def test_every_size_and_dtype(device, rows, labels, dtype):
    x, target = make(rows, labels, dtype, device, soft=labels % 2 == 0)
    x.requires_grad_()
    scored = F.scored_binary_cross_entropy(x, target)
    *expected, slopes = reference(x, target)
    assert_scores(scored, expected, dtype)
    grad_loss = torch.linspace(-1, 2, rows, device=device, dtype=scored.loss.dtype)
    scored.loss.backward(grad_loss)
    wanted = grad_loss.double()[:, None] * slopes
    torch.testing.assert_close(x.grad, wanted.to(dtype), **GRADIENT_TOLERANCES[dtype])


@pytest.mark.parametrize("target_dtype", [*DTYPES, torch.bool], ids=str)
@every_dtype
def test_every_target_dtype_equals_float32(device, dtype, target_dtype):
    for labels in (5, 80, 1000):
        x, target = make(9, labels, dtype, device)
        for leaf in (xs := [x.clone().requires_grad_() for _ in range(2)]):
            leaf.retain_grad()
        scored = [
            F.scored_binary_cross_entropy(leaf, t)
            for leaf, t in zip(xs, (target, target.to(target_dtype)), strict=True)
        ]
        for a, b in zip(*scored, strict=True):
            assert torch.equal(a, b)
            if a.requires_grad:
                (a.sum() + b.sum()).backward()
        assert torch.equal(xs[0].grad, xs[1].grad)


@every_dtype
@pytest.mark.parametrize("per_row", [False, True])
def test_weights_of_labels_and_of_positive_ones(device, dtype, per_row):
    for labels in (1, 17, 80, 700):
        x, target = make(33, labels, dtype, device, soft=True)
        weight, pos_weight = make_weights(33, labels, device)
        weight = weight if per_row else weight[0]
        x.requires_grad_()
        scored = F.scored_binary_cross_entropy(x, target, weight=weight, pos_weight=pos_weight)
        *expected, slopes = reference(x, target, weight, pos_weight)
        assert_scores(scored, expected, dtype)
        scored.loss.sum().backward()
        torch.testing.assert_close(x.grad, slopes.to(dtype), **GRADIENT_TOLERANCES[dtype])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
def test_reductions_are_those_of_torch(device, reduction):
    x, target = make(19, 21, torch.float64, device, soft=True)
    weight, pos_weight = (w.double() for w in make_weights(19, 21, device))
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
    loss = F.scored_binary_cross_entropy(ours, target, **options).loss
    if reduction == "sample":  # the mean of the rows' own means
        options["reduction"] = "none"
    wanted = binary_cross_entropy_with_logits(theirs, target.double(), **options)
    if options["reduction"] == "none":
        wanted = wanted.mean(1)
    if reduction == "sample":
        wanted = wanted.mean()
    torch.testing.assert_close(loss, wanted)
    loss.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("shape", [(), (1,), (21,), (1, 21), (19, 1), (19, 21)], ids=str)
def test_weights_are_broadcast_as_in_torch(shape):
    x, target = make(19, 21, torch.float64)
    weight = torch.rand(shape).double()
    loss = F.scored_binary_cross_entropy(x, target, weight=weight, reduction="sum").loss
    wanted = binary_cross_entropy_with_logits(x, target.double(), weight=weight, reduction="sum")
    torch.testing.assert_close(loss, wanted)


def test_one_label_may_be_one_dimensional():
    x, target = make(33, 1)
    weight = torch.rand(33)
    flat = F.scored_binary_cross_entropy(x[:, 0], target[:, 0], weight=weight)
    assert flat.loss.shape == (33,)
    column = F.scored_binary_cross_entropy(x, target, weight=weight[:, None])
    for a, b in zip(flat, column, strict=True):
        assert torch.equal(a, b)
    wanted = binary_cross_entropy_with_logits(
        x[:, 0], target[:, 0], weight=weight, pos_weight=torch.tensor(2.0)
    )
    loss = F.scored_binary_cross_entropy(
        x[:, 0], target[:, 0], weight=weight, pos_weight=torch.tensor(2.0), reduction="mean"
    ).loss
    torch.testing.assert_close(loss, wanted)


def test_special_values_have_their_limits(device):
    """torch gives NaN where a factor of 0 meets an infinite term."""
    values = [0.0, -0.0, 3.0, -40.0, 95.0, 1e4, -1e38, math.inf, -math.inf, math.nan]
    logits = torch.tensor(list(itertools.product(values, repeat=2)), device=device)
    for target in itertools.product([0.0, 0.25, 1.0], repeat=2):
        t = torch.tensor(target, device=device).expand_as(logits)
        x = logits.clone().requires_grad_()
        scored = F.scored_binary_cross_entropy(x, t)
        *expected, slopes = reference(logits, t)
        # Of e^-|x| below 1e-37, float32 keeps nothing.
        assert_scores(scored, expected, torch.float32, rtol=1e-5, atol=1e-37)
        scored.loss.backward(torch.ones(len(x), device=device))
        torch.testing.assert_close(x.grad, slopes.float(), rtol=1e-5, atol=1e-37, equal_nan=True)


def test_small_losses_and_errors_keep_their_digits(device):
    x = torch.linspace(-75, 75, 1501, device=device)[:, None]
    for value in (0.0, 1.0):
        target = torch.full_like(x, value)
        assert_scores(
            F.scored_binary_cross_entropy(x, target), reference(x, target)[:5], torch.float32
        )


def test_ties_at_zero_are_not_correct():
    x, target = torch.tensor([[0.0, 5.0], [1.0, 5.0], [-1.0, 5.0]]), torch.ones(3, 2)
    scored = F.scored_binary_cross_entropy(x, target)
    assert scored.correct.tolist() == [False, True, False]
    assert scored.margin.tolist() == [0.0, 1.0, -1.0]


@every_dtype
def test_views_are_read_where_they_are(device, dtype):
    x, target = make(66, 90, dtype, device)
    views = [
        (x[::2, 5:85], target[1::2, 3:83]),
        (x.t(), target.t()),
        (x[:1, :].expand(4, 90), target[:4]),
        (x.flip(0)[:, ::3], target[:, 1::3]),
    ]
    for logits, labels in views:
        leaf = logits.detach().clone().requires_grad_()
        plain = F.scored_binary_cross_entropy(leaf, labels.contiguous())
        plain.loss.sum().backward()
        view = logits.detach().requires_grad_()
        scored = F.scored_binary_cross_entropy(view, labels)
        for a, b in zip(scored, plain, strict=True):
            assert torch.equal(a, b)
        scored.loss.sum().backward()
        assert torch.equal(view.grad, leaf.grad)


def test_labels_of_weight_0_are_not_looked_at(device):
    x, target = make(6, 40, torch.float32, device)
    weight = torch.ones_like(target)
    weight[:, 7] = 0
    weight[3] = 0
    spoilt, wrong = x.clone(), target.clone()
    spoilt[:, 7], wrong[:, 7] = math.nan, -1.0
    spoilt[3], wrong[3] = math.inf, math.nan
    results = []
    for logits, labels in ((x, target), (spoilt, wrong)):
        leaf = logits.clone().requires_grad_()
        scored = F.scored_binary_cross_entropy(leaf, labels, weight=weight)
        scored.loss.sum().backward()
        results.append((*(s.detach() for s in scored), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert not results[0][-1][:, 7].any() and not results[0][-1][3].any()
    assert [float(s[3]) for s in results[0][:5]] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan, math.inf, -1.0])
def test_targets_outside_0_and_1_are_refused_before_anything_changes(bad):
    x, target = make(40, 50)
    target[23, 49] = bad
    columns = make_columns()
    before = {name: column.clone() for name, column in columns.items()}
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"target\[23\] has .*: expected 0 <= target <= 1"):
        F.scored_binary_cross_entropy(x, target)
    with pytest.raises(ValueError, match=r"target\[23\] has"):
        F.scored_binary_cross_entropy_step_(x, target, torch.arange(40), **columns, alpha=0.5)
    for name, column in columns.items():
        assert torch.equal(column, before[name])


def test_ids_out_of_range_are_refused_before_anything_changes():
    x, target = make(4, 5)
    columns = make_columns()
    ids = torch.tensor([0, 1, N, 2])
    with pytest.raises(IndexError, match=r"sample_ids\[2\] = 70"):
        F.scored_binary_cross_entropy_step_(x, target, ids, **columns, alpha=0.5)
    assert not columns["count"].any()


def test_more_threads_change_no_bit():
    x, target = make(200, 300)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            columns = make_columns()
            scored = F.scored_binary_cross_entropy_step_(
                leaf, target, torch.arange(200) % N, **columns, alpha=0.5
            )
            scored.loss.backward()
            results.append([*(s.detach() for s in scored), leaf.grad, *columns.values()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- as torch sees it


def test_gradients_by_differences():
    x, target = make(4, 5, torch.float64, soft=True)
    weight, pos_weight = (w.double() for w in make_weights(4, 5))
    x.requires_grad_()

    def loss(logits):
        return F.scored_binary_cross_entropy(
            logits, target, weight=weight, pos_weight=pos_weight
        ).loss

    assert torch.autograd.gradcheck(loss, x)


def test_one_backward_pass_per_step_and_no_second_derivative():
    x, target = make(4, 5)
    x.requires_grad_()
    loss = F.scored_binary_cross_entropy_step_(
        x, target, torch.arange(4), **make_columns(), alpha=0.5
    ).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Use scored_binary_cross_entropy to go backward twice"):
        loss.backward()
    for function in (
        lambda: F.scored_binary_cross_entropy(x, target).loss.sum(),
        lambda: (
            F.scored_binary_cross_entropy_step_(
                x, target, torch.arange(4), **make_columns(), alpha=0.5
            ).loss
        ),
    ):
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            (grad,) = torch.autograd.grad(function(), x, create_graph=True)
            grad.sum().backward()


def test_autocast_changes_nothing():
    x, target = make(8, 30, torch.bfloat16)
    plain = F.scored_binary_cross_entropy(x, target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = F.scored_binary_cross_entropy(x, target)
    for a, b in zip(inside, plain, strict=True):
        assert torch.equal(a, b)
    assert plain.loss.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend):
    x, target = make(12, 30)
    pos_weight = torch.rand(30)

    def train(logits, target, ids, columns, reduction):
        scored = F.scored_binary_cross_entropy_step_(
            logits, target, ids, **columns, alpha=0.5, pos_weight=pos_weight, reduction=reduction
        )
        plain = F.scored_binary_cross_entropy(logits, target, reduction="mean")
        return scored.loss + plain.loss, scored.el2n

    compiled = torch.compile(train, fullgraph=True, backend=backend)
    for reduction in ("mean", "sample"):
        results = []
        for function in (train, compiled):
            leaf, columns = x.clone().requires_grad_(), make_columns()
            loss, el2n = function(leaf, target, torch.arange(12) % 7, columns, reduction)
            loss.backward()
            results.append([loss.detach(), el2n, leaf.grad, *columns.values()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_fake_tensors_have_the_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(6, 9, dtype=torch.bfloat16, requires_grad=True)
        scored = F.scored_binary_cross_entropy_step_(
            x, torch.empty(6, 9), torch.empty(6, dtype=torch.int64), torch.empty(N),
            torch.empty(N), torch.empty(N, dtype=torch.int32), alpha=0.5,
        )  # fmt: skip
        scored.loss.backward()
        assert x.grad.shape == (6, 9) and scored.el2n.shape == (6,)
        assert F.scored_binary_cross_entropy(x, torch.empty(6, 9)).correct.dtype == torch.bool


X, T = torch.zeros(4, 5), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "logits must be a torch.Tensor", ([1.0], T), {}),
        (ValueError, "logits must have dtype", (X.long(), T), {}),
        (ValueError, "flatten logits and targets", (X[None], T[None]), {}),
        (ValueError, "Pruner.observe", (X[None], T[None]), {}),
        (ValueError, "at least one label", (X[:, :0], T[:, :0]), {}),
        (TypeError, "target must be a torch.Tensor", (X, [0]), {}),
        (ValueError, r"pass target.to\(logits.dtype\)", (X, T.long()), {}),
        (ValueError, "target must have the shape of logits", (X, T[:, :4]), {}),
        (ValueError, "target must have the shape of logits", (X, T[:, 0]), {}),
        (ValueError, "target must not require a gradient", (X, T.clone().requires_grad_()), {}),
        (ValueError, r"pass target\[:, None\]", (X[:, :1], T[:, 0]), {}),
        (ValueError, "weight must.*use sample_weight", (X, T), {"weight": torch.ones(4)}),
        (ValueError, "weight must be broadcast", (X, T), {"weight": torch.ones(1, 4, 5)}),
        (ValueError, "pos_weight must have shape", (X, T), {"pos_weight": torch.ones(4)}),
        (ValueError, "pos_weight must have shape", (X, T), {"pos_weight": torch.ones(4, 5)}),
        (ValueError, "pos_weight must have dtype", (X, T), {"pos_weight": torch.ones(5).int()}),
        (ValueError, "reduction must be one of", (X, T), {"reduction": "average"}),
        (ValueError, "target must be a dense tensor", (X, T.to_sparse()), {}),
    ],
)  # fmt: skip
def test_errors_name_the_argument(error, message, arguments, options):
    with pytest.raises(error, match=message):
        F.scored_binary_cross_entropy(*arguments, **options)


# torch warns about its own set-up of forward mode; of which kind, depends on the release.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_transforms_and_forward_mode_are_refused():
    with pytest.raises(NotImplementedError, match="binary_cross_entropy_with_logits"):
        torch.func.grad(lambda x: F.scored_binary_cross_entropy(x, T).loss.sum())(X)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="forward-mode derivative"),
    ):
        dual = torch.autograd.forward_ad.make_dual(X, X)
        F.scored_binary_cross_entropy(dual, T)


@pytest.mark.parametrize("row_reduction", ["mean", 0.5])
def test_wide_targets_are_looked_at_as_the_loss_does(row_reduction):
    columns, target = make_columns(), T.double() * (1 + 1e-9)
    F.scored_binary_cross_entropy_step_(
        X, target, torch.arange(4), **columns, alpha=0.5, row_reduction=row_reduction
    )
    assert columns["count"][:4].all()


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("num_items needs reduction='mean'", {"num_items": 3, "reduction": "sum"}),
        ("sample_weight must have 4 elements", {"sample_weight": torch.ones(5)}),
        ("sample_weight must not require", {"sample_weight": torch.ones(4).requires_grad_()}),
        ("grad_scale must be 0-d", {"grad_scale": torch.ones(2)}),
        ("reduction must be one of", {"reduction": "average"}),
        ("score must be one of", {"score": "accuracy"}),
        ("ticket must have dtype", {"ticket": torch.zeros(1)}),
    ],
)
def test_errors_of_the_step_change_nothing(message, options):
    columns = make_columns()
    with pytest.raises(ValueError, match=message):
        F.scored_binary_cross_entropy_step_(X, T, torch.arange(4), **columns, alpha=0.5, **options)
    assert not columns["count"].any()
