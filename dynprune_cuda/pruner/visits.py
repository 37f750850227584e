# SPDX-License-Identifier: Apache-2.0
"""Where the scores of a batch are recorded."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dynprune_cuda.functional.shapes import own_keys
from dynprune_cuda.scores.table import UpdateTarget


class Visits(NamedTuple):
    """Where the scores of a batch go; S ids, which are rows or have as many rows each, R rows.

    Attributes:
        ids: Sample ids, int64 [S], or with `cu_seqlens` [sequences].
        target: The columns that are written.
        table_rows: The rows of `target` that are written, int64 [S], with `cu_seqlens` [R].
        row_ids: In the shape of `table_rows`: equal numbers for rows of one sample; -1 for none.
        weight: In the shape of `table_rows`, or None: factors of the losses.
    """

    ids: Tensor
    target: UpdateTarget
    table_rows: Tensor
    row_ids: Tensor
    weight: Tensor | None

    def by_row(self, rows_per_id: int) -> Visits:
        """Returns the same with one entry per row, of ids that have as many rows each."""

        def spread(values: Tensor) -> Tensor:
            return values[:, None].expand(-1, rows_per_id).flatten()

        return self._replace(
            table_rows=spread(self.table_rows),
            row_ids=spread(own_keys(self.row_ids)),
            weight=None if self.weight is None else spread(self.weight),
        )
