# SPDX-License-Identifier: Apache-2.0
"""What the scripts of the fuzzer import: tensors and objects that a call may be given.

A case is Python source that uses these names only, so that a report can be run as it is. Everything
is deterministic.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import dynprune_cuda
from dynprune_cuda import (
    Pruner,
    ScoreTable,
    data,
    distributed,
    functional,
    policies,
    schedules,
    sharded,
    static_scores,
)
from dynprune_cuda import functional as F
from dynprune_cuda.functional import FixedIds, Ranking, Tilted, Trimmed, Uniform
from dynprune_cuda.hooks import track_gradient_norm
from dynprune_cuda.policies import registry
from dynprune_cuda.sharded import Shard
from tests.fuzz.tamper import tampered

__all__ = [
    "Decimal",
    "F",
    "FixedIds",
    "Fraction",
    "Pruner",
    "Ranking",
    "ScoreTable",
    "Shard",
    "Tilted",
    "Trimmed",
    "Uniform",
    "abstract",
    "ascending_ids",
    "conjugated",
    "counts",
    "data",
    "distributed",
    "dynprune_cuda",
    "expanded",
    "fake",
    "flags",
    "floats",
    "freed",
    "from_read_only",
    "functional",
    "in_fresh_registry",
    "inference",
    "integers",
    "linear_model",
    "loader",
    "marked",
    "math",
    "negated",
    "nested",
    "np",
    "policies",
    "positive",
    "quantized",
    "saved_scores",
    "schedules",
    "sharded",
    "state_of_scores",
    "static_scores",
    "strided",
    "tampered",
    "tampered_file",
    "torch",
    "track_gradient_norm",
    "two",
    "use_pruner",
    "use_with_policy",
    "visited_pruner",
    "visited_table",
    "with_element",
    "writer",
]

_FAKE = FakeTensorMode()


# ---- what a call should be given


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def floats(*shape: int, seed: int = 0) -> Tensor:
    """Normal values of few digits, so that some are equal."""
    return (torch.randn(shape, generator=generator(seed)) * 8).round() / 4


def positive(*shape: int, seed: int = 0) -> Tensor:
    return floats(*shape, seed=seed).abs()


def integers(count: int, limit: int, seed: int = 0) -> Tensor:
    return torch.randint(max(limit, 1), (count,), generator=generator(seed))


def counts(count: int, seed: int = 0) -> Tensor:
    return integers(count, 4, seed).to(torch.int32)


def flags(count: int, seed: int = 0) -> Tensor:
    return integers(count, 2, seed) == 1


def ascending_ids(count: int, limit: int) -> Tensor:
    return torch.arange(count) * max(limit // max(count, 1), 1)


def visited_table(n: int, *, seed: int = 0, **options: Any) -> ScoreTable:
    table = ScoreTable(n, **options)
    ids = torch.arange(0, n, 2)
    table.update(ids, positive(len(ids), seed=seed), flags(len(ids), seed))
    return table


def visited_pruner(n: int, keep: Any = 0.5, policy: Any = "ucb", **options: Any) -> Pruner:
    """A pruner in its second pruned epoch."""
    pruner = Pruner(n, keep, policy, period=1, **options)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        pruner.observe(ids, positive(len(ids), seed=epoch))
    return pruner


def saved_scores(n: int) -> Path:
    path = Path(tempfile.mkdtemp()) / "scores"
    static_scores.StaticScores(positive(n), "el2n", (1, 2), 10, "digits").save(path)
    return path


def state_of_scores(n: int) -> dict[str, Any]:
    return dict(torch.load(saved_scores(n), weights_only=True))


def tampered_file(state: Any) -> Path:
    path = Path(tempfile.mkdtemp()) / "scores"
    torch.save(state, path)
    return path


def linear_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 4)


def loader(n: int) -> torch.utils.data.DataLoader[Any]:
    """Batches of inputs, targets and ids."""
    pairs = torch.utils.data.TensorDataset(floats(n, 3), torch.arange(n) % 4)
    return torch.utils.data.DataLoader(data.IndexedDataset(pairs), batch_size=8)


def in_fresh_registry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a function, and forgets what it registered."""
    tables = {
        name: copy.copy(value)
        for name, value in vars(registry).items()
        if isinstance(value, dict) and not name.startswith("__")
    }

    def call(*arguments: Any, **options: Any) -> Any:
        with mock.patch.multiple(registry, **tables):
            return function(*arguments, **options)

    return call


def use_with_policy(policy: Any, keep: float | None, n: int = 40) -> None:
    """Two selections by a policy."""
    pruner = Pruner(n, keep, policy, process_group=False)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        assert 0 < len(ids) == len(ids.unique()) <= n
        pruner.observe(ids, positive(len(ids), seed=epoch))
    repr(policy)


class Writer:
    """Takes what `Stats.log` tells."""

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        assert isinstance(tag, str) and isinstance(value, float | int)


def writer() -> Writer:
    return Writer()


def use_pruner(pruner: Pruner) -> None:
    """Two epochs of a run, and its state in another pruner."""
    for epoch in (0, 1):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        assert len(ids) == pruner.num_selected == len(ids.unique())
        logits = floats(len(ids), 3, seed=epoch).requires_grad_()
        pruner.cross_entropy(logits, ids % 3, ids).backward()
        assert logits.grad is not None and bool(logits.grad.isfinite().all())
    state = pruner.state_dict()
    copy.deepcopy(pruner).load_state_dict(state)
    repr(pruner)


# ---- what it should not be given, or in another form


def with_element(tensor: Tensor, place: int, value: Any) -> Tensor:
    """A copy with another value at one place."""
    changed = tensor.clone()
    if changed.numel():
        changed.view(-1)[place % changed.numel()] = value
    return changed


def freed(tensor: Tensor) -> Tensor:
    """A tensor whose storage is gone."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def fake(tensor: Tensor, device: str = "cuda") -> Tensor:
    """Shape, strides and dtype on a device that is not there."""
    with _FAKE:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def abstract(value: Any) -> bool:
    """Whether a tensor has no values."""
    if isinstance(value, TwoTensor):
        return abstract(value.a)
    return isinstance(value, Tensor) and (
        isinstance(value, torch._subclasses.FakeTensor) or value.is_meta
    )


class Marked(Tensor):
    """A subclass that changes nothing."""


def marked(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Marked)


def two(tensor: Tensor) -> Tensor:
    """A wrapper subclass, which has no storage of its own."""
    return TwoTensor(tensor.clone(), tensor.clone())


def negated(tensor: Tensor) -> Tensor:
    """The same values as a lazily negated view."""
    return torch._neg_view(-tensor)


def conjugated(tensor: Tensor) -> Tensor:
    return torch.complex(tensor.float(), tensor.float()).conj()


def expanded(tensor: Tensor) -> Tensor:
    """The same shape; all rows are the first one, at one address."""
    return tensor[:1].expand(tensor.shape)


def strided(tensor: Tensor, step: int = 2) -> Tensor:
    """The same values with gaps between the rows, and not at the start of the storage."""
    wide = torch.full((step * len(tensor) + 1, *tensor.shape[1:]), 1, dtype=tensor.dtype)
    view = wide[1::step]
    view.copy_(tensor)
    return view


def inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def from_read_only(tensor: Tensor) -> Tensor:
    """Memory of a NumPy array that may not be written."""
    array = tensor.numpy().copy()
    array.flags.writeable = False
    return torch.from_numpy(array)


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)


def nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([tensor, tensor])
