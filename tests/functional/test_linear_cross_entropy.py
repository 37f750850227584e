# SPDX-License-Identifier: Apache-2.0
"""scored_linear_cross_entropy against a whole matrix of logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from linear_heads import CLASSES, FEATURES, ROWS, gradients, make
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._ops import linear_cross_entropy as ops_module
from dynprune_cuda.functional import linear_cross_entropy as module
from dynprune_cuda.functional import scored_cross_entropy, scored_linear_cross_entropy


@pytest.fixture(autouse=True, params=["by row", "by class"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the logits of a chunk."""
    if request.param == "by class":
        monkeypatch.setattr(ops_module, "CLASSES_IN_COLUMNS", 1)
        monkeypatch.setattr(ops_module, "FEATURES_IN_COLUMNS", 1)
        monkeypatch.setattr(ops_module, "ROWS_IN_COLUMNS", 2)


@pytest.mark.parametrize("chunk_rows", [1, 5, ROWS, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_whole_matrix(chunk_rows: int, reduction: str, bias: bool) -> None:
    hidden, weight, target, offset = make(bias=bias)
    smoothed = {"label_smoothing": 0.1, "reduction": reduction}
    found = scored_linear_cross_entropy(
        hidden, weight, target, bias=offset, chunk_rows=chunk_rows, **smoothed
    )
    logits = F.linear(hidden, weight, offset)
    expected = F.cross_entropy(logits, target, **smoothed)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(found.loss, hidden, weight, offset),
        gradients(expected, hidden, weight, offset),
        rtol=1e-11,
        atol=1e-12,
    )
    scored = scored_cross_entropy(logits.detach(), target, label_smoothing=0.1)
    assert torch.equal(found.correct, scored.correct) and found.kept is None
    for name in ("el2n", "entropy", "margin"):
        torch.testing.assert_close(getattr(found, name), getattr(scored, name))
    torch.testing.assert_close(found.row_loss, scored.loss)
    assert not found.row_loss.requires_grad and not found.el2n.requires_grad


@pytest.mark.parametrize("ignored", ["none", "every second", "most", "all", "but one"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_many_classes_and_rows_that_do_not_count(ignored: str, dtype: torch.dtype) -> None:
    rows, classes = 70, 1100
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(rows, FEATURES, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(classes, FEATURES, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator)
    part = {
        "none": slice(0, 0),
        "every second": slice(0, rows, 2),
        "most": slice(3, rows - 4),
        "all": slice(0, rows),
        "but one": slice(1, rows),
    }
    target[part[ignored]] = -100
    factors = torch.linspace(-1, 2, rows)
    factors[::3] = 0
    found = scored_linear_cross_entropy(
        hidden, weight, target, sample_weight=factors, reduction="sum", chunk_rows=33
    )
    logits = (hidden.double() @ weight.double().t()).detach().requires_grad_()
    if dtype == torch.bfloat16:
        logits = (hidden @ weight.t()).detach().double().requires_grad_()
    losses = F.cross_entropy(logits, target, reduction="none")
    (of_logits,) = torch.autograd.grad((losses * factors.double()).sum(), logits)
    tolerance = 1e-10 if dtype == torch.float64 else 5e-2 if dtype == torch.bfloat16 else 1e-4
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(found.row_loss, losses.detach(), **close)
    grad_hidden, grad_weight = gradients(found.loss, hidden, weight)
    torch.testing.assert_close(grad_hidden, of_logits @ weight.detach().double(), **close)
    torch.testing.assert_close(grad_weight, of_logits.t() @ hidden.detach().double(), **close)
    no_part = (target < 0) | (factors == 0)
    assert not grad_hidden[no_part].any()
    assert not found.row_loss[target < 0].any() and not found.correct[target < 0].any()


def test_factors_of_rows_and_classes() -> None:
    hidden, weight, target, offset = make()
    factors = torch.rand(ROWS, dtype=torch.float64)
    by_class = torch.rand(CLASSES, dtype=torch.float64) + 0.1
    found = scored_linear_cross_entropy(
        hidden, weight, target, bias=offset, sample_weight=factors, class_weight=by_class
    )
    losses = F.cross_entropy(F.linear(hidden, weight, offset), target, by_class, reduction="none")
    divisor = by_class[target[target >= 0]].sum()
    expected = (losses * factors).sum() / divisor
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(
        gradients(found.loss, hidden, weight, offset),
        gradients(expected, hidden, weight, offset),
    )
    torch.testing.assert_close(found.row_loss, losses.detach())


def test_accumulated_gradients_are_those_of_one_batch() -> None:
    hidden, weight, target, offset = make()
    whole = scored_linear_cross_entropy(hidden, weight, target, bias=offset)
    expected = gradients(whole.loss, hidden, weight, offset)
    items = int((target != -100).sum())
    for number in (items, torch.tensor(items)):
        total = 0.0
        for part in (slice(0, 20), slice(20, ROWS)):
            found = scored_linear_cross_entropy(
                hidden[part], weight, target[part], bias=offset, num_items=number
            )
            found.loss.backward()
            total += found.loss.item()
        assert total == pytest.approx(whole.loss.item())
        for leaf, gradient in zip((hidden, weight, offset), expected, strict=True):
            torch.testing.assert_close(leaf.grad, gradient)
            leaf.grad = None


@pytest.mark.parametrize("keep_tokens", [None, 0.4])
def test_the_mean_over_samples(keep_tokens: float | None) -> None:
    hidden, weight, target, offset = make(rows=36)
    target[:6] = -100  # the whole of the first sample
    hidden_3d, target_2d = hidden.view(6, 6, FEATURES), target.view(6, 6)
    options = {"bias": offset, "reduction": "sample", "keep_tokens": keep_tokens}
    counts = target_2d != -100
    for ids in (None, torch.tensor([3, 3, -1, 0, -1, 0], dtype=torch.int32)):
        losses = F.cross_entropy(F.linear(hidden, weight, offset), target, reduction="none").view(
            6, 6
        )
        found = scored_linear_cross_entropy(hidden_3d, weight, target_2d, sample_ids=ids, **options)
        assert found.row_loss.shape == found.correct.shape == (6, 6)
        if keep_tokens is not None:
            kept = torch.zeros(36, dtype=torch.bool)
            kept[found.kept] = True
            counts = counts & kept.view(6, 6)
        groups = [[b] for b in range(6)] if ids is None else [[0, 1], [2], [3, 5], [4]]
        means = [losses[g][counts[g]].mean() for g in groups if counts[g].any()]
        expected = torch.stack(means).mean()
        torch.testing.assert_close(found.loss, expected)
        by_row = None if ids is None else torch.tensor([3, 3, -2, 0, -3, 0])[:, None].expand(6, 6)
        if by_row is not None:
            again = scored_linear_cross_entropy(
                hidden_3d, weight, target_2d, sample_ids=by_row, **options
            )
            assert torch.equal(found.loss, again.loss)
        torch.testing.assert_close(
            gradients(found.loss, hidden, weight, offset),
            gradients(expected, hidden, weight, offset),
        )
        weights = torch.rand(6, dtype=torch.float64)
        found = scored_linear_cross_entropy(
            hidden_3d,
            weight,
            target_2d,
            sample_ids=ids,
            sample_weight=weights,
            num_items=7,
            **options,
        )
        each = [(losses * weights[:, None])[g][counts[g]].mean() for g in groups if counts[g].any()]
        torch.testing.assert_close(found.loss, torch.stack(each).sum() / 7)


def test_incoming_gradient_scales() -> None:
    hidden, weight, target, offset = make(torch.float32)
    once = gradients(scored_linear_cross_entropy(hidden, weight, target).loss, hidden, weight)
    loss = scored_linear_cross_entropy(hidden, weight, target).loss
    for a, b in zip(gradients(1024 * loss, hidden, weight), once, strict=True):
        assert torch.equal(a, 1024 * b)
    del offset


@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"softcap": 2.0, "z_loss": 0.3}])
def test_gradcheck(more: dict[str, float]) -> None:
    hidden, weight, target, offset = make(rows=6)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = {"label_smoothing": 0.1, "chunk_rows": 4, **more}
        return scored_linear_cross_entropy(hidden, weight, target, bias=bias, **options).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, offset))


