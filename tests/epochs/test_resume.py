# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped anywhere and resumed goes on bit for bit."""

import copy
import dataclasses
import pickle
import random
from itertools import islice

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from runs import (
    BATCH,
    EPOCHS,
    MAKERS,
    N,
    assert_same_state,
    first_batches,
    save,
    tilts,
    train,
    value,
)
from torch.utils.data import DataLoader

from dynprune_cuda import IndexedDataset

pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_goes_on_bit_for_bit_from_any_step(device, name):
    whole = MAKERS[name](device)
    expected = train(whole, whole.batch_sampler(BATCH))
    assert len(expected) > 2 * EPOCHS
    for stop in range(1, len(expected), 3):
        first = MAKERS[name](device)
        sampler = first.batch_sampler(BATCH)
        assert train(first, sampler, stop) == expected[:stop]
        state, position = save(first, sampler)
        second = MAKERS[name](device)
        run = second._run
        run.state = dataclasses.replace(run.state, seed=99)  # the saved one wins
        second.load_state_dict(state)
        resumed = second.batch_sampler(BATCH)
        resumed.load_state_dict(position)
        assert_same_state(first, second)
        losses = torch.linspace(1, 2, N, device=second.device)
        everything = torch.arange(N, device=second.device)
        factors = [pruner.rescale(everything, losses) for pruner in (first, second)]
        assert torch.equal(*factors)
        assert train(second, resumed) == expected[stop:], stop
        assert_same_state(second, whole)


def test_the_scores_let_adaptive_mix_and_follow(device):
    found = tilts(MAKERS["adaptive"](device), EPOCHS, BATCH)
    assert 1 in found and any(0 < tilt < 1 for tilt in found)


def test_a_run_goes_on_on_another_device(device):
    whole = MAKERS["ucb"]("cpu")
    expected = train(whole, whole.batch_sampler(BATCH))
    for stop in (5, 17):
        first = MAKERS["ucb"]("cpu")
        sampler = first.batch_sampler(BATCH)
        train(first, sampler, stop)
        state, position = save(first, sampler)
        second = MAKERS["ucb"](device)
        second.load_state_dict(state)
        resumed = second.batch_sampler(BATCH)
        resumed.load_state_dict(position)
        assert second.table.device.type == torch.device(device).type
        assert train(second, resumed) == expected[stop:]


def test_state_dicts_are_snapshots(device):
    pruner = MAKERS["ucb"](device)
    train(pruner, pruner.batch_sampler(BATCH), 12)
    before, state = copy.deepcopy(pruner), pruner.state_dict()
    rest = train(pruner, pruner.batch_sampler(BATCH), 9)
    pruner.load_state_dict(state)
    assert_same_state(pruner, before)
    assert train(pruner, pruner.batch_sampler(BATCH), 9) == rest
    pruner.load_state_dict(state)  # the state was not touched by training on
    assert_same_state(pruner, before)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["ucb", "infobatch", "keep_list"])
def test_distributed_checkpoint_saves_and_loads(device, tmp_path, name):
    whole = MAKERS[name](device)
    expected = train(whole, whole.batch_sampler(BATCH))
    stop = 2 * len(expected) // 3
    first = MAKERS[name](device)
    sampler = first.batch_sampler(BATCH)
    train(first, sampler, stop)
    dcp.save({"pruner": first, "sampler": sampler}, checkpoint_id=tmp_path)
    second = MAKERS[name](device)
    resumed = second.batch_sampler(BATCH)
    dcp.load({"pruner": second, "sampler": resumed}, checkpoint_id=tmp_path)
    assert_same_state(first, second)
    assert train(second, resumed) == expected[stop:]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "keep_function"])
def test_copies_in_mid_epoch_go_on_alike(device, clone, name):
    pruner = MAKERS[name](device)
    sampler = pruner.batch_sampler(BATCH)
    train(pruner, sampler, 13)
    position = sampler.state_dict()
    other, its_sampler = clone((pruner, sampler))
    assert its_sampler.source is other
    its_sampler.load_state_dict(position)
    sampler.load_state_dict(position)
    assert_same_state(pruner, other)
    assert train(other, its_sampler) == train(pruner, sampler)
    assert_same_state(pruner, other)


@pytest.mark.slow
def test_a_pruner_reaches_a_spawned_process(tmp_path):
    pruner = MAKERS["groups"]("cpu")
    sampler = pruner.batch_sampler(BATCH)
    train(pruner, sampler, 13)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=first_batches, args=(pruner, queue))
    process.start()
    theirs = queue.get()
    process.join()
    assert process.exitcode == 0 and theirs == list(islice(pruner.batch_sampler(BATCH), 2))


@pytest.mark.parametrize("name", MAKERS)
def test_saving_and_loading_leave_the_global_generators_alone(device, name):
    def states():
        return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]

    before = states()
    pruner = MAKERS[name](device)
    sampler = pruner.batch_sampler(BATCH)
    train(pruner, sampler, 14)
    position, state = sampler.state_dict(), pruner.state_dict()
    other = MAKERS[name](device)
    other.load_state_dict(state)
    resumed = other.batch_sampler(BATCH)
    resumed.load_state_dict(position)
    train(other, resumed)
    assert states() == before


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batched", [True, False])
def test_a_stateful_loader_goes_on_where_training_stopped(num_workers, batched):
    """With workers, torchdata's loader has asked for more batches than were trained on."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        pruner = MAKERS["ucb"]("cpu")
        how = (
            {"batch_sampler": pruner.batch_sampler(BATCH)}
            if batched
            else {"sampler": pruner.sampler(), "batch_size": BATCH}
        )
        dataset = IndexedDataset(torch.arange(N))
        return pruner, stateful.StatefulDataLoader(dataset, num_workers=num_workers, **how)

    def go_on(pruner, loader, stop=None):
        seen = []
        for epoch in range(pruner.epoch, 5):
            pruner.set_epoch(epoch)
            for _, ids in loader:
                pruner.observe(ids, value(epoch, ids))
                seen.append((epoch, ids.tolist()))
                if len(seen) == stop:
                    return seen
        return seen

    expected = go_on(*make())
    for stop in (3, 8, 13):
        pruner, loader = make()
        assert go_on(pruner, loader, stop) == expected[:stop]
        state, position = save(pruner, loader)
        second, resumed = make()
        second.load_state_dict(state)
        resumed.load_state_dict(position)
        assert go_on(second, resumed) == expected[stop:], stop


@pytest.mark.slow
def test_a_loader_with_workers_can_be_told_where_it_was():
    """Without torchdata: the number of ids that were trained on is all that has to be kept."""
    pruner = MAKERS["uniform"]("cpu")
    sampler = pruner.batch_sampler(BATCH)
    loader = DataLoader(IndexedDataset(torch.arange(N)), batch_sampler=sampler, num_workers=2)
    whole = [ids.tolist() for _, ids in loader]
    assert [ids.tolist() for _, ids in islice(loader, 2)] == whole[:2]
    # Workers asked for more, ahead of the training; what left the loader counts.
    assert sampler.state_dict()["ids"] == 2 * BATCH
    sampler.load_state_dict({"epoch": pruner.epoch, "ids": 2 * BATCH})
    assert [ids.tolist() for _, ids in loader] == whole[2:]
