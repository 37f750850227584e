# SPDX-License-Identifier: Apache-2.0
"""The settings of a pruner, checked and frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import policies
from dynprune_cuda._checks.arguments import as_bool, as_choice, as_device, as_float, as_int
from dynprune_cuda._epochs.state import STATE_VERSION
from dynprune_cuda._schedule.keep import Keep
from dynprune_cuda._schedule.schedule import Schedule
from dynprune_cuda.distributed.shard import LAYOUTS
from dynprune_cuda.functional.cross_entropy import SCORES
from dynprune_cuda.functional.row_reductions import RowReductionName, as_row_rule
from dynprune_cuda.policies.adapter import AnyPolicy, adapt
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.policies.quotas import ClassShares
from dynprune_cuda.policies.registry import fingerprint, resolve_count

SHARDINGS = ("replicate", "shard")
SURPLUS = ("move", "local")


@dataclass(frozen=True)
class Config:
    """What a pruner was made with; see the arguments of `Pruner`.

    Attributes:
        num_samples: Size of the training set.
        given_policy: The policy as the user passed it, or as its name says.
        policy: The same behind the interface of `Policy`; users' own results are checked.
        schedule: When it selects, and how much.
        score: Which score `cross_entropy` records.
        row_reduction: The value of a sample that has several rows in a batch.
        alpha: Weight of the newest value in a moving average.
        track_forgetting: Whether the table counts forgetting events.
        seed: The seed, in [0, 2**64).
        device: Where scores and subsets live.
        sharding: "replicate" or "shard".
        shard_layout: "contiguous" or "strided".
        surplus: "move" or "local".
        given_keep: `keep` as the user passed it: a fraction is one of any number of samples.
    """

    num_samples: int
    given_policy: AnyPolicy
    policy: Policy
    schedule: Schedule
    score: str
    row_reduction: RowReductionName
    alpha: float
    track_forgetting: bool
    seed: int
    device: torch.device
    sharding: str
    shard_layout: str
    surplus: str
    given_keep: Keep | None

    def settings(self, seed: int, alpha: float) -> dict[str, Any]:
        """Returns the entries of a saved state that a loaded one must share, and the seed."""
        settings = {
            "version": STATE_VERSION,
            "num_samples": self.num_samples,
            "policy": fingerprint(self.given_policy),
            "period": self.schedule.period,
            "warmup_epochs": self.schedule.warmup_epochs,
            "alpha": alpha,
            "seed": seed,
            "score": self.score,
        }
        # States from before there were others have no such entry.
        if self.row_reduction != "mean":
            settings["row_reduction"] = self.row_reduction
        return settings

    def common(self) -> dict[str, Any]:
        """Returns what must be the same in every process."""
        plan = {name: getattr(self.schedule, name) for name in ("keep", "anneal_epochs", "epochs")}
        names = ("row_reduction", "track_forgetting", "sharding", "shard_layout", "surplus")
        return {
            **self.settings(self.seed, self.alpha),
            **plan,
            **{name: getattr(self, name) for name in names},
        }


def make_config(
    num_samples: int,
    keep: Keep | None,
    policy: str | AnyPolicy | Callable[..., Tensor],
    *,
    period: int | None,
    warmup_epochs: int,
    anneal_epochs: int | None,
    epochs: int | None,
    groups: Any,
    group_floor: float | None,
    class_shares: ClassShares | None,
    score: str,
    row_reduction: RowReductionName,
    alpha: float | None,
    track_forgetting: bool,
    seed: int,
    device: torch.device | str | int,
    sharding: str,
    shard_layout: str,
    surplus: str,
) -> Config:
    """Checks the arguments of `Pruner`, and fills in the policy's own defaults.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or does not fit another one.
    """
    num_samples = as_int("num_samples", num_samples, minimum=1)
    if epochs is not None:
        epochs = as_int("epochs", epochs, minimum=1)
    given = policies.resolve(policy)
    if groups is not None:
        given = policies.Balanced(given, groups, group_floor, class_shares)
    elif class_shares is not None:
        raise ValueError(f"class_shares={class_shares!r} need groups=, the class of each sample")
    checked = adapt(given)
    checked.check_size(num_samples)
    defaults = {**Policy.settings(checked, epochs), **checked.settings(epochs)}
    schedule = Schedule(
        num_samples,
        resolve_count(checked, keep, num_samples),
        period=defaults["period"] if period is None else period,
        warmup_epochs=warmup_epochs,
        anneal_epochs=defaults["anneal_epochs"] if anneal_epochs is None else anneal_epochs,
        epochs=epochs,
    )
    for count in schedule.known_counts():
        checked.check_count(count, num_samples)
    _check_rescaling(given, checked)
    as_choice("score", score, SCORES)
    as_row_rule(row_reduction)
    if score == "margin" and not checked.takes_negative_scores:
        raise ValueError(
            f"score='margin' does not fit policy={checked!r}, which needs scores >= 0: "
            "the margins of correct samples count as negative, and would all weigh nothing; use "
            "policy='ucb'"
        )
    alpha = defaults["alpha"] if alpha is None else alpha
    config = Config(
        num_samples,
        given,
        checked,
        schedule,
        score,
        row_reduction,
        as_float("alpha", alpha, low=0.0, high=1.0, above_low=True),
        as_bool("track_forgetting", track_forgetting),
        as_int("seed", seed) % 2**64,
        as_device("device", device),
        as_choice("sharding", sharding, SHARDINGS),
        as_choice("shard_layout", shard_layout, LAYOUTS),
        as_choice("surplus", surplus, SURPLUS),
        keep,
    )
    _check_sharding(config)
    return config


def _check_rescaling(given: AnyPolicy, checked: Policy) -> None:
    inside = given.policy if isinstance(given, policies.Balanced) else given
    if not getattr(inside, "rescales", False):
        return
    if inside is not given:
        raise ValueError(
            f"groups do not fit {inside!r}: the factors of its losses hold for selections from all "
            "samples; use rescale=False"
        )
    if not checked.selects_by_ranking:
        raise ValueError(
            f"{given!r} must leave select and weigh as they are to have rescales=True: the factors "
            "of the losses come from its ranking"
        )


def _check_sharding(config: Config) -> None:
    if config.sharding == "replicate":
        for name, default in (("shard_layout", "contiguous"), ("surplus", "move")):
            if getattr(config, name) != default:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} needs sharding='shard', got "
                    "sharding='replicate'"
                )
        return
    if config.track_forgetting:
        raise ValueError("track_forgetting needs sharding='replicate', got sharding='shard'")
    if not config.policy.selects_by_ranking:
        raise ValueError(
            "sharding must be 'replicate' for groups, InfoBatch and policies with a select of "
            "their own: only policies that rank select from shards, got 'shard' and "
            f"{config.policy!r}"
        )
