# SPDX-License-Identifier: Apache-2.0
"""Batches of like lengths against plain Python: the batches, their order, steps on all ranks."""

import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from reference import PERMUTATION, permuted
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner, distributed
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.data import BucketBatchSampler, EpochBatchSampler
from dynprune_cuda.integrations.batches import BatchCounter

N = 200
LENGTHS = [1 + (37 * i * i + 11 * i) % 61 for i in range(N)]  # in 1 .. 61
pytestmark = pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning")


def make(keep=0.6, seed=7, **more):
    return Pruner(N, keep, "uniform", seed=seed, **more)


def windows_of(order, rows):
    """Pieces of the random order, each sorted by length; equal lengths stay as they come."""
    pieces = [order[start : start + rows] for start in range(0, len(order), rows)]
    return [sorted(piece, key=lambda i: LENGTHS[i]) for piece in pieces]


def shuffled(batches, number, pruner):
    seed = derive_seed(pruner.seed, "buckets", pruner.epoch)
    first = [batches[place] for place in permuted(number, number, seed, PERMUTATION).tolist()]
    return first + batches[number:]


def expected(pruner, batch_size, drop_last, window):
    order = pruner.epoch_order().tolist()[: pruner.share_length(drop_last)]
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
    batches = []
    for ids in windows_of(order, window * batch_size):
        batches += [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    return shuffled(batches, len(order) // batch_size, pruner)


def by_tokens(order, batch_size, max_tokens, window):
    """Greedy, id by id, in rising length."""
    batches = []
    for ids in windows_of(order, window * batch_size):
        batch = []
        for i in ids:
            if batch and (len(batch) == batch_size or LENGTHS[i] * (len(batch) + 1) > max_tokens):
                batches.append(batch)
                batch = []
            batch = [*batch, i]
        batches.append(batch)
    return batches


def tokens(batch):
    return len(batch) * max(LENGTHS[i] for i in batch)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("batch_size", "window"), [(8, 3), (8, 100), (7, 1), (1, 4), (500, 2)])
def test_batches_are_those_of_plain_python(device, batch_size, window, drop_last):
    pruner = make(device=device)
    sampler = pruner.batch_sampler(batch_size, drop_last, lengths=LENGTHS, window=window)
    assert isinstance(sampler, BucketBatchSampler) and isinstance(sampler, EpochBatchSampler)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        batches = list(sampler)
        assert batches == expected(pruner, batch_size, drop_last, window)
        assert len(sampler) == len(batches) == pruner.steps_per_epoch(batch_size, drop_last)
        assert list(sampler) == batches
        if not drop_last:
            assert sorted(itertools.chain(*batches)) == pruner.selected.tolist()


@pytest.mark.parametrize(("batch_size", "window"), [(16, 2), (16, 100), (3, 5), (200, 1)])
@pytest.mark.parametrize("max_tokens", [61, 100, 400])
def test_token_budgets_are_kept(device, batch_size, window, max_tokens):
    pruner = make(device=device)
    options = {"lengths": torch.tensor(LENGTHS), "max_tokens": max_tokens, "window": window}
    sampler = pruner.batch_sampler(batch_size, **options)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        batches = list(sampler)
        plain = by_tokens(pruner.epoch_order().tolist(), batch_size, max_tokens, window)
        assert batches == shuffled(plain, len(plain), pruner)
        assert len(sampler) == len(batches)
        assert all(tokens(batch) <= max_tokens for batch in batches)
        assert max(map(len, batches)) <= batch_size


def test_there_is_less_padding():
    pruner = make()
    pruner.set_epoch(1)
    real = sum(LENGTHS[i] for i in pruner.selected.tolist())
    plain = sum(map(tokens, pruner.batch_sampler(10)))
    some = sum(map(tokens, pruner.batch_sampler(10, lengths=LENGTHS, window=3)))
    all_at_once = sum(map(tokens, pruner.batch_sampler(10, lengths=LENGTHS)))
    assert real < all_at_once < some < plain
    assert all_at_once < 1.2 * real and plain > 1.5 * real


def test_epochs_and_seeds_have_other_orders():
    orders = []
    for seed in (7, 8):
        pruner = make(keep=1.0, seed=seed)
        sampler = pruner.batch_sampler(8, lengths=[5] * N)
        for epoch in range(2):
            pruner.set_epoch(epoch)
            orders.append(list(sampler))
    assert all(a != b for a, b in itertools.combinations(orders, 2))


@pytest.mark.parametrize("max_tokens", [None, 150])
def test_a_position_resumes(max_tokens):
    pruner = make()
    options = {"lengths": LENGTHS, "max_tokens": max_tokens, "window": 4}
    pruner.set_epoch(1)
    sampler = pruner.batch_sampler(8, **options)
    whole, iterator = list(sampler), iter(sampler)
    for done in range(len(whole)):
        state = sampler.state_dict()
        assert state["ids"] == sum(map(len, whole[:done]))
        assert sampler.ids_after(done) == state["ids"]
        assert sampler.batches_before(state["ids"]) == done
        resumed = pickle.loads(pickle.dumps(pruner)).batch_sampler(8, **options)
        resumed.load_state_dict(state)
        assert list(resumed) == whole[done:]
        assert next(iterator) == whole[done]
    assert sampler.batches_before(whole_ids := len(pruner.selected)) == len(whole)
    assert sampler.ids_after(len(whole)) == whole_ids and sampler.batches_before(1) == 1
    resumed.load_state_dict({"epoch": 1, "ids": len(whole[0]) + 1})  # inside a batch
    assert list(resumed) == [part for part in (whole[1][1:], *whole[2:]) if part]
    resumed.load_state_dict({"epoch": 1, "ids": N})
    with pytest.raises(ValueError, match="ids must be at most 120"):
        iter(resumed)
    pruner.set_epoch(2)
    copied = pickle.loads(pickle.dumps(sampler))
    assert list(copied) == list(sampler) != whole


def test_counted_batches_resume():
    """As the integrations save: they count batches, which have no common size here."""
    pruner = make()
    options = {"lengths": LENGTHS, "max_tokens": 150}
    sampler, counter = pruner.batch_sampler(8, **options), BatchCounter(pruner)
    counter.begin(1)
    whole = list(sampler)
    for _ in range(9):
        counter.add()
    state = counter.state_dict(sampler)
    other = make()
    resumed, other_counter = other.batch_sampler(8, **options), BatchCounter(other)
    other_counter.load_state_dict(state, resumed)
    assert other_counter.count == 9 and list(resumed) == whole[9:]


@pytest.mark.slow
def test_the_state_of_a_loader_with_workers_resumes():
    """It has asked for more batches than it handed out, and they have no common size."""
    pruner = make()
    options = {"lengths": LENGTHS, "max_tokens": 150}
    sampler = pruner.batch_sampler(8, **options)
    pruner.set_epoch(1)
    whole = list(sampler)
    data = pruner.wrap(TensorDataset(torch.arange(float(N))))
    for first in (0, 3):
        sampler.load_state_dict({"epoch": 1, "ids": sampler.ids_after(first)})
        loader = DataLoader(data, batch_sampler=sampler, num_workers=2)
        done = first
        for _ in loader:
            done += 1
            state = sampler.state_dict()
            assert state["ids"] == sampler.ids_after(done)
        assert done == len(whole)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int32"])
def test_lengths_may_have_any_integer_dtype(dtype):
    pruner = make()
    pruner.set_epoch(1)
    wanted = list(pruner.batch_sampler(8, lengths=LENGTHS))
    lengths = np.asarray(LENGTHS, dtype=dtype)
    assert list(pruner.batch_sampler(8, lengths=lengths)) == wanted


def test_loaders_take_it():
    pruner = make()
    sampler = pruner.batch_sampler(8, lengths=LENGTHS)
    data = TensorDataset(torch.arange(float(N)))
    loader = DataLoader(IndexedDataset(data), batch_sampler=sampler)
    pruner.set_epoch(1)
    assert [ids.tolist() for _, ids in loader] == list(sampler)
    with pytest.raises(TypeError, match="sampler must have no lengths="):
        DeviceLoader(*data.tensors, sampler=sampler)


def test_a_resized_pruner_needs_new_lengths():
    pruner = make()
    sampler = pruner.batch_sampler(8, lengths=LENGTHS)
    pruner.resize(N - 20)
    with pytest.raises(ValueError, match="lengths must have 180 entries, one per sample, got 200"):
        iter(sampler)
    sampler = pruner.batch_sampler(8, lengths=LENGTHS[: N - 20])
    assert sorted(itertools.chain(*sampler)) == list(range(N - 20))


@pytest.fixture
def several(monkeypatch):
    """Makes the pruners of `size` ranks in this process; with equal scores, nothing is sent."""
    for name in ("check_device", "check_settings"):
        monkeypatch.setattr(distributed.Ranks, name, lambda *_: None)
    monkeypatch.setattr(distributed.Ranks, "buffer_device", lambda _, wanted: torch.device("cpu"))

    def agree(ranks, what, device, prepare, vote=False):
        prepare()
        return vote

    monkeypatch.setattr(distributed.Ranks, "agree", agree)
    monkeypatch.setattr(dist, "all_reduce", lambda *_: None)

    def pruners(size, **more):
        groups = [distributed.Ranks(None, rank, size) for rank in range(size)]
        return [make(process_group=group, **more) for group in groups]

    return pruners


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 61, 130])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_ranks_have_equal_steps(several, size, max_tokens, drop_last):
    pruners = several(size)
    options = {"lengths": LENGTHS, "max_tokens": max_tokens, "window": 3}
    samplers = [pruner.batch_sampler(8, drop_last, **options) for pruner in pruners]
    alone = make(process_group=False)
    unequal = 0
    for epoch in range(4):
        for pruner in (*pruners, alone):
            pruner.set_epoch(epoch)
        batches = [list(sampler) for sampler in samplers]
        steps = {len(sampler) for sampler in samplers}
        assert steps == {len(of_rank) for of_rank in batches} and len(steps) == 1
        if max_tokens is None:
            assert batches == [expected(pruner, 8, drop_last, 3) for pruner in pruners]
            continue
        shares = [p.epoch_order().tolist()[: p.share_length(drop_last)] for p in pruners]
        plain = [len(by_tokens(share, 8, max_tokens, 3)) for share in shares]
        assert steps == {max(plain)}
        unequal += len(set(plain)) > 1
        for of_rank, share in zip(batches, shares, strict=True):
            assert sorted(itertools.chain(*of_rank)) == sorted(share)
            assert all(tokens(batch) <= max_tokens and len(batch) <= 8 for batch in of_rank)
        assert pruners[0].whole_order().equal(alone.epoch_order())
    assert unequal or max_tokens is None  # else nothing was halved