def test_opcheck() -> None:
    hidden, weight, target, offset = (x if x is None else x.detach() for x in make(torch.float32))
    ones = torch.ones(ROWS)
    for softcap, z_loss in ((0.0, 0.0), (3.0, 0.1)):
        options = (None, -100, 0.0, softcap, z_loss, 10, torch.float32, [True, True, True])
        arguments = (hidden, weight, offset, target, ones, *options)
        torch.library.opcheck(ops_module.linear_cross_entropy, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample"])
def test_softcap_and_z_loss(dtype: torch.dtype, reduction: str) -> None:
    hidden, weight, target, offset = make(dtype)
    factors = torch.linspace(0.5, 1.5, ROWS)
    by_class = torch.linspace(0.1, 1.1, CLASSES)
    found = scored_linear_cross_entropy(
        hidden,
        weight,
        target,
        bias=offset,
        softcap=1.5,
        z_loss=0.2,
        sample_weight=factors,
        class_weight=by_class,
        reduction=reduction,
        chunk_rows=5,
    )
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, offset)]
    logits = 1.5 * torch.tanh(F.linear(*exact) / 1.5)
    plain = F.cross_entropy(logits, target, by_class.double(), reduction="none")
    counts = target != -100
    each = plain + 0.2 * torch.where(counts, torch.logsumexp(logits, 1).square(), 0)
    shares = by_class.double()[target.clamp(min=0)]
    if reduction == "sample":  # of one row each
        expected = (each * factors / shares)[counts].mean()
    else:
        expected = (each * factors).sum() / (shares[counts].sum() if reduction == "mean" else 1)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.loss.double(), expected, rtol=tolerance, atol=0)
    scored = scored_cross_entropy(logits.detach(), target, weight=by_class.double())
    for name, value in (
        ("row_loss", scored.loss),
        ("el2n", scored.el2n),
        ("margin", scored.margin),
    ):
        got = getattr(found, name).double()
        torch.testing.assert_close(got, value, rtol=10 * tolerance, atol=tolerance)
    for got, wanted in zip(
        gradients(found.loss, hidden, weight, offset), gradients(expected, *exact), strict=True
    ):
        scale = wanted.abs().max()
        torch.testing.assert_close(got.double() / scale, wanted / scale, rtol=0, atol=2 * tolerance)


