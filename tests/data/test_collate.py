# SPDX-License-Identifier: Apache-2.0
"""Ids go past collate functions that know nothing of them, such as those of Mixup and CutMix."""

import collections
import pickle
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, default_collate

from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.data import CollateWithIds

N, BATCH, CLASSES = 33, 8, 3
Pair = collections.namedtuple("Pair", "image label")
IMAGES = torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SAMPLES = {
    "tuple": lambda i: (IMAGES[i], i % CLASSES),
    "tuple of one": lambda i: (IMAGES[i],),
    "tensor": lambda i: IMAGES[i],
    "dict": lambda i: {"image": IMAGES[i], "label": i % CLASSES},
    "mapping": lambda i: UserDict(image=IMAGES[i], label=i % CLASSES),
    "named tuple": lambda i: Pair(IMAGES[i], i % CLASSES),
}
MIXES = ("MixUp", "CutMix", "RandomChoice")


class Samples:
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.make(index)


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_function_gets_the_samples_and_the_batch_gets_the_ids(kind):
    got = []

    def collate(samples):
        got.extend(samples)
        return default_collate(samples)

    plain = Samples(SAMPLES[kind])
    ids = [32, 0, 7]
    batch = CollateWithIds(collate)(IndexedDataset(plain).__getitems__(ids))
    for sample, index in zip(got, ids, strict=True):
        original = plain[index]
        if kind == "tuple of one":
            (original,) = original
        assert type(sample) is type(original)
        if kind in ("dict", "mapping"):
            sample, original = dict(sample), dict(original)
        torch.testing.assert_close(sample, original)
    expected = default_collate([plain[index] for index in ids])
    if kind in ("dict", "mapping"):
        assert batch.keys() == {"image", "label", "sample_id"}
        found, rest = batch["sample_id"], batch["image"]
        expected = expected["image"]
    elif kind == "named tuple":
        (rest, found), expected = (batch[0].image, batch[1]), expected.image
    else:
        *_, found = batch
        rest = batch[0]
        expected = expected if kind == "tensor" else expected[0]
        assert len(batch) == (3 if kind == "tuple" else 2)
    assert torch.equal(rest, expected)
    assert found.dtype == torch.int64 and found.tolist() == ids


def test_what_has_no_ids_or_a_key_of_that_name_is_refused():
    with pytest.raises(TypeError, match="collate must be callable, got int"):
        CollateWithIds(3)
    for sample in (IMAGES[0], (IMAGES[0], torch.tensor(1)), {"image": IMAGES[0]}, (5,), Pair(1, 2)):
        with pytest.raises(TypeError, match=r"without an id: give the DataLoader pruner\.wrap"):
            CollateWithIds(default_collate)([sample])
    samples = IndexedDataset(Samples(SAMPLES["dict"])).__getitems__([1])
    with pytest.raises(ValueError, match="already has the key 'sample_id'"):
        CollateWithIds(lambda samples: {"sample_id": 1})(samples)


@pytest.mark.slow
def test_it_is_sent_to_workers():
    pruner = Pruner(N, 0.5)
    collate = pickle.loads(pickle.dumps(CollateWithIds(default_collate)))
    data = pruner.wrap(Samples(SAMPLES["tuple"]))
    sampler = pruner.batch_sampler(BATCH)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=1)
    pruner.set_epoch(0)
    for (images, labels, ids), expected in zip(loader, sampler, strict=True):
        assert ids.tolist() == expected and torch.equal(images, IMAGES[ids])
        assert torch.equal(labels, ids % CLASSES)


def mixer(name):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    if name == "RandomChoice":
        return v2.RandomChoice([mixer("MixUp"), mixer("CutMix")])
    return getattr(v2, name)(num_classes=CLASSES)


def old_mixup(images, labels):
    """As the reference scripts had before torchvision had transforms of batches: two arguments."""
    lam = torch.rand(())
    soft = F.one_hot(labels, CLASSES).float()
    return images.lerp(images.roll(1, 0), lam), soft.lerp(soft.roll(1, 0), lam)


@pytest.mark.parametrize("name", [*MIXES, "of the script"])
def test_mixed_batches_keep_their_ids_and_are_scored_by_them(name):
    """Three epochs, against the same mixing by hand and the losses of single rows."""
    mix = old_mixup if name == "of the script" else mixer(name)

    def collate_fn(batch):  # of the reference scripts
        return mix(*default_collate(batch))

    pruners = [Pruner(N, 0.4, "ucb", period=1, warmup_epochs=1) for _ in range(2)]
    models = []
    for _ in pruners:
        torch.manual_seed(5)
        models.append(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES)))
    first, second = pruners
    loader = DataLoader(
        first.wrap(Samples(SAMPLES["tuple"])),
        batch_sampler=first.batch_sampler(BATCH),
        collate_fn=CollateWithIds(collate_fn),
    )
    mixed = 0
    for epoch in range(3):
        for pruner in pruners:
            pruner.set_epoch(epoch)
        torch.manual_seed(epoch)
        for images, targets, ids in loader:
            losses = F.cross_entropy(models[0](images), targets, reduction="none")
            first.observe(ids, losses.detach())
            first.rescale(ids, losses).mean().backward()
            mixed += int((targets.max(1).values < 0.999).any())
        torch.manual_seed(epoch)
        torch.empty((), dtype=torch.int64).random_()  # what a DataLoader draws
        for batch in second.batch_sampler(BATCH):
            images, targets = mix(IMAGES[batch], torch.tensor(batch) % CLASSES)
            logits = models[1](images)
            for row, sample in enumerate(batch):
                loss = F.cross_entropy(logits[row].double(), targets[row].double())
                second.observe(torch.tensor([sample]), loss.detach()[None].float())
            F.cross_entropy(logits, targets).backward()
        for model in models:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    assert mixed > 3 and torch.equal(first.times_selected, second.times_selected)
    torch.testing.assert_close(first.table.mean, second.table.mean)
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize("score", ["loss", "el2n"])
@pytest.mark.parametrize("name", MIXES)
def test_mixed_batches_go_through_the_fused_loss(name, score):
    """torchvision's probabilities as targets of `Pruner.cross_entropy`, in float64 by torch."""
    mix = mixer(name)
    pruner = Pruner(N, 0.4, "ucb", warmup_epochs=2, score=score)
    loader = DataLoader(
        pruner.wrap(Samples(SAMPLES["tuple"])),
        batch_sampler=pruner.batch_sampler(BATCH),
        collate_fn=CollateWithIds(lambda batch: mix(*default_collate(batch))),
    )
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES))
    pruner.set_epoch(0)
    mixed, expected = 0, torch.full((N,), torch.nan)
    for images, targets, ids in loader:
        logits = model(images)
        logits.retain_grad()
        loss = pruner.cross_entropy(logits, targets, ids)
        loss.backward()
        exact = logits.detach().double().requires_grad_()
        losses = F.cross_entropy(exact, targets.double(), reduction="none")
        losses.mean().backward()
        torch.testing.assert_close(loss.double(), losses.mean(), rtol=1e-5, atol=0)
        torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)
        el2n = (exact.softmax(1) - targets).norm(dim=1)
        expected[ids] = (losses if score == "loss" else el2n).detach().float()
        mixed += int((targets.max(1).values < 0.999).any())
    assert mixed > 1 and pruner.table.count.tolist() == [1] * N
    torch.testing.assert_close(pruner.table.mean, expected, rtol=1e-5, atol=1e-6)
