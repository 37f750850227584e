# SPDX-License-Identifier: Apache-2.0
"""Logits of several labels, their weights, and score tables, for scored_binary_cross_entropy."""

import pytest
import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
N = 70  # samples in a table
EXACT = {"rtol": 1e-12, "atol": 1e-15}
GRADIENT_TOLERANCES = {  # a 16-bit gradient is rounded once
    torch.float64: EXACT,
    torch.float32: {"rtol": 1e-5, "atol": 3e-8},  # of soft targets: a difference
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-9},
    torch.float16: {"rtol": 1e-3, "atol": 6e-8},
}


def make(rows, labels, dtype=torch.float32, device="cpu", soft=False):
    generator = torch.Generator().manual_seed(1000 * rows + labels)
    x = torch.randn(rows, labels, generator=generator, dtype=torch.float64) * 4
    t = torch.rand(rows, labels, generator=generator)
    t = t if soft else (t < 0.3).float()
    return x.to(dtype).to(device), t.to(device)


def make_weights(rows, labels, device="cpu"):
    generator = torch.Generator().manual_seed(labels)
    weight = torch.rand(rows, labels, generator=generator) * 2
    weight[torch.rand(rows, labels, generator=generator) < 0.2] = 0
    return weight.to(device), (torch.rand(labels, generator=generator) * 3).to(device)


def make_columns(device="cpu"):
    return {
        "mean": torch.zeros(N, device=device),
        "variance": torch.zeros(N, device=device),
        "count": torch.zeros(N, dtype=torch.int32, device=device),
        "non_finite_count": torch.zeros(N, dtype=torch.int32, device=device),
        "last_non_finite": torch.zeros(N, dtype=torch.bool, device=device),
        "last_correct": (torch.arange(N, device=device) % 2 == 0),
        "forget_count": torch.zeros(N, dtype=torch.int32, device=device),
    }