def test_steps_of_ranks_have_like_lengths(several):
    pruners = several(2, keep=1.0)
    first, second = (list(p.batch_sampler(10, lengths=LENGTHS, max_tokens=400)) for p in pruners)
    apart = [abs(tokens(a) - tokens(b)) for a, b in zip(first, second, strict=True)]
    others = second[1:] + second[:1]
    shifted = [abs(tokens(a) - tokens(b)) for a, b in zip(first, others, strict=True)]
    assert sum(apart) < 0.5 * sum(shifted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": LENGTHS[:-1]}, ValueError, r"lengths must have shape \(200,\)"),
        ({"lengths": [1.5] * N}, ValueError, "lengths must have an integer dtype"),
        ({"lengths": [-1] * N}, ValueError, "lengths must be at least 0 and below 2\\*\\*63"),
        ({"lengths": "long"}, TypeError, "lengths must be a 1-D sequence of ints"),
        ({"lengths": LENGTHS, "window": 0}, ValueError, "window must be at least 1"),
        ({"lengths": LENGTHS, "max_tokens": 60}, ValueError, "at least the greatest length, 61"),
        ({"lengths": LENGTHS, "max_tokens": 61.5}, TypeError, "max_tokens must be an int"),
        ({"max_tokens": 100}, ValueError, "max_tokens=100 needs lengths="),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        make().batch_sampler(8, **options)


def test_sharded_scores_take_lengths_alone(several):
    (pruner, _) = several(2, sharding="shard")
    assert len(pruner.batch_sampler(8, lengths=LENGTHS)) == 13
    with pytest.raises(ValueError, match="max_tokens needs sharding='replicate' with 2 processes"):
        pruner.batch_sampler(8, lengths=LENGTHS, max_tokens=99)
    with pytest.raises(RuntimeError, match="whole_order needs sharding='replicate'"):
        pruner.whole_order()
    one = make(sharding="shard")
    assert one.whole_order().equal(one.epoch_order())
    assert len(list(one.batch_sampler(8, lengths=LENGTHS, max_tokens=99)))
