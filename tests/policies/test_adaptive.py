# SPDX-License-Identifier: Apache-2.0
"""The default policy: keeps to the harder half where that pays, and draws uniformly elsewhere."""

import math

import numpy as np
import pytest
import torch

from dynprune_cuda import Pruner, ScoreTable, policies
from dynprune_cuda import functional as F
from dynprune_cuda.functional import Tilted, Trimmed
from dynprune_cuda.functional.inclusion import upper_half
from dynprune_cuda.functional.tilted import effective_share, tilt_of


def lognormal(n, sigma, seed=0):
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * sigma).exp()


def table_of(scores):
    table = ScoreTable(len(scores))
    table.update(torch.arange(len(scores)), scores)
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_the_effective_share_is_that_of_its_definition(device, sigma, dtype):
    scores = lognormal(5000, sigma).to(dtype)
    scores[:7] = math.nan
    scores[7:20] = 0.0
    known = scores[7:].double()
    known = known[known.isfinite()]  # float16 ends at 65504
    expected = known.sqrt().sum() ** 2 / (len(known) * known.sum())
    share = effective_share(Tilted(scores.to(device)).histogram())
    assert share.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("share", "tilt"),
    [(0.1, 0), (0.4, 0), (0.42, 0.5), (0.44, 1), (0.72, 1), (0.76, 0.5), (0.8, 0), (0.99, 0)],
)
def test_the_tilt_depends_on_the_effective_share(share, tilt):
    # A part `share` of equal scores, and zeros: the effective share is that part.
    number = round(10_000 * share)
    scores = torch.cat([torch.full((number,), 0.3), torch.zeros(10_000 - number)])
    found = tilt_of(Tilted(scores).histogram())
    assert found.item() == pytest.approx(tilt, abs=1 / 64)
    assert (found * 64).item() == round(found.item() * 64)
    assert policies.Adaptive.tilt(table_of(scores)) == found


