# SPDX-License-Identifier: Apache-2.0
"""InfoBatch: the published rule, its unbiasedness, and the defects of its released code."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dynprune_cuda import InfoBatch, Pruner
from dynprune_cuda.scores import ScoreTable

N = 200


def table_of(values, device):
    """A table whose samples were each visited once, NaN for never."""
    values = torch.as_tensor(values, dtype=torch.float32)
    table = ScoreTable(len(values), device=device, alpha=1.0)
    seen = ~values.isnan()
    table.update(seen.nonzero().flatten().to(device), values[seen].to(device))
    return table


def below_mean(values):
    """Which values are below the exact mean of those that are not NaN."""
    known = [Fraction(float(v)) for v in values if not math.isnan(v)]
    mean = sum(known) / len(known) if known else 0
    return [not math.isnan(v) and Fraction(float(v)) < mean for v in values]


def lognormal(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(1.2 * torch.randn(size, generator=generator) - 1)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 2, 3, 31, 32, 33, 500])
def test_what_is_above_the_mean_stays_and_a_share_of_the_rest(device, ratio, size):
    values = lognormal(size, seed=size)
    below = torch.tensor(below_mean(values.tolist()))
    for seed in range(5):
        weights = InfoBatch(ratio).weigh(table_of(values, device), seed=seed).cpu()
        assert weights.dtype == torch.float32 and weights.shape == (size,)
        assert (weights[~below] == 1).all()
        stays = weights[below] > 0
        torch.testing.assert_close(
            weights[below][stays], torch.full((int(stays.sum()),), 1 / (1 - ratio))
        )
        wanted = (1 - ratio) * int(below.sum())
        assert math.floor(wanted + 1e-9) <= int(stays.sum()) <= math.ceil(wanted - 1e-9)


def test_the_expected_weight_of_every_sample_is_one(device):
    """Unbiased, sample by sample: also where the share is no whole number of samples."""
    table = table_of(lognormal(37), device)
    rounds = 4000
    mean = torch.stack(
        [InfoBatch(0.7).weigh(table, seed=seed).cpu() for seed in range(rounds)]
    ).mean(0)
    # A weight is 0 or 1 / 0.3: the mean of the rounds has a standard deviation of 0.024.
    assert (mean - 1).abs().max() < 5 * math.sqrt(0.7 / 0.3 / rounds)
    # Summed over the samples below the mean, only the rounding is random: 0.5 samples at most.
    assert abs(float(mean.sum()) - 37) < 5 * 0.5 / 0.3 / math.sqrt(rounds)


@pytest.mark.slow
def test_the_expected_gradient_is_that_of_the_full_data(device):
    """A rate other than the published one would show: the gradient is compared over many seeds."""
    torch.manual_seed(0)
    inputs = torch.randn(N, 5, device=device)
    target = (inputs[:, 0] > 0).long()
    model = torch.nn.Linear(5, 2).to(device)

    def gradient(loss):
        return torch.autograd.grad(loss, model.weight)[0].detach().cpu()

    full = gradient(cross_entropy(model(inputs), target, reduction="sum"))
    total, plain = torch.zeros_like(full), torch.zeros_like(full)
    seeds = 400
    for seed in range(seeds):
        pruner = Pruner(N, policy=InfoBatch(0.6), seed=seed, device=device)
        ids = torch.arange(N, device=device)
        pruner.observe(ids, cross_entropy(model(inputs), target, reduction="none"))
        pruner.set_epoch(1)
        kept = pruner.selected
        loss = pruner.cross_entropy(model(inputs[kept]), target[kept], kept, reduction="sum")
        total += gradient(loss)
        plain += gradient(cross_entropy(model(inputs[kept]), target[kept], reduction="sum"))
    scale = full.abs().max()
    assert ((total / seeds - full).abs().max() / scale) < 0.03
    assert ((plain / seeds - full).abs().max() / scale) > 0.1


def test_all_equal_scores_stay(device):
    for value in (0.0, 1e-30, 0.1, 3e38, -2.0):
        weights = InfoBatch().weigh(table_of([value] * 77, device), seed=0)
        assert (weights == 1).all(), value


def test_infobatch_one_nan_does_not_switch_pruning_off(device):
    """In the released code one NaN loss makes the mean NaN, and nothing is pruned any longer."""
    values = lognormal(N)
    clean = InfoBatch().weigh(table_of(values, device), seed=1)
    table = table_of(values, device)
    table.update(torch.tensor([3], device=device), torch.tensor([math.nan], device=device))
    weights = InfoBatch().weigh(table, seed=1)
    assert weights[3] == 1 and (clean == 0).sum() > 60 and (weights == 0).sum() > 60
    never = values.clone()
    never[10:20] = math.nan
    weights = InfoBatch().weigh(table_of(never, device), seed=1)
    assert (weights[10:20] == 1).all() and (weights == 0).sum() > 60
    assert (InfoBatch().weigh(ScoreTable(9, device=device), seed=0) == 1).all()


def test_the_mean_does_not_depend_on_the_order_of_additions(device):
    """Sums of floats do: the subset would differ between devices and numbers of threads."""
    generator = torch.Generator().manual_seed(5)
    values = lognormal(3000) * torch.rand(3000, generator=generator).mul(20).exp()
    expected = torch.tensor(below_mean(values.tolist()))
    for _ in range(5):
        order = torch.randperm(3000, generator=generator)
        weights = InfoBatch(0.5).weigh(table_of(values[order], device), seed=2).cpu()
        assert torch.equal(weights != 1, expected[order])


def test_the_seed_decides_and_the_global_generators_do_not():
    """The released code seeds NumPy globally at every epoch, whatever the user's seed."""
    table = table_of(lognormal(N), "cpu")

    def states():
        return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]

    before = states()
    draws = [InfoBatch().weigh(table, seed=seed) for seed in (0, 0, 1)]
    assert states() == before
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan])
def test_infobatch_a_ratio_out_of_range_is_refused_not_clamped(ratio):
    """The released code silently makes 0.9 of everything above."""
    with pytest.raises(ValueError, match=f"prune_ratio must be .*{ratio}"):
        InfoBatch(ratio)


