# SPDX-License-Identifier: Apache-2.0
"""Inclusion probabilities, losses rescaled by them, and greatest scores that are left out."""

import itertools
import math

import numpy as np
import pytest
import torch

from dynprune_cuda import Pruner, ScoreTable, policies
from dynprune_cuda import functional as F
from dynprune_cuda.functional import Ranking, Trimmed
from dynprune_cuda.functional.inclusion import NUM_BINS, histogram


def weights_of(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).exp() ** 2


def by_bisection(weights, k):
    """Probabilities that add up to k, without bins; float64."""
    weights = np.asarray(weights, np.float64)
    low, high = 0.0, 1e30
    for _ in range(400):
        time = math.sqrt(low * high) if low > 1e-30 else high / 1e6
        low, high = (time, high) if -np.expm1(-weights * time).sum() < k else (low, time)
    return -np.expm1(-weights * high)


@pytest.mark.parametrize(("n", "k"), [(10, 3), (33, 32), (2000, 1), (2000, 600), (2000, 1999)])
def test_probabilities_are_those_of_a_bisection(device, n, k):
    weights = weights_of(n)
    found = F.inclusion_probabilities(weights.to(device), k).cpu().double().numpy()
    np.testing.assert_allclose(found, by_bisection(weights, k), rtol=1e-3)
    assert found.sum() == pytest.approx(k, rel=1e-3)


