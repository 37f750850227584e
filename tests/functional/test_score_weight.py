# SPDX-License-Identifier: Apache-2.0
"""Weighted sampling by a power of the score: computed while selecting, never stored."""

import itertools
import math

import numpy as np
import pytest
import torch

from dynprune_cuda import Pruner, ScoreTable, policies
from dynprune_cuda import functional as F
from dynprune_cuda.functional import Ranking

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def scores_of(n, dtype, seed=0):
    """Scores of both signs, with zeros, NaN and a few that are subnormal."""
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)
    scores[::7] = 0
    scores[3::11] = torch.finfo(dtype).tiny / 4
    scores[5::13] = math.nan
    return scores


@pytest.mark.parametrize("order", ["random", "ascending"])
@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 31, 33, 257, 20_000])
def test_it_is_the_selection_by_these_weights(device, n, dtype, power, order):
    scores = scores_of(n, dtype).to(device)
    weights = scores.float().nan_to_num(nan=math.inf).clamp(min=0)
    weights = weights.sqrt() if power == 0.5 else weights  # the root of a float32 is exact
    ranking = Ranking.by_score_weight(scores, power=power)
    for k in {0, min(1, n), n // 3, n}:
        expected = F.select_weighted(weights, k, seed=k, order=order)
        assert torch.equal(F.select(ranking, n, k, seed=k, device=device, order=order), expected)


def inclusion_probabilities(weights, k):
    """Of drawing k items one after the other in proportion to the weights left; by enumeration."""
    found = np.zeros(len(weights))
    for drawn in itertools.permutations(range(len(weights)), k):
        probability, left = 1.0, sum(weights)
        for item in drawn:
            probability *= weights[item] / left
            left -= weights[item]
        found[list(drawn)] += probability
    return found


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_inclusion_probabilities_are_those_of_successive_draws(power):
    scores, k, draws = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, 9.0]), 3, 40_000
    expected = inclusion_probabilities((scores.double() ** power).tolist(), k)
    ranking = Ranking.by_score_weight(scores, power=power)
    found = np.zeros(6)
    for seed in range(draws):
        found[F.select(ranking, 6, k, seed=seed).numpy()] += 1
    deviations = (found / draws - expected) / np.sqrt(expected * (1 - expected) / draws)
    assert np.abs(deviations).max() < 5  # a false alarm in about 3e-6 of all draws of seeds


def test_the_policy_draws_by_the_power():
    table = ScoreTable(300)
    table.update(torch.arange(300), scores_of(300, torch.float32).nan_to_num(0.5))
    table.last_non_finite[7] = True
    for power in (0.5, 1.0):
        weights = table.ranking_mean().nan_to_num(nan=math.inf).clamp(min=0) ** power
        expected = F.select_weighted(weights, 90, seed=4, order="ascending")
        policy = policies.Weighted(power=power)
        assert torch.equal(policy.select(table, 90, seed=4), expected)
        assert 7 in expected


def test_a_softer_power_is_closer_to_uniform():
    scores = torch.linspace(0.01, 1, 1000) ** 2
    means = []
    for power in (0.5, 1.0):
        ranking = Ranking.by_score_weight(scores, power=power)
        chosen = [scores[F.select(ranking, 1000, 200, seed=seed)].mean() for seed in range(20)]
        means.append(float(sum(chosen)) / 20)
    assert float(scores.mean()) < means[0] < means[1]


def test_power_1_is_the_policy_of_saved_states():
    assert Pruner(9, 3, "weighted").state_dict()["policy"] == "Weighted()"
    half = Pruner(9, 3, policies.Weighted(0.5)).state_dict()
    assert half["policy"] == "Weighted(power=0.5, rescale=False, trim=0.0)"
    with pytest.raises(ValueError, match=r"its policy is 'Weighted\(power=0.5, "):
        Pruner(9, 3, "weighted").load_state_dict(half)


@pytest.mark.parametrize("power", [0.0, 2.0, -1.0, math.nan, math.inf])
def test_other_powers_are_refused(power):
    with pytest.raises(ValueError, match="power must be"):
        policies.Weighted(power=power)
    with pytest.raises(ValueError, match="power must be"):
        Ranking.by_score_weight(torch.ones(3), power=power)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="power must be a number"):
        policies.Weighted("half")
    with pytest.raises(ValueError, match="scores must have dtype float32, float16, bfloat16"):
        Ranking.by_score_weight(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="scores must be 1-D"):
        Ranking.by_score_weight(torch.ones(3, 2))
