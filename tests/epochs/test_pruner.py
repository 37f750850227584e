# SPDX-License-Identifier: Apache-2.0
"""Pruner: what is selected when, in which order, and how many steps that makes."""

import copy
import pickle
import random
from itertools import chain, islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dynprune_cuda import policies
from dynprune_cuda.data import IndexedDataset
from dynprune_cuda.pruner import Pruner

N = 60
# Many tests here are about the schedule alone and observe nothing.
pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")
NAMES = ["random_static", "uniform", "epsilon_greedy", "ucb", "weighted"]


def observe_all(pruner, values):
    ids = torch.arange(pruner.num_samples, device=pruner.device)
    pruner.observe(ids, torch.as_tensor(values, dtype=torch.float32, device=pruner.device))


def flat(lists):
    return list(chain.from_iterable(lists))


def epoch_ids(pruner):
    return flat(pruner.batch_sampler(7))


def run(pruner, epochs, value=lambda epoch, ids: ids.float()):
    """Trains for `epochs` epochs; returns each epoch's ids in order of their visits."""
    visits = []
    for epoch in range(epochs):
        pruner.set_epoch(epoch)
        visits.append(epoch_ids(pruner))
        for batch in pruner.batch_sampler(7):
            ids = torch.tensor(batch, device=pruner.device)
            pruner.observe(ids, value(epoch, ids))
    return visits


@pytest.mark.parametrize("policy", NAMES)
def test_warm_up_and_annealing_train_on_everything_and_the_rest_on_k(device, policy):
    pruner = Pruner(
        N, 0.3, policy, period=2, warmup_epochs=2, anneal_epochs=3, epochs=9, device=device
    )
    sizes = [N, N, 18, 18, 18, 18, N, N, N]
    assert [pruner.steps_per_epoch(1, epoch=epoch) for epoch in range(9)] == sizes
    for epoch, ids in enumerate(run(pruner, 9)):
        assert len(ids) == len(set(ids)) == sizes[epoch]
        assert set(ids) <= set(range(N))


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize(("warmup", "period"), [(0, 1), (1, 3), (2, 2), (0, 4)])
def test_selections_are_due_after_warm_up_and_every_period(device, policy, warmup, period):
    pruner = Pruner(N, 20, policy, period=period, warmup_epochs=warmup, device=device)
    generator = torch.Generator().manual_seed(0)
    visits = run(pruner, 9, lambda epoch, ids: torch.rand(len(ids), generator=generator))
    subsets = [frozenset(ids) for ids in visits]
    for epoch in range(max(warmup, 1), 9):
        due = (epoch - warmup) % period == 0 and policy != "random_static"
        if epoch > warmup:
            assert (subsets[epoch] != subsets[epoch - 1]) == due, epoch
    if policy == "random_static":
        assert len(set(subsets[warmup:])) == 1


@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
def test_selections_see_the_scores_of_their_moment_only(device):
    pruner = Pruner(N, 10, "ucb", period=2, device=device)
    observe_all(pruner, torch.arange(N))
    pruner.set_epoch(1)
    assert pruner.selected.tolist() == list(range(50, 60))
    observe_all(pruner, -10 * torch.arange(N))  # the order of the scores turns around
    pruner.set_epoch(2)
    assert pruner.selected.tolist() == list(range(50, 60))
    pruner.table.variance.zero_()
    pruner.set_epoch(3)
    assert pruner.selected.tolist() == list(range(10))


@pytest.mark.parametrize("policy", NAMES)
def test_the_order_is_new_each_epoch_over_the_same_subset(device, policy):
    pruner = Pruner(N, 30, policy, period=100, device=device)
    visits = run(pruner, 8)
    assert sorted(visits[0]) == list(range(N)) != visits[0]
    assert len({frozenset(ids) for ids in visits[1:]}) == 1
    assert len({tuple(ids) for ids in visits[1:]}) == 7


