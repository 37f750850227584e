# SPDX-License-Identifier: Apache-2.0
"""Many classes that lie apart, as in [B, C, d...]: the CPU reads some of all rows at a time."""

import itertools
import math

import pytest
import reference
import torch
from torch.nn.functional import cross_entropy

from dynprune_cuda import functional as F
from dynprune_cuda._ops import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# From 1025 classes on. Blocks have 32 of them, and up to 128 rows are read together.
CLASSES = [1024, 1025, 1056, 1087]
PIXELS = [(1, 2), (1, 16), (2, 17), (1, 65), (3, 33), (1, 130)]  # weights: the third and last


def make(shape, classes, dtype, scale=3.0):
    generator = torch.Generator().manual_seed(classes + shape[1])
    logits = torch.randn(shape[0], classes, shape[1], generator=generator, dtype=torch.float64)
    target = torch.randint(classes, shape, generator=generator)
    target.view(-1)[3::7] = -100
    return (logits * scale).to(dtype), target


@pytest.mark.parametrize("classes", CLASSES)
@every_dtype
def test_loss_scores_and_gradient_are_torch_s(device, dtype, classes):
    compute = reference.compute_dtype(dtype)
    weight = torch.linspace(0.2, 2, classes, dtype=compute)
    weight[classes // 3] = 0
    options = itertools.cycle([{}, {"label_smoothing": 0.1}, {"weight": weight}])
    for shape in PIXELS:
        logits, target = make(shape, classes, dtype)
        chosen = dict(next(options))
        if chosen and shape[1] == 17:
            chosen["label_smoothing"] = 0.3
        exact = logits.clone().double().requires_grad_()
        in_double = {k: v.double() if k == "weight" else v for k, v in chosen.items()}
        expected = cross_entropy(exact, target, reduction="none", **in_double)
        factors = torch.linspace(-1, 2, target.numel()).view(target.shape)
        factors[0, 0] = 0
        expected.backward(factors.double())
        on_device = {k: v.to(device) if k == "weight" else v for k, v in chosen.items()}
        x = logits.clone().to(device).requires_grad_()
        got = F.scored_cross_entropy(x, target.to(device), **on_device)
        reference.assert_close(got.loss, expected.detach().numpy(), "smoothed_loss")
        got.loss.backward(factors.to(device, compute))
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 2e-5)
        torch.testing.assert_close(
            x.grad.cpu().double(), exact.grad, rtol=tolerance, atol=tolerance / 10
        )
        x = logits.clone().to(device).requires_grad_()
        columns = [torch.zeros(shape[0], device=device) for _ in range(2)]
        columns.append(torch.zeros(shape[0], dtype=torch.int32, device=device))
        ids = torch.arange(shape[0], device=device)
        options_of_step = {"alpha": 0.5, "reduction": "none", **on_device}
        step = F.scored_cross_entropy_step_(x, target.to(device), ids, *columns, **options_of_step)
        assert torch.equal(step.loss, got.loss)
        step.loss.backward(factors.to(device, compute))
        torch.testing.assert_close(
            x.grad.cpu().double(), exact.grad, rtol=tolerance, atol=tolerance / 10
        )
        rows = logits.movedim(1, 2).reshape(-1, classes).double()
        alone = F.scored_cross_entropy(rows, target.flatten())
        for name in ("el2n", "entropy", "margin"):
            values = getattr(got, name).flatten().cpu().double()
            torch.testing.assert_close(values, getattr(alone, name), rtol=1e-5, atol=1e-5)
        assert torch.equal(got.correct.flatten().cpu(), alone.correct)


