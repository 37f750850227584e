# SPDX-License-Identifier: Apache-2.0
"""Small networks for the comparisons, and torchvision's by name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

__all__ = ["SMALL_MODELS", "build_model"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def cnn(in_channels: int, num_classes: int) -> nn.Module:
    """Two convolutions and a linear layer: 29,000 parameters for grey images and ten classes."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 5, padding=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(7),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, num_classes),
    )


def resnet8(in_channels: int, num_classes: int, width: int = 16) -> nn.Module:
    """The smallest residual network of the CIFAR family: 78,000 parameters at width 16."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width, width, stride=1),
        ResidualBlock(width, 2 * width, stride=2),
        ResidualBlock(2 * width, 4 * width, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def resnet10(in_channels: int, num_classes: int, width: int = 16) -> nn.Module:
    """resnet8 with one stage more and a stem that halves the image: 309,000 parameters.

    On CPUs without matrix instructions it trains three times as fast in float32 as resnet8.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width, width, stride=1),
        ResidualBlock(width, 2 * width, stride=2),
        ResidualBlock(2 * width, 4 * width, stride=2),
        ResidualBlock(4 * width, 8 * width, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


class Added(nn.Module):
    """The input plus the output of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


def resnet9(in_channels: int, num_classes: int, width: int = 64) -> nn.Module:
    """A fast network for CIFAR on a GPU, like the winners of DAWNBench: 6.6 million parameters."""

    def convolution(inputs: int, outputs: int, *more: nn.Module) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(), *more)

    def halved(inputs: int, outputs: int) -> nn.Module:
        return convolution(inputs, outputs, nn.MaxPool2d(2))

    def residual(channels: int) -> nn.Module:
        pair = convolution(channels, channels), convolution(channels, channels)
        return Added(nn.Sequential(*pair))

    return nn.Sequential(
        convolution(in_channels, width),
        halved(width, 2 * width),
        residual(2 * width),
        halved(2 * width, 4 * width),
        halved(4 * width, 8 * width),
        residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


SMALL_MODELS = {"cnn": cnn, "resnet8": resnet8, "resnet9": resnet9, "resnet10": resnet10}


def build_model(name: str, *, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """One of SMALL_MODELS, or an untrained torchvision classifier (three input channels)."""
    channels, height, _ = shape
    if name in SMALL_MODELS:
        return SMALL_MODELS[name](channels, num_classes)
    if name not in models.list_models(module=models):
        raise ValueError(
            f"model must be {', '.join(SMALL_MODELS)} or a torchvision classifier, got {name!r}"
        )
    if channels != 3:
        raise ValueError(f"model {name} takes images with 3 channels, these have {channels}")
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    if isinstance(model, models.ResNet) and height <= 64:
        # The usual stem for small images: ImageNet's reduces 32x32 to 8x8 before the first block.
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
