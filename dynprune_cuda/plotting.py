# SPDX-License-Identifier: Apache-2.0
"""A picture of what a run kept: samples against epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import as_int, as_ints, check_type
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda.pruner import Pruner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["KeptHistory", "plot_kept"]


class KeptHistory:
    """Remembers which samples each epoch trained on, for `plot_kept`.

        history = KeptHistory(pruner)
        for epoch in range(epochs):
            pruner.set_epoch(epoch)
            history.record()
            ...
        plot_kept(history).figure.savefig("kept.png")

    Recording waits for nothing; an epoch costs one byte per sample followed, on the device.

    Attributes:
        pruner: The pruner.
        sample_ids: The samples that are followed, ascending, int64: all, or `max_samples` of them
            drawn uniformly.
    """

    def __init__(self, pruner: Pruner, max_samples: int = 1000) -> None:
        """Follows at most `max_samples` samples of `pruner`.

        Args:
            pruner: The pruner, with sharding="replicate".
            max_samples: How many samples are followed at most, at least 1.
        """
        check_type("pruner", pruner, Pruner)
        number = min(as_int("max_samples", max_samples, minimum=1), pruner.num_samples)
        self.pruner = pruner
        self.sample_ids = functional.select_uniform(
            pruner.num_samples, number, device=pruner.device, order="ascending"
        )
        self._kept: dict[int, Tensor] = {}

    def record(self) -> None:
        """Notes the current epoch, again if it was noted before."""
        self._kept[self.pruner.epoch] = self.pruner.is_selected(self.sample_ids)

    def table(self) -> tuple[list[int], Tensor]:
        """Returns the epochs in order, and what they kept. Waits for the device.

        Returns:
            The epochs that were recorded, and a bool tensor [samples followed, epochs] on the CPU.
        """
        epochs = sorted(self._kept)
        columns = [self._kept[epoch] for epoch in epochs]
        kept = torch.stack(columns, 1) if columns else self.sample_ids.new_empty((0, 0)).bool()
        return epochs, kept.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Returns what was recorded, for a checkpoint; on the CPU. Waits for the device."""
        epochs, kept = self.table()
        return {"sample_ids": self.sample_ids.cpu(), "epochs": epochs, "kept": kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, in place of what was recorded here.

        Args:
            state_dict: From `state_dict`.

        Raises:
            TypeError: The state is no mapping, or an entry has the wrong type.
            ValueError: The state is damaged, or follows other samples. Nothing changes then.
        """
        read, device = StateReader("state_dict", state_dict), self.pruner.device
        read.has(("sample_ids", "epochs", "kept"))
        epochs, shape = (
            as_ints("state_dict['epochs']", state_dict["epochs"]),
            tuple(self.sample_ids.shape),
        )
        for epoch in epochs:
            as_int("state_dict['epochs']", epoch, minimum=0)
        followed = read.tensor("sample_ids", torch.int64, shape, device)
        read.sound("sample_ids", (followed == self.sample_ids).all(), "it follows other samples")
        size = (*shape, len(epochs)) if epochs else (0, 0)
        columns = read.tensor("kept", torch.bool, size, device).unbind(1)
        self._kept = dict(zip(epochs, columns, strict=True))


def plot_kept(history: KeptHistory, ax: Axes | None = None) -> Axes:
    """Draws which samples were kept over the epochs: one row per sample, one column per epoch.

    The rows are sorted. Samples that were kept in most epochs are at the top, and those that were
    left out in most are at the bottom. The "sometimes" samples are between.

    Args:
        history: What was recorded.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Nothing was recorded.
    """
    check_type("history", history, KeptHistory)
    if ax is not None and not hasattr(ax, "imshow"):
        raise TypeError(f"ax must be matplotlib's Axes, got {ax!r}")
    try:
        from matplotlib import pyplot
        from matplotlib.colors import ListedColormap
    except ImportError as error:
        raise ImportError("plot_kept needs matplotlib: pip install matplotlib") from error
    epochs, kept = history.table()
    if not epochs:
        raise ValueError("history must hold at least one epoch: call history.record() in each")
    order = kept.sum(1).argsort(descending=True, stable=True)
    if ax is None:
        ax = pyplot.subplots(figsize=(7, 5), layout="constrained")[1]
    options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "vmin": 0, "vmax": 1}
    ax.imshow(kept[order].numpy(), cmap=ListedColormap(["#e8e8e8", "#1f5a99"]), **options)
    shown = range(0, len(epochs), max(1, len(epochs) // 10))
    ax.set_xticks(list(shown), [str(epochs[column]) for column in shown])
    followed, all_samples = len(kept), history.pruner.num_samples
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{followed:,} of {all_samples:,} samples, those kept most often first")
    ax.set_title(f"kept (blue): {kept.float().mean():.0%} of all visits")
    return ax
