# SPDX-License-Identifier: Apache-2.0
"""The methods that are compared, by name, and the parameters of their rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METHODS", "Kind", "Method", "Rules"]

Kind = Literal["full", "short", "static", "dynamic", "infobatch", "host"]


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        label: Its name in tables and figures.
        kind: "full" trains on every sample in every epoch. "short" is full data for as many samples
            as a pruned run. "static" trains on a subset that is selected before the training.
            "dynamic" selects anew during the training. "infobatch" decides itself how much it
            keeps. "host" is a method in eager PyTorch with selection on the host, to measure
            overhead.
        scores: For "static", the scores that select the subset.
        policy: The policy of its pruner.
    """

    label: str
    kind: Kind
    scores: str | None = None
    policy: str = "full"

    @property
    def takes_keep(self) -> bool:
        return self.kind not in ("full", "infobatch") and self.policy != "infobatch_published"

    @property
    def scores_samples(self) -> bool:
        """Whether it updates scores during the training."""
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
    """The pruning parameters that all runs of a comparison share."""

    period: int = 2  # epochs between selections
    warmup_epochs: int = 1  # first epochs, on full data
    epsilon: float = 0.1
    alpha: float = 0.8  # weight of the newest loss
    c: float = 1.0
    first_visit: str = "zero"
