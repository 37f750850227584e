# SPDX-License-Identifier: Apache-2.0
"""Logits of every shape that torch takes, packed sequences, and the reductions over samples."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from dynprune_cuda import Pruner, ScoreTable
from dynprune_cuda import functional as F
from dynprune_cuda.functional.shapes import rows_of

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCES = {  # of gradients
    torch.float64: {"rtol": 1e-11, "atol": 1e-13},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 1e-5},
}
SHAPES = [(2, 7, 9), (3, 5), (2, 16), (1, 1), (2, 4, 3, 5), (0, 3), (2, 0)]  # of the targets
# How logits [B, C, d...] lie in memory, and where the classes are.
LAYOUTS = {
    "first": lambda x: (x, 1),
    "channels last": lambda x: (x.movedim(1, -1).contiguous().movedim(-1, 1), 1),
    "last": lambda x: (x.movedim(1, -1).contiguous(), -1),
    "last of first": lambda x: (x.movedim(1, -1), -1),
    "sliced": lambda x: (torch.cat([x, x], 2)[:, :, : x.shape[2]], 1),
    "last, sliced": lambda x: (
        torch.cat([x, x], 2).movedim(1, -1).contiguous()[:, : x.shape[2]],
        -1,
    ),
    "cropped": lambda x: (torch.cat([x, x], -1)[..., : x.shape[-1]], 1),
    "every second": lambda x: (x.repeat_interleave(2, -1)[..., ::2], 1),
}


def make(shape, classes, dtype, device):
    generator = torch.Generator().manual_seed(classes)
    full = (shape[0], classes, *shape[1:])
    logits = (torch.randn(full, generator=generator, dtype=torch.float64) * 3).to(dtype)
    target = torch.randint(classes, shape, generator=generator)
    target[target % 7 == 3] = -100
    return logits.to(device), target.to(device)


def table(n, device):
    return {
        "mean": torch.zeros(n, device=device),
        "variance": torch.zeros(n, device=device),
        "count": torch.zeros(n, dtype=torch.int32, device=device),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 5, 33, 150])
def test_every_shape_is_as_torch_has_it(device, classes, dtype, layout):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.linspace(0.2, 2, classes, dtype=compute, device=device)
    options = itertools.cycle([{}, {"label_smoothing": 0.1}, {"weight": weight}])
    for shape, reduction in itertools.product(SHAPES, ("none", "mean", "sum")):
        logits, target = make(shape, classes, dtype, device)
        chosen = next(options)
        exact = logits.double().requires_grad_()
        in_double = {k: v.double() if k == "weight" else v for k, v in chosen.items()}
        expected = cross_entropy(exact, target, reduction=reduction, **in_double)
        gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(
            device
        )
        expected.backward(gradient.double())
        laid, class_dim = LAYOUTS[layout](logits)
        columns = table(shape[0], device)
        ids = torch.arange(shape[0], device=device)
        for step in (False, True):
            x = laid.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            chosen = {**chosen, "reduction": reduction, "class_dim": class_dim}
            if step:
                got = F.scored_cross_entropy_step_(x, target, ids, **columns, alpha=0.5, **chosen)
            else:
                got = F.scored_cross_entropy(x, target, **chosen)
            torch.testing.assert_close(
                got.loss, expected.to(compute), rtol=2e-5, atol=1e-5, equal_nan=True
            )
            assert got.el2n.shape == got.correct.shape == target.shape
            got.loss.backward(gradient.to(compute))
            its_grad = x.grad.movedim(-1, 1) if class_dim == -1 else x.grad
            # A mean over nothing is NaN, and so is torch's gradient of it.
            wanted = exact.grad.nan_to_num(0)
            torch.testing.assert_close(its_grad.double(), wanted, **TOLERANCES[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3), (3, 4, 6)])
def test_no_layout_is_copied(layout, shape):
    """Of class indices: the operators read the logits where they are."""
    logits, target = make(shape, 5, torch.float32, "cpu")
    laid, class_dim = LAYOUTS[layout](logits)
    rows = rows_of(laid, target, class_dim)
    is_view = rows.logits.untyped_storage().data_ptr() == laid.untyped_storage().data_ptr()
    # No single stride leads from pixel to pixel of an image whose rows have gaps.
    assert is_view == (layout != "cropped" or len(shape) == 2)
    number, per_group = shape[0], target[0].numel()
    assert rows.logits.shape == (number, per_group, 5)
    expected = logits.movedim(1, -1).reshape(number, per_group, 5)
    assert torch.equal(rows.logits, expected) and torch.equal(rows.target, target.flatten())


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)])
def test_scores_of_pixels_are_those_of_their_rows(device, shape):
    logits, target = make(shape, 21, torch.float32, device)
    got = F.scored_cross_entropy(logits, target)
    rows = F.scored_cross_entropy(logits.movedim(1, -1).flatten(0, -2), target.flatten())
    for name, values in got._asdict().items():
        torch.testing.assert_close(values.flatten(), getattr(rows, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["first", "last", "last, sliced"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sample"])
def test_gradcheck(device, reduction, layout):
    logits, target = make((2, 3, 2), 4, torch.float64, device)
    x, class_dim = LAYOUTS[layout](logits)
    weight = torch.linspace(0.5, 2, 4, dtype=torch.float64, device=device)
    tokens = torch.linspace(0, 2, 12, dtype=torch.float64, device=device).view(2, 3, 2)
    options = {"class_dim": class_dim, "weight": weight, "label_smoothing": 0.1}

    def alone(x):
        return F.scored_cross_entropy(x, target, reduction=reduction, **options).loss

    torch.autograd.gradcheck(alone, x.detach().requires_grad_())
    # The step allows one backward pass only.
    a, b = (x.detach().requires_grad_() for _ in range(2))
    got = F.scored_cross_entropy_step_(
        a,
        target,
        torch.tensor([1, 0], device=device),
        **table(2, device),
        alpha=0.5,
        reduction=reduction,
        token_weight=tokens,
        sample_weight=tokens[:, 0, 1],
        **options,
    ).loss
    losses = F.scored_cross_entropy(b, target, **options).loss
    counted = torch.where(target == -100, 0, weight[target.clamp(min=0)])
    expected = losses * tokens * tokens[:, :1, 1:]
    if reduction == "mean":
        expected = expected.sum() / counted.sum()
    elif reduction == "sample":
        expected = (expected.sum((1, 2)) / counted.sum((1, 2))).mean()
    torch.testing.assert_close(got, expected)
    gradient = torch.linspace(-1, 2, got.numel(), dtype=torch.float64, device=device).view(
        got.shape
    )
    got.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(a.grad, b.grad)


def sequences(device):
    """Six sequences of 9 tokens: padded, one ignored, two of one sample, one of none."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, 11, generator=generator)
    target = torch.randint(11, (6, 9), generator=generator)
    target[torch.rand(6, 9, generator=generator) < 0.3] = -100
    target[3] = -100
    return logits.to(device), target.to(device), torch.tensor([4, 2, 4, 0, 1, -1], device=device)