def test_selected_is_ascending_and_nobody_elses(device):
    pruner = Pruner(N, 30, "uniform", device=device)
    for epoch in (0, 1):
        pruner.set_epoch(epoch)
        ids = pruner.selected
        assert ids.dtype == torch.int64 and ids.device == pruner.device
        assert ids.tolist() == sorted(epoch_ids(pruner))
        before = ids.clone()
        ids.fill_(0)
        assert torch.equal(pruner.selected, before) and len(before) == pruner.num_selected


def test_set_epoch_with_the_current_epoch_changes_nothing(device):
    pruner = Pruner(N, 20, "ucb", period=1, device=device)
    observe_all(pruner, torch.arange(N))
    pruner.set_epoch(3)
    before = epoch_ids(pruner)
    pruner.table.mean.neg_()
    pruner.set_epoch(3)
    assert epoch_ids(pruner) == before
    pruner.set_epoch(4)
    assert not set(epoch_ids(pruner)) & set(before)


def test_a_jump_selects_and_keeps_to_the_schedule(device):
    pruner = Pruner(N, 20, "uniform", period=10, seed=4, device=device)
    pruner.set_epoch(7)  # a run that goes on elsewhere
    subset = pruner.selected.tolist()
    regular = Pruner(N, 20, "uniform", period=10, seed=4, device=device)
    regular.set_epoch(1)
    assert subset == regular.selected.tolist()
    pruner.set_epoch(10)
    assert pruner.selected.tolist() == subset
    pruner.set_epoch(11)
    second = pruner.selected.tolist()
    assert second != subset
    pruner.set_epoch(5)  # back into the first period
    assert pruner.selected.tolist() == subset
    pruner.set_epoch(0)
    assert pruner.num_selected == N


def test_going_back_to_an_epoch_that_selects_selects_again(device):
    pruner = Pruner(N, 10, "ucb", device=device)
    observe_all(pruner, torch.arange(N))
    pruner.set_epoch(1)
    pruner.set_epoch(0)  # training starts afresh
    observe_all(pruner, -10 * torch.arange(N))
    pruner.table.variance.zero_()
    pruner.set_epoch(1)
    assert pruner.selected.tolist() == list(range(10))


def test_before_the_first_set_epoch_it_is_epoch_0(device):
    one, other = (Pruner(N, 20, "ucb", warmup_epochs=0, seed=3, device=device) for _ in range(2))
    assert one.epoch == 0 and len(one.batch_sampler(8)) == 3
    other.set_epoch(0)
    assert epoch_ids(one) == epoch_ids(other) and len(set(epoch_ids(one))) == 20
    before = one.selected
    one.set_epoch(0)
    assert torch.equal(one.selected, before)


def test_scores_known_before_training_decide_the_first_selection(device):
    pruner = Pruner(N, 10, "ucb", warmup_epochs=0, device=device)
    observe_all(pruner, torch.arange(N))
    pruner.set_epoch(0)
    assert pruner.selected.tolist() == list(range(50, 60))


