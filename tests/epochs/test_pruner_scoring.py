# SPDX-License-Identifier: Apache-2.0
"""Pruner: losses, scores, and training with them."""

import math
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from waiting import no_cuda_waiting

from dynprune_cuda import functional
from dynprune_cuda.data import IndexedDataset
from dynprune_cuda.functional.cross_entropy import SCORES
from dynprune_cuda.policies import UCB
from dynprune_cuda.pruner import Pruner

N = 20
C = 5


def batch(device, size=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(size, C, generator=generator) * 3).to(device, dtype)
    target = torch.randint(C, (size,), generator=generator).to(device)
    ids = torch.randperm(N, generator=generator)[:size].to(device)
    return logits, target, ids


def class_weights(device):
    return torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], device=device)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_the_loss_and_its_gradient_are_torchs(device, reduction, smoothing, weighted, ignore_index):
    logits, target, ids = batch(device)
    target[3] = ignore_index
    options = {
        "weight": class_weights(device) if weighted else None,
        "ignore_index": ignore_index,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = Pruner(N, 0.5, device=device).cross_entropy(mine, target, ids, **options)
    expected = F.cross_entropy(theirs, target, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    slope = torch.linspace(0.5, 1.5, loss.numel(), device=device).view_as(loss)
    (loss * slope).sum().backward()
    (expected * slope).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target_dtype", [torch.int32, torch.uint8])
def test_small_target_dtypes(device, target_dtype):
    logits, target, ids = batch(device)
    weight = class_weights(device)
    loss = Pruner(N, 0.5, device=device).cross_entropy(
        logits, target.to(target_dtype), ids, weight=weight
    )
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, weight=weight))


def test_a_batch_of_ignored_rows_has_torchs_mean(device):
    logits, target, ids = batch(device)
    pruner = Pruner(N, 0.5, device=device)
    assert pruner.cross_entropy(logits, target.fill_(-100), ids).isnan()
    assert not pruner.table.count.any() and not pruner.table.non_finite_count.any()


@pytest.mark.parametrize("score", SCORES)
def test_the_configured_score_enters_the_table(device, score):
    logits, target, ids = batch(device)
    pruner = Pruner(N, 0.5, "ucb", score=score, device=device)
    pruner.cross_entropy(logits.requires_grad_(), target, ids)
    exact = logits.detach().double()
    probability = exact.softmax(1)
    hot = F.one_hot(target, C)
    expected = {
        "loss": F.cross_entropy(exact, target, reduction="none"),
        "el2n": (probability - hot).norm(dim=1),
        "entropy": -(probability * probability.log()).sum(1),
        "margin": exact.masked_fill(hot.bool(), -math.inf).amax(1) - exact[hot.bool()],
    }[score]
    torch.testing.assert_close(pruner.table.mean[ids].double(), expected, rtol=1e-4, atol=1e-5)
    assert int(pruner.table.count.sum()) == len(ids) and not pruner.table.mean.requires_grad


