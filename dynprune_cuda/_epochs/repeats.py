# SPDX-License-Identifier: Apache-2.0
"""The ids that a process trains on a second time, as padding: only the first visit is a score."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda._epochs.order import Share


class Repeats:
    """Ids that come again in a share, and which of them were visited.

    Both tensors stay where they are: a compiled or captured step may go on reading them.

    Attributes:
        ids: The ids, ascending, int64 [n]; -1 for none.
    """

    def __init__(self, ids: Tensor, *, visited: bool = False) -> None:
        """Holds ascending ids, int64 [n], all visited or none."""
        self.ids = ids
        # One place more, for the marks of all other ids.
        self._marks = ids.new_full((len(ids) + 1,), visited, dtype=torch.bool)

    @property
    def visited(self) -> Tensor:
        """Which of the ids were visited, bool [n]; a view, which may be written to."""
        return self._marks[:-1]

    @classmethod
    def of(cls, share: Share, visited: Tensor | None = None) -> Repeats:
        """Returns the repeats of a share, of which the ids in `visited` were visited already."""
        repeats = cls(share.again(), visited=share.own == 0)
        if visited is not None and len(repeats):
            repeats.mark(visited)
        return repeats

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.ids)

    def without(self, ids: Tensor) -> Tensor:
        """Returns `ids`, int64 [batch], with -1 in place of visits that are no score.

        All rows of an id in one batch are one visit.
        """
        if len(self.ids) == 1:
            return torch.where((ids == self.ids) & self.visited, -1, ids)
        places, found = self._find(ids)
        return torch.where(found & self.visited[places], -1, ids)

    def mark(self, ids: Tensor) -> None:
        """Marks ids, int64 [batch], as visited; other ids than those held are ignored."""
        places, found = self._find(ids)
        self._marks.index_fill_(0, torch.where(found, places, len(self.ids)), True)

    def visited_ids(self) -> Tensor:
        """Returns the ids that are marked, ascending. Waits."""
        return self.ids[self.visited]

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        return places, self.ids[places] == ids
