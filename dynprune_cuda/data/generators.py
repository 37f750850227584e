# SPDX-License-Identifier: Apache-2.0
"""What keeps random numbers of a resumed epoch those of the run that was stopped.

A `DataLoader` draws one number from torch's generator when an epoch begins. A run that is resumed
inside an epoch begins it twice: the second draw is reversed. What workers draw, for example for
augmentations, is decided by the seed of torch's generator, the epoch and the place of the batch.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from dynprune_cuda._schedule.seeds import derive_seed


class LoaderDraw:
    """Takes back what a loader drew between making an iterator and its first item."""

    _before: Tensor | None = None  # the state of torch's generator when the iterator was made

    def begin(self) -> None:
        """Notes that an iterator is made."""
        now = torch.get_rng_state()
        # Some loaders make a second one, after they have drawn.
        if self._before is None or not torch.equal(_after_one_draw(self._before), now):
            self._before = now

    def end(self, resumed: bool) -> None:
        """Notes that the first item is requested; if `resumed`, takes back one draw.

        Anything else that was drawn, or a state that was set, stays.
        """
        before, self._before = self._before, None
        if before is None or not resumed:
            return
        if torch.equal(_after_one_draw(before), torch.get_rng_state()):
            torch.set_rng_state(before)


def _after_one_draw(state: Tensor) -> Tensor:
    """Returns the state after the draw of `DataLoader.__iter__`."""
    generator = torch.Generator()
    generator.set_state(state)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator.get_state()


class PlacedBatch(list[int]):
    """The ids of a batch, with its place in the run.

    Attributes:
        place: The seed of torch's generator, the epoch, and how many ids came before.
        num_samples: Size of the training set that the ids count in.
    """

    place: tuple[int, int, int]
    num_samples: int


def seed_worker(batch: PlacedBatch) -> None:
    """Seeds the generators of torch, NumPy and Python in a worker process by a batch's place.

    The first id is that of this process: others are at the same place with other samples.
    """
    seed, epoch, position = batch.place
    seed = derive_seed(seed, "batch", epoch, position, *batch[:1])
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
