# SPDX-License-Identifier: Apache-2.0
"""A loader that does not follow the pruner is noticed when the next epoch begins, and warned of."""

import copy
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from waiting import no_waiting

from dynprune_cuda import IndexedDataset, Pruner, ScoreTable
from dynprune_cuda._epochs import strays
from dynprune_cuda.distributed import Shard

N, BATCH = 60, 8
SHARDINGS = ["replicate", "shard"]
DATA = IndexedDataset(TensorDataset(torch.randn(N, 5), torch.arange(N) % 3))


def train(pruner, loader, epochs, device="cpu"):
    """Returns the texts of the warnings of each epoch's `set_epoch`."""
    torch.manual_seed(1)
    model = torch.nn.Linear(5, 3).to(device)
    texts = []
    for epoch in epochs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pruner.set_epoch(epoch)
        texts.append([str(warning.message) for warning in caught])
        for inputs, labels, ids in loader:
            pruner.cross_entropy(model(inputs.to(device)), labels.to(device), ids).backward()
    return texts


def plain_loader():
    return DataLoader(DATA, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("policy", ["ucb", "uniform", "random_static", "infobatch"])
def test_a_loader_without_the_sampler_is_warned_of_once(policy, sharding, device):
    if (policy, sharding) == ("infobatch", "shard"):
        pytest.skip("refused")
    keep = None if policy == "infobatch" else 0.3
    pruner = Pruner(N, keep, policy, sharding=sharding, period=2, device=device)
    texts = train(pruner, plain_loader(), range(6), device)
    assert [len(found) for found in texts] == [0, 0, 1, 0, 0, 0]
    (text,) = texts[2]
    outside = N - pruner.num_selected if policy != "infobatch" else int(text.split()[2])
    assert text.startswith(
        f"at least {outside} visits in epoch 1 were of samples outside its subset"
    )
    assert "DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(" in text


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("policy", ["ucb", "random_static", "full"])
@pytest.mark.parametrize("period", [1, 3])
def test_a_loader_with_the_sampler_is_not_warned_of(policy, sharding, period, device):
    keep = None if policy == "full" else 0.3
    pruner = Pruner(
        N, keep, policy, sharding=sharding, period=period, epochs=8, anneal_epochs=1, device=device
    )
    loader = DataLoader(DATA, batch_sampler=pruner.batch_sampler(BATCH))
    assert train(pruner, loader, range(8), device) == [[]] * 8


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_values_that_are_not_finite_are_visits(sharding):
    pruner = Pruner(N, 0.5, "uniform", warmup_epochs=0, sharding=sharding)
    pruner.set_epoch(0)
    pruner.observe(torch.arange(N), torch.full((N,), float("nan")))
    with pytest.warns(RuntimeWarning, match=r"^at least 30 visits in epoch 0 "):
        pruner.set_epoch(1)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_where_the_warning_is_an_error_nothing_changes(sharding):
    pruner = Pruner(N, 0.5, "ucb", warmup_epochs=0, period=1, sharding=sharding)
    pruner.set_epoch(0)
    pruner.observe(torch.arange(N), torch.rand(N))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # it is not forgotten either
            with pytest.raises(RuntimeWarning, match="outside its subset"):
                pruner.set_epoch(1)
            assert pruner.epoch == 0 and pruner.num_selections == 1
    with pytest.warns(RuntimeWarning, match="outside its subset"):
        pruner.set_epoch(1)
    pruner.observe(torch.arange(N), torch.rand(N))
    pruner.set_epoch(2)  # said once


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_resumed_epoch_is_watched(sharding):
    pruner = Pruner(N, 0.5, "uniform", sharding=sharding)
    pruner.set_epoch(1)
    resumed = Pruner(N, 0.5, "uniform", sharding=sharding)
    resumed.load_state_dict(pruner.state_dict())
    outside = torch.ones(N, dtype=torch.bool).index_fill_(0, resumed.selected, False)
    again = copy.deepcopy(resumed)
    resumed.observe(resumed.selected, torch.rand(30))
    resumed.set_epoch(2)
    again.observe(outside.nonzero().flatten()[:7], torch.rand(7))
    with pytest.warns(RuntimeWarning, match=r"^at least 7 visits in epoch 1 "):
        again.set_epoch(2)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_an_epoch_that_iteration_began_is_watched(sharding):
    pruner = Pruner(N, 0.5, "uniform", warmup_epochs=0, sharding=sharding)
    pruner.observe(pruner.epoch_order(), torch.rand(30))
    pruner.set_epoch(1)
    pruner = Pruner(N, 0.5, "uniform", warmup_epochs=0, sharding=sharding)
    pruner.epoch_order()
    pruner.observe(torch.arange(N), torch.rand(N))
    with pytest.warns(RuntimeWarning, match=r"^at least 30 visits in epoch 0 "):
        pruner.set_epoch(1)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_visits_before_the_first_epoch_are_no_strays(sharding):
    pruner = Pruner(N, 0.5, "uniform", warmup_epochs=0, sharding=sharding)
    pruner.observe(torch.arange(N), torch.rand(N))
    pruner.epoch_order()
    pruner.set_epoch(1)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_rescored_samples_are_no_strays(sharding):
    pruner = Pruner(N, 0.5, "uniform", sharding=sharding)
    model = torch.nn.Linear(5, 3)
    loader = DataLoader(DATA, batch_sampler=pruner.unselected_sampler(BATCH))
    for epoch in (1, 2):
        pruner.set_epoch(epoch)
        pruner.rescore(model, loader)
    pruner.set_epoch(3)
    pruner.observe(torch.arange(N), torch.rand(N))  # in another epoch, this is noticed
    with pytest.warns(RuntimeWarning, match=r"^at least 30 visits in epoch 3 "):
        pruner.set_epoch(4)


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("rank", range(3))
def test_visits_are_counted_without_waiting(device, layout, rank):
    shard = Shard(N, rank, 3, layout)
    table = ScoreTable(len(shard), device=device)
    for value in (1.0, float("nan"), 2.0):
        table.update(torch.arange(len(shard)), torch.full((len(shard),), value))
    for selected in (torch.arange(0), torch.tensor([0, 3, 21, 22, 23, 40, 58]), torch.arange(N)):
        own = selected[shard.owner_of(selected) == rank].to(device)
        with no_waiting():
            number = strays.visits_outside(table, own, shard)
        assert int(number) == 3 * (len(shard) - len(own))


def test_of_a_large_table_a_part_is_looked_at(monkeypatch, device):
    monkeypatch.setattr(strays, "_ROWS", 16)
    pruner = Pruner(N, 0.3, "uniform", device=device)
    texts = train(pruner, plain_loader(), range(3), device)
    assert [len(found) for found in texts] == [0, 0, 1]
    number = int(texts[2][0].split()[2])
    assert 5 <= number <= 15
    assert number == sum(not pruner.is_selected(torch.tensor(row)) for row in range(0, N, 4))
