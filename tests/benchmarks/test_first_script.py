# SPDX-License-Identifier: Apache-2.0
"""A user's first script, with the default settings: no worse than full data for as many steps."""

import statistics

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

STEPS, BATCH = 225, 64


def accuracy(seed: int, **settings: object) -> float:
    """Test accuracy in % after STEPS steps on scikit-learn's digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(images).float()[order] / 16, torch.tensor(labels)[order]
    train_set = TensorDataset(x[:1437], y[:1437])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    pruner = Pruner(len(train_set), seed=seed, **settings)
    sampler = pruner.batch_sampler(BATCH)
    loader = DataLoader(IndexedDataset(train_set), batch_sampler=sampler)
    step = epoch = 0
    while step < STEPS:
        pruner.set_epoch(epoch)
        for inputs, targets, ids in loader:
            loss = pruner.cross_entropy(model(inputs), targets, ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == STEPS:
                break
        epoch += 1
    return 100 * (model(x[1437:]).argmax(1) == y[1437:]).double().mean().item()


@pytest.mark.slow
def test_the_default_is_within_two_points_of_full_data() -> None:
    full = [accuracy(seed, policy="full") for seed in range(3)]
    default = [accuracy(seed, keep=0.3) for seed in range(3)]
    assert statistics.fmean(full) > 85
    assert statistics.fmean(default) > statistics.fmean(full) - 2, (default, full)


if __name__ == "__main__":
    print([accuracy(s, policy="full") for s in range(3)], [accuracy(s, keep=0.3) for s in range(3)])
