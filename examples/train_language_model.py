# SPDX-License-Identifier: Apache-2.0
"""A small causal language model in plain PyTorch, whose logits are never whole in memory."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import Pruner

N, LENGTH, WORDS, WIDTH, EPOCHS = 1024, 24, 512, 64, 4
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
# The next word follows from this one and from the first, which is the rule of the sequence.
rules, starts = torch.randint(1, 4, (N + 256, 1)), torch.randint(WORDS, (N + 256, 1))
tokens = torch.cat([rules, (starts + rules * torch.arange(LENGTH)) % WORDS], 1)
train_set, test = TensorDataset(tokens[:N]), tokens[N:].to(device)

body = nn.Sequential(nn.Linear(3 * WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
model = nn.ModuleDict({"words": nn.Embedding(WORDS, WIDTH), "body": body}).to(device)


def hidden(tokens):  # [batch, length, width] of this word, the one before and the first
    x = model["words"](tokens)
    return model["body"](torch.cat([x, x.roll(1, 1), x[:, :1].expand_as(x)], -1))


pruner = Pruner(N, keep=0.3, device=device)
loader = DataLoader(pruner.wrap(train_set), batch_sampler=pruner.batch_sampler(16))
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for epoch in range(EPOCHS):
    pruner.set_epoch(epoch)
    for x, ids in loader:
        x, head = x.to(device), model["words"].weight  # tied weights
        pruner.linear_cross_entropy(hidden(x[:, :-1])[:, 1:], head, x[:, 2:], ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = (hidden(test[:, :-1])[:, 1:] @ model["words"].weight.T).argmax(-1)
    accuracy = (found == test[:, 2:]).double().mean()
    print(f"epoch {epoch}: {pruner.num_selected} samples, test accuracy {accuracy:.1%}")
