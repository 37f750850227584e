# SPDX-License-Identifier: Apache-2.0
"""Tiny files in the format of `read_packed_cifar`, of images made up here."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image


def jpegs(count: int) -> list[bytes]:
    """Encodes different 8x8 images with the same tables, so that they share a prefix."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(count):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
        encoded.append(buffer.getvalue())
    return encoded


def shared_prefix(images: list[bytes]) -> bytes:
    """Everything before the first byte that differs."""
    length = next(i for i, column in enumerate(zip(*images, strict=False)) if len(set(column)) > 1)
    return images[0][:length]


def pack(images: list[bytes], labels: list[int], splits: list[int]) -> bytes:
    prefix = shared_prefix(images)
    payloads = [image[len(prefix) :] for image in images]
    return b"".join(
        [
            b"CIFJPG1\n",
            struct.pack("<II", len(prefix), len(images)),
            prefix,
            struct.pack(f"<{len(images)}H", *map(len, payloads)),
            bytes(labels),
            bytes(splits),
            *payloads,
        ]
    )
