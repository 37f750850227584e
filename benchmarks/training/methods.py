# SPDX-License-Identifier: Apache-2.0
"""The methods that are compared: how each chooses its samples, and for how long it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.host_baselines import HostPolicy, PublishedInfoBatch
from dynprune_cuda import Pruner, ScoreTable, StaticSubset, functional, policies

__all__ = ["METHODS", "Loss", "Method", "Plan", "Rules", "make_plan", "planned_samples"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, labels, ids -> the mean loss


@dataclass(frozen=True)
class Method:
    """One row of a table.

    `kind` is "full" (every sample in every epoch), "short" (full data, for as many samples as a
    pruned run), "static" (a subset chosen before the training), "dynamic" (chosen again and again),
    "infobatch" (which decides itself how much it keeps), or "host" (the obvious code, for the
    overhead).
    """

    label: str
    kind: str
    scores: str | None = None  # of "static": the scores that choose the subset
    policy: str = "full"

    @property
    def takes_keep(self) -> bool:
        return self.kind not in ("full", "infobatch") and self.policy != "infobatch_published"

    @property
    def scores_samples(self) -> bool:
        """Whether it keeps scores while it trains."""
        return self.policy not in ("full", "uniform")


METHODS = {
    "full": Method("full data", "full"),
    "full_short": Method("full data, fewer epochs", "short"),
    "static_random": Method("static random", "static", "random"),
    "static_el2n": Method("static EL2N", "static", "el2n"),
    "static_grand": Method("static GraNd", "static", "grand"),
    "static_grand_last": Method("static GraNd, last layer", "static", "grand_last"),
    "static_forgetting": Method("static forgetting", "static", "forgetting"),
    "uniform": Method("uniform random", "dynamic", policy="uniform"),
    "epsilon_greedy": Method("epsilon-greedy", "dynamic", policy="epsilon_greedy"),
    "ucb": Method("UCB", "dynamic", policy="ucb"),
    "weighted": Method("weighted by loss", "dynamic", policy="weighted"),
    "infobatch": Method("InfoBatch", "infobatch", policy="infobatch"),
    "epsilon_greedy_host": Method("epsilon-greedy, eager + host", "host", policy="epsilon_greedy"),
    "ucb_host": Method("UCB, eager + host", "host", policy="ucb"),
    "infobatch_published": Method(
        "InfoBatch, published code", "host", policy="infobatch_published"
    ),
}


@dataclass(frozen=True)
class Rules:
    """What all pruned runs of a comparison share."""

    period: int = 2  # epochs between selections
    warmup_epochs: int = 1  # first epochs, on full data
    epsilon: float = 0.1
    alpha: float = 0.8  # weight of the newest loss
    c: float = 1.0
    first_visit: str = "zero"


@dataclass
class Plan:
    """How one run trains: its pruner, its length, its loss."""

    label: str
    pruner: Pruner
    epochs: int
    loss: Loss
    total_steps: Callable[[int], int] | None  # of a batch size; None: known as the epochs begin
    stateful: list[Any] = field(default_factory=list)  # what a checkpoint must hold of all this


class PartOfSubset:
    """A subset that was chosen before; a selection of fewer takes a random part of it."""

    def __init__(self, ids: Tensor, device: torch.device) -> None:
        subset = StaticSubset(ids)
        self.ids, self.fingerprint = torch.as_tensor(subset.ids).to(device), subset.fingerprint

    def select(self, table: ScoreTable, k: int, *, seed: int) -> Tensor:
        if k == len(self.ids):
            return self.ids
        return self.ids[
            functional.select_uniform(len(self.ids), k, seed=seed, device=self.ids.device)
        ]


def planned_samples(num_samples: int, epochs: int, rules: Rules, keep: float | None) -> int:
    """How many samples a pruned run trains on; of full data for None."""
    if keep is None:
        return epochs * num_samples
    pruner = Pruner(num_samples, keep, "uniform", warmup_epochs=rules.warmup_epochs)
    return pruner.total_steps(epochs, batch_size=1)


def make_plan(
    name: str,
    num_samples: int,
    *,
    epochs: int,
    batch_size: int,
    rules: Rules,
    keep: float | None,
    seed: int,
    device: torch.device,
    static_ids: Tensor | None = None,
) -> Plan:
    """Plans a run of METHODS[name].

    Short and static runs get as many samples as the pruned ones: full data in fewer epochs, of
    which the last is a random part; a static subset in more epochs, the last one likewise.
    """
    method = METHODS[name]
    samples = planned_samples(num_samples, epochs, rules, keep if method.takes_keep else None)
    common: dict[str, Any] = {"seed": seed, "device": device}
    loss: Loss = plain_loss
    label, more = method.label, []
    if method.kind == "full":
        pruner = Pruner(num_samples, policy="full", **common)
    elif method.kind == "short":
        counts = short_epochs(samples, num_samples, batch_size)
        label, epochs = f"full data, {samples / num_samples:.3g} epochs", len(counts)
        pruner = Pruner(num_samples, counts, "uniform", period=1, warmup_epochs=0, **common)
    elif method.kind == "static":
        if static_ids is None:
            raise ValueError(f"{name} needs the ids of its subset")
        counts = short_epochs(samples, len(static_ids), batch_size)
        epochs = len(counts)
        # Two selections: the subset at the beginning, what is left of its last epoch at the end.
        common |= {"period": max(1, epochs - 1), "warmup_epochs": 0}
        policy = PartOfSubset(static_ids, device)
        pruner = Pruner(num_samples, counts, policy, **common)
    else:
        common |= {"warmup_epochs": rules.warmup_epochs, "epochs": epochs}
        if method.policy == "infobatch":
            pruner = Pruner(num_samples, policy="infobatch", **common)
        elif method.policy == "infobatch_published":
            published = PublishedInfoBatch(num_samples, epochs)
            common["anneal_epochs"] = -(-epochs // 8)  # as in the package's own
            pruner = Pruner(num_samples, policy=published, period=1, **common)
            loss, more = published.loss_of(pruner), [published]
        else:
            common |= {"period": rules.period, "alpha": rules.alpha}
            policy = {
                "ucb": policies.UCB(c=rules.c, first_visit=rules.first_visit),
                "epsilon_greedy": policies.EpsilonGreedy(rules.epsilon),
            }.get(method.policy, method.policy)
            if method.kind == "host":
                host = HostPolicy(policy, num_samples, alpha=rules.alpha, device=device)
                pruner = Pruner(num_samples, keep, host, **common)
                loss, more = host.loss, [host]
            else:
                pruner = Pruner(num_samples, keep, policy, **common)
        if getattr(pruner.policy, "uses_scores", False):
            loss = pruner.cross_entropy
    known = not getattr(pruner.policy, "weighs", False)
    total = (lambda batch_size: pruner.total_steps(epochs, batch_size)) if known else None
    return Plan(label, pruner, epochs, loss, total, [pruner, *more])


def short_epochs(samples: int, num_samples: int, batch_size: int) -> list[int]:
    """Full epochs, and one of what is left, at least a batch: how many samples each has."""
    whole, rest = divmod(samples, num_samples)
    return [num_samples] * whole + ([max(rest, min(batch_size, num_samples))] if rest else [])


def plain_loss(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """The loss of methods that need no scores; in float32, as autocast would have it."""
    return F.cross_entropy(logits.float(), labels)
