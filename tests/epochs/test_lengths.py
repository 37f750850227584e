# SPDX-License-Identifier: Apache-2.0
"""Where a step lies, and what is said of `len()` of a loader whose epochs differ in length."""

import copy
import importlib
import pickle
import sys
import types
import warnings
from itertools import accumulate

import pytest
import torch
from torch.utils.data import DataLoader

from dynprune_cuda import DeviceLoader, Pruner, schedules

N, BATCH = 60, 8
PLANS = {
    "constant": {"keep": 0.3},
    "periods": {"keep": 0.3, "period": 3, "warmup_epochs": 2},
    "annealed": {"keep": 20, "epochs": 9, "anneal_epochs": 2},
    "list": {"keep": [1.0, 0.5, 0.4, 0.2], "period": 2},
    "function": {"keep": schedules.growing(0.1, 0.9, epochs=8)},
    "cold": {"keep": 0.5, "warmup_epochs": 0},
    "static": {"policy": "random_static", "keep": 0.5},
    "full": {"policy": "full"},
    "all warm": {"keep": 0.5, "epochs": 4, "warmup_epochs": 4},
}
SAME = {"cold", "full"}  # all epochs are as long


def warned(call):
    """Returns the warnings of `call`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_a_step_lies_where_the_epochs_say(name, drop_last):
    pruner = Pruner(N, **PLANS[name])
    steps = [pruner.steps_per_epoch(BATCH, drop_last, epoch) for epoch in range(14)]
    places = [(epoch, step) for epoch, number in enumerate(steps) for step in range(number)]
    found = [pruner.locate_step(step, BATCH, drop_last) for step in range(len(places))]
    assert found == places
    for epoch in range(14):
        total = pruner.total_steps(epoch, BATCH, drop_last)
        assert total == [0, *accumulate(steps)][epoch]
        assert pruner.locate_step(total, BATCH, drop_last) == (epoch, 0)


def test_a_far_step_is_found_at_once():
    pruner = Pruner(N, 0.3)
    assert pruner.locate_step(8 + 3 * 10**15 + 2, BATCH) == (10**15 + 1, 2)


def test_a_step_that_cannot_be_located_is_refused():
    pruner = Pruner(N, 0.1)
    for wrong, error in ((-1, ValueError), (1.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match="step must"):
            pruner.locate_step(wrong, BATCH)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        pruner.locate_step(0, 0)
    with pytest.raises(ValueError, match=r"epoch 1 with drop_last, got 8: the epoch has no step"):
        pruner.locate_step(7, BATCH, drop_last=True)
    with pytest.raises(ValueError, match="schedule the learning rate by epochs"):
        Pruner(N, policy="infobatch").locate_step(8, BATCH)


@pytest.mark.parametrize("name", PLANS)
def test_the_first_len_of_a_loader_warns_once_if_epochs_differ(name):
    pruner = Pruner(N, **PLANS[name])
    loader = DataLoader(torch.arange(N), batch_sampler=pruner.batch_sampler(BATCH))
    found = warned(lambda: len(loader))
    assert len(found) == (name not in {*SAME, "all warm"})
    for one in found:
        assert one.category is UserWarning and one.filename == __file__
        assert "pruner.total_steps(epochs, batch_size)" in str(one.message)
        assert "pruner.locate_step(step, batch_size)" in str(one.message)
    again = copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))
    for one in (pruner, *(again if name != "function" else ())):
        one.set_epoch(0)
        assert not warned(lambda one=one: len(one.batch_sampler(BATCH)))


@pytest.mark.parametrize("policy", ["infobatch", "seta"])
def test_a_policy_that_decides_its_number_is_warned_of(policy):
    pruner = Pruner(N, policy=policy)
    assert len(warned(lambda: [len(pruner.batch_sampler(BATCH)) for _ in range(3)])) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda pruner: pruner.sampler(),
        lambda pruner: DataLoader(torch.arange(N), BATCH, sampler=pruner.sampler()),
        lambda pruner: DeviceLoader(torch.arange(N), pruner=pruner, batch_size=BATCH),
    ],
)
def test_every_loader_of_the_pruner_warns_at_the_callers_line(make):
    (one,) = warned(lambda: len(make(Pruner(N, 0.3))))
    assert one.filename == __file__


def test_who_asked_for_the_total_is_not_warned():
    for asks in (
        lambda pruner: pruner.total_steps(5, BATCH),
        lambda pruner: pruner.locate_step(5, BATCH),
    ):
        pruner = Pruner(N, 0.3)
        asks(pruner)
        assert not warned(lambda pruner=pruner: len(pruner.batch_sampler(BATCH)))


def test_equal_numbers_of_batches_are_not_warned_of():
    pruner = Pruner(N, 50)
    assert not warned(lambda: len(pruner.batch_sampler(20)))
    assert len(warned(lambda: len(pruner.batch_sampler(5)))) == 1


def test_an_iteration_is_silent():
    pruner = Pruner(N, 0.3)
    loader = DataLoader(torch.arange(N), batch_sampler=pruner.batch_sampler(BATCH))
    data = DeviceLoader(torch.arange(N), pruner=pruner, batch_size=BATCH)

    def iterate():
        for epoch in range(3):
            pruner.set_epoch(epoch)
            for one in (pruner.sampler(), pruner.batch_sampler(BATCH), loader, data):
                assert len(list(one)) in (8, 3, 60, 18)  # `list` asks for the length
                assert sum(1 for _ in one)
            pruner.observe(pruner.epoch_order(), torch.rand(len(pruner.epoch_order())))

    assert not warned(iterate)


def test_a_display_is_silent(monkeypatch):
    """What tqdm does, also where it is not installed."""
    bar = types.ModuleType("tqdm.std")
    exec("def tqdm(loader):\n    return len(loader), list(loader)\n", bar.__dict__)
    pruner = Pruner(N, 0.3)
    loader = DataLoader(torch.arange(N), batch_sampler=pruner.batch_sampler(BATCH))
    assert not warned(lambda: bar.tqdm(loader))
    assert len(warned(lambda: len(loader))) == 1
    if importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        pruner = Pruner(N, 0.3)
        loader = DataLoader(torch.arange(N), batch_sampler=pruner.batch_sampler(BATCH))
        assert not warned(lambda: list(tqdm(loader, disable=False, file=sys.stderr)))


def test_an_error_is_repeated():
    sampler = Pruner(N, 0.3).batch_sampler(BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="epochs differ in length"):
                len(sampler)
