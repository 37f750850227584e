# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the GPU packages that the benchmarks compare with.

They have the calls that the benchmarks make, with torch's operators behind them. So these calls run
on fake tensors, and where no package is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

NAMES = ("cub_topk", "cupy", "pylibraft", "flashinfer", "liger_kernel", "quack")


def install(patch: pytest.MonkeyPatch) -> None:
    """Puts the stand-ins before what is installed, until the patch is undone."""
    find_spec = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        return name if name in NAMES else find_spec(name, package)

    patch.setattr(importlib.util, "find_spec", found)
    modules: dict[str, dict[str, Any]] = {
        "cub_topk": {"top_k": lambda x, k: torch.topk(x, k).indices},
        "cupy": {
            "asarray": lambda x: x,
            "argpartition": lambda x, place: torch.argsort(x),
        },
        "pylibraft": {},
        "pylibraft.common": {"DeviceResources": lambda stream: ("handle of", stream)},
        "pylibraft.matrix": {"select_k": select_k},
        "flashinfer": {"top_k": lambda x, k: torch.topk(x, k)},
        "liger_kernel": {},
        "liger_kernel.transformers": {"LigerCrossEntropyLoss": Liger},
        "quack": {},
        "quack.cross_entropy": {"cross_entropy": quack_cross_entropy},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        patch.setitem(sys.modules, name, module)


def select_k(
    x: Tensor, k: int, values: Tensor, ids: Tensor, *, select_min: bool, handle: Any
) -> None:
    """RAFT's: fills two outputs of one row each."""
    assert x.dtype == values.dtype == torch.float32 and ids.dtype == torch.int64
    assert x.ndim == 2 and values.shape == ids.shape == (len(x), k)
    assert not select_min and handle is not None
    found = torch.topk(x, k)
    values.copy_(found.values)
    ids.copy_(found.indices)


class Liger(torch.nn.Module):
    """Liger-Kernel's loss: its forward pass replaces the logits with the gradient."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return _InPlace.apply(logits, target)  # type: ignore[no-any-return]


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        losses = torch.nn.functional.cross_entropy(logits, target)
        onehot = torch.nn.functional.one_hot(target, logits.shape[1])
        gradient = (torch.softmax(logits.detach(), 1) - onehot) / len(target)
        logits.detach().copy_(gradient)
        ctx.save_for_backward(logits.detach())
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None


def quack_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
