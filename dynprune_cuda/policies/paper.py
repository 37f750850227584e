# SPDX-License-Identifier: Apache-2.0
"""The settings of the paper on dynamic data pruning, by name."""

from __future__ import annotations

from typing import Any

from dynprune_cuda._checks.arguments import as_choice
from dynprune_cuda.policies.epsilon_greedy import EpsilonGreedy
from dynprune_cuda.policies.protocol import Policy
from dynprune_cuda.policies.ucb import UCB
from dynprune_cuda.policies.uniform import UniformRandom

_RULES: dict[str, type[Policy]] = {
    "uniform": UniformRandom,
    "epsilon_greedy": EpsilonGreedy,
    "ucb": UCB,
}


def paper(rule: str) -> dict[str, Any]:
    """Returns the arguments of `Pruner` for a rule of the paper that this package is named after.

        pruner = Pruner(len(train_set), keep=0.3, **policies.paper("ucb"))

    A selection serves 10 epochs, and the newest loss weighs 0.8 in the moving average (Raju,
    Daruwalla & Lipasti 2021, arXiv:2111.12621). At equal cost, a selection for each epoch, the
    default of `Pruner`, gave a higher accuracy in most comparisons here. See
    docs/guides/choosing.md.

    Args:
        rule: "uniform", "epsilon_greedy" or "ucb".

    Returns:
        `policy`, `period`, `alpha` and `warmup_epochs`.

    Raises:
        TypeError: `rule` is no str.
        ValueError: The paper has no such rule.
    """
    as_choice("rule", rule, tuple(_RULES))
    return {"policy": _RULES[rule](), "period": 10, "alpha": 0.8, "warmup_epochs": 1}
