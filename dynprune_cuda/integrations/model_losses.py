# SPDX-License-Identifier: Apache-2.0
"""The loss that a model or a trainer computes: its outputs, and whether it can be rescaled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


class OutputCapture:
    """Keeps what a model returns while the context lasts, whatever becomes of it there.

    Trainers compute losses in ways of their own. Some take a second forward pass if they are to
    return the outputs.

    Attributes:
        outputs: Outputs of the first forward pass, None before.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watches a model."""
        self._model = model
        self.outputs: Any = None

    def __enter__(self) -> OutputCapture:
        """Begins to watch."""
        self._hook = self._model.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends."""
        self._hook.remove()

    def lacks_loss(self) -> bool:
        """Whether the model returned names with values, and no loss among them."""
        return isinstance(self.outputs, Mapping) and self.outputs.get("loss") is None

    def _keep(self, _module: nn.Module, _arguments: Any, outputs: Any) -> None:
        if self.outputs is None:
            self.outputs = outputs


class LossCheck:
    """Compares a model's loss with the one that a policy rescales, in the first epoch.

    Waits at the first batch, and at the end of that epoch.
    """

    def __init__(self, policy: object) -> None:
        """Has seen no batch; `policy` is named in errors."""
        self._policy = policy
        self._other: Tensor | None = None  # whether any loss was another one, 0-d bool
        self.is_done = False

    def compare(self, loss: Tensor, plain: Tensor) -> None:
        """Takes the losses of a batch, 0-d.

        Raises:
            ValueError: They differ, at the first batch.
        """
        tolerance = 1e-3 if loss.dtype in (torch.float32, torch.float64) else 2e-2
        own = loss.detach().reshape(()).to(plain.dtype)
        other = ~torch.isclose(own, plain, tolerance, 1e-5, equal_nan=True)
        if self._other is None and bool(other):
            self.refuse()
        self._other = other if self._other is None else self._other | other

    def end_epoch(self) -> None:
        """Ends the first epoch.

        Raises:
            ValueError: The losses of a batch differed.
        """
        if self._other is None or self.is_done:
            return
        self.is_done = True
        if bool(self._other):
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(
            f"{self._policy!r} rescales the losses of single samples, and the loss of this model "
            "is not the mean cross-entropy of its outputs: override compute_loss"
        )


def takes_labels(model: torch.nn.Module) -> bool:
    """Whether a model can have a loss of its own."""
    while hasattr(model, "module") and isinstance(model.module, torch.nn.Module):
        model = model.module  # of DistributedDataParallel
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.name == "labels" or p.kind is p.VAR_KEYWORD for p in parameters)