def forms(logits, target, ids):
    """The same batch in all forms that there are."""
    number, length, classes = logits.shape
    yield logits, target, ids, {"class_dim": -1}
    yield logits.movedim(-1, 1), target, ids, {}
    yield logits, target, ids[:, None].expand(number, length), {"class_dim": -1}
    packed = logits.view(1, -1, classes), target.view(1, -1)
    ends = torch.arange(0, number * length + 1, length, dtype=torch.int32)
    yield *packed, ids, {"class_dim": -1, "cu_seqlens": ends}
    # Flattened, with padding before and behind.
    padded = torch.cat([logits.flatten(0, 1)[:2], logits.flatten(0, 1), logits.flatten(0, 1)[:1]])
    nothing = target.new_full((3,), -100)
    padded_target = torch.cat([nothing[:2], target.flatten(), nothing[2:]])
    yield padded, padded_target, ids, {"cu_seqlens": ends + 2}


@pytest.mark.parametrize("row_reduction", ["mean", "max", 0.4])
def test_all_forms_of_a_batch_enter_the_same_scores(device, row_reduction):
    batch = sequences(device)
    tables = []
    for sharding in ("replicate", "shard"):
        for x, y, ids, options in forms(*batch):
            options = {**options, "reduction": "sum"}
            pruner = Pruner(
                8,
                0.5,
                warmup_epochs=2,
                device=device,
                sharding=sharding,
                row_reduction=row_reduction,
            )
            pruner.set_epoch(0)
            loss = pruner.cross_entropy(x, y, ids, **options)
            expected = cross_entropy(batch[0].flatten(0, 1), batch[1].flatten(), reduction="sum")
            torch.testing.assert_close(loss, expected)
            pruner.set_epoch(1)
            tables.append(pruner.table)
    assert tables[0].count.tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    for other in tables[1:]:
        for name in ("mean", "count", "variance"):
            a, b = getattr(other, name), getattr(tables[0], name)
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("per_row", [False, True])
def test_scores_of_tokens_are_observed(device, per_row):
    logits, target, ids = sequences(device)
    stepped, observed = (Pruner(8, 0.5, device=device, track_forgetting=True) for _ in range(2))
    for pruner in (stepped, observed):
        pruner.set_epoch(0)
    stepped.cross_entropy(logits, target, ids, class_dim=-1)
    scored = F.scored_cross_entropy(logits, target, class_dim=-1)
    if per_row:
        every = ids[:, None].expand(6, 9).masked_fill(target == -100, -1)
        observed.observe(every, scored)
        expected = stepped.table
    else:  # all rows count
        observed.observe(ids, scored)
        expected = ScoreTable(8, device=device, track_forgetting=True)
        every = ids[:, None].expand(6, 9).flatten()
        expected.update(every, scored.loss.flatten(), scored.correct.flatten())
    for name in expected.column_types:
        a, b = getattr(observed.table, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
    for wrong in (ids[:5], ids[:, None].expand(6, 8)):
        with pytest.raises(ValueError, match=r"ids must have shape \(6,\) or \(6, 9\)"):
            observed.observe(wrong, scored)


def test_images_are_rescored_by_their_pixels(device):
    model = torch.nn.Conv2d(1, 3, 1, device=device)
    images, masks = torch.randn(4, 1, 5, 6), torch.randint(3, (4, 5, 6))
    masks[:, 0], masks[2] = -100, -100
    pruner, expected = (Pruner(4, 0.5, device=device) for _ in range(2))
    for one in (pruner, expected):
        one.set_epoch(0)
    batches = [(images[i], masks[i], i) for i in (torch.tensor([3, 1]), torch.tensor([0, 2]))]
    assert pruner.rescore(model, batches).samples == 4
    with torch.no_grad():
        for x, y, ids in batches:
            expected.cross_entropy(model(x.to(device)), y.to(device), ids)
    assert pruner.table.count.tolist() == [1, 1, 0, 1]
    torch.testing.assert_close(pruner.table.mean, expected.table.mean, equal_nan=True)


def test_the_mean_over_samples(device):
    logits, target, ids = sequences(device)
    losses = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(6, 9)
    counted = (target != -100).sum(1)
    groups = [[0, 2], [1], [4], [5]]  # equal ids are one sample, and 3 has nothing that counts
    means = [losses[g].sum() / counted[g].sum() for g in groups]
    expected = torch.stack(means).mean()
    pruner = Pruner(8, 0.5, warmup_epochs=99, device=device)
    pruner.set_epoch(0)
    for number, (x, y, its_ids, options) in enumerate(forms(logits, target, ids)):
        if number == 2:  # without an id each token is a sample
            y = y.clone()
            y[5], expected_here = -100, torch.stack(means[:3]).mean()
        else:
            expected_here = expected
        x = x.detach().requires_grad_()
        loss = pruner.cross_entropy(x, y, its_ids, reduction="sample", **options)
        torch.testing.assert_close(loss, expected_here)
    by_batch = [losses[b].sum() / counted[b] for b in (0, 1, 2, 4, 5)]
    scored = F.scored_cross_entropy(logits, target, class_dim=-1, reduction="sample")
    torch.testing.assert_close(scored.loss, torch.stack(by_batch).mean())
    # Class weights are those of each sample's mean.
    weight = torch.linspace(0.1, 2, 11, device=device)
    got = F.scored_cross_entropy(logits, target, class_dim=-1, reduction="sample", weight=weight)
    each = [cross_entropy(logits[b], target[b], weight=weight) for b in (0, 1, 2, 4, 5)]
    torch.testing.assert_close(got.loss, torch.stack(each).mean())
    nothing = torch.full_like(target, -100)
    got = F.scored_cross_entropy(logits, nothing, class_dim=-1, reduction="sample")
    assert got.loss.isnan()


@pytest.mark.parametrize("num_items", [17, 2.5, torch.tensor(17), torch.tensor([3.5])])
def test_weights_of_tokens_and_samples_and_a_number_of_items(device, num_items):
    logits, target, ids = sequences(device)
    losses = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(6, 9)
    of_samples, of_tokens = torch.rand(6, device=device), torch.rand(6, 9, device=device)
    pruner = Pruner(8, 0.5, warmup_epochs=99, device=device)
    pruner.set_epoch(0)
    if isinstance(num_items, torch.Tensor):
        num_items = num_items.to(device)
    for number, (x, y, its_ids, options) in enumerate(forms(logits, target, ids)):
        weights = of_samples[:, None].expand(6, 9) if its_ids.dim() == 2 else of_samples
        tokens = of_tokens.reshape(y.shape) if number < 4 else None
        loss = pruner.cross_entropy(
            x,
            y,
            its_ids,
            sample_weight=weights,
            token_weight=tokens,
            num_items=num_items,
            **options,
        )
        every = losses * of_samples[:, None] * (1 if tokens is None else of_tokens)
        torch.testing.assert_close(loss, every.sum() / float(num_items))
        loss = pruner.cross_entropy(
            x, y, its_ids, num_items=num_items, reduction="sample", **options
        )
        if number in (0, 1, 3, 4):
            counted = (target != -100).sum(1)
            groups = [[0, 2], [1], [4], [5]]
            means = [losses[g].sum() / counted[g].sum() for g in groups]
            torch.testing.assert_close(loss, torch.stack(means).sum() / float(num_items))


@pytest.mark.parametrize("kind", ["classes", "tokens", "probabilities", "labels"])
@pytest.mark.parametrize("reduction", ["mean", "sample"])
def test_accumulated_gradients_are_those_of_one_batch(device, kind, reduction):
    """Two batches of different sizes, divided by the items of both."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, *([9] if kind == "tokens" else []), 5, generator=generator)
    target = torch.randint(5, logits.shape[:-1], generator=generator)
    target[target == 2], options = -100, {}
    if kind == "tokens":
        options["class_dim"] = -1
    elif kind == "probabilities":
        target = torch.rand(6, 5, generator=generator).softmax(1)
    elif kind == "labels":
        target = (torch.rand(6, 5, generator=generator) < 0.3).float()
    logits, target = logits.to(device), target.to(device)
    ids = torch.tensor([3, 1, 0, 7, 5, 4])
    counted = target != -100 if kind in ("classes", "tokens") else torch.ones(6, dtype=torch.bool)
    items = counted.sum() if reduction == "mean" else counted.view(6, -1).any(1).sum()
    assert 2 < items < 6 or kind != "classes"
    pruner = Pruner(8, 0.5, warmup_epochs=99, device=device)
    pruner.set_epoch(0)
    name = "binary_cross_entropy" if kind == "labels" else "cross_entropy"
    loss_of = getattr(pruner, name)
    whole = logits.clone().requires_grad_()
    loss = loss_of(whole, target, ids, reduction=reduction, **options)
    loss.backward()
    for number in (int(items), items.to(device)):
        x, total = logits.clone().requires_grad_(), 0.0
        for part in (slice(0, 2), slice(2, 6)):
            of_part = loss_of(
                x[part], target[part], ids[part], reduction=reduction, num_items=number, **options
            )
            of_part.backward()
            total += of_part.detach()
        torch.testing.assert_close(total, loss.detach())
        torch.testing.assert_close(x.grad, whole.grad)


def test_factors_of_a_policy_reach_the_tokens(device):
    """InfoBatch's, by sample, beside weights of samples and of tokens."""
    logits, target, ids = sequences(device)
    pruner = Pruner(8, policy="infobatch", epochs=9, device=device)
    pruner.set_epoch(0)
    pruner.observe(torch.arange(8), torch.arange(8.0, device=device))
    pruner.set_epoch(1)
    factors = pruner.rescale(ids, torch.ones(6, device=device))
    assert (factors > 1).any()
    losses = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(6, 9)
    of_samples, of_tokens = torch.rand(6, device=device), torch.rand(6, 9, device=device)
    for x, y, its_ids, options in forms(logits, target, ids):
        loss = pruner.cross_entropy(x, y, its_ids, reduction="sum", **options)
        torch.testing.assert_close(loss, (losses * factors[:, None]).sum())
        tokens, samples = of_tokens.flatten(), of_samples
        if y.numel() > tokens.numel():  # padded by two rows before, and one behind
            tokens = torch.cat([tokens[:2], tokens, tokens[:1]])
        if its_ids.dim() == 2:
            samples = of_samples[:, None].expand(6, 9)
        loss = pruner.cross_entropy(
            x,
            y,
            its_ids,
            reduction="sum",
            token_weight=tokens.view(y.shape),
            sample_weight=samples,
            **options,
        )
        expected = (losses * (factors * of_samples)[:, None] * of_tokens).sum()
        torch.testing.assert_close(loss, expected)


def test_one_row(device):
    logits, target = torch.randn(5, device=device), torch.tensor(3, device=device)
    expected = cross_entropy(logits, target)
    pruner = Pruner(4, 0.5, warmup_epochs=9, device=device)
    pruner.set_epoch(0)
    for ids in (torch.tensor(2), torch.tensor([2])):
        for reduction in ("mean", "none", "sample"):
            loss = pruner.cross_entropy(logits, target, ids, reduction=reduction)
            assert loss.shape == () == F.scored_cross_entropy(logits, target).loss.shape
            torch.testing.assert_close(loss, expected)
    assert pruner.table.count.tolist() == [0, 0, 6, 0]


@pytest.mark.parametrize("class_dim", [1, -1])
def test_a_step_on_pixels_compiles_into_one_graph(device, class_dim):
    shape = (2, 5, 3, 4) if class_dim == 1 else (2, 3, 4, 5)
    target = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(1)).to(device)
    ids = torch.tensor([3, 1], device=device)

    def step(x, columns):
        return F.scored_cross_entropy_step_(
            x, target, ids, **columns, alpha=0.5, class_dim=class_dim, reduction="sample"
        ).loss

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        x = (
            torch.randn(shape, generator=torch.Generator().manual_seed(2))
            .to(device)
            .requires_grad_()
        )
        columns = table(4, device)
        loss = function(x, columns)
        loss.backward()
        results.append((loss.detach(), x.grad, columns))
    (loss, grad, columns), (its_loss, its_grad, its_columns) = results
    torch.testing.assert_close(its_loss, loss)
    torch.testing.assert_close(its_grad, grad)
    assert torch.equal(its_columns["mean"], columns["mean"])


