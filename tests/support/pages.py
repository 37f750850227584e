# SPDX-License-Identifier: Apache-2.0
"""The Python of README and documentation pages: its blocks, and what a reader has before them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

_FENCE = re.compile(
    r"(<!-- not run: [^\n]+ -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A Python block of a page."""

    code: str
    line: int
    is_run: bool


def python_blocks(page: Path) -> list[Block]:
    """The blocks of a page; one below `<!-- not run: reason -->` is only compiled."""
    text = page.read_text()
    return [
        Block(found[2], text.count("\n", 0, found.start(2)), found[1] is None)
        for found in _FENCE.finditer(text)
    ]


def run(page: Path, namespace: dict[str, Any]) -> int:
    """Runs the blocks of a page one after the other; returns how many there were."""
    blocks = [block for block in python_blocks(page) if block.is_run]
    for block in blocks:
        padded = "\n" * block.line + block.code  # so that a traceback names the page's line
        exec(compile(padded, str(page), "exec"), namespace)
    return len(blocks)


def make_model() -> nn.Module:
    """A small classifier of the data of `training_script`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def training_script() -> dict[str, Any]:
    """What a reader has already: data, a model, an optimiser."""
    model = make_model()
    return {
        "train_set": TensorDataset(torch.randn(200, 1, 4, 4), torch.arange(200) % 3),
        "device": "cpu",
        "epochs": 3,
        "model": model,
        "make_model": make_model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


def guide_script() -> dict[str, Any]:
    """What a reader of the guides has, too: imports, and a pruner after its first epoch."""
    names = training_script()
    pruner = Pruner(len(names["train_set"]), keep=0.3)
    loader = DataLoader(IndexedDataset(names["train_set"]), batch_sampler=pruner.batch_sampler(64))
    model, optimizer = names["model"], names["optimizer"]
    pruner.set_epoch(0)
    for images, labels, ids in loader:
        pruner.cross_entropy(model(images), labels, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    used = {"torch": torch, "DataLoader": DataLoader, "Pruner": Pruner}
    return {**names, **used, "IndexedDataset": IndexedDataset, "pruner": pruner, "loader": loader}