def test_published_defaults_hold_unless_others_are_given():
    pruner = Pruner(N, policy="infobatch", epochs=90)
    plan = pruner.schedule
    assert (plan.period, plan.warmup_epochs, plan.anneal_epochs) == (1, 1, 12)
    assert pruner.table.alpha == 1.0
    other = Pruner(N, policy="infobatch", epochs=90, period=3, anneal_epochs=0, alpha=0.5)
    assert (other.schedule.period, other.schedule.anneal_epochs, other.table.alpha) == (3, 0, 0.5)
    assert Pruner(N, policy="infobatch").schedule.anneal_epochs == 0
    for epochs in ("9", 9.0, 0):
        with pytest.raises((TypeError, ValueError), match="epochs must"):
            Pruner(N, policy="infobatch", epochs=epochs)
    with pytest.raises(ValueError, match=r"keep must be left out: InfoBatch.* got 0.5"):
        Pruner(N, 0.5, "infobatch")


def train_epoch(pruner, values):
    """One epoch of losses that are the samples' own values; returns ids and rescaled losses."""
    seen, losses = [], []
    for batch in pruner.batch_sampler(16):
        ids = torch.tensor(batch, device=pruner.device)
        pruner.observe(ids, values[ids])
        seen += batch
        losses += pruner.rescale(ids, values[ids]).tolist()
    return seen, torch.tensor(losses)


@pytest.mark.parametrize("epochs", [10, 13, 16])
def test_infobatch_annealing_is_full_data_at_weight_one(device, epochs):
    """In the released code a delta that is no whole number of epochs never resets the weights."""
    values = lognormal(N).to(device)
    pruner = Pruner(N, policy="infobatch", epochs=epochs, device=device)
    annealing = math.ceil(epochs / 8)
    for epoch in range(epochs):
        pruner.set_epoch(epoch)
        seen, losses = train_epoch(pruner, values)
        if 0 < epoch < epochs - annealing:
            assert len(seen) < 0.8 * N
            assert float(losses.sum()) == pytest.approx(float(values.sum()), rel=0.15)
        else:
            assert sorted(seen) == list(range(N))
            assert torch.equal(losses, values.cpu()[torch.tensor(seen)])


def test_infobatch_len_is_that_of_the_epoch_at_hand(device):
    """In the released code len(loader) is the previous epoch's."""
    values = lognormal(N).to(device)
    pruner = Pruner(N, policy="infobatch", device=device)
    sampler = pruner.batch_sampler(16)
    train_epoch(pruner, values)
    for epoch in range(1, 5):
        with pytest.raises(ValueError, match=f"selection was made, got {epoch}: InfoBatch"):
            pruner.steps_per_epoch(16, epoch=epoch)
        pruner.set_epoch(epoch)
        steps = pruner.steps_per_epoch(16, epoch=epoch)
        assert steps == pruner.steps_per_epoch(16) == len(sampler) == len(list(sampler))
        assert pruner.num_selected == len(pruner.selected) < N
        values = values.roll(1)
        train_epoch(pruner, values)
    with pytest.raises(ValueError, match="epoch must be one whose selection was made"):
        pruner.total_steps(10, 16)
    assert pruner.total_steps(1, 16) == 13


