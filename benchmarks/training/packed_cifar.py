# SPDX-License-Identifier: Apache-2.0
"""Reads CIFAR-10 from one file of JPEG images."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["NOTE", "read_packed_cifar"]

MAGIC = b"CIFJPG1\n"
NOTE = "images were re-encoded as JPEG: accuracies are slightly below those on the original pixels"


def read_packed_cifar(
    path: Path, *, train: bool, limit: int | None = None
) -> tuple[Tensor, list[int]]:
    """Images uint8 [N, 3, H, W] and labels of one split of a packed CIFAR file, in file order.

    Layout, little endian:

        magic CIFJPG1\\n, u32 prefix length, u32 count, JPEG prefix shared by all images
        u16 payload length [count], u8 label [count], u8 split [count] (0 train, 1 test), payloads

    Raises:
        ValueError: The file has another format, is damaged, or holds no image of the split.
    """
    raw = path.read_bytes()
    if not raw.startswith(MAGIC):
        raise ValueError(
            f"{path} is not a packed CIFAR file: it begins with {raw[:8]!r}, not {MAGIC!r}"
        )
    tables = len(MAGIC) + 8
    if len(raw) < tables:
        raise ValueError(f"{path} is truncated: {len(raw)} bytes, the header alone takes {tables}")
    prefix_length, count = struct.unpack_from("<II", raw, len(MAGIC))
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
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, labels[chosen].tolist()
