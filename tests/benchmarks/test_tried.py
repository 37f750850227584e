# SPDX-License-Identifier: Apache-2.0
"""The policies and the settings of methods that only configs/tried.toml uses."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from idx_images import write_fashion

from benchmarks.equal_steps import train as training
from benchmarks.equal_steps.config import Method, Setting
from benchmarks.equal_steps.data import make_task
from benchmarks.equal_steps.tried import (
    FIRST,
    GREATEST,
    LEAST,
    Aged,
    ByMargin,
    ByRoot,
    HarderPart,
    Mixed,
    PowerRamp,
    Saturating,
    SoftHalf,
)
from dynprune_cuda import Pruner
from dynprune_cuda.policies import Adaptive
from dynprune_cuda.scores import History, ScoreTable

NAN = float("nan")


def table_of(*scores: float) -> ScoreTable:
    """A table with these means; NaN is a sample that was never visited."""
    table = ScoreTable(len(scores))
    table.mean.copy_(torch.tensor(scores))
    return table


def history(epoch: int, epochs: int | None, selections: int = 0) -> History:
    nothing = torch.zeros(0, dtype=torch.int32)
    return History(epoch, epochs, 1, 1, selections, nothing, 0, nothing.long())


@pytest.mark.parametrize(
    ("first", "last", "powers"),
    [(1.0, 0.0, (1, 2 / 3, 1 / 3, 0)), (0.0, 1.0, (0, 1 / 3, 2 / 3, 1))],
)
def test_the_power_moves_with_the_epoch(
    first: float, last: float, powers: tuple[float, ...]
) -> None:
    table, policy = table_of(0.25, 3.0, 0.0, -1.0, NAN), PowerRamp(first, last)
    for epoch, power in enumerate(powers, 1):
        ranking = policy.ranking(table.told(history(epoch, 5), None, 0.375))
        zero = 1.0 if power == 0 else LEAST
        expected = [0.25**power, 3.0**power, zero, zero, FIRST]
        assert ranking.values.tolist() == pytest.approx(expected), epoch
        assert ranking.c == 0.375
    single = policy.ranking(table.told(history(1, 2), None))  # one pruned epoch
    assert single.values[1] == pytest.approx(3.0**first)
    with pytest.raises(ValueError, match="run without a length"):
        policy.ranking(table.told(history(1, None), None))


def test_weights_of_a_run_reach_both_ends() -> None:
    pruner = Pruner(40, keep=0.5, policy=PowerRamp(1.0, 0.0), epochs=4, seed=3)
    pruner.set_epoch(0)
    pruner.observe(torch.arange(40), torch.tensor([1.0] * 20 + [1e6] * 20))
    chosen = []
    for epoch in (1, 2, 3):
        pruner.set_epoch(epoch)
        chosen.append(int((pruner.epoch_order() >= 20).sum()))
    assert chosen[0] == 20 and 5 <= chosen[2] <= 15


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_chances_of_the_mixed_draw(start: float) -> None:
    losses, runs = (0.04, 0.25, 1.0, 4.0), 8000
    roots = [math.sqrt(loss) for loss in losses]
    chances = [0.25] * 4  # of the uniform half
    for taken, other in itertools.permutations(range(4), 2):
        chances[other] += 0.25 * roots[other] / (sum(roots) - roots[taken])
    table = table_of(*losses).told(history(1, None), None, start)
    counts = torch.zeros(4)
    for seed in range(runs):
        ids = Mixed(0.5).select(table, 2, seed=2 * seed)  # the uniform half takes the next seed
        counts += torch.bincount(ids, minlength=4)
        assert ids.unique().numel() == 2
    for count, chance in zip(counts.tolist(), chances, strict=True):
        error = math.sqrt(chance * (1 - chance) / runs)
        assert abs(count / runs - chance) < 4.5 * error


def test_the_mixed_draw_has_its_share() -> None:
    losses = [1e8] * 60 + [1e-8] * 140  # the part by the losses takes of the first 60 only
    found = []
    for number in range(30):
        table = table_of(*losses).told(history(1 + number, None, number), None, number * 0.25 % 1)
        ids = Mixed(0.3).select(table, 50, seed=11)
        assert ids.unique().numel() == 50
        found.append(frozenset(ids[:15].tolist()))
        assert (ids[15:] < 60).all()
    assert len(set(found)) == 30, "the uniform part is drawn anew in each epoch"
    for share, least, most in ((0.0, 0, 0), (1.0, 30, 50)):
        ids = Mixed(share).select(table, 50, seed=11)
        assert least <= (ids >= 60).sum() <= most and ids.unique().numel() == 50


def test_old_losses_move_to_the_mean() -> None:
    policy, table = Aged(0.5), table_of(1.0, 2.0, 9.0, NAN, 4.0)
    ages = torch.tensor([0, 1, 2, 0, 3], dtype=torch.int32)
    aged = table.told(None, {"age": ages}, 0.25)
    expected = [1.0, 4 - 2 / 2, 4 + 5 / 4, NAN, 4.0]  # the mean is 4
    assert policy.scores(aged).tolist() == pytest.approx(expected, nan_ok=True)
    ranking = policy.ranking(aged)
    roots = [math.sqrt(score) for score in expected]
    assert ranking.values.tolist() == pytest.approx([*roots[:3], FIRST, roots[4]])
    assert ranking.c == 0.25


def test_the_age_counts_epochs_since_the_last_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    scores = Aged.scores

    def noted(self: Aged, table: ScoreTable) -> torch.Tensor:
        assert table.memory is not None
        seen.append(table.memory["age"].tolist())
        return scores(self, table)

    monkeypatch.setattr(Aged, "scores", noted)
    pruner, last = Pruner(30, keep=0.3, policy=Aged(0.8), seed=1), [0] * 30
    for epoch in range(6):
        pruner.set_epoch(epoch)
        if epoch:
            assert seen[-1] == [epoch - 1 - visited for visited in last]
        for index in pruner.epoch_order().tolist():
            last[index] = epoch
        pruner.observe(pruner.epoch_order(), torch.rand(len(pruner.epoch_order())))
    assert max(seen[-1]) > 1


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_weights_by_the_margin(power: float) -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0], [300.0, 0.0, 0.0]])
    pruner = Pruner(4, policy=ByMargin(power), keep=0.5, score="margin")
    pruner.set_epoch(0)
    pruner.cross_entropy(logits, torch.tensor([0, 2, 0]), torch.arange(3))
    expected = [(1 + math.exp(margin)) ** -power for margin in (1.5, -2.0)]
    values = ByMargin(power).ranking(pruner.table).values.tolist()
    assert values[:2] == pytest.approx(expected)
    assert values[2:] == [LEAST, FIRST] and GREATEST < FIRST


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    write_fashion(tmp_path / "fashion_mnist")
    return Setting(
        *("fashion", "conv3-2", 4),
        **{"samples": 60, "image_size": 7, "batch_size": 10, "precision": "float32"},
    )


@pytest.mark.slow
def test_choosing_in_every_batch_costs_forward_passes(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    cross_entropy = Pruner.cross_entropy

    def noted(self: Pruner, logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        widths.append((len(logits), *(len(tensor) for tensor in rest)))
        return cross_entropy(self, logits, *rest)

    monkeypatch.setattr(Pruner, "cross_entropy", noted)
    method = Method("x", "full", in_batch={"keep": 0.5, "policy": "weighted", "power": 0.5})
    result = training.train(setting, method, make_task(setting, tmp_path, 0), 0, "cpu")
    # To be spent: 24. A step of 10 chosen of 20 costs 1 + 20 / 30; three make an epoch.
    assert widths == [(10, 10, 10)] * 15
    assert [result[name] for name in ("steps", "samples", "rescored", "epochs")] == [
        15,
        150,
        300,
        5,
    ]
    with pytest.raises(ValueError, match="in_batch must have a share as keep, got"):
        Method("x", "full", in_batch={"keep": 10})
    with pytest.raises(ValueError, match="in_batch must have a share as keep, got"):
        Method("x", "full", in_batch={"keep": 1.5})
    with pytest.raises(ValueError, match="lr_by_tilt needs Adaptive or ByRoot, got 'full'"):
        Method("x", "full", "full", lr_by_tilt=0.5)


@pytest.mark.slow
def test_the_learning_rate_follows_the_tilt(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks: list[float] = []
    monkeypatch.setattr(Adaptive, "tilt", lambda *_: torch.tensor(0.5))
    monkeypatch.setattr(training, "_set_learning_rate", lambda _, peak, __: peaks.append(peak))
    method = Method("x", pruner={"keep": 0.5}, lr_by_tilt=-0.5)
    training.train(setting, method, make_task(setting, tmp_path, 0), 0, "cpu")
    assert peaks == [0.2] * 6 + [pytest.approx(0.15)] * 18  # the first epoch has no scores


def test_weights_by_the_root() -> None:
    losses = [0.01] * 30 + [1.0] * 65 + [1.5] * 5
    table = table_of(*losses, NAN)
    tilt = float(Adaptive.tilt(table))
    assert 0 < tilt < 1
    weights = [math.sqrt(loss) for loss in losses]
    mean = sum(weights) / len(weights)
    expected = [tilt * weight + (1 - tilt) * mean for weight in weights]
    ranking = ByRoot().ranking(table.told(None, None, 0.25))
    assert ranking.values.tolist() == pytest.approx([*expected, FIRST], rel=1e-5)
    assert ranking.c == 0.25


def test_another_part_than_a_half() -> None:
    losses = [0.01] * 30 + [1.0 + number / 1000 for number in range(70)]
    table = table_of(*losses, NAN)
    tilt = float(Adaptive.tilt(table))
    assert 0 < tilt < 1
    weights = [1.0 if loss > 1.049 else 0.1 for loss in losses]
    mean = sum(weights) / len(weights)
    expected = [tilt * weight + (1 - tilt) * mean for weight in weights]
    ranking = HarderPart(0.2, easy=0.1).ranking(table.told(None, None, 0.25))
    assert ranking.values.tolist() == pytest.approx([*expected, FIRST], rel=1e-5)
    assert ranking.c == 0.25


def test_weights_that_rise_around_the_median() -> None:
    losses = [0.01] * 30 + [1.0] * 65 + [1.5] * 6
    table = table_of(*losses, NAN)
    tilt = float(Adaptive.tilt(table))
    assert 0 < tilt < 1
    weights = [loss**3 / (1 + loss**3) for loss in losses]  # the median is 1
    mean = sum(weights) / len(weights)
    expected = [tilt * weight + (1 - tilt) * mean for weight in weights]
    ranking = SoftHalf(3.0).ranking(table.told(None, None, 0.25))
    assert ranking.values.tolist() == pytest.approx([*expected, FIRST], rel=1e-5)
    assert ranking.c == 0.25


def test_weights_that_saturate() -> None:
    losses = [0.01] * 30 + [1.0] * 65 + [1.5] * 5  # a spread at which the tilt is 0 < t < 1
    table = table_of(*losses, NAN)
    tilt = float(Adaptive.tilt(table))
    assert 0 < tilt < 1
    mean_root = sum(map(math.sqrt, losses)) / len(losses)
    weights = [loss / (loss + mean_root**2) for loss in losses]
    mean = sum(weights) / len(weights)
    expected = [tilt * weight + (1 - tilt) * mean for weight in weights]
    ranking = Saturating().ranking(table.told(None, None, 0.25))
    assert ranking.values.tolist() == pytest.approx([*expected, FIRST], rel=1e-5)
    assert ranking.c == 0.25
