# SPDX-License-Identifier: Apache-2.0
"""Tries an installed wheel: `python try_wheel.py ENVIRONMENT cpu|cuda`, in an empty environment.

It selects, computes a loss and its gradient, and trains for some epochs. There must be no compiler.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import dynprune_cuda
from dynprune_cuda import IndexedDataset, Pruner, functional

COMPILERS = ("g++", "gcc", "cc", "c++", "clang", "clang++", "nvcc", "ninja")


def check_operators() -> None:
    """Selection against torch's sort, loss and gradient against torch's own."""
    scores = torch.rand(1000)
    expected = torch.sort(scores, descending=True).indices[:100].sort().values
    chosen = functional.select_top_k(scores, 100, order="ascending")
    assert chosen.tolist() == expected.tolist()
    logits = torch.randn(33, 10, dtype=torch.float64, requires_grad=True)
    twin = logits.detach().clone().requires_grad_()
    targets = torch.randint(0, 10, (33,))
    loss = functional.scored_cross_entropy(logits, targets).loss.mean()
    torch.autograd.backward(loss)
    torch.autograd.backward(F.cross_entropy(twin, targets))
    torch.testing.assert_close(loss.detach(), F.cross_entropy(twin, targets).detach())
    torch.testing.assert_close(logits.grad, twin.grad)


def train() -> tuple[float, float]:
    """The mean loss before and after five epochs, four of them on 30 % of the samples."""
    images = torch.randn(600, 8)
    labels = (images @ torch.randn(8, 3)).argmax(1)
    model = torch.nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner = Pruner(600, keep=0.3)
    dataset = IndexedDataset(TensorDataset(images, labels))
    loader = DataLoader(dataset, batch_sampler=pruner.batch_sampler(50))
    before = F.cross_entropy(model(images), labels).item()
    for epoch in range(5):
        pruner.set_epoch(epoch)
        num_seen = 0
        for x, y, ids in loader:
            optimizer.zero_grad()
            torch.autograd.backward(pruner.cross_entropy(model(x), y, ids))
            optimizer.step()
            num_seen += len(ids)
        assert num_seen == (600 if epoch == 0 else 180), num_seen
    return before, F.cross_entropy(model(images), labels).item()


def main() -> None:
    place, kind = Path(sys.argv[1]).resolve(), sys.argv[2]
    assert not [name for name in COMPILERS if shutil.which(name)], "there is a compiler"
    assert Path(dynprune_cuda.__file__).is_relative_to(place), dynprune_cuda.__file__
    info = dynprune_cuda.build_info()
    assert bool(info["cuda"]) == (kind == "cuda"), info
    torch.set_num_threads(1)  # two that wait for each other are slow on a busy machine
    torch.manual_seed(0)
    check_operators()
    before, after = train()
    assert after < 0.5 * before, (before, after)
    print(
        f"{kind} wheel, torch {info['torch']}, Python {platform.python_version()}: "
        f"selects, and trains from {before:.2f} to {after:.2f}"
    )


if __name__ == "__main__":
    main()
