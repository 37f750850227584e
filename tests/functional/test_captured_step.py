# SPDX-License-Identifier: Apache-2.0
"""Whole training steps in a CUDA graph, with the selection outside of it and inside.

On a GPU each function is captured once and replayed; on the CPU "replaying" calls it again, so that
the same lines are checked against the same reference wherever the tests run.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as nnf

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F

N, B, D, C, K, WARM_UP, EPOCHS = 200, 16, 6, 4, 64, 3, 5
ALPHA = 0.8


def make_parts(device):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(N, D, generator=generator).to(device)
    torch.manual_seed(1)
    model = torch.nn.Linear(D, C).to(device)
    pruner = Pruner(N, K, "ucb", period=1, seed=5, device=device)
    pruner.set_epoch(0)
    return SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        points=points,
        labels=(points[:, 0] > 0).long() + 2 * (points[:, 1] > 0).long(),
        pruner=pruner,
        # What a graph reads must stay where it was when the graph was captured.
        x=points[:B].clone(),
        y=torch.zeros(B, dtype=torch.int64, device=device),
        ids=torch.arange(B, device=device),
        seed=torch.zeros((), dtype=torch.int64, device=device),
    )


def step(parts):
    """Forward, loss and scores, backward, optimiser."""
    loss = parts.pruner.cross_entropy(parts.model(parts.x), parts.y, parts.ids)
    loss.backward()
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    return loss.detach()


def epoch(parts):
    """A selection by the scores of now, and a training step for every batch of it."""
    table = parts.pruner.table
    chosen = F.select_ucb(table.ranking_mean(), table.variance, K, seed=parts.seed)
    for ids in chosen.split(B):
        x, y = parts.points.index_select(0, ids), parts.labels.index_select(0, ids)
        parts.pruner.cross_entropy(parts.model(x), y, ids).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
    return chosen


def captured(function, parts):
    """Warms up, which trains, and returns what repeats `function`: a graph's replay on a GPU."""
    if parts.x.device.type == "cpu":
        for _ in range(WARM_UP):
            function(parts)
        return lambda: function(parts)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function(parts)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and runs nothing
        result = function(parts)

    def replay():
        graph.replay()
        return result.clone()

    return replay


class Reference:
    """The same training without the package's operators, but for the selection: torch, eager."""

    def __init__(self, parts):
        self.parts = parts
        self.mean, self.variance = (torch.zeros(N, device=parts.x.device) for _ in range(2))
        self.count = torch.zeros(N, dtype=torch.int32, device=parts.x.device)

    def step(self, ids, labels=None):
        parts = self.parts
        labels = parts.labels[ids] if labels is None else labels
        losses = nnf.cross_entropy(parts.model(parts.points[ids]), labels, reduction="none")
        losses.mean().backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        values, mean, first = losses.detach(), self.mean[ids], self.count[ids] == 0
        spread = (1 - ALPHA) * self.variance[ids] + ALPHA * (values - mean) ** 2
        self.variance[ids] = torch.where(first, 0.0, spread)
        self.mean[ids] = torch.where(first, values, (1 - ALPHA) * mean + ALPHA * values)
        self.count[ids] += 1
        return losses.mean().detach()

    def select(self, seed):
        mean = self.mean.masked_fill(self.count == 0, float("nan"))
        return F.select_ucb(mean, self.variance, K, seed=seed)

    def compare(self, parts):
        table = parts.pruner.table
        assert torch.equal(table.count, self.count)
        torch.testing.assert_close(table.mean, self.mean, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(table.variance, self.variance, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            parts.model.weight, self.parts.model.weight, rtol=1e-3, atol=1e-5
        )


def test_a_captured_step_with_the_selection_outside(device):
    parts, reference = make_parts(device), Reference(make_parts(device))
    warm_ids, warm_labels = parts.ids.clone(), parts.y.clone()
    replay = captured(step, parts)
    for _ in range(WARM_UP):
        reference.step(warm_ids, warm_labels)
    visits = torch.zeros(N, dtype=torch.int32, device=device)
    for number in range(EPOCHS):
        parts.pruner.set_epoch(number)
        order = parts.pruner.epoch_order()
        if number > 0:
            assert len(order) == K and torch.equal(
                order.sort().values, reference.select(0).sort().values
            )
        for ids in order[: len(order) // B * B].split(B):
            torch.index_select(parts.points, 0, ids, out=parts.x)
            torch.index_select(parts.labels, 0, ids, out=parts.y)
            parts.ids.copy_(ids)
            visits[ids] += 1
            torch.testing.assert_close(replay(), reference.step(ids), rtol=1e-3, atol=1e-5)
    reference.compare(parts)
    assert int(visits.sum()) == N // B * B + (EPOCHS - 1) * K


def test_a_captured_epoch_with_the_selection_inside(device):
    parts, reference = make_parts(device), Reference(make_parts(device))
    replay = captured(epoch, parts)
    subsets = []
    for number in range(WARM_UP + EPOCHS):
        seed = 0 if number < WARM_UP else 1000 + number
        expected = reference.select(seed)
        for ids in expected.split(B):
            reference.step(ids)
        if number >= WARM_UP:
            parts.seed.fill_(seed)
            chosen = replay()
            assert torch.equal(chosen, expected), number  # the order, too
            subsets.append(chosen.sort().values)
    reference.compare(parts)
    assert not torch.equal(subsets[0], subsets[-1])
    assert not parts.pruner.table.last_non_finite.any()


@pytest.mark.needs_cuda
def test_a_captured_epoch_is_the_eager_one():
    results = []
    for graph in (False, True):
        parts = make_parts(torch.device("cuda"))
        if graph:
            replay = captured(epoch, parts)
        else:
            for _ in range(WARM_UP):
                epoch(parts)
        for seed in range(EPOCHS):
            parts.seed.fill_(seed)
            chosen = replay() if graph else epoch(parts)
        table = parts.pruner.table
        results.append((chosen, table.count, table.mean, parts.model.weight.detach()))
    eager, replayed = results
    assert torch.equal(replayed[0], eager[0]) and torch.equal(replayed[1], eager[1])
    for mine, theirs in zip(replayed[2:], eager[2:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
