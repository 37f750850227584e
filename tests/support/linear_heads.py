# SPDX-License-Identifier: Apache-2.0
"""Small inputs of scored_linear_cross_entropy, and the gradients of its loss."""

import torch
from torch import Tensor

ROWS, FEATURES, CLASSES = 37, 8, 11


def make(
    dtype: torch.dtype = torch.float64, rows: int = ROWS, *, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    offset = torch.randn(CLASSES, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (rows,), generator=generator)
    target[rows // 3 : rows // 3 + 2] = -100
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight, offset)]
    return leaves[0], leaves[1], target, leaves[2] if bias else None


def gradients(loss: Tensor, *leaves: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x for x in leaves if x is not None]))
