# SPDX-License-Identifier: Apache-2.0
"""The targets for the speed of selection.

Those for a CPU are ratios of medians within one run, stated for 2 cores, k = 0.3 N and lognormal
scores. Those for a GPU are stated for an H100 and k = N/3.
"""

from __future__ import annotations

from benchmarks.common.targets import Target, at_most, faster

SPREAD = 1.5  # slowest over fastest distribution of the same N and k
SPREAD_FROM = 50_000  # below this size, the time is that of a function call
MULTINOMIAL_LIMIT = 2**24  # categories

# (op, rival): how many times faster than the rival
AT_TEN_MILLION = {
    ("select_top_k, ascending", "torch.topk"): 5.0,
    ("select_top_k, ascending", "np.argpartition"): 2.0,
    ("select_top_k, random", "torch.topk + randperm"): 3.0,
    ("select_top_k, random", "np.argpartition + shuffle"): 3.0,
    ("select_epsilon_greedy, ascending", "topk + isin + randperm"): 15.0,
    ("select_uniform, random", "torch.randperm[:k]"): 8.0,
}
UCB_COST = 1.3  # times select_top_k, at most
WEIGHTED = 4.0  # at 1.6e7
GPU_TOP_K = 4.0  # times faster than torch.topk at 1e8, whatever the distribution
GPU_TOP_K_MS = {100_000_000: 0.35, 1_000_000: 0.020}


def find(
    device_type: str, op: str, rival: str, num_samples: int, keep: float, scores: str = "lognormal"
) -> Target | None:
    """The target for the ratio of `rival` to `op`, None where there is no target."""
    if device_type == "cuda":
        stated = op == "select_top_k, ascending" and rival == "torch.topk"
        stated = stated and num_samples == 100_000_000 and abs(keep - 1 / 3) < 0.01
        return faster(GPU_TOP_K) if stated else None
    if scores != "lognormal" or abs(keep - 0.3) > 0.001:
        return None
    if rival == "select_top_k, ascending":
        stated = op == "select_ucb, ascending" and num_samples == 10_000_000
        return at_most(UCB_COST) if stated else None
    if num_samples == 50_000:
        return Target("not slower", 1.0)
    if num_samples == 16_000_000 and op.startswith("select_weighted"):
        return faster(WEIGHTED)
    if num_samples == 10_000_000 and (op, rival) in AT_TEN_MILLION:
        return faster(AT_TEN_MILLION[op, rival])
    return None


def gpu_milliseconds(op: str, num_samples: int, keep: float) -> float | None:
    """The greatest time on an H100, None where there is no target."""
    if op != "select_top_k, ascending" or abs(keep - 1 / 3) > 0.01:
        return None
    return GPU_TOP_K_MS.get(num_samples)
