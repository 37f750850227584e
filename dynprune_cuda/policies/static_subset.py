# SPDX-License-Identifier: Apache-2.0
"""A subset that was chosen before the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_SAMPLES, as_int, digest
from dynprune_cuda.functional.ranking import FixedIds
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.scores.table import ScoreTable


@dataclass(frozen=True, eq=False, repr=False)
class StaticSubset(Policy):
    """A subset that was chosen before training, for example by EL2N or a coreset method.

    Attributes:
        ids: The sample ids in ascending order, int64 [num_ids], on the CPU. Given as any integer
            sequence, array or tensor, in any order.
        num_samples: Size of the training set that the ids are of; a pruner of another size refuses
            them. None: not known.

    Raises:
        TypeError: `ids` cannot become a tensor, or `num_samples` is no int.
        ValueError: `ids` is empty, not 1-D or not of integers, or an id is negative, repeated or
            not below `num_samples`.
    """

    ids: Tensor | Sequence[int]
    num_samples: int | None = None

    static = True
    default_period = 10  # as in saved states of version 0.1.0; only one selection is made

    def __post_init__(self) -> None:
        """Checks and sorts the ids."""
        object.__setattr__(self, "ids", self._fixed.tensor)
        if self.num_samples is not None:
            size = as_int("num_samples", self.num_samples, minimum=1, maximum=MAX_SAMPLES)
            object.__setattr__(self, "num_samples", size)
            self._fixed.count(size)

    @cached_property
    def _fixed(self) -> FixedIds:
        return FixedIds(self.ids)

    def check_size(self, num_samples: int) -> None:
        """Checks that the ids are of a training set of this size.

        Raises:
            ValueError: They are of another one.
        """
        if self.num_samples not in (None, num_samples):
            raise ValueError(
                f"num_samples must be {self.num_samples}, the size of the training set that "
                f"{self!r} was chosen from, got {num_samples}"
            )

    def fixed_count(self, num_samples: int) -> int:
        """Returns how many ids there are, once they are known to fit the training set."""
        return self._fixed.count(num_samples)

    def ranking(self, table: ScoreTable) -> FixedIds:
        """Returns the ids."""
        return self._fixed

    @cached_property
    def fingerprint(self) -> str:
        """Tells one subset from another in a saved state; version 0.1.0 knew no size."""
        return f"StaticSubset({digest(self._fixed.tensor)})"

    def __repr__(self) -> str:
        """Tells how many ids there are, and of how many samples."""
        size = "" if self.num_samples is None else f" of {self.num_samples}"
        return f"StaticSubset(<{len(self._fixed.tensor)} ids{size}>)"