def test_softcap_and_z_loss_with_kept_tokens() -> None:
    """Rows are ranked without the z-loss, and those that are kept have it."""
    hidden, weight, target, _ = make(bias=False)
    options = {"softcap": 2.0, "z_loss": 0.1}
    found = scored_linear_cross_entropy(hidden, weight, target, keep_tokens=0.3, **options)
    whole = scored_linear_cross_entropy(hidden, weight, target, **options)
    kept = whole.row_loss.topk(len(found.kept)).indices.sort().values
    assert torch.equal(found.kept, kept) and torch.equal(found.row_loss, whole.row_loss)
    alone = scored_linear_cross_entropy(hidden[kept], weight, target[kept], **options)
    torch.testing.assert_close(found.loss, alone.loss)
    assert not torch.isclose(alone.loss, whole.row_loss[kept].mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    hidden, weight, target, offset = make(dtype)
    found = scored_linear_cross_entropy(hidden, weight, target, bias=offset, chunk_rows=4)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, offset)]
    expected = F.cross_entropy(F.linear(*exact), target)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss.double(), expected, rtol=2e-2, atol=2e-2)
    own = gradients(found.loss, hidden, weight, offset)
    for gradient, wanted in zip(own, gradients(expected, *exact), strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), wanted, rtol=5e-2, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_many_chunks_lose_nothing(dtype: torch.dtype, autocast: bool) -> None:
    """Sums of many like terms: one in 16 bits stops to grow after 2^8 (bfloat16) or 2^11 of them.

    The greatest sum, 1.5e4, is one that float16 holds.
    """
    rows, classes = 4096, 3
    generator = torch.Generator().manual_seed(1)
    hidden = (5 + torch.rand(rows, 4, generator=generator)).to(dtype)
    weight, bias = torch.zeros(classes, 4, dtype=dtype), torch.zeros(classes, dtype=dtype)
    target = torch.zeros(rows, dtype=torch.int64)
    exact = [x.double().requires_grad_() for x in (weight, bias)]
    expected = F.cross_entropy(F.linear(hidden.double(), *exact), target, reduction="sum")
    kind = torch.float32 if autocast else dtype
    leaves = [x.to(kind).requires_grad_() for x in (weight, bias)]
    with torch.autocast("cpu", dtype, enabled=autocast):
        found = scored_linear_cross_entropy(
            hidden.to(kind),
            leaves[0],
            target,
            bias=leaves[1],
            reduction="sum",
            chunk_rows=1,
        )
    for gradient, wanted in zip(
        gradients(found.loss, *leaves), gradients(expected, *exact), strict=True
    ):
        assert gradient.dtype == kind
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=0)


