# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a small causal language model in plain PyTorch; its logits are never whole."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import Pruner

LENGTH, WORDS, WIDTH, EPOCHS = 24, 512, 64, 3
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
body = nn.Sequential(nn.Linear(3 * WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
model = nn.ModuleDict({"words": nn.Embedding(WORDS, WIDTH), "body": body}).to(device)


def text(rules):  # the next word follows from this one and from the first, which is the rule
    rule, start = rules[torch.randint(len(rules), (1280, 1))], torch.randint(WORDS, (1280, 1))
    return torch.cat([rule, (start + rule * torch.arange(LENGTH)) % WORDS], 1)


def hidden(tokens):  # [batch, length, width] of this word, the one before and the first
    x = model["words"](tokens)
    return model["body"](torch.cat([x, x.roll(1, 1), x[:, :1].expand_as(x)], -1))[:, 1:]


base = torch.tensor([1, 2, 3]), {"policy": "full"}  # elsewhere: load a model that is trained
for rules, options in (base, (torch.tensor([5, 7]), {"keep": 0.3})):
    tokens, pruner = text(rules).to(device), Pruner(1024, device=device, **options)
    train_set, test = pruner.wrap(TensorDataset(tokens[:1024])), tokens[1024:]
    loader = DataLoader(train_set, batch_sampler=pruner.batch_sampler(16))
    optimizer, head = torch.optim.AdamW(model.parameters(), 3e-3), model["words"].weight  # tied
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        for x, ids in loader:
            optimizer.zero_grad()
            pruner.linear_cross_entropy(hidden(x[:, :-1]), head, x[:, 2:], ids).backward()
            optimizer.step()
        hits = (hidden(test[:, :-1]) @ head.T).argmax(-1) == test[:, 2:]
        print(f"{pruner.num_selected} samples, test accuracy {hits.double().mean():.1%}")
