# SPDX-License-Identifier: Apache-2.0
"""DeviceLoader: the samplers' batches, gathered where the data is."""

import contextlib
from itertools import islice

import pytest
import torch
from waiting import no_cuda_waiting, no_waiting

from dynprune_cuda import DeviceLoader, Pruner

N = 50


def make(device, **options):
    pruner = Pruner(N, 0.5, "uniform", period=2, seed=3, device=device)
    images = (torch.arange(N * 6, device=device).float() / 6).reshape(N, 2, 3)
    labels = torch.arange(N, device=device) % 7
    options = options or {"batch_size": 8}
    return pruner, images, labels, DeviceLoader(images, labels, pruner=pruner, **options)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 8, 25, 1000])
def test_batches_are_those_of_the_batch_sampler(device, batch_size, drop_last):
    pruner, images, labels, loader = make(device, batch_size=batch_size, drop_last=drop_last)
    for epoch in range(4):
        pruner.set_epoch(epoch)
        expected = list(pruner.batch_sampler(batch_size, drop_last))
        for _ in range(2):  # iterating has no side effect
            batches = list(loader)
            assert [ids.tolist() for _, _, ids in batches] == expected
            assert len(batches) == len(loader) == pruner.steps_per_epoch(batch_size, drop_last)
        for x, y, ids in batches:
            assert x.device == pruner.device and ids.dtype == torch.int64
            assert torch.equal(x, images[ids]) and torch.equal(y, labels[ids])


def test_a_sampler_may_be_given_and_other_tensors_too(device):
    pruner = Pruner(N, 0.5, "uniform", device=device)
    texts = torch.randint(0, 9, (N, 4), dtype=torch.uint8, device=device)
    strided = torch.rand(3, N, device=device).T
    sampler = pruner.batch_sampler(7, drop_last=True)
    loader = DeviceLoader(texts, strided, sampler=sampler)
    assert len(loader) == 7
    for t, s, ids in loader:
        assert t.dtype == torch.uint8 and torch.equal(t, texts[ids])
        assert torch.equal(s, strided[ids])


def test_transforms_run_in_order_on_each_batch(device):
    pruner, images, labels, _ = make(device)
    sizes = []

    def flip(x, y):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return x.flip(2), y

    def scale(x, y):
        return [x * 2, y + 1]

    loader = DeviceLoader(images, labels, pruner=pruner, batch_size=8, transforms=[flip, scale])
    for x, y, ids in loader:
        assert torch.equal(x, images[ids].flip(2) * 2) and torch.equal(y, labels[ids] + 1)
    assert sizes == [8] * 6 + [2]
    single = DeviceLoader(images, pruner=pruner, batch_size=8, transforms=[lambda x: -x])
    x, ids = next(iter(single))
    assert torch.equal(x, -images[ids])
    wrong = DeviceLoader(images, labels, pruner=pruner, batch_size=8, transforms=[lambda x, y: x])
    with pytest.raises(ValueError, match="transforms must return 2 tensors, got 1 from"):
        next(iter(wrong))


def test_an_epoch_left_early_is_whole_the_next_time(device):
    pruner, _, _, loader = make(device)
    whole = list(pruner.batch_sampler(8))
    assert [ids.tolist() for *_, ids in islice(loader, 3)] == whole[:3]
    assert [ids.tolist() for *_, ids in loader] == whole
    iterators = iter(loader), iter(loader)
    pruner.set_epoch(1)  # an iterator keeps its epoch
    assert [ids.tolist() for *_, ids in iterators[0]] == whole
    assert [ids.tolist() for *_, ids in iterators[1]] == whole


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_the_position_counts_what_was_handed_out(device, stop):
    """On a GPU one batch is prepared ahead: it must not be lost by a resume."""
    loader = make(device)[3]
    whole = [ids.tolist() for *_, ids in loader]
    iterator = iter(loader)
    seen = [next(iterator)[-1].tolist() for _ in range(stop)]
    state = loader.state_dict()
    assert state == {"epoch": 0, "ids": sum(map(len, seen))}
    _, _, _, other = make(device)
    other.load_state_dict(state)
    assert seen + [ids.tolist() for *_, ids in other] == whole