def refused():
    logits, target, ids = sequences("cpu")
    seven = torch.tensor([0, 9, 18, 27, 36, 45, 54])
    yield "class_dim=-1", {"class_dim": 1}
    yield "^ids must have shape", {"ids": ids[:3]}
    yield "target.squeeze", {"target": target[:, None]}
    yield "pass class_dim=1;", {"logits": logits.movedim(-1, 1)}
    yield r"pass logits\[:, :-1\]", {"target": target[:, 1:]}
    yield "num_items must be in", {"num_items": torch.tensor(0)}
    yield r"lam must be in \[0, 1\]", {"target_b": target, "lam": torch.tensor(1.5)}
    yield "observe.*rescale", {"target": target.float()}
    yield "observe.*rescale", {"target": target[0]}
    yield "observe.*rescale", {"logits": logits[0, 0], "target": target[0]}
    yield "class_dim must be 1", {"class_dim": 2}
    yield "'sample', got 'median'", {"reduction": "median"}
    yield "num_items needs reduction", {"reduction": "sum", "num_items": 3}
    yield "num_items must be in", {"num_items": 0}
    yield "num_items must be 0-d", {"num_items": torch.ones(2)}
    yield "sample_weight must have the shape of the ids", {"sample_weight": torch.ones(3)}
    yield "token_weight must have the shape of target", {"token_weight": torch.ones(6)}
    yield "cu_seqlens must have shape", {"cu_seqlens": seven[:3]}
    yield "cu_seqlens must ascend", {"cu_seqlens": seven.flip(0)}
    yield "cu_seqlens must ascend", {"cu_seqlens": seven + 1}
    yield "cu_seqlens must have dtype", {"cu_seqlens": seven.float()}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_ids_of_sequences_may_have_any_integer_dtype(dtype):
    logits, target, ids = sequences("cpu")
    ids, pruner = ids.clamp(min=0), Pruner(300, 0.5)  # more than uint8 has numbers
    pruner.cross_entropy(logits, target, ids.to(dtype), class_dim=-1)
    losses = torch.ones(len(ids))
    assert pruner.rescale(ids.to(dtype), losses) is losses
    assert pruner.table.count.nonzero().flatten().tolist() == ids.unique().tolist()
    with pytest.raises(IndexError, match=r"ids\[1\] = 300"):
        pruner.rescale(torch.tensor([299, 300]), losses[:2])


