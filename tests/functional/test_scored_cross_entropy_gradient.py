# SPDX-License-Identifier: Apache-2.0
"""scored_cross_entropy: options of the loss and its gradient, against torch in float64."""

import itertools
import math
import warnings

import numpy as np
import pytest
import reference
import torch
from torch.nn.functional import cross_entropy

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def batch(rows, classes, dtype, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


def uneven(rows, dtype=torch.float32):
    """Gradients of the loss that differ from row to row, some of them zero or negative."""
    grad = torch.linspace(-2, 3, rows, dtype=torch.float64)
    grad[::5] = 0
    return grad.to(reference.compute_dtype(dtype))


def both(logits, target, grad, device, **options):
    """Loss and gradient of the op, and of torch in float64 for the same stored logits."""
    x = logits.detach().to(device).requires_grad_()
    weight = options.pop("weight", None)
    on_device = None if weight is None else weight.to(device)
    loss = F.scored_cross_entropy(x, target.to(device), weight=on_device, **options).loss
    loss.backward(grad.to(device))
    assert x.grad.dtype == logits.dtype and x.grad.shape == logits.shape
    exact = logits.detach().cpu().double().requires_grad_()
    weight = None if weight is None else weight.cpu().double()
    kept = target.long()
    expected = cross_entropy(exact, kept, weight=weight, reduction="none", **options)
    expected.backward(grad.cpu().double())
    return loss, x.grad, expected.detach().numpy(), exact.grad


def distance_in_places(got, exact):
    """How many 16-bit numbers lie between the gradient and the exact one, rounded."""
    a, b = got.cpu().view(torch.int16).int(), exact.to(got.dtype).view(torch.int16).int()
    a, b = (torch.where(v < 0, -(v & 0x7FFF), v) for v in (a, b))
    return (a - b).abs().max().item()


def assert_gradient(got, exact, quantity="gradient"):
    if got.dtype in (torch.float16, torch.bfloat16):
        # With label smoothing an element is a difference: near 0 its places are float32's noise.
        _, noise = reference.TOLERANCES[torch.float32][quantity]
        got = got.cpu()
        near = (got.double() - exact).abs() <= (noise if quantity != "gradient" else 0.0)
        assert distance_in_places(torch.where(near, exact.to(got.dtype), got), exact) <= 1
    else:
        reference.assert_close(got, exact.numpy(), quantity)


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 10, 100, pytest.param(1025, marks=pytest.mark.slow)])
def test_loss_and_gradient_with_every_option_are_torch_s(device, classes, dtype):
    rows = 48
    logits, target = batch(rows, classes, dtype)
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(1)) * 2
    weight[classes // 2] = 0
    for w, smoothing, ignore_index in itertools.product(
        (None, weight), (0.0, 0.1, 1.0), (-100, classes - 1, 99_999)
    ):
        t = target.clone()
        t[1::7] = ignore_index
        options = {"weight": w, "label_smoothing": smoothing, "ignore_index": ignore_index}
        loss, gradient, exact_loss, exact_gradient = both(
            logits, t, uneven(rows, dtype), device, **options
        )
        reference.assert_close(loss, exact_loss, "smoothed_loss")
        assert_gradient(gradient, exact_gradient, "smoothed_gradient")
        assert not gradient.cpu()[t == ignore_index].any()


@every_dtype
def test_weights_of_every_dtype(device, dtype):
    logits, target = batch(9, 7, torch.float32)
    weight = torch.linspace(0.5, 3, 7).to(dtype)
    wide = torch.stack([weight, weight * 9], dim=1)[:, 0]
    got = F.scored_cross_entropy(logits.to(device), target.to(device), weight=wide.to(device))
    exact = cross_entropy(logits.double(), target, weight=weight.double(), reduction="none")
    reference.assert_close(got.loss, exact.numpy(), "loss")


@every_dtype
def test_expanded_zero_and_single_gradients_of_the_loss(device, dtype):
    """A mean hands every row the same number without writing it down: stride 0."""
    for rows in (1, 2, 33):
        logits, target = batch(rows, 21, dtype, seed=rows)
        compute = reference.compute_dtype(dtype)
        shared = torch.tensor(0.75, dtype=compute).expand(rows)
        apart = torch.stack([uneven(rows, dtype), torch.full((rows,), 9.0)], dim=1)[:, 0]
        for grad in (shared, apart.to(compute), torch.zeros(rows, dtype=compute)):
            _, gradient, _, exact = both(logits, target, grad, device)
            assert_gradient(gradient, exact)
            assert grad.any() or not gradient.any()
        x = logits.to(device).requires_grad_()
        F.scored_cross_entropy(x, target.to(device)).loss.mean().backward()
        _, _, _, exact = both(logits, target, torch.full((rows,), 1 / rows, dtype=compute), device)
        assert_gradient(x.grad, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_target_s_gradient_keeps_its_relative_precision(device, dtype):
    """p_y - 1 down to -1e-17, which a probability near 1 minus 1 has lost."""
    gaps = torch.linspace(-40, 40, 33, dtype=torch.float64)
    logits = torch.stack([gaps, torch.zeros(33), torch.full((33,), -1.0)], dim=1).to(dtype)
    x = logits.to(device).requires_grad_()
    F.scored_cross_entropy(x, torch.zeros(33, dtype=torch.int64).to(device)).loss.sum().backward()
    others = np.exp(reference.as_float64(logits[:, 1:])).sum(axis=1)
    gap = reference.as_float64(logits[:, 0])
    reference.assert_close(x.grad[:, 0], -others / (others + np.exp(gap)), "target_gradient")


@every_dtype
def test_gradients_of_strided_logits_reach_the_right_elements(device, dtype):
    logits, target = batch(33, 21, dtype)
    _, expected, _, _ = both(logits, target, uneven(33, dtype), device)
    base = torch.zeros(33, 50, dtype=dtype, device=device)
    base[:, 4:46:2] = logits.to(device)
    base.requires_grad_()
    loss = F.scored_cross_entropy(base[:, 4:46:2], target.to(device)).loss
    loss.backward(uneven(33, dtype).to(device))
    assert torch.equal(base.grad[:, 4:46:2], expected)
    base.grad[:, 4:46:2] = 0
    assert not base.grad.any()


def test_gradients_of_rows_with_infinite_logits(device):
    logits = torch.tensor([[2.0, -torch.inf, 0.0], [-torch.inf, 1.0, 1.0], [0.0, -torch.inf, 1.0]])
    target = torch.zeros(3, dtype=torch.int64)
    _, gradient, _, exact = both(logits, target, torch.ones(3), device)
    reference.assert_close(gradient, exact.numpy(), "gradient")
    broken = torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    x = broken.to(device).requires_grad_()
    F.scored_cross_entropy(x, target.to(device)).loss.sum().backward()
    assert x.grad.isnan().all()


def test_rows_without_a_gradient_get_zeros_even_if_broken(device):
    """A row that pruning gave the weight 0 must not poison the parameters."""
    x = torch.full((3, 4), torch.nan, device=device, requires_grad=True)
    target = torch.tensor([0, 1, -100], device=device)
    F.scored_cross_entropy(x, target).loss.backward(torch.tensor([0.0, 0.0, 5.0], device=device))
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_weight_that_no_target_has_counts_for_nothing(device, dtype, shape, weight):
    weights = torch.tensor([1.0, 1.0, weight], device=device)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    pruner = Pruner(5, 0.5, device=device)
    ids = torch.arange(len(x), device=device)
    exact = x.double().requires_grad_()
    cross_entropy(exact, target).backward()

    def composed(logits):
        return F.scored_cross_entropy(logits, target, weight=weights).loss.mean()

    def in_a_step(logits):
        return pruner.cross_entropy(logits, target, ids, weight=weights)

    for loss in (composed, in_a_step):
        leaf = x.clone().requires_grad_()
        loss(leaf).backward()
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-3, atol=1e-3)


def test_an_empty_batch_has_an_empty_gradient(device):
    x = torch.zeros(0, 5, device=device, requires_grad=True)
    F.scored_cross_entropy(
        x, torch.zeros(0, dtype=torch.int64, device=device)
    ).loss.sum().backward()
    assert x.grad.shape == (0, 5)


def test_only_the_loss_is_differentiable(device):
    x = torch.randn(4, 3, device=device, requires_grad=True)
    got = F.scored_cross_entropy(x, torch.tensor([0, 1, 2, 0], device=device))
    assert got.loss.requires_grad
    for name in ("el2n", "entropy", "margin", "correct"):
        assert not getattr(got, name).requires_grad, name
    (got.loss * got.el2n).sum().backward()  # scores weight the loss as constants
    again = x.detach().clone().requires_grad_()
    exact = cross_entropy(again, torch.tensor([0, 1, 2, 0], device=device), reduction="none")
    (exact * got.el2n).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["classes", "probabilities", "labels"])