def test_an_epoch_asks_the_device_for_nothing(device):
    pruner, _, _, loader = make(device)
    pruner.set_epoch(1)
    pruner.epoch_order()
    losses = torch.rand(N, device=device)
    with no_waiting():
        for _, _, ids in loader:
            pruner.observe(ids, losses[: len(ids)])
    assert pruner.table.count.sum() == 25


@pytest.mark.needs_cuda
def test_an_epoch_on_a_gpu_waits_for_nothing():
    pruner, images, _, loader = make("cuda")
    pruner.set_epoch(1)
    expected = [ids.tolist() for *_, ids in loader]
    seen = []
    with no_cuda_waiting():
        for x, _, ids in loader:
            x.mul_(2)  # training may write into its batch
            seen.append((x, ids))
    assert [ids.tolist() for _, ids in seen] == expected
    assert all(torch.equal(x, images[ids] * 2) for x, ids in seen)


def test_one_batch_is_prepared_ahead_and_both_streams_wait(monkeypatch):
    """The order of stream operations, without a GPU: streams that write down what they are told."""
    log = []

    class Stream:
        def __init__(self, device=None, name="copy"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

        def record_event(self):
            log.append(f"{self.name} records")
            return f"event {sum(line.endswith('records') for line in log)}"

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="training"))
    kept = []
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: kept.append((self, stream.name))
    )
    from dynprune_cuda.data import device_loader

    _, images, labels, loader = make("cpu", batch_size=20)
    order = loader.sampler.source.epoch_order()
    pieces = torch.split(order, 20)
    seen = []
    for batch in device_loader._one_ahead(loader, order, pieces):
        log.append(f"trains on {len(seen) + 1}")
        seen.append(batch)
    assert log == [
        *("copy waits for training", "copy records"),
        *("copy waits for training", "copy records", "training waits for event 1", "trains on 1"),
        *("copy waits for training", "copy records", "training waits for event 2", "trains on 2"),
        *("training waits for event 3", "trains on 3"),
    ]
    assert [ids.tolist() for *_, ids in seen] == [piece.tolist() for piece in pieces]
    used = [id(tensor) for tensor, name in kept if name == "copy"]
    assert used == [id(order), id(images), id(labels)]
    handed = [id(tensor) for tensor, name in kept if name == "training"]
    assert handed == [id(tensor) for batch in seen for tensor in batch]


def test_an_empty_rest_is_no_batch(device):
    loader = make(device, batch_size=60, drop_last=True)[3]
    assert list(loader) == [] and len(loader) == 0
    _, _, _, done = make(device)
    done.load_state_dict({"epoch": 0, "ids": N})
    assert list(done) == []


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        ((torch.zeros(N),), {}, TypeError, "either pruner= and batch_size=, or sampler="),
        ((torch.zeros(N),), {"pruner": True}, TypeError, "batch_size must be an int, got None"),
        ((), {"pruner": True, "batch_size": 4}, TypeError, "at least one, got none"),
        (
            (torch.zeros(N), [1]),
            {"pruner": True, "batch_size": 4},
            TypeError,
            "got list",
        ),
        ((torch.zeros(N - 1),), {"pruner": True, "batch_size": 4}, ValueError, rf"\({N - 1},\)"),
        ((torch.zeros(()),), {"pruner": True, "batch_size": 4}, ValueError, r"got shape \(\)"),
        (
            (torch.zeros(N, device="meta"),),
            {"pruner": True, "batch_size": 4},
            ValueError,
            "meta",
        ),
        ((torch.zeros(N),), {"pruner": True, "batch_size": 0}, ValueError, "batch_size .* got 0"),
        ((torch.zeros(N),), {"sampler": 3}, TypeError, "sampler must be .* got int"),
        (
            (torch.zeros(N),),
            {"pruner": True, "batch_size": 4, "transforms": [3]},
            TypeError,
            "transforms must be callable, got 3",
        ),
    ],
)
def test_bad_arguments_are_named(tensors, options, error, message):
    if options.get("pruner"):
        options = {**options, "pruner": Pruner(N, 0.5)}
    with pytest.raises(error, match=message):
        DeviceLoader(*tensors, **options)
    with pytest.raises(TypeError, match="the sampler has its own"):
        DeviceLoader(torch.zeros(N), sampler=Pruner(N, 0.5).batch_sampler(4), batch_size=4)