def test_autocast_gives_gradients_in_float32() -> None:
    hidden, weight, target, offset = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = scored_linear_cross_entropy(hidden, weight, target, bias=offset)
        expected = F.cross_entropy(F.linear(hidden, weight, offset), target)
    torch.testing.assert_close(found.loss, expected, rtol=2e-2, atol=2e-2)
    own = gradients(found.loss, hidden, weight, offset)
    for gradient, wanted in zip(own, gradients(expected, hidden, weight, offset), strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, rtol=5e-2, atol=5e-3)


def test_tied_weights_get_both_gradients() -> None:
    ids = torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(5))
    table, target = make()[1], make()[2]

    def both(loss_of: object) -> Tensor:
        hidden = F.embedding(ids, table).tanh()
        return torch.autograd.grad(loss_of(hidden), table)[0]  # type: ignore[operator]

    torch.testing.assert_close(
        both(lambda hidden: scored_linear_cross_entropy(hidden, table, target).loss),
        both(lambda hidden: F.cross_entropy(hidden @ table.t(), target)),
    )


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33])
def test_awkward_numbers_of_rows(rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2 * rows, FEATURES, generator=generator)[::2].requires_grad_()
    weight = torch.randn(FEATURES, CLASSES, generator=generator).t().requires_grad_()
    target = torch.randint(0, CLASSES, (rows,), generator=generator, dtype=torch.int32)
    found = scored_linear_cross_entropy(hidden, weight, target, chunk_rows=32)
    expected = F.cross_entropy(hidden @ weight.t(), target.long())
    torch.testing.assert_close(found.loss, expected, equal_nan=True)
    for a, b in zip(
        gradients(found.loss, hidden, weight), gradients(expected, hidden, weight), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_rows_that_are_not_finite() -> None:
    hidden, weight, target, _ = make(torch.float32)
    with torch.no_grad():
        hidden[5] = math.nan
        hidden[-1] = math.inf
    target[5] = -100
    found = scored_linear_cross_entropy(hidden, weight, target, reduction="sum")
    assert found.row_loss[5] == 0 and math.isnan(found.row_loss[-1].item())
    assert math.isnan(found.loss.item())
    (grad,) = torch.autograd.grad(found.loss, hidden)
    assert grad[5].abs().sum() == 0 and grad[:5].isfinite().all() and grad[-1].isnan().all()


@pytest.mark.parametrize("grad", [True, False])
def test_a_wrong_target_is_named_by_its_place_in_the_batch(grad: bool) -> None:
    hidden, weight, target, _ = make(torch.float32)
    target[20] = 99
    with torch.set_grad_enabled(grad), pytest.raises(IndexError, match=r"target\[20\] = 99 "):
        scored_linear_cross_entropy(hidden, weight, target, chunk_rows=6)


def test_second_passes_are_refused() -> None:
    hidden, weight, target, _ = make(torch.float32)
    loss = scored_linear_cross_entropy(hidden, weight, target).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used by a backward pass"):
        loss.backward()
    loss = scored_linear_cross_entropy(hidden, weight, target).loss
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, hidden, create_graph=True)
    loss.backward()


