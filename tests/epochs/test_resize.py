# SPDX-License-Identifier: Apache-2.0
"""`Pruner.resize` and `load_state_dict(grow=True)`, against new pruners with the same rows."""

import copy
import itertools
import pickle

import pytest
import torch
from states import assert_same
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner, policies
from dynprune_cuda.distributed import Shard, routing
from dynprune_cuda.distributed.shard import LAYOUTS

N = 60
SIZES = (97, 61, 60, 41)
pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")

MAKERS = {
    "adaptive": lambda n, **more: Pruner(n, 0.3, **more),
    "period": lambda n, **more: Pruner(n, 0.4, "ucb", period=4, seed=5, **more),
    "uniform": lambda n, **more: Pruner(n, lambda epoch: 0.5, "uniform", **more),
    "weighted": lambda n, **more: Pruner(n, 0.3, policies.Weighted(rescale=True), **more),
    "plan": lambda n, **more: Pruner(n, [1.0, 0.5, 0.2, 0.3], "epsilon_greedy", **more),
    "at_once": lambda n, **more: Pruner(n, 0.25, "ucb", warmup_epochs=0, **more),
}
WHOLE = {
    **MAKERS,
    "forgetting": lambda n, **more: Pruner(n, 0.3, "ucb", track_forgetting=True, **more),
    "infobatch": lambda n, **more: Pruner(n, None, "infobatch", epochs=20, **more),
    "static": lambda n, **more: Pruner(n, None, policies.StaticSubset(range(5, 35)), **more),
    "full": lambda n, **more: Pruner(n, None, "full", **more),
}


def value(ids, epoch):
    """Of a visit; any function will do."""
    return torch.frac(ids.double() * 0.37 + epoch * 0.61).float() + 0.01


def visit(pruner, epoch, batch_size=8):
    """One epoch; returns the ids that were handed out."""
    pruner.set_epoch(epoch)
    seen = []
    for ids in pruner.batch_sampler(batch_size):
        ids = torch.tensor(ids)
        correct = ids % 3 != epoch % 3 if pruner.table.track_forgetting else None
        pruner.observe(ids, value(ids, epoch), correct)
        seen += ids.tolist()
    return seen


def resized_rows(table, size):
    """The rows of a table in another size, from the documentation of `ScoreTable`."""
    fresh = {"mean": float("nan")}
    rows = {}
    for name, column in table.state_dict().items():
        more = torch.full((max(0, size - len(column)),), fresh.get(name, 0), dtype=column.dtype)
        rows[name] = torch.cat([column[:size], more])
    return rows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WHOLE)
def test_a_resized_pruner_is_a_new_one_with_the_same_rows(name, size):
    pruner = WHOLE[name](N)
    for epoch in range(3):
        visit(pruner, epoch)
    before, times = pruner.selected, pruner.times_selected.clone()
    fresh = WHOLE[name](size)
    fresh.table.load_state_dict(resized_rows(pruner.table, size))
    pruner.resize(size)
    assert pruner.num_samples == pruner.table.num_samples == size
    assert pruner.schedule == fresh.schedule or callable(pruner.schedule.keep)
    selections = pruner.num_selections
    for epoch in range(3, 7):
        assert visit(pruner, epoch) == visit(fresh, epoch)
        assert pruner.selected.equal(fresh.selected)
        if epoch == 3:
            chosen = torch.zeros(size, dtype=torch.bool)
            chosen[pruner.selected] = True
            stayed = torch.zeros(size, dtype=torch.int32)
            stayed[: len(times)] = times[:size]
            assert pruner.times_selected.equal(stayed + chosen)
            both = len(set(before.tolist()) & set(pruner.selected.tolist()))
            assert float(pruner.turnover) == pytest.approx(1 - both / len(pruner.selected))
    for name_of_column, column in pruner.table.state_dict().items():
        torch.testing.assert_close(
            column, fresh.table.state_dict()[name_of_column], equal_nan=True, rtol=0, atol=0
        )
    assert pruner.num_selections == selections + fresh.num_selections


@pytest.mark.parametrize("policy", ["ucb", "adaptive", "weighted", "epsilon_greedy"])
def test_new_samples_rank_first_and_removed_ones_leave(policy):
    pruner = Pruner(N, 0.3, policy, period=10)
    for epoch in range(3):
        visit(pruner, epoch)
    pruner.resize(N + 10)
    pruner.set_epoch(3)
    assert pruner.num_selected == 21
    greedy = 19 if policy == "epsilon_greedy" else 21
    assert set(pruner.selected.tolist()) >= set(range(N, N + 10)) and greedy > 10
    visit(pruner, 4)
    pruner.resize(20)
    pruner.set_epoch(5)
    assert pruner.num_selected == 6 and int(pruner.selected.max()) < 20
    with pytest.raises(IndexError):
        pruner.observe(torch.tensor([20]), torch.tensor([1.0]))


