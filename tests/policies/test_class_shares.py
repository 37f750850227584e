# SPDX-License-Identifier: Apache-2.0
"""class_shares: quotas against exhaustive search, and selections that hold them exactly."""

import copy
import itertools
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import no_waiting

from dynprune_cuda import Balanced, InfoBatch, Pruner, ScoreTable
from dynprune_cuda.policies import UCB, Adaptive, EpsilonGreedy, UniformRandom, Weighted
from dynprune_cuda.policies.quotas import quotas

SIZES = {3: 100, -5: 40, 8: 7, 900: 1}  # label: number of samples
N = sum(SIZES.values())
LABELS = torch.cat([torch.full((size,), label) for label, size in SIZES.items()])
LABELS = LABELS[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
INSIDE = [UCB(), EpsilonGreedy(0.2), UniformRandom(), Weighted(), Adaptive(), Adaptive(trim=0.1)]


def all_divisions(sizes, shares, k):
    """Every way to take k samples from the groups that have a share."""
    ranges = [range(size + 1 if share else 1) for size, share in zip(sizes, shares, strict=True)]
    return [counts for counts in itertools.product(*ranges) if sum(counts) == k]


def fair_parts(sizes, shares, k):
    """Parts min(size, level * share) that add up to k, by trying every set of full groups."""
    groups = range(len(sizes))
    for bits in itertools.product([False, True], repeat=len(sizes)):
        full = [number for number in groups if bits[number] and shares[number]]
        rest = sum(shares) - sum(shares[number] for number in full)
        left = k - sum(sizes[number] for number in full)
        if left < 0 or (rest == 0 and left):
            continue
        level = Fraction(left, rest) if rest else Fraction(max(sizes) + 1)
        parts = [
            Fraction(sizes[number]) if number in full else level * shares[number]
            for number in groups
        ]
        fits = all(part <= size for part, size in zip(parts, sizes, strict=True))
        if fits and all(level * shares[number] >= sizes[number] for number in full):
            return parts
    raise AssertionError("no level found")


small = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4).filter(
    lambda groups: any(share for _, share in groups)
)


@settings(deadline=None, max_examples=200)
@given(groups=small, data=st.data(), seed=st.integers(0, 99))
def test_quotas_are_the_whole_numbers_next_to_the_fair_parts(groups, data, seed):
    sizes, shares = map(list, zip(*groups, strict=True))
    k = data.draw(st.integers(0, sum(size for size, share in groups if share)))
    counts = quotas(sizes, shares, k, seed=seed)
    parts = fair_parts(sizes, shares, k)

    def distance(division):
        return sum((n - part) ** 2 for n, part in zip(division, parts, strict=True))

    divisions = all_divisions(sizes, shares, k)
    assert tuple(counts) in divisions
    assert distance(counts) == min(map(distance, divisions))


@settings(deadline=None, max_examples=100)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
def test_equal_shares_are_as_equal_as_the_sizes_allow(sizes, data):
    k = data.draw(st.integers(0, sum(sizes)))
    counts = quotas(sizes, [1] * len(sizes), k, seed=0)
    evenest = max(sorted(division) for division in all_divisions(sizes, [1] * len(sizes), k))
    assert sorted(counts) == evenest


def test_equal_remainders_are_ordered_by_the_seed_alone():
    wins = np.zeros(10, int)
    for seed in range(400):
        counts = quotas([5] * 10, [1] * 10, 3, seed=seed)
        assert counts == quotas([5] * 10, [1] * 10, 3, seed=seed)
        wins += counts
    # Binomial(400, 0.3): standard deviation 9.2.
    assert wins.sum() == 1200 and abs(wins - 120).max() < 50


