# SPDX-License-Identifier: Apache-2.0
"""Forgetting events: counted as Toneva et al. define them, saved, summarised, and refused."""

import copy

import pytest
import torch
from runs import MAKERS, N, save, train

from dynprune_cuda import Pruner, functional
from dynprune_cuda.scores import ScoreTable

CLASSES = 7


def enter(table, ids, correct, values=None):
    ids = torch.tensor(ids, device=table.device)
    values = torch.ones(len(ids), device=table.device) if values is None else values
    table.update(ids, values, None if correct is None else torch.tensor(correct).to(table.device))


class Reference:
    """The definition, one sample at a time."""

    def __init__(self, n):
        self.last, self.events = [False] * n, [0] * n

    def visit(self, ids, correct):
        rows = {}
        for sample_id, right in zip(ids, correct, strict=True):
            rows.setdefault(sample_id, []).append(right)
        for sample_id, right in rows.items():
            right = all(right)
            if sample_id >= 0:
                self.events[sample_id] += self.last[sample_id] and not right
                self.last[sample_id] = right


def test_events_follow_the_definition(device):
    generator = torch.Generator().manual_seed(2)
    table, expected = ScoreTable(30, device=device, track_forgetting=True), Reference(30)
    for _ in range(25):
        ids = torch.randint(-1, 30, (13,), generator=generator).tolist()
        correct = (torch.rand(13, generator=generator) < 0.5).tolist()
        values = torch.randn(13, generator=generator)
        values[torch.rand(13, generator=generator) < 0.2] = float("nan")  # a visit all the same
        enter(table, ids, correct, values.to(device))
        expected.visit(ids, correct)
    assert table.forget_count.tolist() == expected.events and sum(expected.events) > 30
    assert table.last_correct.tolist() == expected.last
    assert table.forget_count.dtype == torch.int32 and table.last_correct.dtype == torch.bool


