# SPDX-License-Identifier: Apache-2.0
"""How a run of each method trains: its pruner, its length, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.host_baselines import HostPolicy, PublishedInfoBatch
from benchmarks.training.methods import METHODS, Method, Rules
from benchmarks.training.source import Settings
from dynprune_cuda import Pruner, ScoreTable, StaticSubset, functional, policies

__all__ = ["Loss", "Plan", "make_plan", "planned_samples", "short_epochs"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, labels, ids -> the mean loss


@dataclass
class Plan:
    """How one run trains.

    Attributes:
        label: Its name in tables and figures.
        pruner: Decides the samples of each epoch.
        epochs: Their number.
        loss: The loss; that of a method with scores also updates them.
        total_steps: Steps of the run for a batch size; None if they are known only epoch by epoch.
        stateful: What a checkpoint must hold of all this.
    """

    label: str
    pruner: Pruner
    epochs: int
    loss: Loss
    total_steps: Callable[[int], int] | None
    stateful: list[Any] = field(default_factory=list)


class PartOfSubset:
    """A subset that was selected before; a selection of fewer samples takes a random part of it."""

    def __init__(self, ids: Tensor, device: torch.device) -> None:
        subset = StaticSubset(ids)
        self.ids, self.fingerprint = torch.as_tensor(subset.ids).to(device), subset.fingerprint

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        if k == len(self.ids):
            return self.ids
        chosen = functional.select_uniform(len(self.ids), k, seed=seed, device=self.ids.device)
        return self.ids[chosen]


def planned_samples(num_samples: int, epochs: int, rules: Rules, keep: float | None) -> int:
    """The number of samples that a pruned run trains on; of full data for a keep of None."""
    if keep is None:
        return epochs * num_samples
    pruner = Pruner(num_samples, keep, "uniform", warmup_epochs=rules.warmup_epochs)
    return pruner.total_steps(epochs, batch_size=1)


def short_epochs(samples: int, num_samples: int, batch_size: int) -> list[int]:
    """The samples of each epoch: full epochs, then one with the rest, which is at least a batch."""
    whole, rest = divmod(samples, num_samples)
    return [num_samples] * whole + ([max(rest, min(batch_size, num_samples))] if rest else [])


def plain_loss(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """The loss of methods without scores; in float32, as under autocast."""
    return F.cross_entropy(logits.float(), labels)


def make_plan(
    name: str,
    num_samples: int,
    settings: Settings,
    *,
    keep: float | None,
    seed: int,
    static_ids: Tensor | None = None,
) -> Plan:
    """Plans a run of METHODS[name].

    Short and static runs get as many samples as pruned ones. Short runs train on full data for
    fewer epochs, static runs on their subset for more epochs. The last epoch of both is a random
    part.
    """
    method = METHODS[name]
    epochs, batch_size, rules = settings.epochs, settings.batch_size, settings.rules
    common: dict[str, Any] = {"seed": seed, "device": settings.device}
    if method.kind == "full":
        return _plan(method.label, Pruner(num_samples, policy="full", **common), epochs)
    samples = planned_samples(num_samples, epochs, rules, keep if method.takes_keep else None)
    if method.kind == "short":
        counts = short_epochs(samples, num_samples, batch_size)
        label = f"full data, {samples / num_samples:.3g} epochs"
        pruner = Pruner(num_samples, counts, "uniform", period=1, warmup_epochs=0, **common)
        return _plan(label, pruner, len(counts))
    if method.kind == "static":
        if static_ids is None:
            raise ValueError(f"{name} needs the ids of its subset")
        counts = short_epochs(samples, len(static_ids), batch_size)
        # Two selections: the whole subset in the first epoch, a part of it in the last one.
        common |= {"period": max(1, len(counts) - 1), "warmup_epochs": 0}
        pruner = Pruner(num_samples, counts, PartOfSubset(static_ids, settings.device), **common)
        return _plan(method.label, pruner, len(counts))
    common |= {"warmup_epochs": rules.warmup_epochs, "epochs": epochs}
    if method.kind == "infobatch":
        return _plan(method.label, Pruner(num_samples, policy="infobatch", **common), epochs)
    if method.policy == "infobatch_published":
        return _published_plan(method, num_samples, epochs, common)
    return _dynamic_plan(method, num_samples, keep, epochs, rules, common)


def _published_plan(method: Method, num_samples: int, epochs: int, common: dict[str, Any]) -> Plan:
    """A run of InfoBatch by its published code."""
    published = PublishedInfoBatch(num_samples, epochs)
    annealing = -(-epochs // 8)  # as in the package's own InfoBatch
    pruner = Pruner(num_samples, policy=published, period=1, anneal_epochs=annealing, **common)
    return _plan(method.label, pruner, epochs, published.loss_of(pruner), [published])


def _dynamic_plan(
    method: Method,
    num_samples: int,
    keep: float | None,
    epochs: int,
    rules: Rules,
    common: dict[str, Any],
) -> Plan:
    """A run that selects again every period, by the package or on the host."""
    assert keep is not None
    common |= {"period": rules.period, "alpha": rules.alpha}
    if method.kind == "host":
        policy = _policy(method.policy, rules)
        assert not isinstance(policy, str)
        host = HostPolicy(policy, num_samples, alpha=rules.alpha, device=common["device"])
        pruner = Pruner(num_samples, keep, host, **common)
        return _plan(method.label, pruner, epochs, host.loss, [host])
    pruner = Pruner(num_samples, keep, _policy(method.policy, rules), **common)
    return _plan(method.label, pruner, epochs)


def _policy(name: str, rules: Rules) -> policies.UCB | policies.EpsilonGreedy | str:
    """The policy with the parameters of these rules, or its name if it has none."""
    if name == "ucb":
        first_visit = cast(Literal["zero", "published"], rules.first_visit)
        return policies.UCB(c=rules.c, first_visit=first_visit)
    return policies.EpsilonGreedy(rules.epsilon) if name == "epsilon_greedy" else name


def _plan(
    label: str,
    pruner: Pruner,
    epochs: int,
    loss: Loss | None = None,
    more: Sequence[Any] = (),
) -> Plan:
    """A plan with the loss of its policy, unless another loss is given."""
    if loss is None:
        scored = getattr(pruner.policy, "uses_scores", False)
        loss = pruner.cross_entropy if scored else plain_loss
    known = not getattr(pruner.policy, "weighs", False)
    total = (lambda batch_size: pruner.total_steps(epochs, batch_size)) if known else None
    return Plan(label, pruner, epochs, loss, total, [pruner, *more])
