# SPDX-License-Identifier: Apache-2.0
"""The ids that a process trains on a second time, as padding: only the first visit is a score."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune_cuda._epochs.order import Share


class Repeats:
    """Ids that come again in a share, and which of them were visited.

    The tensors stay where they are until `Repeats` is made anew: a compiled or captured step may go
    on reading them.
    """

    def __init__(self, ids: Tensor, *, visited: bool = False) -> None:
        """Holds ascending ids, int64 [n], all visited or none; -1 stands for no id."""
        self._ids = ids
        # One place more, for the marks of all other ids.
        self._visited = ids.new_full((len(ids) + 1,), visited, dtype=torch.bool)

    @classmethod
    def of(cls, share: Share, visited: Tensor | None = None) -> Repeats:
        """Returns the repeats of a share, of which the ids in `visited` were visited already."""
        repeats = cls(_again(share), visited=share.own == 0)
        if visited is not None and len(repeats):
            repeats.note(visited)
        return repeats

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._ids)

    def refill_(self, share: Share) -> None:
        """Holds the repeats of another share, at most as many; an id that stays keeps its mark.

        An order may be drawn again within an epoch, as in a run that was resumed.
        """
        ids = _again(share)
        if share.own == 0:
            self._visited.fill_(True)
        elif len(ids):
            self._visited[: len(ids)] &= self._ids[: len(ids)] == ids
        self._ids.fill_(-1)
        self._ids[: len(ids)] = ids

    def clear_(self) -> None:
        """Holds nothing."""
        self._ids.fill_(-1)
        self._visited.fill_(False)

    def load_(self, ids: Tensor, visited: Tensor) -> None:
        """Holds the ids and marks of a saved state, int64 and bool [len(self)]."""
        self._ids.copy_(ids)
        self._visited[:-1] = visited

    def without(self, ids: Tensor) -> Tensor:
        """Returns `ids`, int64 [batch], with -1 in place of visits that are no score."""
        places, found = self._find(ids)
        position = torch.arange(len(ids), device=ids.device)
        first = torch.full_like(self._ids, len(ids))
        # The first visit of each id in this batch; the smallest position, in any order of adds.
        own = torch.where(found, position, len(ids))
        first = first.scatter_reduce(0, places, own, "amin")
        again = (position != first[places]) | self._visited[places]
        return torch.where(found & again, -1, ids)

    def note(self, ids: Tensor) -> None:
        """Marks ids, int64 [batch], as visited; other ids than those held are ignored."""
        places, found = self._find(ids)
        self._visited.index_fill_(0, torch.where(found, places, len(self._ids)), True)

    def visited(self) -> Tensor:
        """Returns the ids that are marked, ascending. Waits."""
        return self._ids[self._visited[:-1]]

    def marks(self) -> tuple[Tensor, Tensor]:
        """Returns the ids, -1 for none, and which of them are marked."""
        return self._ids, self._visited[:-1]

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.searchsorted(self._ids, ids).clamp_(max=len(self._ids) - 1)
        return places, self._ids[places] == ids


def _again(share: Share) -> Tensor:
    """Returns the ids of a share that come again, ascending; all, if all are padding."""
    padding = len(share.ids) - share.own
    again = share.ids[: min(padding, share.own)] if share.own else share.ids
    return again.sort().values
