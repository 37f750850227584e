# SPDX-License-Identifier: Apache-2.0
"""Data, a model and options for `timm_script.py`, which `test_timm.py` runs."""

import random
import types

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

N, BATCH, EPOCHS = 41, 4, 4


class Images(Dataset):
    """Images of three colours, which timm gives a transform."""

    transform = None

    def __init__(self, size=N):
        pixels = np.random.default_rng(0).integers(0, 99, (size, 8, 8, 3))
        pixels[np.arange(size), :, :, np.arange(size) % 3] += 60
        self.images = [Image.fromarray(one.astype(np.uint8)) for one in pixels]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return self.transform(image) if self.transform else image, index % 3


class Tiny(nn.Module):
    """What timm's tasks ask of a model."""

    num_classes, in_chans = 3, 3
    pretrained_cfg = types.MappingProxyType({"mean": (0.5,) * 3, "std": (0.25,) * 3})

    def __init__(self, seed=0, width=6):
        super().__init__()
        torch.manual_seed(seed)
        self.num_features = width
        self.body = nn.Conv2d(3, width, 3, 2)
        self.head, self.other = nn.Linear(width, 3), nn.Linear(width, 3)
        self.has_two = False

    def set_distilled_training(self, enable):
        self.has_two = enable

    def forward_features(self, x):
        return self.body(x).relu()

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x):
        found = self.forward_head(self.forward_features(x), pre_logits=True)
        return (self.head(found), self.other(found)) if self.has_two else self.head(found)


def options(folder, **given):
    plain = {
        "batch_size": BATCH, "epochs": EPOCHS, "lr": 0.1, "smoothing": 0.1, "workers": 0,
        "mixup": 0.0, "mixup_mode": "batch", "mixup_off_epoch": 0, "bce_loss": False,
        "bce_sum": False, "bce_target_thresh": None, "jsd_loss": False, "aug_splits": 0,
        "prefetcher": True, "teacher": None, "kd_distill_type": "logit", "grad_accum_steps": 1,
        "sched_on_updates": False, "model_ema": False, "use_multi_epochs_loader": False,
        "resume": "", "output": str(folder), "started": lambda epoch: None,
    }  # fmt: skip
    assert set(given) <= set(plain)
    return types.SimpleNamespace(**{**plain, **given})


def seed_all():
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