def test_the_operator_has_the_same_formula(device, kind):
    x = batch(33, 20, torch.float32)[0].to(device)
    target = torch.rand(33, 20, generator=torch.Generator().manual_seed(1)).to(device)
    if kind == "classes":
        target = target.argmax(1)
        options = (None, -100, 0.0, None, None)
        op, function = torch.ops.dynprune_cuda.scored_cross_entropy, F.scored_cross_entropy
    elif kind == "probabilities":
        options = (None, 0.0)
        op, function = torch.ops.dynprune_cuda.soft_cross_entropy, F.scored_cross_entropy
    else:
        options = (None, None)
        op = torch.ops.dynprune_cuda.scored_binary_cross_entropy
        function = F.scored_binary_cross_entropy
    first, second = (x.clone().requires_grad_() for _ in range(2))
    of_function, of_op = function(first, target), op(second, target, *options)
    for found, wanted in zip(of_function, of_op[:5], strict=True):
        assert torch.equal(found, wanted)
        assert found.requires_grad == wanted.requires_grad
    of_function.loss.backward(uneven(33).to(device))
    of_op[0].backward(uneven(33).to(device))
    assert torch.equal(first.grad, second.grad)


def test_without_grad_nothing_is_recorded(device):
    x = torch.randn(2, 3, device=device, requires_grad=True)
    with torch.no_grad():
        assert not F.scored_cross_entropy(x, torch.tensor([0, 1]).to(device)).loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_neither_casts_nor_breaks_it(device, dtype):
    logits, target = batch(8, 5, dtype)
    plain = F.scored_cross_entropy(logits.to(device), target.to(device))
    layer = torch.nn.Linear(4, 5, device=device)
    with torch.autocast(device.type, dtype=dtype):
        inside = F.scored_cross_entropy(logits.to(device), target.to(device))
        hidden = layer(torch.randn(8, 4, device=device))
        assert hidden.dtype == dtype
        loss = F.scored_cross_entropy(hidden, target.to(device)).loss
    for a, b in zip(plain, inside, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.any()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3}, {"ignore_index": 1}], ids=str)
