# SPDX-License-Identifier: Apache-2.0
"""A policy that leaves no sample out for long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import MAX_SAMPLES, as_int
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.policies.adapter import AnyPolicy
from dynprune_cuda.policies.inside import WithPolicyInside
from dynprune_cuda.policies.protocol import fingerprint_of, memory_of, trusted
from dynprune_cuda.policies.registry import resolve
from dynprune_cuda.scores.others import other_ids
from dynprune_cuda.scores.table import ScoreTable

_WAITS = "selections_since"


@trusted
@dataclass(frozen=True)
class Covered(WithPolicyInside):
    """Another policy, which selects every sample once in any `every` selections; exactly k.

    Samples that are due come first, those that have waited longest before the others, and the
    policy fills up from what is left over. At a selection, no more are due than must be: as many
    that k samples per selection still serve all others in time. Those that have waited equally long
    are due at random.

    With k the same at every selection, and `every * k >= num_samples`, the promise holds from the
    beginning of the run. If k changes, it holds as far as a later k is no smaller. A selection
    waits once for the device, to know how many samples are due.

    Attributes:
        policy: The policy that selects the rest; as `Pruner` takes it, but kept as an object.
        every: Within how many selections each sample is selected, at least 1.

    Raises:
        TypeError: `policy` is no policy, or `every` no int.
        ValueError: `every` is below 1, or the name is unknown. Or the policy decides how many
            samples it keeps, selects only once, rescales the losses, or decides about all samples
            at once.
    """

    policy: str | AnyPolicy
    every: int

    whole = True

    def __post_init__(self) -> None:
        """Checks the attributes."""
        object.__setattr__(self, "policy", resolve(self.policy))
        object.__setattr__(
            self, "every", as_int("every", self.every, minimum=1, maximum=MAX_SAMPLES)
        )
        inside = self._inside
        for is_so, why in (
            (inside.weighs or inside.fixes_count, "decides how many samples it keeps"),
            (inside.static, "selects only once"),
            (inside.rescales, "rescales the losses by its own chances"),
            (inside.whole, "decides about all samples at once"),
        ):
            if is_so:
                raise ValueError(
                    f"policy must be another one for Covered: {self.policy!r} {why}; use it alone"
                )

    @property
    def memory(self) -> Mapping[str, torch.dtype]:  # type: ignore[override]
        """How many selections ago each sample was selected, and what the policy inside keeps."""
        return {_WAITS: torch.int32, **self._inside.memory}

    @property
    def fingerprint(self) -> str:
        """Tells one from another in a saved state."""
        return f"Covered({fingerprint_of(self.policy)}, every={self.every})"

    def check_size(self, num_samples: int) -> None:
        """As of the policy inside."""
        self._inside.check_size(num_samples)

    def check_count(self, k: int, num_samples: int) -> None:
        """Checks that `every` selections of `k` samples are enough.

        Raises:
            ValueError: They are not.
        """
        if self.every * k < num_samples:
            least = -(-num_samples // k)
            raise ValueError(
                f"every must be at least {least} to cover {num_samples} samples by {k} at a time, "
                f"got {self.every}: raise it, or keep more"
            )
        self._inside.check_count(k, num_samples)

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        """Returns `k` ids, ascending, int64 [k]; waits once for the device.

        Raises:
            ValueError: `table.memory` is None.
        """
        waits = memory_of(self, table)[_WAITS]
        num_due = min(k, self._num_due(waits, k))
        if not num_due:
            return self._inside.select(table, k, seed=seed)
        due = functional.select_top_k(
            waits.float(), num_due, seed=derive_seed(seed, "due"), order="ascending"
        )
        if num_due == k:
            return due
        ids = other_ids(due, table.num_samples)
        rest_seed = derive_seed(seed, "rest")
        rest = self._inside.select(table.part(ids), k - num_due, seed=rest_seed)
        return torch.cat([due, ids[rest]]).sort().values

    def _num_due(self, waits: Tensor, k: int) -> int:
        """Returns how many of those that waited longest must be selected now; waits.

        Of the samples that may wait for h more selections at most, all but h * k: what is left
        over fits into these.
        """
        left = (self.every - 1 - waits.long()).clamp_(min=0)
        ready = torch.zeros(self.every, dtype=torch.int64, device=waits.device)
        ready.scatter_add_(0, left, torch.ones_like(left))
        later = k * torch.arange(self.every, device=waits.device)
        return max(0, int((ready.cumsum(0) - later).amax()))

    def remember(self, table: ScoreTable, chosen: Tensor) -> Mapping[str, Tensor]:
        """Returns the waits after a selection, int32, and what the policy inside remembers."""
        waits = memory_of(self, table)[_WAITS]
        columns = self._inside.remember(table, chosen) if self._inside.memory else {}
        return {_WAITS: torch.where(chosen, 0, waits + 1), **columns}