def scored_table(device):
    """Scores by which the policy alone would take the big group only."""
    table = ScoreTable(N, device=device, alpha=1.0)
    noise = torch.rand(N, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(N, device=device)
    table.update(ids, (noise + 10.0 * (LABELS == 3)).to(device))
    return table


def counts_of(ids):
    return {label: int((LABELS[ids.cpu()] == label).sum()) for label in SIZES}


EXPECTED = [  # shares, k, and the counts of the labels 3, -5, 8, 900 that are right
    ("equal", 4, [(1, 1, 1, 1)]),
    ("equal", 28, [(10, 10, 7, 1)]),
    ("equal", 108, [(60, 40, 7, 1)]),
    ("equal", N, [tuple(SIZES.values())]),
    ("proportional", 74, [(50, 20, 4, 0), (50, 20, 3, 1)]),  # parts 50, 20, 3.5, 0.5
    ("proportional", 37, [(25, 10, 2, 0)]),  # parts 25, 10, 1.75, 0.25
    ({3: 1, -5: 1, 8: 2, 900: 0}, 20, [(7, 6, 7, 0), (6, 7, 7, 0)]),  # 8 is full
    ({3: 0.1, -5: 0.2, 8: 0.0, 900: 0}, 30, [(10, 20, 0, 0)]),
    ({np.int64(3): 0, -5: 0, 8: np.float32(0.5), 900: 1}, 8, [(0, 0, 7, 1)]),
]


@pytest.mark.parametrize(("shares", "k", "expected"), EXPECTED)
@pytest.mark.parametrize("inside", INSIDE, ids=repr)
def test_shares_hold_and_k_is_exact(device, inside, shares, k, expected):
    policy = Balanced(inside, LABELS, class_shares=shares)
    ids = policy.select(scored_table(device), k, seed=5)
    values = ids.tolist()
    assert len(values) == k and values == sorted(set(values)) and 0 <= values[0] <= values[-1] < N
    assert ids.dtype == torch.int64 and ids.device.type == torch.device(device).type
    assert torch.equal(ids, policy.select(scored_table(device), k, seed=5))
    assert tuple(counts_of(ids).values()) in expected


def test_the_policy_decides_which_samples_of_a_group(device):
    table = scored_table(device)
    scores = table.mean.cpu()
    ids = Balanced(UCB(), LABELS, class_shares="equal").select(table, 28, seed=0).cpu()
    best = set()
    for label, number in {3: 10, -5: 10, 8: 7, 900: 1}.items():
        members = (label == LABELS).nonzero().flatten()
        best |= set(members[scores[members].argsort(descending=True)[:number]].tolist())
    assert set(ids.tolist()) == best


@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
@pytest.mark.parametrize("policy", ["ucb", "epsilon_greedy", "uniform", "weighted", "adaptive"])
def test_every_policy_takes_shares_in_a_pruner(device, policy):
    shares = {3: 1, -5: 2, 8: 0, 900: 0}
    pruner = Pruner(N, 30, policy, period=1, groups=LABELS, class_shares=shares, device=device)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        wanted = {3: 10, -5: 20, 8: 0, 900: 0} if epoch else SIZES
        assert counts_of(pruner.selected) == wanted
        pruner.observe(torch.arange(N, device=device), scored_table(device).mean)


def test_a_static_policy_and_one_of_a_user_take_shares(device):
    def first(table, k, *, seed):
        return torch.arange(k, device=table.device)

    for policy in ("random_static", first):
        pruner = Pruner(N, 28, policy, groups=LABELS, class_shares="equal", device=device)
        pruner.set_epoch(1)
        assert counts_of(pruner.selected) == {3: 10, -5: 10, 8: 7, 900: 1}


@pytest.mark.parametrize("inside", INSIDE, ids=repr)
def test_a_selection_waits_for_nothing(device, inside):
    policy, table = Balanced(inside, LABELS, class_shares="equal"), scored_table(device)
    expected = policy.select(table, 30, seed=1)
    with no_waiting():
        again = policy.select(table, 30, seed=1)
    assert torch.equal(again, expected)


def test_saved_states_tell_shares_apart():
    def fingerprint(**options):
        return Balanced(UCB(), LABELS, **options).fingerprint

    different = [
        {},
        {"floor": 0.25},
        {"class_shares": "equal"},
        {"class_shares": "proportional"},
        {"class_shares": {3: 1, -5: 2, 8: 0, 900: 0}},
        {"class_shares": {3: 2, -5: 1, 8: 0, 900: 0}},
    ]
    assert len({fingerprint(**options) for options in different}) == len(different)
    assert fingerprint() == fingerprint(floor=0.5) and fingerprint().endswith(", floor=0.5)")
    same = {900: 0.0, -5: 0.2, 8: 0, 3: 0.1}
    assert fingerprint(class_shares=same) == fingerprint(**different[4])
    one = Pruner(N, 30, groups=LABELS, class_shares="equal")
    with pytest.raises(ValueError, match="class_shares=equal"):
        Pruner(N, 30, groups=LABELS).load_state_dict(one.state_dict())
    Pruner(N, 30, groups=LABELS, class_shares="equal").load_state_dict(one.state_dict())


def test_copies_select_alike():
    policy = Balanced(UCB(), LABELS, class_shares={3: 1, -5: 2, 8: 3, 900: 0})
    assert repr(policy).endswith("<4 groups>, class_shares={-5: 2, 3: 1, 8: 3, 900: 0})")
    for clone in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert clone.fingerprint == policy.fingerprint and repr(clone) == repr(policy)
        assert clone.quotas(30, seed=1) == policy.quotas(30, seed=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_shares": "even"}, ValueError, "class_shares must be one of 'equal', 'prop"),
        ({"class_shares": 3}, TypeError, "class_shares must be 'equal', .* got 3 of type int"),
        ({"class_shares": {3: 1}}, ValueError, r"\[-5, 8, 900\] are missing"),
        ({"class_shares": {**SIZES, 7: 1}}, ValueError, r"no class that groups lack, got \[7\]"),
        ({"class_shares": {**SIZES, 3: -1}}, ValueError, r"class_shares\[3\] must be at least 0"),
        ({"class_shares": {**SIZES, 3: -0.5}}, ValueError, r"class_shares\[3\] must be in \[0"),
        ({"class_shares": {**SIZES, 3: True}}, TypeError, r"class_shares\[3\] must be a number"),
        ({"class_shares": {"a": 1}}, TypeError, "a label of class_shares must be an int"),
        ({"class_shares": dict.fromkeys(SIZES, 0)}, ValueError, "a share above 0"),
        (
            {"class_shares": "equal", "group_floor": 0.5},
            ValueError,
            "group_floor=0.5 and class_shares='equal' exclude each other: leave one out",
        ),
        ({"class_shares": "equal", "groups": None}, ValueError, "need groups="),
        ({"class_shares": "equal", "groups": LABELS[1:]}, ValueError, "one label per sample"),
        ({"class_shares": "equal", "policy": "full", "keep": None}, ValueError, "groups do not"),
        (
            {"class_shares": "equal", "policy": InfoBatch(), "keep": None},
            ValueError,
            r"class_shares='equal' do not fit InfoBatch\(.*: leave them out",
        ),
        (
            {"class_shares": {3: 0, -5: 1, 8: 1, 900: 0}, "keep": [0.1, 0.5]},
            ValueError,
            "keep must be at most 47 with class_shares=.*, got 74",
        ),
    ],
)
def test_bad_shares_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Pruner(**{"num_samples": N, "keep": 0.5, "groups": LABELS, **arguments})


def test_a_keep_that_shares_cannot_fill_is_an_error_before_the_epoch_begins(device):
    pruner = Pruner(
        N, lambda epoch: 0.5, groups=LABELS, class_shares={3: 0, -5: 1, 8: 1, 900: 0}, device=device
    )
    pruner.set_epoch(0)
    with pytest.raises(ValueError, match="keep must be at most 47"):
        pruner.set_epoch(1)
    assert pruner.epoch == 0
