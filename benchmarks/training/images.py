# SPDX-License-Identifier: Apache-2.0
"""Image classification tasks: uint8 images [C, H, W] with labels, and their preparation in batches.

Normalisation and augmentation work on whole batches on the model's device (`Prepare`). A small set
in memory therefore costs one indexing operation per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder

__all__ = ["ImageSet", "ImageTask", "Prepare", "TensorImages"]


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
    """A training set and a test set, with what models and figures need to know of them."""

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    shape: tuple[int, int, int]  # channels, height, width
    mean: tuple[float, ...]  # of each channel, pixels in [0, 1]
    std: tuple[float, ...]
    crop_padding: int = 0  # pixels around the image before a random crop; 0: no augmentation
    flip: bool = False
    note: str = ""


class Prepare:
    """Normalises a uint8 batch into float32.

    `augment=True` also crops and flips each image at random, by the generator of its device.
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
        # The slice between the index tensors yields a channels_last batch without a copy.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