def test_a_visit_that_does_not_tell_is_no_event(device):
    table = ScoreTable(2, device=device, track_forgetting=True)
    enter(table, [0, 1], [True, True])
    enter(table, [0, 1], None)
    assert table.last_correct.all() and not table.forget_count.any()
    enter(table, [1], [False])
    assert table.forget_count.tolist() == [0, 1] and table.count.tolist() == [2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cross_entropy_counts(device, dtype):
    pruner = Pruner(N, 0.5, track_forgetting=True, device=device)
    pruner.set_epoch(0)
    expected = Reference(N)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        logits = torch.randn(16, CLASSES, generator=generator).to(dtype)
        target = torch.randint(CLASSES, (16,), generator=generator)
        ids = torch.randperm(20, generator=generator)[:16]
        target[3] = -100  # an ignored row is no visit
        order = logits.float().sort(dim=1, descending=True)
        right = (order.indices[:, 0] == target) & (order.values[:, 0] > order.values[:, 1])
        leaf = logits.to(device).requires_grad_()
        pruner.cross_entropy(leaf, target.to(device), ids.to(device)).backward()
        expected.visit(ids.where(target >= 0, -1).tolist(), right.tolist())
    assert pruner.table.forget_count.tolist() == expected.events and sum(expected.events) > 3
    assert pruner.table.last_correct.tolist() == expected.last


def test_observe_takes_correctness_from_a_scored_loss(device):
    logits = torch.eye(3, device=device)
    target, ids = torch.arange(3, device=device), torch.tensor([5, 6, 7], device=device)
    pruners = [Pruner(N, 0.5, track_forgetting=True, device=device) for _ in range(2)]
    for labels in (target, target.roll(1), target):
        scored = functional.scored_cross_entropy(logits, labels)
        pruners[0].observe(ids, scored)
        pruners[1].observe(ids, scored.loss, scored.correct)
    for pruner in pruners:
        assert pruner.table.forget_count[5:8].tolist() == [1, 1, 1]
        assert pruner.table.last_correct.sum() == 3


def test_nothing_is_counted_unless_asked_for(device):
    pruner = Pruner(N, 0.5, device=device)
    assert pruner.table.forget_count is None and pruner.table.last_correct is None
    assert not pruner.table.track_forgetting and "forget_events" not in pruner.stats()
    ids, values = torch.arange(4, device=device), torch.ones(4, device=device)
    for call in (pruner.observe, pruner.table.update):
        call(ids, values, values > 0)
        with pytest.raises(ValueError, match="correct must be bool"):
            call(ids, values, values)
    assert pruner.table.count.sum() == 8 and pruner.table.forget_count is None


def test_bad_correctness_is_named_and_changes_nothing(device):
    table = ScoreTable(4, device=device, track_forgetting=True)
    ids, values = torch.arange(4, device=device), torch.ones(4, device=device)
    for correct, error, message in (
        ([True] * 4, TypeError, "correct must be a tensor, got list"),
        (values, ValueError, "correct must be bool of shape .*got torch.float32"),
        (values[:3] > 0, ValueError, r"correct must be bool of shape \(4,\).*\(3,\)"),
    ):
        with pytest.raises(error, match=message):
            table.update(ids, values, correct)
        assert not table.count.any() and not table.last_correct.any()
    with pytest.raises(TypeError, match="track_forgetting must be a bool, got 1"):
        ScoreTable(4, track_forgetting=1)
    with pytest.raises(TypeError, match="track_forgetting must be a bool, got None"):
        Pruner(4, 0.5, track_forgetting=None)


def test_stats(device):
    table = ScoreTable(6, device=device, track_forgetting=True)
    names = ("forget_events", "never_learned", "unforgettable")
    assert [table.stats()[name] for name in names] == [0, 0, 0]
    enter(table, [0, 1, 2, 3], [True, True, False, False])
    enter(table, [0, 1, 2, 3], [True, False, False, True])
    enter(table, [0, 1, 2, 3], [True, True, False, True])
    enter(table, [0, 1, 4], [True, False, False], torch.full((3,), float("nan"), device=device))
    # 0 and 3 were never forgotten, 1 was twice; 2 and 4 were never right; 5 was never visited.
    assert [table.stats()[name] for name in names] == [2, 2, 2]


def test_state_part_and_copies_hold_the_events(device):
    pruner = MAKERS["forgetting"](device)
    train(pruner, pruner.batch_sampler(8))
    table = pruner.table
    assert table.forget_count.sum() > N / 2
    ids = torch.tensor([9, 3, 30], device=device)
    part, copied = table.part(ids), copy.deepcopy(table)
    assert torch.equal(part.forget_count, table.forget_count[ids])
    assert torch.equal(part.last_correct, table.last_correct[ids])
    loaded = MAKERS["forgetting"](device)
    loaded.load_state_dict(save(pruner)[0])
    enter(table, list(range(N)), [False] * N)
    assert (table.forget_count - copied.forget_count).sum() == copied.last_correct.sum() > 0
    for other in (copied, loaded.table):
        assert torch.equal(other.forget_count, copied.forget_count)
        assert torch.equal(other.last_correct, copied.last_correct)


def test_a_state_with_other_columns_is_refused(device):
    tracked, plain = MAKERS["forgetting"](device), Pruner(N, 0.4, "ucb", period=2, device=device)
    train(tracked, tracked.batch_sampler(8), 9)
    for mine, theirs in ((plain, tracked), (tracked, plain)):
        before = mine.table.count.clone()
        theirs_do = theirs.table.track_forgetting
        message = rf"track_forgetting={theirs_do}, and here it is {not theirs_do}"
        with pytest.raises(
            ValueError,
            match=rf"state_dict\['table'\] is of another run: it was saved with {message}",
        ):
            mine.load_state_dict(theirs.state_dict())
        with pytest.raises(
            ValueError, match=f"state_dict is of another run: it was saved with {message}"
        ):
            mine.table.load_state_dict(theirs.table.state_dict())
        assert torch.equal(mine.table.count, before)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("forget_count", lambda t: t - 1, r"'forget_count'\] .*contradicts the counts"),
        ("forget_count", lambda t: t + 9, r"'forget_count'\] .*contradicts the counts"),
        ("last_correct", lambda t: ~t, r"'last_correct'\] .*contradicts the counts"),
        ("forget_count", lambda t: t.long(), "torch.int32 .*torch.int64"),
        ("last_correct", None, r"lacks \['last_correct'\]"),
    ],
)
def test_damaged_events_are_refused(device, column, change, message):
    pruner = MAKERS["forgetting"](device)
    train(pruner, pruner.batch_sampler(8), 3)  # not every sample
    state = pruner.state_dict()
    if change is None:
        del state["table"][column]
    else:
        state["table"][column] = change(state["table"][column])
    with pytest.raises(ValueError, match=message):
        MAKERS["forgetting"](device).load_state_dict(state)
