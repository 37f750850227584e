# SPDX-License-Identifier: Apache-2.0
"""The data of a setting: images or words as tensors; with wrong labels, or a long tail."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.equal_steps.config import Setting
from benchmarks.equal_steps.words import load_words
from benchmarks.training.image_datasets import load_mnist5k
from benchmarks.training.images import ImageSet, TensorImages
from benchmarks.training.packed_cifar import read_packed_cifar

__all__ = ["Part", "Task", "fashion_folder", "make_task"]

FASHION_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Part:
    """Inputs [N, ...] and labels [N]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """What one run trains and is measured on.

    Attributes:
        train: The training samples.
        clean: Their labels before any were replaced, int64 [N].
        validation: Samples set aside to choose methods by; may be empty.
        test: The test set.
        num_classes: Number of classes.
    """

    train: Part
    clean: Tensor
    validation: Part
    test: Part
    num_classes: int


def make_task(setting: Setting, root: Path, seed: int) -> Task:
    """Draws the samples of a run; the same for all methods of a seed.

    Raises:
        FileNotFoundError: The data are not in `root`.
        ValueError: There are too few samples.
    """
    everything, test = _load(setting.data, str(root), setting.image_size)
    generator = torch.Generator().manual_seed(7000 + seed)
    order = torch.randperm(len(everything.labels), generator=generator)
    aside, rest = order[: setting.validation], order[setting.validation :]
    num_classes = int(everything.labels.max()) + 1
    if setting.imbalance > 1:
        ids = _long_tail(everything.labels, rest, setting, num_classes)
    else:
        ids = rest[: setting.samples] if setting.samples else rest
        if len(ids) < setting.samples:
            raise ValueError(f"samples must be at most {len(rest)}, got {setting.samples}")
    clean = everything.labels[ids]
    wrong = torch.rand(len(ids), generator=generator) < setting.label_noise
    shift = torch.randint(1, num_classes, (len(ids),), generator=generator)
    labels = torch.where(wrong, (clean + shift) % num_classes, clean)
    return Task(
        Part(everything.inputs[ids], labels),
        clean,
        Part(everything.inputs[aside], everything.labels[aside]),
        test,
        num_classes,
    )


def _long_tail(labels: Tensor, order: Tensor, setting: Setting, num_classes: int) -> Tensor:
    """Ids with exponentially falling class sizes; `samples` is the size of the largest class."""
    own, parts = labels[order], []
    for label in range(num_classes):
        size = int(setting.samples * setting.imbalance ** (-label / (num_classes - 1)))
        members = order[own == label][:size]
        if len(members) < size:
            raise ValueError(f"class {label} has {len(members)} samples, {size} are needed")
        parts.append(members)
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _load(name: str, root: str, size: int) -> tuple[Part, Part]:
    """The whole training set and test set."""
    if name == "words":
        return tuple(Part(*part) for part in load_words())  # type: ignore[return-value]
    if name == "cifar10":
        file = Path(root) / "cifar10.bin"
        parts = [read_packed_cifar(file, train=train) for train in (True, False)]
        both = [Part(_resized(images, size), torch.tensor(labels)) for images, labels in parts]
        return both[0], both[1]
    if name == "fashion":
        folder = fashion_folder(Path(root))
        return _idx(folder, "train", size), _idx(folder, "t10k", size)
    if name == "digits":
        digits = load_mnist5k()
        return _part(digits.train, size), _part(digits.test, size)
    raise ValueError(f"data must be cifar10, digits, fashion or words, got {name!r}")


def fashion_folder(root: Path) -> Path:
    """Returns the folder with the gzipped files of Fashion-MNIST.

    Raises:
        FileNotFoundError: They are in none of the usual places.
    """
    places = (root / "fashion_mnist", root / "FashionMNIST" / "raw", FASHION_OF_DEBIAN)
    for folder in places:
        if all((folder / f"{part}-images-idx3-ubyte.gz").is_file() for part in ("train", "t10k")):
            return folder
    raise FileNotFoundError(
        f"Fashion-MNIST is in none of {', '.join(map(str, places))}: install Debian's package "
        "dataset-fashion-mnist, or let torchvision download it"
    )


def _part(images: ImageSet, size: int) -> Part:
    """All images of a set in memory."""
    assert isinstance(images, TensorImages)
    return Part(_resized(images.images, size), torch.tensor(images.labels))


def _resized(images: Tensor, size: int) -> Tensor:
    """Images uint8 [N, C, size, size]; 0 leaves them as they are."""
    if not size:
        return images
    return torch.cat(
        [
            F.interpolate(x.float(), size=size, mode="area").round().byte()
            for x in images.split(1000)
        ]
    )


def _idx(folder: Path, part: str, size: int) -> Part:
    """Grey images uint8 [N, 1, size, size] from two gzipped IDX files."""
    raw = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    images = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).copy().reshape(-1, 1, 28, 28))
    raw = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return Part(
        _resized(images, size),
        torch.from_numpy(np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)),
    )