def test_infobatch_the_length_holds_for_its_whole_period(device):
    pruner = Pruner(N, policy="infobatch", period=3, warmup_epochs=0, device=device)
    assert pruner.num_selected == N  # nothing is known: everything stays
    train_epoch(pruner, lognormal(N).to(device))
    pruner.set_epoch(3)
    assert pruner.steps_per_epoch(16, epoch=5) == pruner.steps_per_epoch(16) < 13
    with pytest.raises(ValueError, match="got 6"):
        pruner.steps_per_epoch(16, epoch=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("function", [torch.sqrt, torch.exp, torch.sigmoid])
def test_infobatch_rescaling_is_not_in_place(device, function, dtype):
    """The released code multiplies in place: an error for outputs that backward needs."""
    pruner = Pruner(N, policy="infobatch", device=device)
    train_epoch(pruner, lognormal(N).to(device))
    pruner.set_epoch(1)
    ids = pruner.selected
    leaf = torch.rand(len(ids), device=device, dtype=dtype).add_(0.1).requires_grad_()
    losses = function(leaf)
    before = losses.detach().clone()
    scaled = pruner.rescale(ids, losses)
    assert scaled.dtype == dtype and torch.equal(losses, before)
    scaled.sum().backward()
    weights = pruner.rescale(ids, torch.ones_like(losses)).detach()
    assert set(weights.tolist()) == {1.0, 2.0}
    (plain,) = torch.autograd.grad(function(leaf).sum(), leaf)
    torch.testing.assert_close(leaf.grad, plain * weights)
    pruner.rescale(ids, leaf)  # leaf tensors, too


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_rescales_by_itself_and_scores_stay_raw(device, reduction):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(N, 4, generator=generator).to(device)
    target = (torch.arange(N) % 4).to(device)
    class_weights = torch.tensor([1.0, 2.0, 0.5, 1.0], device=device)
    pruner = Pruner(N, policy=InfoBatch(0.75), device=device)
    everything = torch.arange(N, device=device)
    pruner.cross_entropy(logits, target, everything)
    pruner.set_epoch(1)
    ids = pruner.selected
    raw = cross_entropy(logits[ids], target[ids], class_weights, reduction="none")
    factors = pruner.rescale(ids, torch.ones_like(raw))
    assert set(factors.tolist()) == {1.0, 4.0}
    loss = pruner.cross_entropy(
        logits[ids], target[ids], ids, weight=class_weights, reduction=reduction
    )
    expected = {
        "none": raw * factors,
        "sum": (raw * factors).sum(),
        "mean": (raw * factors).sum() / class_weights[target[ids]].sum(),
    }[reduction]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(pruner.table.mean[ids], raw)


def test_rescale_leaves_other_policies_alone_and_names_bad_input(device):
    losses, ids = torch.rand(4, device=device), torch.arange(4, device=device)
    pruner = Pruner(N, 0.5, "uniform", device=device)
    pruner.set_epoch(1)
    assert pruner.rescale(ids, losses) is losses
    with pytest.raises(ValueError, match="4 ids and 3 losses"):
        pruner.rescale(ids, losses[:3])
    with pytest.raises(TypeError, match="ids must be a tensor, got list"):
        pruner.rescale([0, 1], losses)


@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
@pytest.mark.parametrize("policy", ["ucb", "infobatch"])
def test_a_compiled_step_is_compiled_once_for_all_epochs(device, policy):
    pruner = Pruner(N, None if policy == "infobatch" else 0.5, policy, period=1, device=device)
    logits = torch.randn(N, 3, generator=torch.Generator().manual_seed(1)).to(device)
    target = (torch.arange(N) % 3).to(device)

    def step(rows, labels, ids):
        return pruner.cross_entropy(rows, labels, ids, reduction="none")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    everything = torch.arange(N, device=device)
    pruner.set_epoch(0)
    compiled(logits, target, everything)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch in range(1, 4):
            pruner.set_epoch(epoch)
            losses = compiled(logits, target, everything)
            raw = cross_entropy(logits, target, reduction="none")
            torch.testing.assert_close(losses, pruner.rescale(everything, raw))
    torch.compiler.reset()


class Halves:
    """A user's policy that weighs: the even samples count twice."""

    weighs = True

    def __init__(self):
        self.answer = None

    def weigh(self, table, *, seed):
        if self.answer is not None:
            return self.answer
        even = torch.arange(table.num_samples, device=table.device) % 2 == 0
        return torch.where(even, 2.0, 0.0)


def test_a_weighing_policy_of_ones_own(device):
    policy = Halves()
    pruner = Pruner(N, policy=policy, period=1, device=device)
    pruner.set_epoch(1)
    assert pruner.selected.tolist() == list(range(0, N, 2))
    ones = torch.ones(3, device=device)
    assert pruner.rescale(pruner.selected[:3], ones).tolist() == [2.0] * 3
    for answer, error, message in (
        ([1.0] * N, TypeError, "must return an float32 tensor, got list"),
        (torch.ones(N, dtype=torch.float64), ValueError, "float32, got torch.float64"),
        (torch.ones(N - 1), ValueError, rf"{N} weights .* \({N - 1},\)"),
        (torch.full((N,), -1.0), ValueError, "finite weights >= 0"),
        (torch.full((N,), math.inf), ValueError, "finite weights >= 0"),
        (torch.zeros(N), ValueError, "at least one sample, got none"),
    ):
        policy.answer = answer
        with pytest.raises(error, match=message):
            pruner.set_epoch(2)
        assert pruner.epoch == 1 and pruner.num_selected == N // 2
