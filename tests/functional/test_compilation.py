# SPDX-License-Identifier: Apache-2.0
"""What a training script compiles: one graph, the same numbers, nothing merged or reordered."""

import pytest
import torch

from dynprune_cuda import functional as F


def training_step(logits, target, mean, variance, count, ids):
    """What a training script compiles: loss, update, and a selection by the updated scores."""
    scored = F.scored_cross_entropy(logits, target, label_smoothing=0.1)
    F.update_scores_(mean, variance, count, ids, scored.el2n, alpha=0.8)
    chosen = F.select_ucb(mean, variance, 20, bonus="std", seed=3)
    return scored.loss.mean(), chosen, scored.correct


def inputs(device, rows=8):
    generator = torch.Generator().manual_seed(rows)
    mean = torch.rand(60, generator=generator).to(device)
    logits = torch.randn(rows, 5, generator=generator).to(device).requires_grad_()
    target = torch.randint(5, (rows,), generator=generator).to(device)
    ids = torch.randperm(60, generator=generator)[:rows].to(device)
    count = torch.ones(60, dtype=torch.int32, device=device)
    return logits, target, mean, mean / 2, count, ids


def fused_step(logits, target, mean, variance, count, ids):
    scored = F.scored_cross_entropy_step_(
        logits, target, ids, mean, variance, count, alpha=0.8, score="el2n", label_smoothing=0.1
    )
    return scored.loss * 2, F.select_ucb(mean, variance, 20, seed=3), scored.correct


def assert_same_step(compiled, device, rows, eager=training_step):
    results = []
    for step in (eager, compiled):
        arguments = inputs(device, rows)
        loss, chosen, correct = step(*arguments)
        loss.backward()
        results.append([loss.detach(), chosen, correct, arguments[0].grad, *arguments[2:5]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert not torch.equal(results[1][4], inputs(device, rows)[2])  # the table did change


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, None, True])
def test_compiles_into_one_graph(device, dynamic):
    """With batches of two sizes, as an epoch's last batch is smaller."""
    torch.compiler.reset()
    compiled = torch.compile(training_step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (8, 5, 7):
        assert_same_step(compiled, device, rows)


@pytest.mark.slow
def test_compiles_with_inductor(device):
    torch.compiler.reset()
    assert_same_step(torch.compile(training_step, fullgraph=True), device, 8)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_fused_step_compiles_into_one_graph(device, backend):
    torch.compiler.reset()
    compiled = torch.compile(fused_step, fullgraph=True, backend=backend)
    for rows in (8, 5):
        assert_same_step(compiled, device, rows, fused_step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top_k", "epsilon", "ucb1", "weighted", "uniform", "permutation"])
def test_every_selection_compiles(device, name):
    functions = {
        "top_k": lambda t, k, s: F.select_top_k(t, k, seed=s),
        "epsilon": lambda t, k, s: F.select_epsilon_greedy(t, k, 0.25, seed=s),
        "ucb1": lambda t, k, s: F.select_ucb1(t, (t * 9).long(), k, step=50.0, seed=s),
        "weighted": lambda t, k, s: F.select_weighted(t, k, seed=s, order="ascending"),
        "uniform": lambda t, k, s: F.select_uniform(len(t), k, seed=s, device=t.device),
        "permutation": lambda t, k, s: F.permutation(k, seed=s, device=t.device),
    }
    torch.compiler.reset()
    compiled = torch.compile(functions[name], fullgraph=True, backend="aot_eager")
    scores = torch.rand(80, device=device)
    for k, seed in ((9, 1), (10, 2), (11, torch.tensor(7, device=device))):
        assert torch.equal(compiled(scores, k, seed), functions[name](scores, k, seed))


def test_options_that_change_between_calls_compile(device):
    """As an exploration rate or a bonus that decays over the epochs."""

    def step(scores, rate):
        return (
            F.select_epsilon_greedy(scores, 20, rate, seed=1),
            F.select_ucb(scores, scores, 20, c=rate, seed=1),
            F.select_ucb1(scores, (scores * 9).long(), 20, step=1 + rate, seed=1),
        )

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    scores = torch.rand(80, device=device)
    for rate in (0.5, 0.4, 0.3):
        for a, b in zip(compiled(scores, rate), step(scores, rate), strict=True):
            assert torch.equal(a, b)


def test_a_selection_is_not_merged_or_reordered_around_an_update(device):
    """The same selection before and after an update in one graph: two results."""

    def step(mean, variance, count, ids, values):
        before = F.select_top_k(mean, 5, order="ascending")
        F.update_scores_(mean, variance, count, ids, values, alpha=1.0)
        return before, F.select_top_k(mean, 5, order="ascending")

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    mean = torch.arange(10.0, device=device)
    count = torch.ones(10, dtype=torch.int64, device=device)
    ids, values = torch.arange(5, device=device), torch.full((5,), 99.0, device=device)
    before, after = compiled(mean, mean.clone(), count, ids, values)
    assert before.tolist() == [5, 6, 7, 8, 9] and after.tolist() == [0, 1, 2, 3, 4]