def harder(scores):
    """Of each score, which part of its bin is in the harder half; written from the definition."""
    bits = scores.float().clamp(min=0).numpy().view(np.int32)
    bins = np.where(bits == 0, -1, bits >> 19)
    order = np.sort(bins)[::-1]
    edge = order[len(order) // 2] if len(order) % 2 else order[len(order) // 2 - 1]
    above, inside = (bins > edge).sum(), (bins == edge).sum()
    part = (len(order) / 2 - above) / inside
    return torch.from_numpy(np.where(bins > edge, 1.0, np.where(bins == edge, part, 0.0)))


def weights_of(rule):
    return rule.ranking(rule.histogram(), rule.values).values


@pytest.mark.parametrize("number", [3000, 3001])
@pytest.mark.parametrize("zeros", [0, 40, 400])
def test_inside_the_window_it_draws_from_the_harder_half(device, number, zeros):
    scores = lognormal(number, 1.3)
    scores[torch.randperm(number)[:zeros]] = 0.0
    part = harder(scores)
    assert part.sum().item() == pytest.approx(number / 2)
    rule = Tilted(scores.to(device))
    assert tilt_of(rule.histogram()) == 1
    expected = part.clamp(min=2.0**-60)
    torch.testing.assert_close(weights_of(rule).cpu().double(), expected, rtol=1e-6, atol=0.0)
    chosen = F.select(rule, number, 900, seed=2, device=device).cpu()
    assert (part[chosen] > 0).all()
    # The others come when nothing else is left.
    every = F.select(rule, number, number - 10, seed=2, device=device).cpu()
    assert (part > 0).sum() == (part[every] > 0).sum()


def test_the_median_may_lie_among_the_learned(device):
    scores = torch.cat([torch.ones(470), torch.zeros(530)])
    rule = Tilted(scores.to(device))
    assert tilt_of(rule.histogram()) == 1
    expected = torch.cat([torch.ones(470), torch.full((530,), 30 / 530)])
    torch.testing.assert_close(weights_of(rule).cpu(), expected)
    trimmed = Trimmed(rule, 0.1, revisited=0.0)
    left_out = scores.topk(100).indices
    values = trimmed.without(left_out.to(device), torch.empty(0, dtype=torch.int64, device=device))
    found = rule.ranking(rule.histogram(), values).values.cpu()
    torch.testing.assert_close(found, expected.index_fill(0, left_out, 0.0))


def test_the_members_of_the_harder_half_are_equally_likely():
    scores = lognormal(300, 1.3)
    part = harder(scores)
    counts = torch.zeros(300)
    for seed in range(2000):
        counts[F.select(Tilted(scores), 300, 60, seed=seed)] += 1
    assert (counts[part == 0] == 0).all()
    hard = counts[part == 1]
    likely = 60 / part.sum().item()
    deviations = (hard - 2000 * likely) / math.sqrt(2000 * likely * (1 - likely))
    assert deviations.abs().max() < 5 and deviations.std() < 1.2


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_unknown_scores_come_first_and_do_not_move_the_half(device, special):
    scores = lognormal(3000, 1.3)
    rule = Tilted(torch.cat([scores, torch.full((900,), special)]).to(device))
    assert torch.equal(weights_of(rule)[:3000].cpu(), weights_of(Tilted(scores)))
    assert (weights_of(rule)[3000:] == math.inf).all()
    chosen = F.select(rule, 3900, 1200, seed=2, device=device).cpu()
    assert (chosen >= 3000).sum() == 900


def test_the_half_holds_for_scores_of_any_size():
    # Zero, below the least normal number, and up to the greatest one.
    scores = torch.tensor([0.0, -1.0, 1e-45, 1e-40, 1e-38, 1.0, 1e38, 3.4e38])
    for first in range(len(scores)):
        for last in range(first + 1, len(scores) + 1):
            some = scores[first:last]
            found = upper_half(some, Tilted(some).histogram())
            torch.testing.assert_close(found.double(), harder(some))


@pytest.mark.parametrize("sigma", [0.3, 4.0])
def test_outside_of_it_every_sample_is_equally_likely(sigma):
    scores = lognormal(200, sigma, seed=1)
    assert tilt_of(Tilted(scores).histogram()) == 0
    counts = torch.zeros(200)
    for seed in range(2000):
        counts[F.select(Tilted(scores), 200, 60, seed=seed)] += 1
    deviations = (counts - 600) / math.sqrt(2000 * 0.3 * 0.7)
    assert deviations.abs().max() < 5 and deviations.std() < 1.2


def test_in_between_weights_are_a_mixture():
    scores = torch.cat([lognormal(4000, 0.8), torch.zeros(350)])
    rule = Tilted(scores)
    tilt = tilt_of(rule.histogram()).item()
    assert 0 < tilt < 1
    torch.testing.assert_close(weights_of(rule).double(), tilt * harder(scores) + (1 - tilt) / 2)


@pytest.mark.parametrize("scores", [[], [math.nan] * 9, [0.0] * 9, [-1.0] * 9, [math.inf, 1.0]])
def test_awkward_scores(device, scores):
    scores = torch.tensor(scores, device=device)
    k = len(scores) // 2
    assert len(F.select(Tilted(scores), len(scores), k, seed=0, device=device)) == k


def test_what_is_trimmed_weighs_nothing_in_every_regime():
    for sigma in (0.1, 1.3, 4.0):
        scores = lognormal(1000, sigma)
        rule = Trimmed(Tilted(scores), 0.1, revisited=0.0)
        chosen = F.select(rule, 1000, 900, seed=1)
        top = set(scores.topk(100).indices.tolist())
        assert not top & set(chosen.tolist())


def test_scores_may_be_views_with_a_negative_bit():
    scores = torch._neg_view(-lognormal(100, 1.3))
    assert scores.is_neg()
    assert torch.equal(weights_of(Tilted(scores)), weights_of(Tilted(scores.clone())))


def test_learned_samples_come_before_those_that_are_trimmed():
    scores = torch.cat([lognormal(700, 1.0), torch.zeros(300)])
    assert tilt_of(Tilted(scores).histogram()) == 1
    for start in (0.0, 0.25):
        rule = Trimmed(Tilted(scores, start=start), 0.1, revisited=0.0)
        chosen = set(F.select(rule, 1000, 850, seed=1).tolist())
        assert not set(scores.topk(100).indices.tolist()) & chosen


@pytest.mark.parametrize("k", [300, 480, 700])
def test_it_rescales_by_its_weights(k):
    scores = lognormal(1000, 1.3)
    ids, factors = F.select_rescaled(Tilted(scores), 1000, k, seed=1)
    expected = k / 1000 / F.inclusion_probabilities(harder(scores).clamp(min=1e-18).float(), k)
    torch.testing.assert_close(factors, expected[ids].clamp(max=10))


def test_it_is_the_default():
    pruner = Pruner(100, 0.3)
    assert pruner.policy == policies.Adaptive() and pruner.schedule.period == 1
    assert pruner.table.alpha == 0.8 and pruner.schedule.warmup_epochs == 1
    pruner.observe(torch.arange(100), lognormal(100, 1.3))
    pruner.set_epoch(1)
    first = pruner.selected
    pruner.set_epoch(2)
    assert not torch.equal(first, pruner.selected)


@pytest.mark.parametrize("name", ["adaptive", "weighted", "uniform", "ucb", "epsilon_greedy"])
def test_a_subset_serves_one_epoch_by_default(name):
    assert Pruner(100, 0.3, name).schedule.period == 1


@pytest.mark.parametrize(
    "policy",
    [policies.Adaptive(trim=0.1), policies.Weighted(0.5, rescale=True, trim=0.1)],
    ids=repr,
)
def test_trimmed_samples_are_visited_again(policy):
    scores = lognormal(1000, 1.3)
    table = table_of(scores)
    assert policies.Adaptive.tilt(table) == 1
    top = scores.topk(100).indices
    visits = torch.zeros(1000)
    for seed in range(200):
        visits[policy.select(table, 300, seed=seed)] += 1
    # Each is exempt in a tenth of the selections, and then likelier than the mean to be drawn.
    expected = 20.0
    assert 0.3 * expected < visits[top].mean() < 1.1 * expected
    assert (visits[top] > 0).all()
    assert visits[top].mean() < 0.4 * visits.mean()  # far fewer than others nevertheless


def test_the_settings_of_the_paper_have_a_name():
    for rule, policy in (("uniform", policies.UniformRandom()), ("ucb", policies.UCB())):
        pruner = Pruner(100, 0.3, **policies.paper(rule))
        assert pruner.policy == policy and pruner.schedule.period == 10
    assert policies.paper("epsilon_greedy")["policy"] == policies.EpsilonGreedy(0.1)
    with pytest.raises(ValueError, match=r"rule must be one of 'uniform', .* got 'weighted'"):
        policies.paper("weighted")


def test_scores_that_it_cannot_use_are_refused():
    with pytest.raises(ValueError, match=r"margin.*use policy='ucb'"):
        Pruner(100, 0.3, score="margin")
    with pytest.raises(ValueError, match="scores must have dtype"):
        Tilted(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="trim must be below 1"):
        policies.Adaptive(trim=1.0)


def test_rescaling_does_not_fit_groups_or_a_select_of_ones_own():
    with pytest.raises(ValueError, match=r"groups do not fit .* use rescale=False"):
        Pruner(100, 0.3, policies.Weighted(rescale=True), groups=[0, 1] * 50)

    class Own(policies.Weighted):
        def select(self, table, k, *, seed):
            return torch.arange(k)

    with pytest.raises(ValueError, match="must leave select and weigh as they are"):
        Pruner(100, 0.3, Own(rescale=True))