def test_an_id_out_of_range_is_named_by_its_place():
    logits, target, ids = sequences("cpu")
    pruner, ids = Pruner(8, 0.5), ids.clone()
    ids[2] = 8
    rows, begins = target.numel(), torch.arange(0, target.numel() + 1, target.shape[1])
    flat = logits.flatten(0, 1), target.flatten()
    for call in (
        lambda: pruner.cross_entropy(logits, target, ids, class_dim=-1),
        lambda: pruner.cross_entropy(*flat, ids, cu_seqlens=begins),
        lambda: pruner.linear_cross_entropy(
            torch.ones(*target.shape, 3), torch.ones(9, 3), target % 9, ids
        ),
    ):
        with pytest.raises(IndexError, match=r"^ids\[2\] = 8 is out of range: .* make the pruner"):
            call()
    assert begins[-1] == rows and not pruner.table.count.any()


@pytest.mark.parametrize(("message", "changed"), list(refused()))
def test_what_is_refused_names_the_way_out_and_changes_nothing(message, changed):
    logits, target, ids = sequences("cpu")
    pruner = Pruner(8, 0.5)
    arguments = {"logits": logits, "target": target, "ids": ids, "class_dim": -1, **changed}
    with pytest.raises(ValueError, match=message):
        pruner.cross_entropy(**arguments)
    assert not pruner.table.count.any()
