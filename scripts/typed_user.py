# SPDX-License-Identifier: Apache-2.0
"""A user's script, which scripts/dist.py gives to mypy beside an installed wheel.

mypy is strict: an ignored error that is none is an error, too. So the wrong calls below show that
the types of the package are found.
"""

from __future__ import annotations

import torch
from typing_extensions import assert_type

from dynprune_cuda import Pruner, functional
from dynprune_cuda.functional import ScoredLoss

pruner = Pruner(100, keep=0.3)
Pruner("many", keep=0.3)  # type: ignore[arg-type]
pruner.set_epoch("first")  # type: ignore[arg-type]

logits, targets, ids = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.arange(4)
assert_type(pruner.cross_entropy(logits, targets, ids), torch.Tensor)
assert_type(functional.select_top_k(torch.rand(9), 3), torch.Tensor)
assert_type(functional.scored_cross_entropy(logits, targets), ScoredLoss)
functional.select_top_k([1.0], 1)  # type: ignore[arg-type]