def test_small_margins_rank_high(device):
    logits = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 5.0]], device=device)
    ids, target = torch.arange(3, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    for keep, expected in ((0.3, [2]), (2, [1, 2])):
        pruner = Pruner(3, keep, "ucb", score="margin", device=device)
        pruner.cross_entropy(logits, target, ids)
        pruner.set_epoch(1)
        assert pruner.selected.tolist() == expected


def test_the_training_loss_with_its_options_is_the_score_loss(device):
    logits, target, ids = batch(device)
    options = {"weight": class_weights(device), "label_smoothing": 0.2}
    pruner = Pruner(N, 0.5, device=device)
    pruner.cross_entropy(logits, target, ids, **options)
    expected = F.cross_entropy(logits, target, reduction="none", **options)
    torch.testing.assert_close(pruner.table.mean[ids], expected, rtol=1e-5, atol=1e-6)


def test_ignored_rows_leave_their_samples_alone(device):
    logits, target, ids = batch(device)
    pruner = Pruner(N, 0.5, device=device)
    pruner.cross_entropy(logits, target, ids)
    mean = pruner.table.mean.clone()
    target[[1, 4]] = -100
    logits[4] = math.nan
    pruner.cross_entropy(logits + 1.0, target, ids)
    count = torch.full((8,), 2)
    count[[1, 4]] = 1
    assert pruner.table.count[ids].tolist() == count.tolist()
    assert torch.equal(pruner.table.mean[ids[[1, 4]]], mean[ids[[1, 4]]])
    assert not pruner.table.last_non_finite.any()
    assert int(pruner.table.count.sum()) == 14


def test_a_broken_sample_is_looked_at_next(device):
    logits, target, ids = batch(device, size=N)
    pruner = Pruner(N, 1 / N, period=1, device=device)
    pruner.cross_entropy(logits, target, ids)
    logits[7] = math.nan
    pruner.cross_entropy(logits, target, ids)
    pruner.set_epoch(1)
    assert pruner.selected.tolist() == [int(ids[7])]
    assert pruner.stats()["non_finite_samples"] == 1


def test_samples_that_were_never_seen_are_selected_first(device):
    for policy in ("ucb", "epsilon_greedy", "weighted"):
        pruner = Pruner(N, 6, policy, device=device)
        seen = torch.arange(N - 5, device=device)
        pruner.observe(seen, torch.full((N - 5,), 1e6, device=device))
        pruner.set_epoch(1)
        assert set(range(N - 5, N)) <= set(pruner.selected.tolist()), policy


def test_observe_takes_values_and_scored_losses(device):
    logits, target, ids = batch(device)
    scored = functional.scored_cross_entropy(logits, target)
    by_result, by_value = (Pruner(N, 0.5, score="el2n", device=device) for _ in range(2))
    by_result.observe(ids, scored)
    by_value.observe(ids, scored.el2n, correct=scored.correct)
    assert torch.equal(by_result.table.mean[ids], scored.el2n)
    assert torch.equal(by_value.table.mean[ids], scored.el2n)


def test_bad_batches_change_nothing(device):
    logits, target, ids = batch(device)
    pruner = Pruner(N, 0.5, device=device)
    cases = [
        (ValueError, "8 .*got 7", lambda: pruner.cross_entropy(logits, target, ids[:7])),
        (ValueError, "8 .*got 1", lambda: pruner.cross_entropy(logits, target, ids[:1])),
        (ValueError, "ids must be 1-D", lambda: pruner.cross_entropy(logits, target, ids[None])),
        (ValueError, "ids .* integer", lambda: pruner.cross_entropy(logits, target, ids.float())),
        (TypeError, "ids .* list", lambda: pruner.cross_entropy(logits, target, ids.tolist())),
        (
            ValueError,
            "reduction must be one of .* 'avg'",
            lambda: pruner.cross_entropy(logits, target, ids, reduction="avg"),
        ),
        (ValueError, "7 ids and 8 values", lambda: pruner.observe(ids[:7], logits[:, 0])),
        (ValueError, "repeat_interleave", lambda: pruner.observe(ids, logits.mean()[None, None])),
        (ValueError, "reduction='none'", lambda: pruner.rescale(ids, logits.mean())),
        (
            ValueError,
            "^ids must have 8 .*class_dim=-1",
            lambda: pruner.cross_entropy(logits, target, ids[:2]),
        ),
        (
            ValueError,
            "correct must be bool",
            lambda: pruner.observe(ids, logits[:, 0], correct=logits[:, 0]),
        ),
        (
            ValueError,
            "correct must be bool",
            lambda: pruner.observe(ids, logits[:, 0], correct=target[:3] > 0),
        ),
    ]
    if torch.device(device).type == "cpu":
        beyond = ids.clone()
        beyond[5] = N
        wrong = target.clone()
        wrong[5] = C
        cases += [
            (IndexError, str(N), lambda: pruner.cross_entropy(logits, target, beyond)),
            (IndexError, str(C), lambda: pruner.cross_entropy(logits, wrong, ids)),
            (IndexError, str(N), lambda: pruner.observe(beyond, logits[:, 0])),
        ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
        assert not pruner.table.count.any() and pruner.table.mean.isnan().all(), message


@pytest.mark.needs_cuda
def test_a_bad_target_on_the_gpu_is_reported_by_the_next_epoch():
    device = torch.device("cuda")
    logits, target, ids = batch(device)
    target[5] = C
    pruner = Pruner(N, 0.5, device=device)
    pruner.cross_entropy(logits, target, ids, weight=class_weights(device))
    with pytest.raises(IndexError, match="target"):
        pruner.set_epoch(1)
    assert pruner.epoch == 0
    pruner.set_epoch(1)


@contextmanager
def nothing_waits(device):
    """Fails if an op would make the host wait for a GPU."""
    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            assert not any(word in name for word in waiting), f"{name} waits for the device"
            if "aten.index" in name:
                indices = [i for i in args[1] if i is not None]
                assert all(i.dtype != torch.bool for i in indices), f"{name} by a mask waits"
            return func(*args, **(kwargs or {}))

    cuda = torch.device(device).type == "cuda"
    with no_cuda_waiting() if cuda else nullcontext(), Watch():
        yield


def test_the_watch_sees_what_waits():
    for waits in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()):
        with pytest.raises(AssertionError, match="waits"), nothing_waits("cpu"):
            waits(torch.arange(3.0))


@pytest.mark.parametrize("ids_on_cpu", [False, True])
def test_a_training_step_does_not_wait(device, ids_on_cpu):
    logits, target, ids = batch(device)
    target[2] = -100
    weight = class_weights(device)
    ids = ids.cpu() if ids_on_cpu else ids
    pruner = Pruner(N, 0.5, "ucb", score="margin", device=device)
    pruner.cross_entropy(logits, target, ids)  # first use may initialise and wait
    logits.requires_grad_()
    with nothing_waits(device):
        pruner.cross_entropy(logits, target, ids, weight=weight).backward()
        pruner.cross_entropy(logits, target, ids, label_smoothing=0.1).backward()
        pruner.observe(ids, logits[:, 0])
    assert int(pruner.table.count.sum()) == 7 * 3 + 8


def one_ahead(loader):
    """Yields a loader's batches like accelerate does: the next one is fetched first."""
    batches = iter(loader)
    current = next(batches, None)
    while current is not None:
        upcoming = next(batches, None)
        yield current
        current = upcoming


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loaders_that_fetch_ahead_score_the_right_samples(device, num_workers):
    truth = torch.arange(50.0) * 3 + 1
    pruner = Pruner(50, 20, "uniform", period=1, alpha=1.0, device=device)
    loader = DataLoader(
        IndexedDataset(TensorDataset(truth)),
        batch_sampler=pruner.batch_sampler(7),
        num_workers=num_workers,
    )
    visits = torch.zeros(50)
    for epoch in range(4):
        pruner.set_epoch(epoch)
        for values, ids in one_ahead(loader):
            pruner.observe(ids, values.to(device))
            visits[ids] += 1
    assert pruner.table.count.tolist() == visits.tolist()
    torch.testing.assert_close(pruner.table.mean.cpu(), truth)


def test_forgetting_set_epoch_is_noticed(device):
    ids = torch.arange(N, device=device)
    forgetful, careful = (Pruner(N, 0.5, device=device) for _ in range(2))
    careful.set_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            forgetful.observe(ids, ids.float())
        for _ in range(5):
            careful.observe(ids, ids.float())
    with pytest.warns(RuntimeWarning, match="set_epoch was never called"):
        forgetful.observe(ids, ids.float())


def test_stats_are_ready_for_a_log(device):
    pruner = Pruner(N, 0.5, anneal_epochs=1, epochs=3, device=device)
    logits, target, ids = batch(device)
    pruner.cross_entropy(logits, target, ids)
    for epoch, phase, number in ((0, "warm-up", N), (1, "pruned", 10), (2, "annealing", N)):
        pruner.set_epoch(epoch)
        stats = pruner.stats()
        assert (stats["epoch"], stats["phase"], stats["num_selected"]) == (epoch, phase, number)
        assert stats["visited"] == 8 and stats["never_visited"] == N - 8
        assert stats["score_mean"] == pytest.approx(float(pruner.table.mean[ids].mean()))


@pytest.mark.parametrize("alpha", [0.8, 0.25])
def test_the_released_infobatch_rule_lifts_first_visits(device, alpha):
    pruner = Pruner(N, 0.59, UCB.infobatch_baseline(), alpha=alpha, device=device)
    pruner.observe(torch.tensor([3], device=device), torch.tensor([2.0], device=device))
    assert pruner.table.mean[3] == 2.0
    assert float(pruner.table.variance[3]) == pytest.approx(4 * alpha)


@pytest.mark.parametrize("policy", ["ucb", "epsilon_greedy", "weighted"])
@pytest.mark.parametrize("score", ["loss", "el2n"])
def test_training_ends_up_on_the_hard_samples(device, policy, score):
    """Two far classes; an eighth of the samples carries random labels and stays hard."""
    torch.manual_seed(0)
    size = 400
    labels = torch.arange(size) % 2
    points = torch.randn(size, 2) + 8.0 * (labels[:, None] - 0.5)
    hard = torch.zeros(size, dtype=torch.bool)
    hard[torch.randperm(size)[:50]] = True
    labels = torch.where(hard, 1 - labels, labels)
    pruner = Pruner(size, 0.25, policy, period=2, score=score, seed=1, device=device)
    loader = DataLoader(
        IndexedDataset(TensorDataset(points, labels)),
        batch_sampler=pruner.batch_sampler(32),
    )
    model = torch.nn.Linear(2, 2).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, steps = [], 0
    for epoch in range(8):
        pruner.set_epoch(epoch)
        for x, y, ids in loader:
            loss = pruner.cross_entropy(model(x.to(device)), y.to(device), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if epoch == 0:
                losses.append(float(loss.detach()))
        if epoch == 1:
            share = hard[pruner.selected.cpu()].float().sum() / 50
            # By chance it would be a quarter.
            assert share > (0.5 if policy == "weighted" else 0.8)
    assert losses[-1] < losses[0]
    assert steps == pruner.total_steps(8, 32) == 13 + 7 * 4
    assert pruner.stats()["never_visited"] == 0


@pytest.mark.parametrize("policy", ["epsilon_greedy", "ucb", "weighted"])
def test_selecting_without_any_score_is_said_once(device, policy):
    pruner = Pruner(40, 0.5, policy, period=1, device=device)
    pruner.set_epoch(0)
    with pytest.warns(RuntimeWarning, match=r"no score was observed before epoch 1"):
        pruner.set_epoch(1)
    pruner.set_epoch(2)  # warnings are errors here: this one would fail


@pytest.mark.parametrize("policy", ["uniform", "random_static", "full"])
def test_policies_without_scores_need_no_observation(device, policy):
    pruner = Pruner(40, None if policy == "full" else 0.5, policy, period=1, device=device)
    for epoch in range(3):
        pruner.set_epoch(epoch)


def test_margins_are_no_weights(device):
    with pytest.raises(ValueError, match=r"score='margin' does not fit policy=Weighted\("):
        Pruner(40, 0.5, "weighted", score="margin", device=device)


def test_sample_weights_mixup_and_loss_scales_reach_the_step(device):
    logits, target, ids = batch(device)
    weight = torch.linspace(0.5, 2, len(ids), device=device)
    second = target.flip(0)
    pruner = Pruner(N, 0.5, score="el2n", device=device)
    x = logits.detach().requires_grad_()
    scale = torch.tensor(8.0, device=device)
    loss = pruner.cross_entropy(
        x, target, ids, sample_weight=weight, target_b=second, lam=0.25, grad_scale=scale
    )
    (loss * 8).backward()
    y = logits.detach().requires_grad_()
    ce = (F.cross_entropy(y, t, reduction="none") for t in (target, second))
    expected = ((0.25 * next(ce) + 0.75 * next(ce)) * weight).mean()
    (expected * 8).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, y.grad)
    el2n = functional.scored_cross_entropy(logits, target).el2n
    torch.testing.assert_close(pruner.table.mean[ids], el2n)


def test_sample_weights_multiply_the_factors_of_a_policy_that_weighs(device):
    pruner = Pruner(N, policy="infobatch", period=1, device=device)
    pruner.observe(torch.arange(N), torch.linspace(0, 5, N, device=device))
    pruner.set_epoch(1)
    ids = pruner.selected
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(ids), 4, generator=generator).to(device)
    target = torch.zeros(len(ids), dtype=torch.int64, device=device)
    weight = torch.linspace(0.5, 2, len(ids), device=device)
    rows = F.cross_entropy(logits, target, reduction="none")
    expected = pruner.rescale(ids, rows * weight)
    assert not torch.equal(expected, rows * weight)
    loss = pruner.cross_entropy(logits, target, ids, sample_weight=weight)
    torch.testing.assert_close(loss, expected.mean())
    with pytest.raises(ValueError, match="sample_weight must have"):
        pruner.cross_entropy(logits, target, ids, sample_weight=weight[:1])