def test_gradcheck(device, options):
    logits, target = batch(5, 4, torch.float64)
    x, target = logits.to(device).requires_grad_(), target.to(device)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64, device=device)
    for w in (None, weight):
        assert torch.autograd.gradcheck(
            lambda x, w=w: F.scored_cross_entropy(x, target, weight=w, **options).loss, (x,)
        )


def test_a_second_derivative_is_an_error_that_says_what_to_use(device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    loss = F.scored_cross_entropy(x, torch.tensor([0, 1, 2], device=device)).loss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # create_graph warns of reference cycles
        (grad,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"scored_cross_entropy.*torch\.nn\.functional"):
        grad.square().sum().backward()


def test_inputs_keep_every_bit(device):
    x, target = batch(64, 21, torch.float32)
    x[::9] = torch.nan
    x, target = x.to(device).requires_grad_(), target.to(device)
    weight = torch.rand(21, device=device)
    before = [t.detach().clone() for t in (x, target, weight)]
    state = torch.get_rng_state()
    grad = uneven(64).to(device)
    kept = grad.clone()
    F.scored_cross_entropy(x, target, weight=weight, label_smoothing=0.1).loss.backward(grad)
    assert torch.equal(x.detach().view(torch.int32), before[0].view(torch.int32))
    assert torch.equal(target, before[1]) and torch.equal(weight, before[2])
    assert torch.equal(grad, kept) and torch.equal(torch.get_rng_state(), state)


def test_threads_and_repetition_change_no_bit():
    logits, target = batch(500, 200, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 1):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            got = F.scored_cross_entropy(x, target, label_smoothing=0.1)
            got.loss.backward(uneven(500))
            results.append([*(v.detach() for v in got), x.grad])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("classes", [20, 200, 2000])
def test_probabilities_are_right_down_to_the_smallest_normal_number(classes):
    """Where exponentials end, they end in zeros: no garbage, no infinity, no lost digits."""
    logits = torch.linspace(0, -150, classes)[None].clone()
    logits[0, 5], logits[0, 7] = -math.inf, -86.5
    target = torch.tensor([3])
    for reduction in ("sum", "mean"):
        x = logits.clone().requires_grad_()
        table = [torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.int32)]
        F.scored_cross_entropy_step_(
            x, target, torch.tensor([0]), *table, alpha=0.5, reduction=reduction
        ).loss.backward()
        exact = torch.softmax(logits.double(), 1)
        exact[0, 3] -= 1
        torch.testing.assert_close(x.grad.double(), exact, rtol=5e-6, atol=3e-38)
        assert x.grad[0, 5] == 0


