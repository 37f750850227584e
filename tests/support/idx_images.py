# SPDX-License-Identifier: Apache-2.0
"""Tiny files in the format of Fashion-MNIST, of images made up here."""

import gzip
from pathlib import Path

import numpy as np


def write_fashion(folder: Path, train: int = 200, test: int = 50) -> None:
    """Writes four gzipped IDX files, of random images in four classes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, number in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8).tobytes()
        labels = (np.arange(number) % 4).astype(np.uint8).tobytes()
        for name, head, body in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(head) + body))
