# SPDX-License-Identifier: Apache-2.0
"""scored_cross_entropy_step_ equals its parts, which have references of their own."""

import gc
import itertools
import math
import weakref

import pytest
import torch

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F
from dynprune_cuda.functional.cross_entropy import SCORES

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
N = 70
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make_batch(rows, classes, dtype, device="cpu"):
    """Logits, targets, and sample ids of which some occur twice and some rows have none."""
    generator = torch.Generator().manual_seed(100 * rows + classes)
    logits = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 3).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator)
    ids = torch.randint(-1, N, (rows,), generator=generator)
    return logits.to(device), target.to(device), ids.to(device)


def make_columns(device="cpu", count_dtype=torch.int32):
    generator = torch.Generator().manual_seed(1)
    count = torch.randint(0, 3, (N,), generator=generator)
    return {
        "mean": (torch.randn(N, generator=generator) * (count > 0)).to(device),
        "variance": (torch.rand(N, generator=generator) * (count > 0)).to(device),
        "count": count.to(count_dtype).to(device),
        "non_finite_count": torch.randint(0, 2, (N,), generator=generator).int().to(device),
        "last_non_finite": (torch.rand(N, generator=generator) < 0.1).to(device),
        "last_correct": (torch.rand(N, generator=generator) < 0.7).to(device),
        "forget_count": torch.zeros(N, dtype=torch.int32, device=device),
    }


def parts(
    logits, target, ids, columns, *, alpha, score, first_visit, sample_weight, reduction, **o
):
    """The step from scored_cross_entropy, torch arithmetic and update_scores_."""
    ignore_index = o.get("ignore_index", -100)
    per_row = F.scored_cross_entropy(logits, target, **o)
    counts = target != ignore_index
    if o.get("target_b") is not None:
        counts = counts & (o["target_b"] != ignore_index)
    values = {
        "loss": per_row.loss,
        "el2n": per_row.el2n,
        "entropy": per_row.entropy,
        "margin": -per_row.margin,
    }[score]
    F.update_scores_(
        **columns,
        sample_ids=torch.where(counts, ids, -1),
        values=values,
        correct=per_row.correct,
        alpha=alpha,
        first_visit=first_visit,
    )
    factor = 1 if sample_weight is None else sample_weight.to(per_row.loss.dtype)
    loss = per_row.loss * factor
    if reduction == "none":
        return per_row._replace(loss=loss)
    total = loss.sum()
    if reduction == "mean":
        w = o.get("weight")
        w = torch.ones(logits.shape[1], device=logits.device) if w is None else w
        weights = w.to(total.dtype)[target.long().clamp(min=0)]
        if o.get("target_b") is not None:
            second = w.to(total.dtype)[o["target_b"].long().clamp(min=0)]
            weights = o["lam"] * weights + (1 - o["lam"]) * second
        total = total / torch.where(counts, weights, 0).sum()
    return per_row._replace(loss=total)


TOLERANCES = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
    torch.float32: {"rtol": 3e-6, "atol": 1e-7},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-7},  # one place
    torch.float16: {"rtol": 1e-3, "atol": 6e-8},
}