def losses(x, **factors):
    """The loss of three rows by every function that has one, and the counts of their tables."""
    target, ids = torch.tensor([1, 0, 2]), torch.arange(3)
    table = [torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.int32)]
    pruner = Pruner(3, 0.5)
    return (table[2], pruner.table.count), (
        lambda: F.scored_cross_entropy(x, target, **factors),
        lambda: F.scored_cross_entropy_step_(x, target, ids, *table, alpha=0.5, **factors),
        lambda: pruner.cross_entropy(x, target, ids, **factors),
    )


@pytest.mark.parametrize("name", ["weight", "lam"])
def test_factors_that_want_a_gradient_are_refused(name):
    """They have none: a gradient of zero would be wrong, and nobody would see it."""
    factors = {"weight": torch.ones(5, requires_grad=True)}
    if name == "lam":
        factors = {"lam": torch.ones(3, requires_grad=True), "target_b": torch.tensor([0, 1, 1])}
    counts, calls = losses(torch.randn(3, 5), **factors)
    for call in calls:
        with pytest.raises(ValueError, match=f"{name} must not require a gradient"):
            call()
        with torch.no_grad():
            call()
    assert all((count == 1).all() for count in counts)


# torch warns about its own set-up of forward mode; of which kind, depends on the release.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_is_refused_before_anything_changes():
    x, tangent = torch.randn(3, 5), torch.randn(3, 5)
    with torch.autograd.forward_ad.dual_level():
        counts, calls = losses(torch.autograd.forward_ad.make_dual(x, tangent))
        for call in calls:
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                call()
    assert not any(count.any() for count in counts)
    for index in range(3):

        def loss(x, index=index):
            result = losses(x)[1][index]()
            return result if isinstance(result, torch.Tensor) else result.loss

        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.func.jvp(loss, (x,), (tangent,))


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 10, 32, 33, 1025, 2500])
def test_a_gradient_that_replaces_the_logits(device, classes, dtype):
    ops, rows = torch.ops.dynprune_cuda, 40  # two groups of lanes, and a part
    logits, target = (t.to(device) for t in batch(rows, classes, dtype))
    target[3] = -100
    grad = uneven(rows, dtype).to(device)
    for weight, smoothing in ((None, 0.0), (torch.rand(classes).to(grad), 0.1)):
        options = (weight, -100, smoothing)
        expected = ops.scored_cross_entropy(logits, target, *options)
        replaced = logits.clone()
        found = ops.scored_cross_entropy_with_gradient_(grad, replaced, target, *options)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        exact = logits.cpu().double().clone().requires_grad_()
        exact_weight = None if weight is None else weight.cpu().double()
        cross_entropy(
            exact, target.cpu(), exact_weight, label_smoothing=smoothing, reduction="none"
        ).backward(grad.cpu().double())
        assert_gradient(replaced, exact.grad, "smoothed_gradient" if smoothing else "gradient")
        assert not replaced[grad == 0].any() and not replaced[3].any()


def test_logits_are_left_alone_if_a_target_is_out_of_range():
    logits, target = batch(20, 7, torch.float32)
    target[17] = 7
    given = logits.clone()
    with pytest.raises(IndexError, match="17"):
        torch.ops.dynprune_cuda.scored_cross_entropy_with_gradient_(
            torch.ones(20), given, target, None, -100, 0.0
        )
    assert torch.equal(given, logits)
