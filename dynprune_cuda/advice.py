# SPDX-License-Identifier: Apache-2.0
"""What a run is told of its chances, by what was measured: see docs/guides/choosing.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dynprune_cuda.policies.adapter import AnyPolicy, adapt
from dynprune_cuda.policies.epsilon_greedy import EpsilonGreedy
from dynprune_cuda.policies.full import Full
from dynprune_cuda.policies.inside import WithPolicyInside
from dynprune_cuda.policies.ucb import UCB

# The figures of docs/guides/choosing.md. Runs whose training accuracy stayed below LEARNED gained
# nothing, and most above MEMORISED lost. Where the share of losses below ln 2 is SURELY_LEARNED,
# the accuracy is about LEARNED.
LEARNED = 0.80
SURELY_LEARNED = 0.70
MEMORISED = 0.995
GREEDY_KEEP = 0.3
GREEDY_LOSSES = "3.9 points of accuracy on Fashion-MNIST and 5.5 on CIFAR-10"  # UCB, keep 0.1
UNEQUAL_VISITS = 0.65

BATCH_ALPHA = 0.1  # weight of a whole batch's value in the average of one of its samples

_PAGE = '(see "Choosing a policy" in the documentation)'


def advise(
    stats: Mapping[str, Any],
    policy: AnyPolicy,
    *,
    keep: float,
    is_late: bool,
    rounding: float = 0.0,
    tells_accuracy: bool = True,
) -> str | None:
    """Returns the first thing that speaks against choosing samples so, as one sentence, or None.

    Args:
        stats: From `Pruner.stats`; reading it may wait for the device.
        policy: The selection rule.
        keep: The fraction of the data that a pruned epoch trains on.
        is_late: Whether a low training accuracy tells about the end of the run.
        rounding: By how much `keep` may be off, because samples are whole.
        tells_accuracy: Whether the losses are of one class per sample. The accuracy of others is
            not judged.
    """
    policy = _innermost(policy)
    if isinstance(policy, Full):
        return None
    name, learned, meaning = "share_correct", LEARNED, ""
    if name not in stats:
        name, learned = "share_below_ln2", SURELY_LEARNED
        meaning = f", so that the training accuracy is below about {LEARNED:.2f}"
    # Of other scores than the loss, nothing is known.
    correct = stats.get(name, math.nan) if tells_accuracy else math.nan
    if is_late and correct < learned:
        return (
            f"{name}={correct:.3f} is below {learned:.2f}{meaning}: train on full data for fewer "
            f"epochs, or train longer, since no choice of samples beat full data there {_PAGE}."
        )
    if correct > MEMORISED and adapt(policy).uses_scores:
        return (
            f"{name}={correct:.4f} is above {MEMORISED}: the training data are memorised, and most "
            f"choices by scores lost there, so use policy='uniform' or full data {_PAGE}."
        )
    if greedy := about_greedy(policy, keep, rounding):
        return greedy
    if (unequal := stats["visits_gini"]) > UNEQUAL_VISITS:
        return (
            f"visits_gini={unequal:.3f} is above {UNEQUAL_VISITS}: few samples get most of the "
            f"visits, and such runs lost, so keep more or use policies.Adaptive() {_PAGE}."
        )
    return None


def about_greedy(policy: AnyPolicy, keep: float, rounding: float = 0.0) -> str | None:
    """Returns a sentence if a greedy rule keeps so little that it lost accuracy, or None.

    Args:
        policy: The selection rule.
        keep: The fraction of the data that a pruned epoch trains on.
        rounding: By how much it may be off, because samples are whole.
    """
    policy = _innermost(policy)
    if not isinstance(policy, UCB | EpsilonGreedy) or keep + rounding >= GREEDY_KEEP:
        return None
    return (
        f"keep={keep:.3f} is below {GREEDY_KEEP} for {policy!r}: at keep 0.1, UCB lost "
        f"{GREEDY_LOSSES}, so keep at least {GREEDY_KEEP}, or use policies.Adaptive() {_PAGE}."
    )


def _innermost(policy: AnyPolicy) -> AnyPolicy:
    """Returns the policy that selects, of those that hold another one."""
    while isinstance(policy, WithPolicyInside):
        policy = policy.policy
    return policy


def about_batch_values(alpha: float, sharding: str) -> str:
    """Returns what a pruner warns of at the first value that several samples share.

    Args:
        alpha: The weight of these values in the averages.
        sharding: That of the pruner.
    """
    text = (
        "a whole batch's loss tells little of one of its samples. At batch size 64, its rank "
        "correlation with the true loss is 0.28 at alpha 0.1, and 0.09 at alpha 0.8. If you can, "
        "pass one value per sample, as of reduction='none'; these are averaged with "
        f"alpha={alpha}"
    )
    if sharding == "shard" and alpha > BATCH_ALPHA:
        text += f", that of the pruner, since scores are sharded: pass Pruner(alpha={BATCH_ALPHA})"
    return text
