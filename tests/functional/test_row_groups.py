# SPDX-License-Identifier: Apache-2.0
"""The CPU scores rows in groups; a row's results depend on no other row."""

import math

import pytest
import torch

from dynprune_cuda import functional as F


@pytest.mark.parametrize("classes", [3, 10, 32, 40])
@pytest.mark.parametrize("ignored", [0, 1, 60])
def test_rows_do_not_depend_on_their_neighbours(classes, ignored):
    # Ignored rows shift which ones share a group.
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(150, classes, generator=generator)
    logits[7, 0], logits[70, 1], logits[71] = math.inf, math.nan, -math.inf
    target = torch.randint(classes, (150,), generator=generator)
    target[torch.randperm(150, generator=generator)[:ignored]] = -100

    def step(rows):
        leaf = logits[rows].requires_grad_()
        columns = (*torch.zeros(2, 150), torch.zeros(150, dtype=torch.int32))
        ids = torch.arange(150)[rows]
        scored = F.scored_cross_entropy_step_(
            leaf, target[rows], ids, *columns, alpha=0.5, reduction="none"
        )
        scored.loss.sum().backward()
        return [*scored, leaf.grad, *(column[rows] for column in columns)]

    together = step(slice(0, 150))
    alone = [step(slice(row, row + 1)) for row in range(150)]
    for batch, *rows in zip(together, *alone, strict=True):
        assert torch.equal(torch.cat(rows).nan_to_num(-1), batch.nan_to_num(-1))