def test_a_row_of_no_sample_trains_as_it_is() -> None:
    """An id of -1 takes no factor of another sample, and no entry of the table."""
    pruner = Pruner(4, policy="infobatch", epochs=8)
    assert pruner._run._factors is not None
    pruner._run._factors.fill_(2.0)
    logits, target = torch.tensor([[0.3, -0.2, 1.0]]), torch.tensor([1])
    plain = torch.nn.functional.cross_entropy(logits, target)
    nobody, somebody = torch.tensor([-1]), torch.tensor([0])
    torch.testing.assert_close(pruner.cross_entropy(logits, target, nobody), plain)
    torch.testing.assert_close(pruner.rescale(nobody, plain[None]), plain[None])
    assert not pruner.table.count.any()
    torch.testing.assert_close(pruner.cross_entropy(logits, target, somebody), 2 * plain)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_weight_of_an_ignored_row_is_not_looked_at(reduction: str) -> None:
    pruner = Pruner(4, 0.5, "ucb")
    logits, target = torch.randn(3, 5), torch.tensor([1, -100, 2])
    weight = torch.tensor([1.0, math.inf, 1.0])
    loss = pruner.cross_entropy(
        logits, target, torch.arange(3), sample_weight=weight, reduction=reduction
    )
    expected = torch.nn.functional.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(loss, expected)


def test_sample_weights_that_want_a_gradient_are_refused() -> None:
    pruner = Pruner(4, 0.5, "ucb")
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="sample_weight must not require a gradient"):
        pruner.cross_entropy(
            torch.randn(3, 5), torch.tensor([1, 0, 2]), torch.arange(3), sample_weight=weight
        )
    assert not pruner.table.count.any()


@pytest.mark.parametrize("target", [[0, 1, 2], torch.tensor(1)], ids=["list", "0-d"])
def test_a_target_without_rows_is_named(target):
    pruner = Pruner(10, 0.5)
    with pytest.raises((TypeError, ValueError), match="target must"):
        pruner.cross_entropy(torch.randn(3, 4), target, torch.arange(3))
    assert not pruner.table.count.any()