def test_a_row_gives_the_same_bits_among_any_others():
    logits, target = make((1, 130), 1500, torch.float32)
    target = target.clamp(min=0)
    whole = F.scored_cross_entropy(logits, target)
    for first, last in ((0, 16), (5, 7), (7, 40), (64, 130)):
        part = F.scored_cross_entropy(
            logits[:, :, first:last].contiguous(), target[:, first:last].contiguous()
        )
        assert torch.equal(part.loss, whole.loss[:, first:last])
        assert torch.equal(part.entropy, whole.entropy[:, first:last])
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            again = F.scored_cross_entropy(logits, target)
            assert torch.equal(again.loss, whole.loss) and torch.equal(again.el2n, whole.el2n)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_that_are_not_finite_reach_their_row_only(device, dtype, value):
    logits, target = make((1, 40), 1100, dtype)
    target = target.clamp(min=0)
    clean = F.scored_cross_entropy(logits.to(device), target.to(device)).loss.cpu()
    places = {3: 0, 8: 31, 16: 32, 21: 1099, 39: 700}
    broken = logits.clone()
    for row, place in places.items():
        broken[0, place, row] = value
    broken[0, :, 30] = value
    expected = cross_entropy(broken.double(), target, reduction="none")
    x = broken.clone().to(device).requires_grad_()
    got = F.scored_cross_entropy(x, target.to(device)).loss
    got.sum().backward()
    touched = torch.zeros(40, dtype=torch.bool)
    touched[[*places, 30]] = True
    assert torch.equal(got.cpu()[0, ~touched], clean[0, ~touched])
    assert x.grad[0, :, ~touched].isfinite().all()
    finite = expected[0].isfinite()
    torch.testing.assert_close(
        got.detach().cpu()[0][finite].double(), expected[0][finite], rtol=2e-5, atol=1e-5
    )
    assert torch.equal(got.detach().cpu()[0].isfinite(), finite)
    assert torch.equal(got.detach().cpu()[0].isnan(), expected[0].isnan())


def test_logits_that_rise_and_fall(device):
    """Sums are moved to another maximum wherever a block of classes raises it."""
    classes, rows = 1300, 33
    ramp = torch.linspace(-80, 80, classes)[:, None].expand(-1, rows).clone()
    ramp[:, 1::3] *= -1
    ramp[:, 2::3] = ramp[:, 2::3].roll(700, 0)
    target = torch.arange(rows)[None] * 39
    x = ramp[None].to(device).requires_grad_()
    got = F.scored_cross_entropy(x, target.to(device), label_smoothing=0.2)
    exact = ramp[None].double().requires_grad_()
    expected = cross_entropy(exact, target, label_smoothing=0.2, reduction="none")
    reference.assert_close(got.loss, expected.detach().numpy(), "smoothed_loss")
    got.loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad.cpu().double(), exact.grad, rtol=2e-5, atol=2e-6)


def test_second_targets(device):
    logits, target = make((2, 20), 1200, torch.float32)
    second = target.flip(1)
    lam = torch.linspace(0, 1, 40).view(2, 20)
    mixed = {"target_b": second.flatten(), "lam": lam.flatten()}
    x = logits.movedim(1, 2).reshape(40, -1).detach().requires_grad_()
    rows = F.scored_cross_entropy(x, target.flatten(), **mixed)
    rows.loss.sum().backward()
    columns = logits.to(device).movedim(1, 2)
    options = [v.to(device) for v in mixed.values()]
    plain = columns, target.flatten().to(device), None, -100, 0.0
    loss, *_, saved = ops.scored_cross_entropy(*plain, *options)
    torch.testing.assert_close(loss.cpu(), rows.loss.detach(), rtol=1e-5, atol=1e-5)
    ones = torch.ones(40, device=device)
    gradient = ops.scored_cross_entropy_backward(ones, *plain, saved, *options)
    expected = x.grad.view(2, 20, -1).movedim(2, 1)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=2e-5, atol=2e-6)


@every_dtype
@pytest.mark.parametrize("classes", [2, 20, 900, 1025])
def test_the_gradient_in_place_of_logits_in_columns(dtype, classes):
    for shape in [(1, 2), (2, 19), (1, 145)]:
        logits, target = make(shape, classes, dtype)
        factors = torch.linspace(-1, 2, target.numel(), dtype=reference.compute_dtype(dtype))
        options = target.flatten(), None, -100, 0.1
        columns = logits.clone().movedim(1, 2)
        *scores, saved = ops.scored_cross_entropy(columns, *options)
        expected = ops.scored_cross_entropy_backward(factors, columns, *options, saved, None, None)
        found = ops.scored_cross_entropy_with_gradient_(factors, columns, *options)
        for a, b in zip(found, (*scores, saved), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        got = columns.movedim(2, 1)
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 2e-5)
        torch.testing.assert_close(
            got, expected.view(got.shape), rtol=tolerance, atol=tolerance / 10
        )


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(1, 4, 6)[:, :, :3].movedim(1, 2), torch.zeros(1, 3, 1), torch.zeros(1, 3, 4)],
    ids=["gaps", "one class", "rows"],
)
def test_other_layouts_are_refused_in_place(logits):
    with pytest.raises(RuntimeError, match="their rows may be neighbours instead"):
        ops.scored_cross_entropy_with_gradient_(
            torch.ones(3), logits, torch.zeros(3, dtype=torch.int64), None, -100, 0.0
        )
