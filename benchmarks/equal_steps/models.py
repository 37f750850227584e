# SPDX-License-Identifier: Apache-2.0
"""The networks of the experiments that other comparisons do not use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.equal_steps.words import ALPHABET
from benchmarks.training.image_models import build_model

__all__ = ["make_model"]


def make_model(name: str, *, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """An untrained network: "conv3-WIDTH", "letters-WIDTH", or one of `build_model`."""
    kind, _, width = name.partition("-")
    if kind == "conv3":
        return conv3(shape[0], num_classes, int(width))
    if kind == "letters":
        return Letters(num_classes, int(width))
    return build_model(name, shape=(shape[0], shape[1], shape[2]), num_classes=num_classes)


def conv3(in_channels: int, num_classes: int, width: int) -> nn.Module:
    """Three convolutions of growing width, two of them followed by pooling."""

    def convolution(inputs: int, outputs: int, *, pooled: bool) -> list[nn.Module]:
        pool: list[nn.Module] = [nn.MaxPool2d(2)] if pooled else []
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [layer, *pool, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *convolution(in_channels, width, pooled=True),
        *convolution(width, 2 * width, pooled=True),
        *convolution(2 * width, 4 * width, pooled=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


class Letters(nn.Module):
    """Convolutions over the letters of a word, and the greatest value of each channel."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ALPHABET, width, padding_idx=0)
        self.layers = nn.Sequential(
            nn.Conv1d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            nn.Conv1d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(2 * width, num_classes),
        )

    def forward(self, letters: Tensor) -> Tensor:
        x: Tensor = self.embedding(letters).transpose(1, 2)
        result: Tensor = self.layers(x)
        return result


def number_of_parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(torch.numel(parameter) for parameter in model.parameters())
