# SPDX-License-Identifier: Apache-2.0
"""The default policy: follows the scores where that pays, and draws uniformly elsewhere."""

import math

import pytest
import torch

from dynprune_cuda import Pruner, ScoreTable, policies
from dynprune_cuda import functional as F
from dynprune_cuda.functional import Tilted, Trimmed
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
    share, mean_root = effective_share(Tilted(scores.to(device)).histogram())
    assert share.item() == pytest.approx(expected.item(), rel=1e-3)
    assert mean_root.item() == pytest.approx(known.sqrt().mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("share", "tilt"),
    [(0.1, 0), (0.42, 0), (0.46, 0.5), (0.5, 1), (0.72, 1), (0.76, 0.5), (0.8, 0), (0.99, 0)],
)
def test_the_tilt_depends_on_the_effective_share(share, tilt):
    # A part `share` of equal scores, and zeros: the effective share is that part.
    number = round(10_000 * share)
    scores = torch.cat([torch.full((number,), 0.3), torch.zeros(10_000 - number)])
    found, _ = tilt_of(Tilted(scores).histogram())
    assert found.item() == pytest.approx(tilt, abs=1 / 64)
    assert (found * 64).item() == round(found.item() * 64)
    assert policies.Adaptive.tilt(table_of(scores)) == found


def test_inside_the_window_it_is_weighted_sampling_by_the_root(device):
    scores = lognormal(3000, 1.3).to(device)
    scores[5] = math.nan
    chosen = F.select(Tilted(scores), 3000, 900, seed=2, device=device)
    weights = scores.nan_to_num(nan=math.inf).sqrt()
    assert torch.equal(chosen, F.select_weighted(weights, 900, seed=2, order="ascending"))
    assert 5 in chosen


@pytest.mark.parametrize("sigma", [0.3, 4.0])
def test_outside_of_it_every_sample_is_equally_likely(sigma):
    scores = lognormal(200, sigma, seed=1)
    assert tilt_of(Tilted(scores).histogram())[0] == 0
    counts = torch.zeros(200)
    for seed in range(2000):
        counts[F.select(Tilted(scores), 200, 60, seed=seed)] += 1
    deviations = (counts - 600) / math.sqrt(2000 * 0.3 * 0.7)
    assert deviations.abs().max() < 5 and deviations.std() < 1.2


def test_in_between_weights_are_a_mixture():
    scores = torch.cat([lognormal(4000, 0.8), torch.zeros(350)])
    rule = Tilted(scores)
    tilt, mean_root = tilt_of(rule.histogram())
    assert 0 < tilt < 1
    ranking = rule.ranking(rule.histogram(), rule.values)
    torch.testing.assert_close(ranking.values, tilt * scores.sqrt() + (1 - tilt) * mean_root)


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


def test_it_rescales_by_its_weights():
    scores = lognormal(1000, 1.3)
    ids, factors = F.select_rescaled(Tilted(scores), 1000, 300, seed=1)
    expected = 0.3 / F.inclusion_probabilities(scores.sqrt(), 300)
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
