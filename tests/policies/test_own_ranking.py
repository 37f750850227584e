# SPDX-License-Identifier: Apache-2.0
"""A policy that says what to rank by is one file and one registry line, and selects everywhere."""

import dataclasses
import math

import own_policy_ranks
import pytest
import ranks
import torch
import torch.distributed as dist
from smallest_margin import SmallestMargin

from dynprune_cuda import Pruner, functional, policies
from dynprune_cuda.functional import FixedIds, Ranking, Uniform
from dynprune_cuda.policies import Policy, registry
from dynprune_cuda.policies.adapter import adapt
from dynprune_cuda.scores import ScoreTable

N = 200


@pytest.fixture
def registered(monkeypatch):
    """The name smallest_margin, for one test."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    policies.register("smallest_margin", SmallestMargin)


def test_the_smallest_margins_come_first_and_a_tenth_is_random():
    table = ScoreTable(N)
    margins = torch.randperm(N, generator=torch.Generator().manual_seed(1)) / 10.0 - 7
    table.update(torch.arange(N), -margins)
    best = set(margins.argsort()[:36].tolist())
    drawn = set()
    for seed in range(50):
        ids = set(SmallestMargin().select(table, 40, seed=seed).tolist())
        assert len(ids) == 40 and best <= ids
        drawn |= ids - best
    assert len(drawn) > 100  # 4 of 164, 50 times


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_one_process_and_three_ranks_select_the_same(tmp_path, registered):
    subsets, _ = own_policy_ranks.train()
    world = ranks.run_world(3, tmp_path, own_policy_ranks.work)
    assert len(subsets[0]) == N * 5 and all(len(subset) == N * 1.5 for subset in subsets[1:])
    assert not torch.equal(subsets[1], subsets[2])
    for epoch, subset in enumerate(subsets):
        for rank in world:
            assert torch.equal(rank["replicate"][0][epoch], subset)
        pieces = [rank["shard"][0][epoch] for rank in world]
        assert torch.equal(torch.cat(pieces), subset)
    for rank in world:
        assert rank["replicate"][1] == rank["shard"][1]  # the batches


def test_registered_names_are_understood(registered):
    assert "smallest_margin" in policies.names()
    assert policies.resolve("smallest_margin") == SmallestMargin()
    assert Pruner(9, 0.5, "smallest_margin").policy == SmallestMargin()
    for name in ("ucb", "static", "smallest_margin"):
        with pytest.raises(ValueError, match=f"name must be a new one, got '{name}'"):
            policies.register(name, SmallestMargin)
    with pytest.raises(TypeError, match="make callable"):
        policies.register("other", SmallestMargin())


@dataclasses.dataclass(frozen=True)
class Given(Policy):
    """Ranks by what it is given."""

    rule: object = None

    def ranking(self, table):
        return self.rule


SCORES = torch.arange(9.0)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Ranking.by_score(SCORES), [6, 7, 8]),
        (Ranking.by_score(-SCORES.half()), [0, 1, 2]),
        (Ranking.by_ucb(SCORES, -2 * SCORES), [0, 1, 2]),
        (Ranking.by_ucb1(SCORES, torch.tensor([0, *[1] * 8]), step=math.e), [0, 7, 8]),
        (Ranking.by_weight(torch.where(SCORES < 6, 0.0, math.inf)), [6, 7, 8]),
        (FixedIds([5, 1, 3]), [1, 3, 5]),
    ],
)
def test_every_rule_is_one_that_a_policy_may_return(rule, expected):
    policy = Given(rule)
    assert adapt(policy) is policy and policy.selects_by_ranking
    assert policy.select(ScoreTable(9), 3, seed=1).tolist() == expected
    if not isinstance(rule, FixedIds):
        assert functional.select(rule, 9, 3, seed=1).tolist() == expected
    for sharding in ("replicate", "shard"):
        pruner = Pruner(9, 3, policy, warmup_epochs=0, sharding=sharding)
        pruner.set_epoch(0)
        assert pruner.selected.tolist() == expected


def test_a_uniform_rule_is_select_uniform():
    expected = functional.select_uniform(9, 4, seed=3, order="ascending")
    assert torch.equal(Given(Uniform()).select(ScoreTable(9), 4, seed=3), expected)
    assert functional.select(Uniform(), 9, 9, seed=3).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (
            None,
            TypeError,
            "rule must be a Ranking, Tilted, Trimmed, Uniform or FixedIds, got NoneType",
        ),
        (
            SCORES,
            TypeError,
            "rule must be a Ranking, Tilted, Trimmed, Uniform or FixedIds, got Tensor",
        ),
        (Ranking.by_score(SCORES[:8]), ValueError, "scores must have 9 elements.*got 8"),
        (Ranking.by_weight(torch.ones(10)), ValueError, "weights must have 9 elements.*got 10"),
        (FixedIds([1, 2]), ValueError, "k must be the number of ids, 2, got 3"),
        (FixedIds([1, 2, 9]), ValueError, "ids must be below num_samples=9, got 9"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule, error, message):
    with pytest.raises(error, match=message):
        Given(rule).select(ScoreTable(9), 3, seed=0)
    pruner = Pruner(9, 3, Given(rule), warmup_epochs=0)
    with pytest.raises(error, match=message):
        pruner.set_epoch(0)
    assert pruner.num_selections == 0


def test_a_policy_without_ranking_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match=r"Policy must define ranking\(table\)"):
        Policy().select(ScoreTable(3), 1, seed=0)
    with pytest.raises(NotImplementedError, match="must define weigh"):
        policies.WeighingPolicy().weigh(ScoreTable(3), seed=0)


def test_a_subclass_that_selects_itself_is_checked_and_holds_no_shards():
    class Broken(policies.UCB):
        def select(self, table, k, *, seed):
            return torch.zeros(k, dtype=torch.int64)

    pruner = Pruner(9, 3, Broken(), warmup_epochs=0)
    with pytest.raises(ValueError, match="must return distinct sample ids"):
        pruner.set_epoch(0)
    with pytest.raises(ValueError, match="sharding must be 'replicate' for groups, InfoBatch and"):
        Pruner(9, 3, Broken(), sharding="shard")


def test_what_overrides_a_part_of_ours_is_checked():
    class Given(Policy):
        def __init__(self, ids):
            self.select = lambda table, k, *, seed: torch.tensor(ids)

    class Greedy(policies.Balanced):
        def floors(self, k):
            return [0, k + 1]

    pruner = Pruner(10, 4, Given([7, 1, 5, 3]), warmup_epochs=0)
    assert pruner.selected.tolist() == [1, 3, 5, 7]
    for policy in (Given([1, 1, 2, 3]), Greedy(policies.UCB(), torch.arange(10) % 2)):
        pruner = Pruner(10, 4, policy, warmup_epochs=0)
        with pytest.raises(ValueError, match="must return"):
            pruner.set_epoch(0)

    class Weighs(policies.InfoBatch):
        def weigh(self, table, *, seed):
            return torch.full((10,), -1.0)

    pruner = Pruner(10, policy=Weighs(), warmup_epochs=0)
    with pytest.raises(ValueError, match="must return finite weights >= 0"):
        pruner.set_epoch(0)


class Duck:
    """An object with attributes that mean something else here."""

    alpha, period, anneal_share, default_period = 0.5, 3, 0.5, 7

    def select(self, table, k, *, seed):
        return torch.arange(k)


def test_only_documented_attributes_of_other_objects_are_read():
    pruner = Pruner(9, 3, Duck(), epochs=8)
    assert pruner.schedule.period == 1 and pruner.table.alpha == 0.8
    assert pruner.schedule.anneal_epochs == 0

    @dataclasses.dataclass
    class Own(Policy):
        alpha: float
        period: float
        fingerprint: str

        def ranking(self, table):
            return Uniform()

    pruner = Pruner(9, 3, Own(0.5, 3.5, "mine"))
    assert pruner.schedule.period == 1 and pruner.table.alpha == 0.8
    assert pruner.state_dict()["policy"] == "mine"


@pytest.mark.parametrize("base", [policies.UCB, policies.InfoBatch, policies.EpsilonGreedy, Duck])
def test_settings_may_name_some_defaults_only(base):
    class Own(base):
        def settings(self, epochs):
            return {"period": 3}

    keep = None if base is policies.InfoBatch else 3
    pruner = Pruner(9, keep, Own())
    assert pruner.schedule.period == 3 and pruner.table.alpha == 0.8
    if base is not policies.InfoBatch:
        assert Pruner(9, 3, Own(), groups=torch.arange(9) % 2).schedule.period == 3


@pytest.mark.parametrize("base", [Policy, policies.UCB, Duck])
def test_a_fixed_count_may_be_any_callable(base):
    class Own(base):
        def __init__(self):
            self.__dict__["fixed_count"] = lambda num_samples: 4

        def ranking(self, table):
            return Uniform()

    class Without(base):
        fixed_count = None

        def ranking(self, table):
            return Uniform()

    assert Pruner(9, policy=Own()).schedule.keep == 4
    assert Pruner(9, 5, Without()).schedule.keep == 5
    with pytest.raises(ValueError, match="keep is needed"):
        Pruner(9, policy=Without())


def test_fingerprints_that_are_no_text_count_for_nothing():
    class Own(policies.UCB):
        def fingerprint(self):
            return "method"

    assert Pruner(9, 3, Own()).state_dict()["policy"] == repr(Own())


def test_a_subclass_that_ranks_itself_is_trusted():
    class Lowest(policies.EpsilonGreedy):
        def ranking(self, table):
            return Ranking.by_score(-table.mean)

    pruner = Pruner(9, 3, Lowest(), sharding="shard")
    pruner.set_epoch(0)
    pruner.observe(torch.arange(9), SCORES)
    pruner.set_epoch(1)
    assert pruner.selected.tolist() == [0, 1, 2]