def test_equal_weights_have_equal_probabilities(device):
    found = F.inclusion_probabilities(torch.full((1000,), 0.7, device=device), 300)
    torch.testing.assert_close(found.cpu(), torch.full((1000,), 0.3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [0, 1, 31, 32])
def test_none_and_all(device, n):
    weights = weights_of(n).to(device)
    assert F.inclusion_probabilities(weights, 0).tolist() == [0.0] * n
    assert F.inclusion_probabilities(weights, n).tolist() == [1.0] * n


def test_infinite_weights_come_first_and_zeros_last(device):
    weights = torch.tensor([math.inf, 0, 1, 2, 0, math.inf, 1e-45], device=device)
    assert F.inclusion_probabilities(weights, 1).tolist() == [0.5, 0, 0, 0, 0, 0.5, 0]
    found = F.inclusion_probabilities(weights, 3).tolist()
    assert found[0] == found[5] == 1 and found[1] == found[4] == 0
    assert 0 < found[2] < found[3] < 1
    assert F.inclusion_probabilities(weights, 6).tolist() == [1, 0.5, 1, 1, 0.5, 1, 1]


def test_weights_of_all_sizes(device):
    weights = torch.tensor([1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e30, 3e38], device=device)
    for k in range(1, 8):
        found = F.inclusion_probabilities(weights, k)
        assert found.isfinite().all() and found.sum().item() == pytest.approx(k, rel=1e-3)
        assert (found[1:] >= found[:-1]).all()


def test_histograms_add_up():
    weights = weights_of(1000)
    parts = [histogram(part) for part in weights.split(300)]
    assert torch.equal(sum(parts), histogram(weights))
    assert histogram(weights)[0].sum() == 1000 and parts[0].shape == (2, NUM_BINS)


@pytest.mark.slow
def test_the_selection_follows_the_probabilities():
    n, k, draws = 400, 120, 20_000
    weights = weights_of(n, seed=3)
    expected = F.inclusion_probabilities(weights, k).double()
    found = torch.zeros(n, dtype=torch.float64)
    for seed in range(draws):
        found[F.select_weighted(weights, k, seed=seed)] += 1
    found /= draws
    assert (found - expected).abs().max() < 0.02  # four standard errors, and 1 / k
    assert (found - expected).abs().mean() < 0.004


def enumerated(weights, k):
    """The exact probabilities of successive draws."""
    found = np.zeros(len(weights))
    for drawn in itertools.permutations(range(len(weights)), k):
        probability, left = 1.0, sum(weights)
        for item in drawn:
            probability *= weights[item] / left
            left -= weights[item]
        found[list(drawn)] += probability
    return found


def test_few_samples_are_off_by_a_few_percent():
    weights = torch.tensor([0.2, 0.5, 1.0, 1.0, 1.5, 2.0, 2.5])
    found = F.inclusion_probabilities(weights, 3).double().numpy()
    np.testing.assert_allclose(found, enumerated(weights.double().tolist(), 3), rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("trim", [0.0, 0.1])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_rescaled_mean_is_unbiased(power, trim):
    """The mean of factor times value over the selection, over many selections."""
    n, k, draws = 3000, 900, 100
    scores = weights_of(n, seed=5).sqrt() + 0.05  # no factor reaches its limit
    values = torch.randn(n, generator=torch.Generator().manual_seed(6)).double() + scores
    rule = Ranking.by_score_weight(scores, power=power)
    means, plain = [], []
    for seed in range(draws):
        rule_now = Trimmed(rule, trim) if trim else rule
        ids, factors = F.select_rescaled(rule_now, n, k, seed=seed)
        means.append(float((factors.double() * values[ids]).mean()))
        plain.append(float(values[ids].mean()))
    truth = float(values.mean())
    error = float(np.std(means) / math.sqrt(draws))
    if trim == 0.0:
        assert abs(np.mean(means) - truth) < 5 * error + 0.002 * truth
    else:  # what is left out weighs nothing but for a tenth of it
        top = scores.topk(n // 10).indices
        kept = torch.ones(n)
        kept[top] = 0.1
        expected = float((values * kept).mean())
        assert abs(np.mean(means) - expected) < 5 * error + 0.02 * expected
    assert abs(np.mean(plain) - truth) > 20 * error


def test_factors_are_the_proportion_over_the_probability(device):
    scores = weights_of(500).to(device)
    scores[:5] = math.nan
    rule = Ranking.by_score_weight(scores, power=0.5)
    ids, factors = F.select_rescaled(rule, 500, 150, seed=2)
    assert torch.equal(ids, F.select(rule, 500, 150, seed=2, device=device))
    weights = scores.nan_to_num(nan=math.inf).sqrt()
    expected = (0.3 / F.inclusion_probabilities(weights, 150)[ids]).clamp(max=10)
    torch.testing.assert_close(factors, expected)
    assert factors[:5].tolist() == pytest.approx([0.3] * 5)  # never visited: certain


def test_rare_samples_count_at_most_ten_times(device):
    scores = torch.ones(1000, device=device)
    scores[:300] = 1e-6
    rule = Ranking.by_score_weight(scores)
    ids, factors = F.select_rescaled(rule, 1000, 710, seed=1)
    assert (ids < 300).sum() == 10 and float(factors.max()) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_greatest_are_left_out_but_for_some(device, dtype):
    n = 2000
    scores = torch.randperm(n, generator=torch.Generator().manual_seed(0)) + 1
    scores = scores.to(dtype).to(device)
    scores[:10] = math.nan
    rule = Trimmed(Ranking.by_score_weight(scores), 0.25, revisited=0.0)
    chosen = F.select(rule, n, 1500, seed=3, device=device)
    known = scores.float().nan_to_num(nan=-1)
    out = torch.ones(n, dtype=torch.bool, device=device)
    out[chosen] = False
    # 500 are left out: none of the rest has a greater score, and no unvisited sample is among them.
    assert known[out].min() >= known[~out].max() and not out[:10].any()
    again = F.select(Trimmed(Ranking.by_score_weight(scores), 0.25, 0.2), n, 1500, seed=3)
    back = out[again].sum().item()
    assert 70 < back < 130, "a fifth of 500"
    other = F.select(Trimmed(Ranking.by_score_weight(scores), 0.25, 0.2), n, 1500, seed=4)
    assert not torch.equal(again, other)


def test_more_than_is_left_can_be_selected():
    rule = Trimmed(Ranking.by_score_weight(torch.arange(1.0, 11.0)), 0.5, revisited=0.0)
    assert F.select(rule, 10, 10, seed=0).tolist() == list(range(10))
    assert set(range(5)) < set(F.select(rule, 10, 7, seed=0).tolist())


def test_wrong_arguments_are_refused():
    ranking = Ranking.by_score_weight(torch.ones(4))
    for share in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="share must be"):
            Trimmed(ranking, share)
        with pytest.raises(ValueError, match="trim must be"):
            policies.Weighted(trim=share)
    with pytest.raises(ValueError, match="revisited must be"):
        Trimmed(ranking, 0.1, 2.0)
    with pytest.raises(ValueError, match="by_score_weight, got SCORE"):
        Trimmed(Ranking.by_score(torch.ones(4)), 0.1)
    with pytest.raises(TypeError, match="ranking must be a Ranking"):
        Trimmed(torch.ones(4), 0.1)
    with pytest.raises(TypeError, match="seed must be an int for Trimmed"):
        F.select(Trimmed(ranking, 0.1), 4, 2, seed=torch.tensor(1))
    with pytest.raises(ValueError, match="must be drawn by weights to be rescaled, got SCORE"):
        F.select_rescaled(Ranking.by_score(torch.ones(4)), 4, 2)
    with pytest.raises(TypeError, match="must be a Ranking, Tilted or Trimmed, got Uniform"):
        F.select_rescaled(F.Uniform(), 4, 2)
    with pytest.raises(ValueError, match="scores must have 5 elements"):
        F.select_rescaled(ranking, 5, 2)
    with pytest.raises(ValueError, match="k must be"):
        F.inclusion_probabilities(torch.ones(4), 5)
    with pytest.raises(ValueError, match="weights must have dtype float32"):
        F.inclusion_probabilities(torch.ones(4).double(), 2)
    with pytest.raises(TypeError, match="rescale must be"):
        policies.Weighted(rescale=1)


def observed(pruner, seed=0):
    pruner.observe(torch.arange(pruner.num_samples), weights_of(pruner.num_samples, seed))


def test_a_pruner_keeps_exactly_k_and_rescales(device):
    pruner = Pruner(200, 0.3, policies.Weighted(0.5, rescale=True), period=1, device=device)
    pruner.set_epoch(0)
    ids = torch.arange(200, device=device)
    observed(pruner)
    assert torch.equal(pruner.rescale(ids, torch.ones(200, device=device)).cpu(), torch.ones(200))
    assert pruner.total_steps(3, 10) == 20 + 6 + 6
    pruner.set_epoch(1)
    chosen = pruner.selected
    assert len(chosen) == pruner.num_selected == 60
    factors = pruner.rescale(ids, torch.ones(200, device=device))
    rule = pruner.policy.ranking(pruner.table)
    expected = F.inclusion_probabilities(rule.weights(), 60)
    torch.testing.assert_close(factors[chosen], (0.3 / expected[chosen]).clamp(max=10))
    logits = torch.randn(60, 5, device=device)
    target = torch.zeros(60, dtype=torch.int64, device=device)
    plain = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    loss = pruner.cross_entropy(logits, target, chosen)
    torch.testing.assert_close(loss, (plain * factors[chosen]).mean())


@pytest.mark.filterwarnings("ignore:at least .* visits in epoch")
def test_a_resumed_pruner_has_the_same_factors():
    def make():
        return Pruner(100, 0.3, policies.Weighted(rescale=True, trim=0.1), period=2)

    first = make()
    observed(first)
    first.set_epoch(1)
    second = make()
    second.load_state_dict(first.state_dict())
    ids = torch.arange(100)
    for epoch in (1, 2, 3):
        first.set_epoch(epoch), second.set_epoch(epoch)
        a, b = (pruner.rescale(ids, torch.ones(100)) for pruner in (first, second))
        assert torch.equal(a, b) and (a > 0).sum() == 30
        observed(first, epoch), observed(second, epoch)
    broken = first.state_dict()
    broken["weights"][broken["subset"].nonzero()[0]] = 0.0
    with pytest.raises(ValueError, match="contradicts the subset"):
        make().load_state_dict(broken)


def test_the_first_look_has_factors():
    pruner = Pruner(50, 0.4, policies.Weighted(rescale=True), warmup_epochs=0)
    observed(pruner)
    chosen = pruner.selected
    factors = pruner.rescale(torch.arange(50), torch.ones(50))
    assert (factors > 0).sum() == 20 and (factors[chosen] > 0).all()


def test_trim_leaves_noise_out():
    table = ScoreTable(1000)
    values = weights_of(1000)
    table.update(torch.arange(1000), values)
    chosen = policies.Weighted(0.5, trim=0.1).select(table, 300, seed=1)
    top = set(values.topk(100).indices.tolist())
    assert len(top & set(chosen.tolist())) <= 20  # a tenth of them is exempt
    assert len(top & set(policies.Weighted(0.5).select(table, 300, seed=1).tolist())) > 50


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_learned_samples_come_before_those_that_are_left_out(power):
    scores = torch.cat([torch.zeros(700), torch.full((200,), 0.5), torch.full((100,), 3.0)])
    rule = Trimmed(Ranking.by_score_weight(scores, power=power), 0.1, revisited=0.0)
    assert (F.select(rule, 1000, 900, seed=1) < 900).all()
    ids, factors = F.select_rescaled(rule, 1000, 500, seed=1)
    assert (ids < 900).all() and factors.isfinite().all()
    more = F.select(rule, 1000, 950, seed=1)
    assert (more >= 900).sum() == 50