def test_steps_are_known_in_advance(device):
    pruner = Pruner(N, 20, warmup_epochs=2, anneal_epochs=1, epochs=6, device=device)
    assert [pruner.steps_per_epoch(8, epoch=epoch) for epoch in range(6)] == [8, 8, 3, 3, 3, 8]
    assert pruner.steps_per_epoch(8, drop_last=True, epoch=3) == 2
    assert pruner.total_steps(6, 8) == 33 and pruner.total_steps(6, 8, drop_last=True) == 27
    assert pruner.total_steps(0, 8) == 0
    loaders = {
        drop_last: DataLoader(
            IndexedDataset(range(N)), batch_sampler=pruner.batch_sampler(8, drop_last)
        )
        for drop_last in (False, True)
    }
    taken = {False: 0, True: 0}
    for epoch in range(6):
        pruner.set_epoch(epoch)
        for drop_last, loader in loaders.items():
            expected = pruner.steps_per_epoch(8, drop_last)
            assert len(loader) == expected == pruner.steps_per_epoch(8, drop_last, epoch)
            assert len(list(loader)) == expected
            taken[drop_last] += expected
    assert taken == {False: 33, True: 27}


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batched", [True, False])
def test_loaders_deliver_the_subset_epoch_after_epoch(device, num_workers, batched):
    pruner = Pruner(N, 25, "uniform", period=2, device=device)
    how = (
        {"batch_sampler": pruner.batch_sampler(8)}
        if batched
        else {"sampler": pruner.sampler(), "batch_size": 8}
    )
    loader = DataLoader(
        IndexedDataset(torch.arange(N) * 2),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        **how,
    )
    for epoch in range(5):
        pruner.set_epoch(epoch)
        assert len(loader) == pruner.steps_per_epoch(8)
        seen = []
        for values, ids in loader:
            assert torch.equal(values, ids * 2)
            seen += ids.tolist()
        assert seen == epoch_ids(pruner) and sorted(seen) == pruner.selected.tolist()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_epoch_left_early_is_whole_the_next_time(device, num_workers):
    pruner = Pruner(N, 40, "ucb", device=device)
    loader = DataLoader(
        IndexedDataset(range(N)), batch_sampler=pruner.batch_sampler(4), num_workers=num_workers
    )
    for epoch in (0, 1, 2):
        pruner.set_epoch(epoch)
        expected, subset = epoch_ids(pruner), pruner.selected
        for _ in range(2):
            part = [ids.tolist() for _, ids in islice(loader, 3)]
            assert flat(part) == expected[:12]
            part = [ids.tolist() for _, (_, ids) in zip(range(2), loader, strict=False)]
            assert flat(part) == expected[:8]
        for _ in range(2):
            batches = [ids.tolist() for _, ids in loader]
            assert flat(batches) == expected and len(batches) == len(loader)
        assert torch.equal(pruner.selected, subset)


@pytest.mark.parametrize("policy", NAMES)
def test_the_seed_decides_everything(device, policy):
    def visits(seed):
        pruner = Pruner(N, 20, policy, period=2, seed=seed, device=device)
        return run(pruner, 5, lambda epoch, ids: torch.ones(len(ids)))

    assert visits(11) == visits(11)
    assert visits(11) == visits(11 + 2**64) and visits(-1) == visits(2**64 - 1)
    for other in (12, 11 + 2**63, 11 + 2**32):  # every one of the 64 bits counts
        for mine, theirs in zip(visits(11), visits(other), strict=True):
            assert mine != theirs
        # Weighted draws by seed, UCB among ties by seed: no subset is the same either.
        assert set(visits(11)[1]) != set(visits(other)[1])


def test_the_cpu_and_the_gpu_choose_alike(device):
    pruners = [Pruner(N, 20, "epsilon_greedy", period=2, device=d) for d in ("cpu", device)]
    visits = [run(pruner, 5, lambda epoch, ids: (ids % 5).float()) for pruner in pruners]
    assert visits[0] == visits[1]


@pytest.mark.parametrize("policy", NAMES)
def test_global_random_generators_are_never_touched(device, policy):
    def states():
        gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            repr(np.random.get_state()),
            [state.tolist() for state in gpu],
        ]

    before = states()
    run(Pruner(N, 20, policy, period=1, device=device), 3)
    assert states() == before

    first = run(Pruner(N, 20, policy, period=1, device=device), 3)
    torch.manual_seed(123)
    random.seed(123)
    np.random.seed(123)
    assert run(Pruner(N, 20, policy, period=1, device=device), 3) == first


def test_full_data_needs_no_keep(device):
    pruner = Pruner(N, policy="full", warmup_epochs=0, device=device)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        assert sorted(epoch_ids(pruner)) == list(range(N)) and pruner.num_selected == N
    with pytest.raises(ValueError, match="keep must agree with Full"):
        Pruner(N, 0.5, "full", device=device)


def test_a_static_subset_follows_warm_up_and_annealing(device):
    pruner = Pruner(
        N, None, policies.StaticSubset([5, 3, 9]), anneal_epochs=1, epochs=4, device=device
    )
    visits = run(pruner, 4)
    assert [len(ids) for ids in visits] == [N, 3, 3, N]
    assert set(visits[1]) == set(visits[2]) == {3, 5, 9}
    with pytest.raises(ValueError, match=f"below num_samples={N}, got {N}"):
        Pruner(N, None, policies.StaticSubset([N]), device=device)