def test_until_the_next_epoch_it_is_before_its_first():
    pruner = Pruner(N, 0.25, "ucb")
    for epoch in range(3):
        visit(pruner, epoch)
    pruner.resize(80)
    assert pruner.epoch == 0 and pruner.num_selected == 80
    assert len(pruner.selected) == pruner.steps_per_epoch(1) == 80
    assert pruner.steps_per_epoch(1, epoch=5) == 20 and pruner.num_selections == 2
    assert pruner.stats()["never_visited"] == 20
    pruner.set_epoch(2)  # again, over what is there now
    assert pruner.num_selected == len(pruner.selected) == 20


@pytest.mark.parametrize("later", [None, 3, 9])
@pytest.mark.parametrize("name", ["adaptive", "period", "weighted", "at_once", "static"])
def test_a_run_resumes_after_a_resize(name, later):
    """Saved at once, in a pruned epoch, or in the annealing."""
    more = {"epochs": 10, "anneal_epochs": 1}
    pruner = WHOLE[name](N, **more)
    for epoch in range(3):
        visit(pruner, epoch)
    pruner.resize(75)
    if later is not None:
        visit(pruner, later)
    state = pickle.loads(pickle.dumps(pruner.state_dict()))
    resumed = WHOLE[name](75, **more)
    resumed.load_state_dict(state)
    copied = copy.deepcopy(pruner)
    for epoch in range(4, 8):
        seen = visit(pruner, epoch)
        assert seen == visit(resumed, epoch) == visit(copied, epoch)
        assert pruner.turnover.equal(resumed.turnover)
    assert_same(pruner.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("name", WHOLE)
def test_a_state_grows(name):
    saved = WHOLE[name](N)
    for epoch in range(3):
        visit(saved, epoch)
    state = saved.state_dict()
    grown = WHOLE[name](90)
    grown.load_state_dict(state, grow=True)
    saved.resize(90)
    assert_same(grown.state_dict(), saved.state_dict())
    for epoch in range(3, 6):
        assert visit(grown, epoch) == visit(saved, epoch)


def test_growing_is_asked_for():
    small, large = Pruner(N, 0.3, "ucb"), Pruner(90, 0.3, "ucb")
    visit(small, 0)
    state, before = small.state_dict(), large.state_dict()
    with pytest.raises(ValueError, match="num_samples is 60, and here it is 90"):
        large.load_state_dict(state)
    with pytest.raises(ValueError, match="at most num_samples=60 samples with grow=True, got 90"):
        small.load_state_dict(before, grow=True)
    with pytest.raises(TypeError, match="grow must be a bool"):
        large.load_state_dict(state, grow=1)
    with pytest.raises(ValueError, match="damaged"):
        large.load_state_dict({**state, "num_selections": 7}, grow=True)
    with pytest.raises(ValueError, match="its version is None"):
        large.load_state_dict({"num_samples": N}, grow=True)
    with pytest.raises(ValueError, match="its policy is"):
        Pruner(90, 0.3, "uniform").load_state_dict(state, grow=True)
    assert_same(large.state_dict(), before)
    same = Pruner(N, 0.3, "ucb")
    same.load_state_dict(state, grow=True)  # of the same size: an ordinary load
    assert_same(same.state_dict(), state)


def test_groups_take_new_labels():
    labels = torch.arange(90) % 3
    pruner = Pruner(N, 0.3, "ucb", groups=labels[:N], group_floor=1.0)
    fresh = Pruner(90, 0.3, "ucb", groups=labels, group_floor=1.0)
    for epoch in range(2):
        visit(pruner, epoch)
    state = pruner.state_dict()
    fresh.table.load_state_dict(resized_rows(pruner.table, 90))
    for labels_given, message in (
        (None, "groups must be given with"),
        (labels[:80], "groups must have one label per sample, 90, got 80"),
    ):
        with pytest.raises(ValueError, match=message):
            pruner.resize(90, groups=labels_given)
    assert_same(pruner.state_dict(), state)
    grown = Pruner(90, 0.3, "ucb", groups=labels, group_floor=1.0)
    grown.load_state_dict(state, grow=True)
    pruner.resize(90, groups=labels)
    for epoch in range(2, 5):
        assert visit(pruner, epoch) == visit(fresh, epoch) == visit(grown, epoch)
        assert torch.bincount(labels[pruner.selected]).tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (lambda: Pruner(N, 0.3), 0, "num_samples must be at least 1, got 0"),
        (lambda: Pruner(N, 50), 40, "keep as a count must be from 1 to num_samples=40, got 50"),
        (lambda: Pruner(N, 0.3, "random_static"), 70, "use StaticSubset"),
        (lambda: Pruner(N, 0.3, policies.Covered("ucb", 5)), 70, "keeps columns of its own"),
        (lambda: Pruner(N, None, "repb", epochs=9), 70, "must stay 60 with RePB"),
        (lambda: Pruner(N, None, policies.StaticSubset([3, 50])), 50, "below num_samples=50"),
        (lambda: Pruner(N, None, policies.StaticSubset([3], N)), 70, "num_samples must be 60"),
    ],
)
def test_what_does_not_fit_changes_nothing(make, size, message):
    pruner = make()
    visit(pruner, 0)
    run, state = pruner._run, pruner.state_dict()
    with pytest.raises(ValueError, match=message):
        pruner.resize(size)
    assert pruner._run is run
    assert pruner.state_dict()["version"] == state["version"]  # with a checksum of all
    visit(pruner, 1)


