# SPDX-License-Identifier: Apache-2.0
"""Whether a saved state is of a run with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynprune_cuda._checks.saved_state import OTHER_COPY, StateReader
from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.state import ENTRIES, STALE, STATE_VERSION, VERSIONS_BEFORE, SavedState
from dynprune_cuda._schedule.schedule import Schedule


def matching_state(config: Config, settings: Mapping[str, Any], state: Any) -> StateReader:
    """Returns a reader of a state that has all entries, and is of a run like this one.

    Args:
        config: What the pruner was made with.
        settings: The entries that the state must share, and the seed.
        state: What was loaded.

    Raises:
        TypeError: The state is no mapping.
        ValueError: It is damaged, or of another run.
    """
    read = StateReader("state_dict", state)
    read.sealed(VERSIONS_BEFORE, STATE_VERSION)
    theirs, own = read.state.get("num_samples"), config.num_samples
    if type(theirs) is int and 0 < theirs < own:
        raise ValueError(
            f"state_dict is of another run: its num_samples is {theirs}, and here it is {own}. "
            "If these are the first samples of the same data, load it with grow=True"
        )
    for name, mine in settings.items():
        if name not in ("version", "seed"):
            read.same(name, mine)
    read.same("row_reduction", config.row_reduction)  # also of a state that has one
    policy = config.policy
    more = {"weights": policy.has_factors, "memory": bool(policy.memory)}
    read.has([*settings, "table", *ENTRIES, *(name for name in more if more[name])])
    return read


def check_total(schedule: Schedule, saved: SavedState, total: int) -> None:
    """Checks that the subset of a state, of `total` samples in all processes, fits the schedule.

    Raises:
        ValueError: The state is damaged, or of another run.
    """
    start = saved.subset_epoch
    schedule = schedule.beginning_at(saved.first_epoch)
    is_pruned = saved.epoch is not None and schedule.phase(saved.epoch) == "pruned"
    # A stale selection is there between a resize and the next pruned epoch.
    fits = (total == 0 or not is_pruned) if start == STALE else total > 0
    if not fits:
        raise ValueError(
            f"state_dict['subset'] is damaged: it contradicts 'subset_epoch'; {OTHER_COPY}"
        )
    if saved.epoch is not None and is_pruned:
        wanted = schedule.period_start(saved.epoch)
        if start != wanted:
            raise ValueError(
                f"state_dict is damaged, or of a run with another end: epoch {saved.epoch} is "
                f"pruned here and trains on the selection of epoch {wanted}, not {start}"
            )
    kept = schedule.kept(start) if start >= 0 else None
    if kept is not None and kept != total:
        raise ValueError(
            f"state_dict is of another run: it kept {total} samples in epoch {start}, and "
            f"here keep gives {kept}"
        )
