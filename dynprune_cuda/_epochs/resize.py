# SPDX-License-Identifier: Apache-2.0
"""A run whose training set gets another size: what is checked, and what it takes along.

Ids stay what they are. New samples have the ids at the end; a smaller training set loses those. The
resized run has the rows of all samples that stay, and is before an epoch: the next `set_epoch`
selects anew, whatever the period.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_SAMPLES, as_int
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._epochs.config import Config
from dynprune_cuda._epochs.state import STALE, EpochState, Subset
from dynprune_cuda.policies.adapter import AnyPolicy, adapt
from dynprune_cuda.policies.balanced import Balanced
from dynprune_cuda.policies.registry import resolve_count
from dynprune_cuda.scores.table import ScoreTable


def resized_config(config: Config, num_samples: Any, groups: Any = None) -> Config:
    """Returns the settings of the same run on another number of samples.

    Args:
        config: The settings so far.
        num_samples: Size of the training set.
        groups: The labels of all samples; of a policy with groups.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The policy or `keep` does not fit, or `groups` are missing or surplus.
    """
    num_samples = as_int("num_samples", num_samples, minimum=1, maximum=MAX_SAMPLES)
    given = _with_groups(config.given_policy, num_samples, groups)
    policy = adapt(given)
    if policy.memory or policy.uses_history:
        what = "columns of its own" if policy.memory else "the places of the last epoch"
        raise ValueError(
            f"num_samples must stay {config.num_samples} with {given!r}, which keeps {what}, got "
            f"{num_samples}: make a new pruner, and load its table with "
            "pruner.table.load_state_dict"
        )
    if policy.static and not policy.fixes_count:
        raise ValueError(
            f"num_samples must stay {config.num_samples} with {given!r}, whose one selection is "
            f"for the whole run, got {num_samples}: make a new pruner, or use StaticSubset(ids)"
        )
    policy.check_size(num_samples)
    keep = resolve_count(policy, config.given_keep, num_samples)
    schedule = replace(config.schedule, num_samples=num_samples, keep=keep)
    for count in schedule.known_counts():
        policy.check_count(count, num_samples)
    return replace(
        config, num_samples=num_samples, given_policy=given, policy=policy, schedule=schedule
    )


def _with_groups(policy: AnyPolicy, num_samples: int, groups: Any) -> AnyPolicy:
    if isinstance(policy, Balanced):
        if groups is None:
            raise ValueError(
                f"groups must be given with {policy!r}: the labels of all {num_samples} samples, "
                "got None"
            )
        return replace(policy, groups=groups)
    if groups is not None:
        raise ValueError(
            f"groups must be left out with {policy!r}, which has none, got {type(groups).__name__}"
        )
    return policy


def smaller_config(config: Config, state: Any) -> Config | None:
    """Returns the settings of the run that saved a state; None if it has as many samples.

    Raises:
        TypeError: The state is no mapping, or its number of samples no int.
        ValueError: It has more samples, or the policy cannot grow.
    """
    read = StateReader("state_dict", state)
    if "num_samples" not in read.state:
        return None  # the error of a damaged state tells more
    number = read.integer("num_samples", 1)
    if number > config.num_samples:
        raise ValueError(
            f"state_dict must have at most num_samples={config.num_samples} samples with "
            f"grow=True, got {number}: load it into a pruner of that size, then call resize"
        )
    if number == config.num_samples:
        return None
    policy = config.given_policy
    groups = policy.groups[:number] if isinstance(policy, Balanced) else None
    return resized_config(config, number, groups)


def take_rows(table: ScoreTable, columns: Mapping[str, Tensor]) -> None:
    """Copies the first rows of a new table; the others stay those of samples without a visit."""
    for name, column in columns.items():
        getattr(table, name)[: len(column)].copy_(column)


def resized_state(
    state: EpochState, times: Tensor, like: Tensor, subset: Subset | None
) -> EpochState:
    """Returns the state of a resized run, before an epoch.

    Args:
        state: Before.
        times: `times_selected` of the samples that stay, the first rows.
        like: A column of the new table.
        subset: What is left of the last selection; see `stale`.
    """
    new_times = torch.zeros_like(like, dtype=torch.int32)
    new_times[: len(times)] = times
    turnover = state.turnover
    if subset is None:  # the next selection has nothing to compare with
        turnover = torch.full_like(turnover, float("nan"))
    return replace(
        state, epoch=None, subset=subset, times_selected=new_times, turnover=turnover, memory={}
    )


def stale(ids: Tensor, factors: Tensor | None, sizes: tuple[int, ...]) -> Subset | None:
    """Returns a selection that serves no epoch, and counts for the next turnover only."""
    return Subset(STALE, ids, factors, sizes) if sum(sizes) else None
