# SPDX-License-Identifier: Apache-2.0
"""What docs/images/accuracy.png shows: easy samples keep their digits and their order."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.scoring import accuracy
from dynprune_cuda import functional as F


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scores_of_easy_samples_keep_their_digits(dtype):
    miss, errors = accuracy.relative_errors(dtype)
    assert miss.min() < 1e-8 and 1 - miss.max() < 1e-4 * (1 if dtype == torch.float16 else 1e-26)
    for score, error in errors["dynprune_cuda"].items():
        assert error.max() < 1e-5, score
    # What the comparison is for: the obvious code has nothing left of the easiest samples.
    easiest = miss < 1e-7
    assert errors["obvious torch code"]["el2n"][easiest].min() > 0.1
    if dtype == torch.bfloat16:
        assert errors["obvious torch code"]["el2n"][miss < 3e-3].min() > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_easy_samples_are_ranked_in_their_true_order(dtype):
    logits, target = accuracy.rows(dtype)
    right = accuracy.exact(logits, target)
    scored = F.scored_cross_entropy(logits, target)
    easy = np.flatnonzero(right["miss"] < 1e-3)
    got, exact = scored.el2n.numpy()[easy], right["el2n"][easy]
    for a, b in itertools.combinations(range(len(easy)), 2):
        if abs(exact[a] - exact[b]) > 3e-5 * exact[a]:
            assert (got[a] > got[b]) == (exact[a] > exact[b])


def test_the_plot_can_be_made(tmp_path):
    accuracy.plot(tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
