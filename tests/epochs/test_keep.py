# SPDX-License-Identifier: Apache-2.0
"""keep that changes with the epoch, steps known in advance, and baselines with the same steps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from dynprune_cuda import Pruner, same_steps

N = 100
pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")


def sizes(pruner, epochs):
    """How many ids each epoch really yields, and that nobody said anything else."""
    found = []
    for epoch in range(epochs):
        steps = pruner.steps_per_epoch(7, epoch=epoch)
        pruner.set_epoch(epoch)
        batches = list(pruner.batch_sampler(7))
        found.append(sum(map(len, batches)))
        assert found[-1] == pruner.num_selected == len(pruner.selected)
        assert steps == len(batches) == len(pruner.batch_sampler(7)) == pruner.steps_per_epoch(7)
    return found


def descending(epoch):
    return 1.0 - 0.1 * epoch


@pytest.mark.parametrize(
    "keep",
    [
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        (100, 90, 80, 70, 60, 50, 40),
        np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
        torch.tensor([100, 90, 80, 70, 60, 50, 40]),
        descending,
    ],
    ids=["list", "tuple", "array", "tensor", "function"],
)
@pytest.mark.parametrize("policy", ["ucb", "uniform", "weighted"])
def test_keep_may_change_with_the_epoch(device, keep, policy):
    pruner = Pruner(N, keep, policy, period=1, warmup_epochs=2, device=device)
    assert sizes(pruner, 7) == [100, 100, 80, 70, 60, 50, 40]


def test_a_selection_takes_the_keep_of_its_own_epoch(device):
    pruner = Pruner(N, descending, period=3, anneal_epochs=1, epochs=9, device=device)
    assert sizes(pruner, 9) == [100, 90, 90, 90, 60, 60, 60, 30, 100]


def test_the_last_entry_goes_on(device):
    pruner = Pruner(N, [0.9, 0.5], period=1, warmup_epochs=0, device=device)
    assert sizes(pruner, 5) == [90, 50, 50, 50, 50]


@pytest.mark.parametrize("drop_last", [False, True])
def test_total_steps_are_those_that_happen(device, drop_last):
    pruner = Pruner(N, descending, period=2, anneal_epochs=2, epochs=9, device=device)
    promised = pruner.total_steps(9, 8, drop_last)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=promised)
    taken = 0
    for epoch in range(9):
        pruner.set_epoch(epoch)
        for _ in pruner.batch_sampler(8, drop_last):
            optimizer.step()
            taken += 1
            if taken < promised:
                scheduler.step()  # raises when it is asked for more steps than it was promised
    assert taken == promised and scheduler.get_last_lr()[0] < 1e-4


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ([], ValueError, "at least one entry, got none"),
        ([0.5, 0.0], ValueError, r"keep\[1\] as a fraction must be in \(0, 1\], got 0.0"),
        ([0.5, N + 1], ValueError, rf"keep\[1\] as a count .* got {N + 1}"),
        ([0.5, None], TypeError, r"keep\[1\] must be a float"),
        ([[0.5]], TypeError, r"keep\[0\] must be a float"),
        ("0.5", TypeError, "keep must be a float"),
        ({0: 0.5}, TypeError, "keep must be a float"),
    ],
)
def test_a_bad_keep_is_named_at_once(keep, error, message):
    with pytest.raises(error, match=message):
        Pruner(N, keep)


def test_one_entry_per_epoch_of_a_run_of_known_length():
    with pytest.raises(ValueError, match="one entry per epoch, 5, got 4"):
        Pruner(N, [0.5] * 4, epochs=5)
    assert Pruner(N, [0.5] * 5, epochs=5).total_steps(5, 10) == 10 + 4 * 5


def test_a_bad_answer_of_a_function_is_named_and_changes_nothing(device):
    pruner = Pruner(N, {1: 0.5, 2: 0.0, 3: "x"}.get, period=1, device=device)
    pruner.set_epoch(0)
    pruner.set_epoch(1)
    before = pruner.selected
    for epoch, message in ((2, r"keep\(2\) .* got 0.0"), (3, r"keep\(3\) must be a float")):
        with pytest.raises((ValueError, TypeError), match=message):
            pruner.set_epoch(epoch)
        assert pruner.epoch == 1 and torch.equal(pruner.selected, before)


def test_one_selection_for_the_whole_run_has_one_keep():
    with pytest.raises(ValueError, match="keep must be one number for RandomStatic"):
        Pruner(N, [0.5, 0.6], "random_static")


def test_fewer_epochs_of_full_data_with_the_same_steps(device):
    pruned = Pruner(N, 0.3, "ucb", epochs=12, anneal_epochs=1, device=device)
    total = pruned.total_steps(12, 8)
    keep = same_steps(total, N, 8)
    assert keep[:-1] == [N] * (len(keep) - 1) and len(keep) == 6
    baseline = Pruner(N, keep, "uniform", period=1, warmup_epochs=0, device=device)
    assert baseline.total_steps(len(keep), 8) == total
    assert sizes(baseline, len(keep)) == keep


def test_random_subsets_with_the_same_steps_as_another_run(device):
    keep = same_steps(77, N, 8, epochs=10)
    baseline = Pruner(N, keep, "uniform", period=1, warmup_epochs=0, device=device)
    assert baseline.total_steps(10, 8) == 77 and max(keep) - min(keep) == 8
    assert sizes(baseline, 10) == keep


@given(
    st.integers(1, 5000),
    st.integers(1, 300),
    st.integers(1, 70),
    st.one_of(st.none(), st.integers(1, 60)),
    st.booleans(),
)
def test_the_steps_are_the_same(total, num_samples, batch_size, epochs, drop_last):
    full = num_samples // batch_size if drop_last else -(-num_samples // batch_size)
    fits = full > 0 and (epochs is None or epochs <= total <= epochs * full)
    if not fits:
        with pytest.raises(ValueError, match=r"batch_size must|total_steps must"):
            same_steps(total, num_samples, batch_size, epochs=epochs, drop_last=drop_last)
        return
    keep = same_steps(total, num_samples, batch_size, epochs=epochs, drop_last=drop_last)
    assert epochs is None or len(keep) == epochs
    pruner = Pruner(num_samples, keep, "uniform", period=1, warmup_epochs=0)
    assert pruner.total_steps(len(keep), batch_size, drop_last) == total


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 5, 5), ValueError, "total_steps .* 0"),
        ((5, 0, 5), ValueError, "num_samples .* 0"),
        ((5, 5, 0), ValueError, "batch_size .* 0"),
        ((5.0, 5, 5), TypeError, "total_steps .* 5.0"),
    ],
)
def test_bad_plans_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        same_steps(*arguments)