def test_arguments_have_types():
    pruner = Pruner(N, 0.3)
    with pytest.raises(TypeError, match=r"num_samples must be an int, got 70\.0"):
        pruner.resize(70.0)
    with pytest.raises(ValueError, match="groups must be left out"):
        pruner.resize(70, groups=torch.zeros(70, dtype=torch.int64))


def test_loaders_follow_or_refuse():
    data = torch.arange(90.0)[:, None]
    grown = TensorDataset(data)
    pruner = Pruner(N, 0.5, "ucb")
    loader = DataLoader(IndexedDataset(grown), batch_sampler=pruner.batch_sampler(10))
    stale = DataLoader(
        IndexedDataset(TensorDataset(data[:N])), batch_sampler=pruner.batch_sampler(10)
    )
    on_device = DeviceLoader(data[:N], pruner=pruner, batch_size=10)
    visit(pruner, 0)
    pruner.resize(90)
    pruner.set_epoch(1)
    assert len(loader) == 5
    ids = torch.cat([ids for _, ids in loader])
    assert len(ids) == 45 and set(ids.tolist()) >= set(range(N, 90))
    with pytest.raises(ValueError, match=r"dataset must have 90 samples, as the pruner, got .* 60"):
        list(stale)
    with pytest.raises(ValueError, match="tensors must have 90 rows, one per sample, got 60"):
        list(on_device)
    on_device = DeviceLoader(data, pruner=pruner, batch_size=10)
    assert sorted(torch.cat([ids for _, ids in on_device]).tolist()) == sorted(ids.tolist())


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("name", MAKERS)
def test_one_process_with_sharded_scores(name, layout):
    whole = MAKERS[name](N)
    pruner = MAKERS[name](N, sharding="shard", shard_layout=layout)
    for epoch in range(3):
        assert visit(whole, epoch) == visit(pruner, epoch)
    state = pruner.state_dict()
    for size in (85, 50):
        grown = MAKERS[name](85, sharding="shard", shard_layout=layout)
        grown.load_state_dict(state, grow=True)
        whole.resize(size)
        pruner.resize(size)
        if size == 85:
            assert visit(grown, size) == visit(copy.deepcopy(whole), size)
        for epoch in range(size, size + 3):
            assert visit(whole, epoch) == visit(pruner, epoch)
            assert whole.turnover.equal(pruner.turnover)
            assert whole.times_selected.equal(pruner.times_selected)


@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize(("old", "new"), [(13, 17), (17, 13), (9, 30), (30, 9), (8, 8)])
def test_rows_move_to_the_new_shards(old, new, layouts):
    """All ranks at once: what each sends is what the others receive."""
    size, common = 4, min(old, new)
    sent = {}

    class Sending:
        def __init__(self, rank):
            self.rank = rank

        def exchange(self, columns, counts):
            sent[self.rank] = [torch.split(column, counts.tolist()) for column in columns]
            raise StopIteration

    class Receiving(Sending):
        def exchange(self, columns, counts):
            parts = ([sent[r][c][self.rank] for r in range(size)] for c in range(len(columns)))
            return [torch.cat(part) for part in parts]

    def move(ranks):
        source = Shard(old, ranks.rank, size, layouts[0])
        target = Shard(new, ranks.rank, size, layouts[1])
        ids = source.ids()
        return target, routing.moved_rows([ids, ids.float() / 2], source, target, ranks)

    if old != new or layouts[0] != layouts[1]:
        for rank in range(size):
            with pytest.raises(StopIteration):
                move(Sending(rank))
    for rank in range(size):
        target, (ids, halves) = move(Receiving(rank))
        wanted = [i for i in target.ids().tolist() if i < common]
        assert ids.tolist() == wanted and halves.tolist() == [i / 2 for i in wanted]
        assert target.num_below(common) == len(wanted)


def test_a_resize_before_any_score_begins_no_second_warm_up():
    pruner = Pruner(100, [0.1, 0.2, 0.3], epochs=3)
    pruner.set_epoch(0)
    pruner.resize(120)
    with pytest.warns(RuntimeWarning, match="no score was observed"):
        pruner.set_epoch(1)
    assert pruner.num_selected == 24
