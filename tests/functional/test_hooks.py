# SPDX-License-Identifier: Apache-2.0
"""Scores from the backward pass, and how scoring meets accumulation, checkpointing, evaluation."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dynprune_cuda import Pruner, ScoreTable, track_gradient_norm
from dynprune_cuda import functional as F

N = 20
LONG_IDS = torch.zeros(4, 2, 1, dtype=torch.int64)


def batch(device, rows=8, classes=5):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    return logits.to(device), target.to(device), torch.randperm(N, generator=generator)[:rows]


class Net(torch.nn.Module):
    """Two layers; the first may be checkpointed."""

    def __init__(self, mode):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(6, 16), torch.nn.Linear(16, 5)
        self.mode = mode

    def forward(self, x):
        if self.mode is None:
            return self.last(self.first(x).relu())
        block = checkpoint(lambda x: self.first(x).relu(), x, use_reentrant=self.mode)
        return self.last(block)


@pytest.mark.parametrize("loss", ["torch", "rows", "step"])
def test_of_logits_under_cross_entropy_it_is_el2n(device, loss):
    logits, target, ids = batch(device)
    x = logits.requires_grad_()
    table, pruner = ScoreTable(N, device=device), Pruner(N, 0.5, device=device)
    track_gradient_norm(x, ids, table, scale=len(ids))
    if loss == "torch":
        torch.nn.functional.cross_entropy(x, target).backward()
    elif loss == "rows":
        F.scored_cross_entropy(x, target, reduction="mean").loss.backward()
    else:
        pruner.cross_entropy(x, target, ids).backward()
    el2n = F.scored_cross_entropy(logits, target).el2n
    torch.testing.assert_close(table.mean[ids], el2n, rtol=1e-5, atol=0)
    assert int(table.count.sum()) == len(ids)


def test_the_gradient_is_not_changed_and_any_shape_is_normed(device):
    x = torch.randn(4, 3, 2, device=device, requires_grad=True)
    ids, seen = torch.arange(4), {}
    hidden = x * 2
    track_gradient_norm(hidden, ids, lambda i, norms: seen.update(ids=i, norms=norms), scale=3.0)
    weight = torch.randn(4, 3, 2, device=device)
    (hidden * weight).sum().backward()
    assert torch.equal(x.grad, 2 * weight)
    torch.testing.assert_close(seen["norms"], 3 * weight.flatten(1).norm(dim=1))
    assert seen["ids"] is ids and not seen["norms"].requires_grad


@pytest.mark.parametrize("into", [Pruner, ScoreTable])
@pytest.mark.parametrize("row_reduction", ["mean", "sum", "max", 0.4])
def test_ids_of_tokens_give_norms_of_tokens(device, row_reduction, into):
    """[B, T, D]: a sample's tokens, in several rows of the batch, are reduced to one visit."""
    generator = torch.Generator().manual_seed(2)
    gradient = torch.randn(4, 5, 3, generator=generator).to(device)
    ids = torch.tensor([7, 2, 7, 3], dtype=torch.int32)[:, None].repeat(1, 5)
    ids[0, 3:] = -1
    ids[2, 1] = 2  # a packed document
    norms = gradient.norm(dim=2).cpu()
    for hidden_ids in (ids, ids.T.contiguous().T):
        options = {"keep": 0.5} if into is Pruner else {}
        sink = into(N, **options, device=device, row_reduction=row_reduction)
        hidden = torch.zeros(4, 5, 3, device=device, requires_grad=True)
        track_gradient_norm(hidden, hidden_ids, sink, scale=2.0)
        (hidden * gradient).sum().backward()
        table = sink.table if into is Pruner else sink
        assert table.count.nonzero().flatten().tolist() == [2, 3, 7] and table.count.max() == 1
        for i in (2, 3, 7):
            rows = 2 * norms[ids == i]
            if isinstance(row_reduction, float):
                expected = rows.topk(int(row_reduction * len(rows) + 0.5)).values.mean()
            else:
                expected = getattr(rows, row_reduction)()
            torch.testing.assert_close(table.mean[i].cpu(), expected)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 0), (0, 3), (4, 0, 2)])
