# SPDX-License-Identifier: Apache-2.0
"""Segmentation with a model of torchvision: where in the picture are the rectangles?"""

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from dynprune_cuda import Pruner

N, SIZE, EPOCHS = 160, 48, 4
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images = 0.5 * torch.randn(N + 40, 3, SIZE, SIZE)
masks = torch.zeros(N + 40, SIZE, SIZE, dtype=torch.int64)
for image, mask in zip(images, masks, strict=True):
    top, left = torch.randint(SIZE - 30, (2,)).tolist()
    kind = int(torch.randint(3, ()))  # a rectangle has the colour of its class
    image[kind, top : top + 30, left : left + 30] += 2
    mask[top : top + 30, left : left + 30] = kind + 1
masks[:, :1] = 255  # of pixels that nobody labelled
train_set = TensorDataset(images[:N], masks[:N])

model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).to(device)
model.apply(lambda module: setattr(module, "momentum", 0.1))  # of batch norm, for a short run
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
# An image's score is the mean loss of its worst quarter of pixels.
pruner = Pruner(N, keep=0.5, row_reduction=0.25, device=device)
loader = DataLoader(pruner.wrap(train_set), batch_sampler=pruner.batch_sampler(8))
for epoch in range(EPOCHS):
    pruner.set_epoch(epoch)
    for x, y, ids in loader:
        logits = model(x.to(device))["out"]  # [batch, classes, height, width]
        pruner.cross_entropy(logits, y.to(device), ids, ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = model.eval()(images[N:].to(device))["out"].argmax(1).cpu()
    model.train()
    accuracy = (found == masks[N:])[masks[N:] != 255].double().mean()
    print(f"epoch {epoch}: {pruner.num_selected} images, pixel accuracy {accuracy:.1%}")