def assert_compiles(backend: str, dynamic: bool | None = None, **options: object) -> None:
    """Into one graph, with the same results, for two numbers of rows."""
    torch._dynamo.reset()

    def step(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, by_row: dict) -> tuple:
        inside = (hidden * 2).tanh()
        found = scored_linear_cross_entropy(inside, weight, target, bias=bias, **by_row, **options)
        return found._replace(loss=found.loss * 3)

    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=dynamic)
    for rows in (ROWS, 33):
        hidden, weight, target, offset = make(torch.float32, rows)
        by_row = {"sample_weight": torch.linspace(0, 2, rows)}
        if "keep_tokens" in options:
            by_row["reference_loss"] = torch.linspace(0, 4, rows)
        if options.get("reduction") == "sample":
            by_row["sample_ids"] = torch.arange(rows) // 4 - 1
        arguments = hidden, weight, offset, target, by_row
        found, expected = compiled(*arguments), step(*arguments)
        for name, got, wanted in zip(found._fields, found, expected, strict=True):
            torch.testing.assert_close(got, wanted, msg=name)
        torch.testing.assert_close(
            gradients(found.loss, hidden, weight, offset),
            gradients(expected.loss, hidden, weight, offset),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_tokens": 0.3},
        {"reduction": "sample"},
        {"reduction": "sample", "keep_tokens": 0.3, "num_items": 5},
        {"num_items": torch.tensor(20)},
        {"reduction": "sum", "softcap": 3.0, "z_loss": 0.1},
    ],
    ids=str,
)
def test_compiled(options: dict) -> None:
    assert_compiles("aot_eager", **options)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_chunks_of_a_share_of_the_rows(
    monkeypatch: pytest.MonkeyPatch, dynamic: bool
) -> None:
    monkeypatch.setattr(module, "CPU_CHUNK_BYTES", 100)
    assert_compiles("aot_eager", dynamic)


@pytest.mark.slow
def test_compiled_with_inductor() -> None:
    assert_compiles("inductor", keep_tokens=0.3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": None}, TypeError, "hidden must be a torch.Tensor"),
        (
            {"hidden": torch.zeros(2, 3, 8)},
            ValueError,
            r"target must have shape \(2, 3\) .*\(37,\)",
        ),
        ({"hidden": torch.tensor(1.0)}, ValueError, r"hidden must be \[rows, features\]"),
        ({"weight": torch.zeros(3, 7)}, ValueError, r"weight must be \[classes, 8\] .*\(3, 7\)"),
        ({"weight": torch.zeros(0, 8)}, ValueError, "at least one class"),
        ({"weight": torch.zeros(11, 8, dtype=torch.float64)}, ValueError, "one dtype outside of"),
        ({"bias": torch.zeros(3)}, ValueError, "bias must have 11 elements, got 3"),
        ({"target": torch.zeros(5)}, ValueError, "target must"),
        ({"sample_weight": torch.zeros(3)}, ValueError, "sample_weight must"),
        ({"sample_weight": torch.zeros(ROWS, requires_grad=True)}, ValueError, "sample_weight"),
        ({"class_weight": torch.zeros(3)}, ValueError, "class_weight must"),
        ({"reduction": "none"}, ValueError, "reduction must be"),
        ({"num_items": 0}, ValueError, "num_items must be in .*got 0"),
        ({"sample_ids": torch.zeros(ROWS)}, ValueError, "sample_ids needs reduction='sample'"),
        (
            {"sample_ids": torch.zeros(3, dtype=torch.int64), "reduction": "sample"},
            ValueError,
            "sample_ids must have shape",
        ),
        ({"num_items": 3, "reduction": "sum"}, ValueError, "num_items needs reduction"),
        ({"num_items": torch.zeros(2)}, ValueError, r"num_items must be 0-d .*\(2,\)"),
        ({"keep_tokens": 0.0}, ValueError, r"keep_tokens must be in \(0, 1\], got 0.0"),
        ({"reference_loss": torch.zeros(ROWS)}, ValueError, "reference_loss needs keep_tokens"),
        ({"keep_tokens": 0.5, "reference_loss": torch.zeros(2)}, ValueError, "reference_loss must"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be at least 1, got 0"),
        ({"softcap": 0.0}, ValueError, r"softcap must be in \(0, inf\), got 0.0"),
        ({"softcap": "30"}, TypeError, "softcap must be a number, got '30'"),
        ({"z_loss": -1e-4}, ValueError, r"z_loss must be in \[0, inf\), got -0.0001"),
        ({"label_smoothing": 2.0}, ValueError, r"label_smoothing must be in \[0, 1\], got 2.0"),
        ({"target": torch.full((ROWS,), 11)}, IndexError, "11"),
    ],
)
def test_refusals(changes: dict, error: type[Exception], message: str) -> None:
    hidden, weight, target, offset = make(torch.float32)
    arguments = {"hidden": hidden, "weight": weight, "target": target, "bias": offset, **changes}
    with pytest.raises(error, match=message):
        scored_linear_cross_entropy(**arguments)


def test_public_names() -> None:
    assert functional.LinearScoredLoss._fields[1:] == (
        "row_loss",
        *functional.ScoredLoss._fields[1:],
        "kept",
    )
