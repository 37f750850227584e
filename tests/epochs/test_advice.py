# SPDX-License-Identifier: Apache-2.0
"""advice(): each sentence where its number calls for it, and silence elsewhere."""

import math
import re
import warnings

import pytest
import torch
from paths import ROOT

from dynprune_cuda import Pruner, policies
from dynprune_cuda.advice import advise
from dynprune_cuda.policies import (
    UCB,
    Balanced,
    Covered,
    EpsilonGreedy,
    Full,
    UniformRandom,
    Weighted,
)

N = 1000
KEEPS = [1.0, 0.5, 0.29, 0.1]
PAGE = (ROOT / "docs" / "guides" / "choosing.md").read_text()
QUIET = {"share_correct": 0.9, "visits_gini": 0.4}
LOW = "train on full data for fewer epochs, or train longer"
HIGH = "the training data are memorised"
GREEDY = "is below 0.3 for"
UNEQUAL = "few samples get most of the visits"


def say(stats=None, policy=Weighted(), keep=0.5, is_late=True):  # noqa: B008
    return advise({**QUIET, **(stats or {})}, policy, keep=keep, is_late=is_late)


@pytest.mark.parametrize(
    ("options", "beginning", "part"),
    [
        ({"stats": {"share_correct": 0.7994}}, "share_correct=0.799 is below 0.80: ", LOW),
        ({"stats": {"share_correct": 0.9951}}, "share_correct=0.9951 is above 0.995: ", HIGH),
        ({"policy": UCB(), "keep": 0.29}, "keep=0.290 is below 0.3 for UCB(", GREEDY),
        ({"policy": EpsilonGreedy(0.1), "keep": 0.1}, "keep=0.100 is below 0.3", GREEDY),
        ({"stats": {"visits_gini": 0.651}}, "visits_gini=0.651 is above 0.65: ", UNEQUAL),
    ],
)
def test_each_sentence(options, beginning, part):
    text = say(**options)
    assert text.startswith(beginning) and part in text
    assert text.endswith('(see "Choosing a policy" in the documentation).') and "\n" not in text
    assert text == say(**options)
    limit = re.search(r"(?:below|above) ([\d.]+\d)", text)[1]
    percent = f"{100 * float(limit):g} %"
    assert percent in PAGE or f"{float(limit):g}" in PAGE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stats": {"share_correct": 0.8}},
        {"stats": {"share_correct": 0.995}},
        {"stats": {"share_correct": 0.5}, "is_late": False},
        {"stats": {"share_correct": 1.0}, "policy": UniformRandom()},
        {"stats": {"share_correct": math.nan, "visits_gini": math.nan}},
        {"stats": {"share_correct": 0.1, "visits_gini": 0.9}, "policy": Full()},
        {"policy": UCB(), "keep": 0.3},
        {"policy": Weighted(), "keep": 0.1},
        {"stats": {"visits_gini": 0.65}},
    ],
)
def test_silence(options):
    assert say(**options) is None


def test_the_accuracy_comes_first_and_the_visits_last():
    stats = {"share_correct": 0.5, "visits_gini": 0.9}
    assert LOW in say(stats, UCB(), 0.1)
    assert GREEDY in say(stats, UCB(), 0.1, is_late=False)
    assert UNEQUAL in say(stats, UCB(), 0.5, is_late=False)
    assert HIGH in say({"share_correct": 1.0}, UCB(), 0.1)


def test_a_policy_inside_groups_is_seen():
    groups = torch.arange(N) % 2
    assert GREEDY in say(policy=Balanced(UCB(), groups), keep=0.1)
    assert say({"share_correct": 1.0}, Balanced(UniformRandom(), groups)) is None
    assert GREEDY in say(policy=Covered(UCB(), 20), keep=0.1)
    assert say(policy=Covered(UniformRandom(), 20), keep=0.1) is None


def test_the_losses_of_greedy_rules_are_those_of_the_committed_results():
    losses = []
    for name in ("small", "cifar10"):
        report = (ROOT / "benchmarks" / "results" / f"equal_steps_{name}" / "report.md").read_text()
        # The first setting of the report is that of the other figures.
        loss, *_ = re.findall(r"^\| UCB, keep 0.1 \| [\d.]+ \| -([\d.]+) ", report, re.MULTILINE)
        losses.append(float(loss))
    text = "{:.1f} points of accuracy on Fashion-MNIST and {:.1f} on CIFAR-10".format(*losses)
    assert text in say(policy=UCB(), keep=0.1)


def test_without_correctness_the_losses_tell():
    def of(share):
        return advise(
            {"share_below_ln2": share, "visits_gini": 0.1}, Weighted(), keep=0.5, is_late=True
        )

    assert of(0.69).startswith("share_below_ln2=0.690 is below 0.70, so that the training acc")
    assert of(0.75) is None
    assert HIGH in of(0.999)
    assert advise({"visits_gini": 0.1}, Weighted(), keep=0.5, is_late=True) is None


def observed(device, right, **options):
    pruner = Pruner(N, 0.5, "weighted", device=device, **options)
    ids = torch.arange(N, device=device)
    correct = ids < right
    pruner.observe(ids, torch.where(correct, 0.1, 2.0), correct)
    return pruner


