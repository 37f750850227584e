# SPDX-License-Identifier: Apache-2.0
"""Tables for the tests of the published rules."""

import torch

from dynprune_cuda import functional
from dynprune_cuda.scores import History, ScoreTable


def losses_of(size, seed=0):
    """Distinct positive losses, many small and few great."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(1.5 * torch.randn(size, generator=generator) - 1)


def table_of(losses, device, *, epoch=1, epochs=None, memory=None):
    """A table with one visit per sample, as a run tells of its first selection."""
    size = len(losses)
    table = ScoreTable(size, device=device, alpha=1.0)
    seen = ~losses.isnan()
    table.update(seen.nonzero().flatten(), losses[seen])
    none = torch.zeros(size, dtype=torch.int32, device=device)
    order = functional.permutation(size, seed=9, device=device)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(size, device=device))
    return table.told(History(epoch, epochs, 1, 1, 0, none, size, places), memory)