def test_a_policy_of_ones_own_drives_the_pruner(device):
    class Newest:
        """Selects the samples with the fewest visits."""

        def select(self, table, k, *, seed):
            return table.count.argsort(stable=True)[:k]

    pruner = Pruner(N, 20, Newest(), period=1, warmup_epochs=0, device=device)
    visits = run(pruner, 3)
    assert sorted(flat(visits)) == list(range(N))  # three epochs see everything once


def test_a_selection_that_fails_changes_nothing(device):
    class Moody:
        def __init__(self):
            self.answer = torch.arange(5)

        def select(self, table, k, *, seed):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    policy = Moody()
    pruner = Pruner(N, 5, policy, period=1, device=device)
    pruner.set_epoch(1)
    before = epoch_ids(pruner)
    for answer in (RuntimeError("no"), torch.arange(6), torch.arange(5) + N):
        policy.answer = answer
        with pytest.raises((RuntimeError, ValueError)):
            pruner.set_epoch(2)
        assert pruner.epoch == 1 and epoch_ids(pruner) == before
    policy.answer = torch.arange(5) + 7
    pruner.set_epoch(2)
    assert pruner.selected.tolist() == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("epoch", [-1, 1.0, True, None, "1"])
def test_a_bad_epoch_is_refused(device, epoch):
    pruner = Pruner(N, 5, device=device)
    pruner.set_epoch(0)
    pruner.set_epoch(1)
    with pytest.raises((TypeError, ValueError), match=f"epoch must .*{epoch}"):
        pruner.set_epoch(epoch)
    assert pruner.epoch == 1


@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("policy", [*NAMES, "full"])
def test_copies_go_on_alike_and_apart(device, clone, policy):
    def go_on(pruner):
        visits = [epoch_ids(pruner)]
        for epoch in range(4, 7):
            pruner.set_epoch(epoch)
            visits.append(epoch_ids(pruner))
            observe_all(pruner, torch.arange(N) * epoch % 13)
        return visits

    pruner = Pruner(N, None if policy == "full" else 20, policy, period=2, device=device)
    run(pruner, 4)
    other = clone(pruner)
    mean = pruner.table.mean.clone()
    theirs = go_on(other)
    assert torch.equal(pruner.table.mean, mean) and pruner.epoch == 3
    assert go_on(pruner) == theirs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples .* 0"),
        ({"keep": N + 1}, ValueError, f"keep .* {N + 1}"),
        ({"keep": True}, TypeError, "keep .* True"),
        ({"keep": None}, ValueError, "keep is needed"),
        ({"policy": "best"}, ValueError, "policy must be one of .*'ucb'.* 'best'"),
        ({"policy": policies.UCB}, TypeError, "policy must be a name or an object"),
        ({"period": 0}, ValueError, "period .* 0"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs .* -1"),
        ({"anneal_epochs": 1}, ValueError, "anneal_epochs=1 needs epochs="),
        ({"score": "accuracy"}, ValueError, "score must be one of .*'margin', got 'accuracy'"),
        ({"alpha": 0}, ValueError, "alpha .* 0"),
        ({"seed": 1.5}, TypeError, "seed .* 1.5"),
        ({"process_group": True}, TypeError, "process_group .* False .* True"),
        ({"process_group": 0}, TypeError, "process_group .* got 0"),
        ({"process_group": "gloo"}, TypeError, "process_group .* 'gloo'"),
        ({"process_group": -100}, ValueError, "process_group must contain this process"),
        ({"sharding": "rows"}, ValueError, "sharding .* 'rows'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Pruner(**{"num_samples": N, "keep": 0.5, **arguments})


def test_repr_tells_where_the_run_is(device):
    pruner = Pruner(N, 0.5, seed=2, device=device)
    assert "epoch 0, warm-up" in repr(pruner) and "keep=30" in repr(pruner)
    pruner.set_epoch(0)
    pruner.set_epoch(1)
    assert "epoch 1, pruned" in repr(pruner) and "policy=Adaptive(" in repr(pruner)