@pytest.mark.parametrize("tracks", [False, True])
def test_a_pruner_gives_it(device, tracks):
    low = observed(device, 600, track_forgetting=tracks)
    name = "share_correct" if tracks else "share_below_ln2"
    assert low.advice().startswith(f"{name}=0.600 is below") and LOW in low.advice()
    assert observed(device, 900, track_forgetting=tracks).advice() is None
    assert HIGH in observed(device, N, track_forgetting=tracks).advice()
    assert Pruner(N, 0.5, device=device, track_forgetting=tracks).advice() is None
    assert observed(device, 600, score="el2n").advice() is None


def labels_of(pruner, device, options):
    logits = torch.full((N, 5), -9.0, device=device, requires_grad=True)
    pruner.binary_cross_entropy(
        logits, torch.zeros(N, 5, device=device), torch.arange(N, device=device), **options
    )


def tokens_of(pruner, device, options):
    logits = torch.zeros(N, 3, 5, device=device, requires_grad=True)
    target = torch.zeros(N, 3, dtype=torch.int64, device=device)
    pruner.cross_entropy(logits, target, torch.arange(N, device=device), class_dim=-1, **options)


def packed_tokens_of(pruner, device, options):
    hidden, weight = torch.zeros(N, 4, device=device), torch.zeros(5, 4, device=device)
    target = torch.zeros(N, dtype=torch.int64, device=device)
    places = {"cu_seqlens": torch.arange(0, N + 1, 2), "num_items": options.get("num_items")}
    pruner.linear_cross_entropy(
        hidden, weight.requires_grad_(), target, torch.arange(N // 2, device=device), **places
    )


@pytest.mark.parametrize("options", [{}, {"num_items": 7.0}], ids=str)
@pytest.mark.parametrize("record", [labels_of, tokens_of, packed_tokens_of])
@pytest.mark.parametrize("tracks", [False, True])
def test_the_size_of_other_losses_is_no_accuracy(device, record, tracks, options):
    """Few tags are all below ln 2, and the tokens of a text hardly ever."""
    pruner = Pruner(N, 0.5, "weighted", device=device, track_forgetting=tracks)
    record(pruner, device, options)
    assert pruner.advice() is None


def test_a_low_accuracy_counts_in_the_second_half_of_a_run(device):
    pruner = observed(device, 600, epochs=4, warmup_epochs=4)
    said = []
    for epoch in range(4):
        pruner.set_epoch(epoch)
        said.append(pruner.advice() is not None)
    assert said == [False, False, True, True]


def test_keep_is_that_of_the_run_or_of_the_epoch(device):
    ids = torch.arange(N, device=device)
    for keep, expected in ((100, True), (0.4, False), ([1.0, 0.1], True)):
        pruner = Pruner(N, keep, "ucb", track_forgetting=True, device=device)
        pruner.observe(ids, torch.ones(N, device=device), ids < 900)
        pruner.set_epoch(1)
        assert (pruner.advice() is not None) == expected


def test_one_sample_for_all_is_warned_of():
    with pytest.warns(UserWarning, match=r"keep=1 is a count: .* keep=1.0 keeps") as caught:
        Pruner(50, 1, "uniform")
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(1, 1, "uniform")
        Pruner(50, 1.0, "uniform")
        Pruner(50, 0.02, "uniform")
        Pruner(50, [1, 50], "uniform")


@pytest.mark.parametrize("policy", ["ucb", policies.EpsilonGreedy(0.2)])
def test_a_greedy_rule_that_keeps_little_is_warned_of(policy):
    with pytest.warns(
        UserWarning, match=r"keep=0.100 is below 0.3 for .*Choosing a policy"
    ) as caught:
        Pruner(1000, 0.1, policy)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="is below 0.3"):
        Pruner(1000, 100, policy, groups=[0, 1] * 500)
    with pytest.warns(UserWarning, match="is below 0.3"):
        Pruner(1000, 100, policies.Covered(policy, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(1000, 0.3, policy)
        Pruner(1000, [0.1, 0.5], policy)
        Pruner(1000, 0.1, "uniform")
        Pruner(1000, 0.1)


@pytest.mark.filterwarnings("ignore:no score was observed")
@pytest.mark.parametrize(
    "keep", [[1.0, 0.5, 0.29, 0.1], lambda epoch: (1.0, 0.5, 0.29, 0.1)[epoch]]
)
def test_the_first_selection_that_keeps_little_is_warned_of_once(keep):
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "keep=", UserWarning)
        pruner = Pruner(1000, keep, "ucb")
        for epoch, expected in enumerate([0, 0, 1, 1]):
            pruner.set_epoch(epoch)
            assert len(caught) == expected
    assert str(caught[0].message).startswith("keep=0.290 is below 0.3 for UCB(")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("number", [101, 1234, 1281167])
def test_rounding_of_a_count_is_not_warned_of(number):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(number, 0.3, **policies.paper("ucb"))
    with pytest.warns(UserWarning, match="is below 0.3"):
        Pruner(number, 0.28, "ucb")
