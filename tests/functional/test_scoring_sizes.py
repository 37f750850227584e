# SPDX-License-Identifier: Apache-2.0
"""The scored step at the ends of what it is made for: a million rows, 262,144 classes."""

import pytest
import torch

from dynprune_cuda import functional as F

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shape", [(1_000_000, 10), (2, 262_144)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_ends_of_the_range(shape, dtype, device):
    rows, classes = shape
    generator = torch.Generator().manual_seed(rows)
    logits = (torch.randn(shape, generator=generator) * 3).to(dtype).to(device).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator).to(device)
    ids = torch.randperm(rows, generator=generator).to(device)
    mean, variance = torch.zeros(2, rows, device=device).unbind()
    count = torch.zeros(rows, dtype=torch.int32, device=device)
    scored = F.scored_cross_entropy_step_(
        logits, target, ids, mean, variance, count, alpha=0.5, reduction="sum"
    )
    scored.loss.backward()

    exact = logits.detach().double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(exact, target, reduction="none")
    losses.sum().backward()
    torch.testing.assert_close(scored.loss.double(), losses.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean[ids].double(), losses, rtol=1e-5, atol=0)
    assert (count == 1).all()
    norm = exact.grad.norm(dim=1)  # of p - onehot(y)
    torch.testing.assert_close(scored.el2n.double(), norm, rtol=1e-5, atol=0)
    # 1e-9: exact's own subtraction p - 1.
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=1e-9)
