# SPDX-License-Identifier: Apache-2.0
"""The benchmark of choosing inside a batch: its rivals choose the same, and it runs."""

import numpy as np
import pytest
import torch

from benchmarks.selection import batch_choice
from dynprune_cuda import BatchSelector


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 5, generator=generator), torch.arange(64) % 5


def test_the_eager_way_takes_the_same_rows():
    logits, target = batch()
    (eager,) = batch_choice.rivals("top_k", logits, target, 16).values()
    assert eager().sort().values.equal(BatchSelector(16)(logits, target).rows)


def test_the_eager_ways_draw_the_hardest_rows_more_often():
    logits, target = batch()
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    np.random.seed(0)
    torch.manual_seed(0)
    hardest = losses.argmax()
    for draw in batch_choice.rivals("percentile", logits, target, 16).values():
        rows = draw()
        assert len(rows.unique()) == 16
        assert sum(int((draw() == hardest).sum()) for _ in range(40)) > 20


@pytest.mark.parametrize("policy", ["top_k", "percentile"])
def test_it_measures(policy):
    medians = batch_choice.measure(policy, *batch(), 0.25, 2)
    assert batch_choice.OURS in medians and len(medians) >= 2
    assert all(milliseconds > 0 for milliseconds in medians.values())