def test_ids_of_every_number_of_dimensions(device, shape):
    for dims in range(1, len(shape) + 1):
        x = torch.ones(shape, device=device, requires_grad=True)
        ids, seen = torch.zeros(shape[:dims], dtype=torch.int64), []
        track_gradient_norm(x, ids, lambda *given, seen=seen: seen.append(given))
        (x * 2).sum().backward()
        ((its_ids, norms),) = seen
        number = ids.numel()
        assert its_ids.shape == norms.shape == (number,)
        wanted = 2 * (x.numel() / number) ** 0.5 if number else 0.0
        torch.testing.assert_close(norms, torch.full((number,), wanted, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_norms_of_16_bit_gradients_are_float32(device, dtype):
    x = torch.ones(3, 4096, device=device, dtype=dtype, requires_grad=True)
    pruner = Pruner(N, 0.5, device=device)
    track_gradient_norm(x, torch.arange(3), pruner)
    (x * 100).sum().backward()  # the squares' sum is beyond float16
    torch.testing.assert_close(pruner.table.mean[:3], torch.full((3,), 6400.0, device=device))


def test_a_removed_hook_and_an_evaluation_record_nothing(device):
    logits, target, ids = batch(device)
    table = ScoreTable(N, device=device)
    x = logits.clone().requires_grad_()
    track_gradient_norm(x, ids, table).remove()
    torch.nn.functional.cross_entropy(x, target).backward()
    with torch.no_grad():
        assert track_gradient_norm(x * 2, ids, table) is None
    assert not table.count.any()


@pytest.mark.parametrize("mode", [None, True, False])
def test_checkpointing_scores_once_and_alike(device, mode):
    """The recomputation in the backward pass must not enter a second time."""
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).to(device)
    _, target, ids = batch(device)
    results = []
    for m in (None, mode):
        net = Net(m).to(device)
        pruner, norms = Pruner(N, 0.5, device=device), ScoreTable(N, device=device)
        x = inputs.clone().requires_grad_()  # the reentrant kind needs an input that requires grad
        logits = net(x)
        track_gradient_norm(logits, ids, norms, scale=8)
        pruner.cross_entropy(logits, target, ids).backward()
        assert int(pruner.table.count.sum()) == int(norms.count.sum()) == 8
        results.append([pruner.table.mean, norms.mean, net.first.weight.grad, x.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_accumulation_over_micro_batches_is_one_batch(device):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).to(device)
    _, target, ids = batch(device)
    results = []
    for parts in (1, 4):
        net, pruner = Net(None).to(device), Pruner(N, 0.5, device=device)
        chunks = (t.chunk(parts) for t in (inputs, target, ids))
        for x, y, i in zip(*chunks, strict=True):
            (pruner.cross_entropy(net(x), y, i) / parts).backward()
        results.append([pruner.table.mean, pruner.table.count, net.last.weight.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_evaluation_under_no_grad_keeps_no_graph_and_scores(device):
    logits, target, ids = batch(device)
    x = logits.requires_grad_()
    pruner = Pruner(N, 0.5, device=device)
    with torch.no_grad():
        loss = pruner.cross_entropy(x, target, ids)
    assert not loss.requires_grad and int(pruner.table.count.sum()) == 8
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gradient_scaler_gives_the_same_step(device, dtype):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).to(device)
    _, target, ids = batch(device)
    weights = []
    for announce in (None, False, True):
        net, pruner = Net(None).to(device), Pruner(N, 0.5, device=device)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler(device.type, enabled=announce is not None, init_scale=1024.0)
        scale = torch.tensor(1024.0, device=device) if announce else None
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = net(inputs)
            loss = pruner.cross_entropy(logits, target, ids, grad_scale=scale)
        assert logits.dtype == dtype and loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        weights.append(net.last.weight.detach())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_last_layer_grand_is_the_norm_of_per_sample_gradients(device, bias):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(6, 10, generator=generator, dtype=torch.float64).to(device)
    layer = torch.nn.Linear(10, 4, dtype=torch.float64).to(device)
    target = torch.randint(4, (6,), generator=generator).to(device)
    scored = F.scored_cross_entropy(layer(features), target)
    exact = []
    for h, y in zip(features, target, strict=True):
        loss = torch.nn.functional.cross_entropy(layer(h), y)
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        exact.append(torch.cat([g.flatten() for g in (grads if bias else grads[:1])]).norm())
    got = F.last_layer_grand(scored.el2n, features, bias=bias)
    torch.testing.assert_close(got, torch.stack(exact), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "tensor", lambda x, i: track_gradient_norm([1], i, print)),
        (TypeError, "ids", lambda x, i: track_gradient_norm(x, [1], print)),
        (TypeError, "into", lambda x, i: track_gradient_norm(x, i, 3)),
        (TypeError, "scale", lambda x, i: track_gradient_norm(x, i, print, scale="8")),
        (ValueError, "scale", lambda x, i: track_gradient_norm(x, i, print, scale=x[0])),
        (
            ValueError,
            r"sample_ids must have shape \(4,\).* \(4, 2\), got \(3,\)",
            lambda x, i: track_gradient_norm(x, i[:3], print),
        ),
        (ValueError, r"got \(2, 4\)", lambda x, i: track_gradient_norm(x, i.expand(2, 4), print)),
        (ValueError, r"got \(4, 2, 1\)", lambda x, i: track_gradient_norm(x, LONG_IDS, print)),
        (ValueError, r"got \(\)", lambda x, i: track_gradient_norm(x, i[0], print)),
        (ValueError, "integer dtype", lambda x, i: track_gradient_norm(x, x, print)),
        (ValueError, "floating", lambda x, i: track_gradient_norm(i, i, print)),
        (ValueError, "features", lambda x, i: F.last_layer_grand(x[:, 0], x[:2])),
        (ValueError, "el2n", lambda x, i: F.last_layer_grand(x, x)),
    ],
)
def test_bad_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call(torch.ones(4, 2), torch.arange(4))