def assert_step_is_its_parts(batch, grad_loss=None, **options):
    logits, target, ids = batch
    device = logits.device
    full = {
        "alpha": 0.8,
        "score": "loss",
        "first_visit": "zero",
        "sample_weight": None,
        "reduction": "mean",
        **options,
    }
    results = []
    for step in (F.scored_cross_entropy_step_, parts):
        columns = make_columns(device)
        x = logits.clone().requires_grad_()
        extra = dict(full)
        if step is parts:
            extra.pop("grad_scale", None)
            got = step(x, target, ids, columns, **extra)
        else:
            got = step(x, target, ids, **columns, **extra)
        g = torch.ones_like(got.loss) if grad_loss is None else grad_loss.to(got.loss.dtype)
        got.loss.backward(g.expand_as(got.loss))
        results.append((got, x.grad, columns))
    (got, gradient, columns), (expected, expected_gradient, expected_columns) = results
    for name, a, b in zip(got._fields, got, expected, strict=True):
        tolerance = TOLERANCES[a.dtype] if a.is_floating_point() else {}
        torch.testing.assert_close(
            a, b, **tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(
        gradient, expected_gradient, **TOLERANCES[gradient.dtype], equal_nan=True
    )
    for name, column in expected_columns.items():
        exact = {"rtol": 1e-5, "atol": 1e-7} if column.is_floating_point() else {}
        torch.testing.assert_close(columns[name], column, **exact, equal_nan=True, msg=name)
    return got, gradient, columns


@every_dtype
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("classes", [1, 2, 10, 32, 33, 100, 1000, 1025, 2500])
def test_every_size_and_dtype(device, rows, classes, dtype):
    if rows * classes > 40_000 and rows == 100:
        rows = 19
    batch = make_batch(rows, classes, dtype, device)
    for reduction in ("mean", "none"):
        assert_step_is_its_parts(batch, reduction=reduction)


@pytest.mark.parametrize("classes", [7, 50, pytest.param(1100, marks=pytest.mark.slow)])
def test_every_option(device, classes):
    rows = 37
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(classes, generator=generator).to(device)
    sample_weight = torch.linspace(0, 3, rows, device=device)
    logits, target, ids = make_batch(rows, classes, torch.float32, device)
    target_b = torch.randint(classes, (rows,), generator=generator).to(device)
    target[::6], target_b[::7] = 3, 3
    lam = torch.rand(rows, generator=generator).to(device)
    for w, smoothing, ignore_index, s, reduction, mix in itertools.product(
        (None, weight),
        (0.0, 0.2),
        (-100, 3),
        (None, sample_weight),
        ("mean", "sum", "none"),
        ({}, {"target_b": target_b, "lam": 0.3}, {"target_b": target_b, "lam": lam}),
    ):
        assert_step_is_its_parts(
            (logits, target, ids),
            weight=w,
            label_smoothing=smoothing,
            ignore_index=ignore_index,
            sample_weight=s,
            reduction=reduction,
            **mix,
        )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("first_visit", ["zero", "published"])
def test_every_score_enters_the_table(device, score, first_visit):
    batch = make_batch(40, 10, torch.float32, device)
    *_, columns = assert_step_is_its_parts(batch, score=score, first_visit=first_visit, alpha=0.3)
    assert not torch.equal(columns["mean"], make_columns(device)["mean"])
    assert columns["forget_count"].any()


@every_dtype
@pytest.mark.parametrize("grad_loss", [0.0, 2.0, -0.25, 65536.0])
def test_backward_multiplies_with_what_comes_in(device, grad_loss, dtype):
    batch = make_batch(24, 12, dtype, device)
    assert_step_is_its_parts(batch, torch.tensor(grad_loss, device=device), reduction="mean")
    rows = torch.linspace(-1, 2, 24, device=device)
    rows[::5], rows[1::5] = 0, 1
    assert_step_is_its_parts(batch, rows, reduction="none")


@pytest.mark.parametrize(
    ("dtype", "announced"),
    [
        (torch.float16, 1024.0),
        (torch.bfloat16, 1024.0),
        (torch.bfloat16, 64.0),
        (torch.float32, 1024.0),
        (torch.float32, 3.0),
    ],
    ids=str,
)
def test_a_loss_scale_that_is_announced_changes_no_result(device, dtype, announced):
    batch = make_batch(64, 10, dtype, device)
    scale = torch.tensor(announced, device=device)
    assert_step_is_its_parts(batch, torch.tensor(1024.0, device=device), grad_scale=scale)


def test_small_float16_gradients_survive_a_loss_scaler(device):
    """Their products with the scale are normal numbers; they themselves would be 0."""
    rows, classes = 4096, 10
    logits = torch.zeros(rows, classes, dtype=torch.float16, device=device)
    target = torch.zeros(rows, dtype=torch.int64, device=device)
    logits[:, 0] = 8.0
    ids = torch.full((rows,), -1, device=device)
    x = logits.requires_grad_()
    columns = make_columns(device)
    loss = F.scored_cross_entropy_step_(x, target, ids, **columns, alpha=0.5).loss
    (loss * 65536.0).backward()
    exact = 65536.0 / rows / (math.exp(8) + 9)
    torch.testing.assert_close(x.grad[:, 1:].float().mean().item(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_target_dtypes_and_strided_rows(device, dtype):
    wide = torch.randn(9, 100, device=device)
    for first, classes in ((0, 33), (1, 33), (3, 8)):
        logits = wide[:, first : first + classes]
        target = torch.arange(9, device=device).to(dtype) % classes
        batch = (logits, target, torch.arange(9, device=device))
        assert_step_is_its_parts(batch)
        assert_step_is_its_parts(
            (logits.T.contiguous().T, *batch[1:]), target_b=target.flip(0), lam=0.5
        )


@pytest.mark.parametrize("classes", [6, 50, 1100])
def test_rows_that_are_broken_mark_their_samples(device, classes):
    logits, target, ids = make_batch(20, classes, torch.float32, device)
    logits[3], logits[5, 2], logits[7], logits[9] = math.nan, math.inf, -math.inf, 1e30
    ids = torch.arange(20, device=device)
    logits[11, target[11]] = -math.inf
    *_, columns = assert_step_is_its_parts((logits, target, ids), reduction="none")
    assert columns["last_non_finite"][[3, 5, 7, 11]].all()


def test_mixup_is_torch_s_mixture_of_two_losses(device):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(12, 9, generator=generator, dtype=torch.float64).to(device)
    a = torch.randint(9, (12,), generator=generator).to(device)
    b = torch.randint(9, (12,), generator=generator).to(device)
    lam = torch.rand(12, generator=generator, dtype=torch.float64).to(device)
    lam[:2] = torch.tensor([0.0, 1.0])
    for smoothing in (0.0, 0.1):
        losses, grads = [], []
        for fused in (True, False):
            x = logits.clone().requires_grad_()
            if fused:
                loss = F.scored_cross_entropy(
                    x, a, target_b=b, lam=lam, label_smoothing=smoothing
                ).loss
            else:
                ce = torch.nn.functional.cross_entropy
                options = {"reduction": "none", "label_smoothing": smoothing}
                loss = lam * ce(x, a, **options) + (1 - lam) * ce(x, b, **options)
            loss.backward(torch.linspace(-1, 1, 12, dtype=torch.float64, device=device))
            losses.append(loss.detach())
            grads.append(x.grad)
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(
        lambda x: F.scored_cross_entropy(x, a, target_b=b, lam=lam).loss,
        logits.clone().requires_grad_(),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_of_the_loss_alone_are_torch_s(device, reduction):
    logits, target, _ = make_batch(30, 7, torch.float64, device)
    target[::4] = 2
    weight = torch.rand(7, dtype=torch.float64, device=device)
    for options in ({}, {"weight": weight, "ignore_index": 2, "label_smoothing": 0.1}):
        got = F.scored_cross_entropy(logits, target, reduction=reduction, **options).loss
        expected = torch.nn.functional.cross_entropy(logits, target, reduction=reduction, **options)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_all_rows_ignored_gives_nan_and_no_gradient_as_torch_does(device):
    logits, _, ids = make_batch(5, 4, torch.float32, device)
    target = torch.full((5,), -100, device=device)
    columns = make_columns(device)
    before = {name: column.clone() for name, column in columns.items()}
    x = logits.requires_grad_()
    loss = F.scored_cross_entropy_step_(x, target, ids, **columns, alpha=0.5).loss
    loss.backward()
    assert loss.isnan() and not x.grad.any()
    for name, column in before.items():
        assert torch.equal(columns[name], column)


@pytest.mark.parametrize("which", ["target", "target_b", "ids"])
def test_data_out_of_range_changes_nothing(which):
    logits, target, ids = make_batch(30, 4, torch.float32)
    target_b = target.clone()
    {"target": target, "target_b": target_b, "ids": ids}[which][17] = N
    columns = make_columns()
    before = {name: column.clone() for name, column in columns.items()}
    with pytest.raises(IndexError, match=rf"\[17\] = {N}"):
        F.scored_cross_entropy_step_(
            logits, target, ids, **columns, alpha=0.5, target_b=target_b, lam=0.5
        )
    for name, column in before.items():
        assert torch.equal(columns[name], column)


def test_a_second_backward_or_derivative_is_an_error_that_says_what_to_use(device):
    logits, target, ids = make_batch(6, 4, torch.float32, device)
    x = logits.requires_grad_()
    loss = F.scored_cross_entropy_step_(x, target, ids, **make_columns(device), alpha=0.5).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="scored_cross_entropy to go backward twice"):
        loss.backward()
    loss = F.scored_cross_entropy_step_(x, target, ids, **make_columns(device), alpha=0.5).loss
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*create_graph=True"):
        torch.autograd.grad(loss, x, create_graph=True)
    loss.backward()  # the refusal changed nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_second_derivatives_are_no_silent_zeros(dtype):
    logits, target, ids = make_batch(6, 4, dtype, "cpu")

    def loss(x):
        return Pruner(1000, 0.5).cross_entropy(x, target, ids)

    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.functional.hessian(loss, logits)
    factor = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss(logits.requires_grad_()) * factor, logits, create_graph=True)


def test_logits_are_kept_and_nothing_is_recorded_without_grad(device):
    logits, target, ids = make_batch(20, 10, torch.float32, device)
    x = logits.clone().requires_grad_()
    columns = make_columns(device)
    F.scored_cross_entropy_step_(x, target, ids, **columns, alpha=0.5).loss.backward(
        torch.tensor(7.0, device=device)
    )
    assert torch.equal(x.detach(), logits)
    with torch.no_grad():
        got = F.scored_cross_entropy_step_(x, target, ids, **columns, alpha=0.5)
    assert not got.loss.requires_grad


def test_threads_and_repetition_change_no_bit():
    batch = make_batch(300, 100, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            columns = make_columns()
            x = batch[0].clone().requires_grad_()
            got = F.scored_cross_entropy_step_(x, *batch[1:], **columns, alpha=0.5)
            got.loss.backward()
            results.append([*(t.detach() for t in got), x.grad, *columns.values()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


BAD = [
    (ValueError, "alpha", {"alpha": 0.0}),
    (ValueError, "score", {"score": "accuracy"}),
    (ValueError, "reduction", {"reduction": "avg"}),
    (ValueError, "first_visit", {"first_visit": "one"}),
    (ValueError, "sample_weight must have 6", {"sample_weight": torch.ones(5)}),
    (ValueError, "sample_weight", {"sample_weight": torch.ones(6).long()}),
    (ValueError, "target_b and lam", {"lam": 0.5}),
    (ValueError, "target_b and lam", {"target_b": torch.zeros(6).long()}),
    (ValueError, "lam", {"target_b": torch.zeros(6).long(), "lam": 1.5}),
    (ValueError, "lam", {"target_b": torch.zeros(6).long(), "lam": torch.ones(5)}),
    (ValueError, "target_b", {"target_b": torch.zeros(5).long(), "lam": 0.5}),
    (ValueError, "forget_count", {"last_correct": None}),
    (ValueError, "sample_ids must have 6", {"sample_ids": torch.arange(5)}),
    (ValueError, "sample_ids", {"sample_ids": torch.arange(6).int()}),
    (ValueError, "grad_scale", {"grad_scale": torch.ones(2)}),
    (ValueError, "ticket", {"ticket": torch.zeros(1)}),
    (ValueError, "mean", {"mean": torch.zeros(N).half()}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_bad_arguments_change_nothing(error, message, change):
    logits, target, ids = make_batch(6, 4, torch.float32)
    columns = make_columns()
    before = {name: column.clone() for name, column in columns.items()}
    arguments = {"sample_ids": ids, **columns, "alpha": 0.5, **change}
    with pytest.raises(error, match=message):
        F.scored_cross_entropy_step_(logits, target, **arguments)
    for name, column in before.items():
        assert torch.equal(columns[name], column)


def test_out_of_memory_says_so_and_changes_nothing():
    rows, classes = 1 << 22, 1 << 24  # a gradient of 281 TB, of logits that take 64 MB
    logits = torch.zeros(1, classes).expand(rows, classes).requires_grad_()
    columns = make_columns()
    ids = torch.zeros(1, dtype=torch.int64).expand(rows)
    # Before 2.13, torch's stable interface hands on no text of an error.
    says = "memory" if torch.__version__ >= torch.torch_version.TorchVersion("2.13") else None
    with pytest.raises(RuntimeError, match=says):
        F.scored_cross_entropy_step_(logits, ids, ids, **columns, alpha=0.5)
    for name, column in make_columns().items():
        assert torch.equal(columns[name], column)


def test_a_refused_step_lets_go_of_its_batch():
    """What is caught, such as a lack of memory, must not keep the batch that was too large."""
    logits, target, ids = make_batch(4, 3, torch.float32)
    columns, gone = make_columns(), weakref.ref(logits)
    gc.disable()
    try:
        with pytest.raises(IndexError):
            F.scored_cross_entropy_step_(logits, target + 7, ids, **columns, alpha=0.5)
        del logits
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["logits", "target", "sample_ids"])
def test_tensors_without_data_are_refused(name):
    """The operator's kernel for them checks nothing."""
    batch = dict(
        zip(("logits", "target", "sample_ids"), make_batch(4, 3, torch.float32), strict=True)
    )
    batch[name] = batch[name].to("meta")
    with pytest.raises(ValueError, match="must be on"):
        F.scored_cross_entropy_step_(**batch, **make_columns(), alpha=0.5)
