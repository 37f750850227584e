# SPDX-License-Identifier: Apache-2.0
"""The columns of a score table as update_scores_ takes them: made up, updated, compared."""

import numpy as np
import torch

from dynprune_cuda import functional as F

COLUMNS = ("mean", "variance", "count", "non_finite_count", "last_non_finite")


def empty_columns(n, count_dtype=torch.int32):
    return {
        "mean": torch.zeros(n),
        "variance": torch.zeros(n),
        "count": torch.zeros(n, dtype=count_dtype),
        "non_finite_count": torch.zeros(n, dtype=torch.int32),
        "last_non_finite": torch.zeros(n, dtype=torch.bool),
    }


def used_columns(n, count_dtype=torch.int32):
    """As after some visits; a fifth of the samples was never seen."""
    generator = torch.Generator().manual_seed(n)
    columns = empty_columns(n, count_dtype)
    columns["count"] = torch.randint(0, 5, (n,), generator=generator).to(count_dtype)
    seen = columns["count"] > 0
    columns["mean"] = torch.randn(n, generator=generator) * seen
    columns["variance"] = torch.rand(n, generator=generator) * seen
    columns["non_finite_count"] = torch.randint(0, 3, (n,), generator=generator).int()
    columns["last_non_finite"] = torch.rand(n, generator=generator) < 0.1
    return columns


def run(columns, ids, values, device, **options):
    """The columns after the op, on the CPU; `columns` stays."""
    on_device = {name: column.clone().to(device) for name, column in columns.items()}
    result = F.update_scores_(
        **on_device,
        sample_ids=torch.as_tensor(ids, dtype=torch.int64).to(device),
        values=torch.as_tensor(values).to(device),
        **options,
    )
    assert result is None
    return {name: column.cpu() for name, column in on_device.items()}


def assert_columns(got, expected):
    """Equal bits, so that NaN, -0 and the last place count."""
    for name in COLUMNS:
        a, b = np.asarray(got[name]), np.asarray(expected[name])
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(
            a.view(f"i{a.itemsize}"), b.view(f"i{b.itemsize}"), err_msg=name
        )
