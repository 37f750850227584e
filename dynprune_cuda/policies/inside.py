# SPDX-License-Identifier: Apache-2.0
"""What policies have in common that let another policy select."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from dynprune_cuda.functional.score_updates import FirstVisit
from dynprune_cuda.policies.adapter import adapt
from dynprune_cuda.policies.protocol import Policy


class WithPolicyInside(Policy):
    """A policy that needs of a run what the policy inside needs.

    Attributes:
        policy: The policy that selects.
    """

    policy: Any

    @cached_property
    def _inside(self) -> Policy:
        """The policy inside, whose results need no check."""
        return adapt(self.policy)

    @property
    def uses_scores(self) -> bool:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.uses_scores

    @property
    def uses_history(self) -> bool:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.uses_history

    @property
    def coordinated(self) -> bool:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.coordinated

    @property
    def takes_negative_scores(self) -> bool:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.takes_negative_scores

    @property
    def first_visit(self) -> FirstVisit:  # type: ignore[override]
        """As of the policy inside."""
        return self._inside.first_visit

    def settings(self, epochs: int | None) -> dict[str, Any]:
        """As of the policy inside."""
        return self._inside.settings(epochs)
