# SPDX-License-Identifier: Apache-2.0
"""Calls the operators directly, past the checks of functional.py, with wrong arguments.

`tests/functional/test_direct_calls.py` runs it in a process of its own.
"""

import torch

import dynprune_cuda  # noqa: F401  (registers the operators)
from dynprune_cuda._ops.contract import GradientTime, RankingKind, RowReduction, Score

ops = torch.ops.dynprune_cuda
s, n = torch.rand(9), torch.arange(9)
SCORE, UCB_VARIANCE, UCB_STD, UCB1, WEIGHT, EXPLORE, *_ = map(int, RankingKind)
x, y, f = torch.rand(3, 4), torch.tensor([0, 1, 2]), torch.zeros


def step(**changed):
    arguments = dict(
        logits=x,
        target=y,
        sample_ids=n[:3],
        mean=s,
        variance=s.clone(),
        count=n.int(),
        non_finite_count=None,
        last_non_finite=None,
        last_correct=None,
        forget_count=None,
        ticket=None,
        alpha=0.5,
        published_first_visit=False,
        score=0,
        row_reduction=0,
        rows_per_id=1,
        reduction=1,
        sample_weight=None,
        token_weight=None,
        divisor=None,
        weight=None,
        ignore_index=-100,
        label_smoothing=0.0,
        second_target=None,
        lam=None,
        grad_scale=None,
        gradient=1,
    )
    ops.scored_cross_entropy_step_(**{**arguments, **changed})


def binary_step(**changed):
    arguments = dict(
        logits=x,
        target=x,
        sample_ids=n[:3],
        mean=s,
        variance=s.clone(),
        count=n.int(),
        non_finite_count=None,
        last_non_finite=None,
        last_correct=None,
        forget_count=None,
        ticket=None,
        alpha=0.5,
        published_first_visit=False,
        score=0,
        row_reduction=0,
        reduction=1,
        sample_weight=None,
        divisor=None,
        weight=None,
        pos_weight=None,
        grad_scale=None,
        gradient=1,
    )
    ops.scored_binary_cross_entropy_step_(**{**arguments, **changed})


ranked = dict(values=s, second=None, ranking=SCORE, c=1.0, log_step=1.0, seed_tensor=None, seed=0)


def select(**changed):
    ops.select_ranked(**{**ranked, "k": 3, "num_random": 0, "ascending": False, **changed})


def keys(**changed):
    ops.shard_keys(**{**ranked, "first": 0, "stride": 1, **changed})


calls = [
    lambda: select(k=10),
    lambda: select(k=-1),
    lambda: select(k=1 << 62, ascending=True),
    lambda: select(values=n),
    lambda: select(values=x),
    lambda: select(seed_tensor=s[0]),
    lambda: select(seed_tensor=n),
    lambda: select(seed_tensor=n[:0]),
    lambda: select(values=f(1).expand(1 << 50)),
    lambda: select(num_random=4),
    lambda: select(num_random=-1),
    lambda: select(ranking=-1),
    lambda: select(ranking=EXPLORE),
    lambda: select(ranking=len(RankingKind)),
    lambda: select(second=s),
    lambda: select(ranking=UCB_VARIANCE),
    lambda: select(ranking=UCB1),
    *(lambda r=r: select(ranking=r, second=s, num_random=1) for r in (UCB_VARIANCE, UCB_STD)),
    lambda: select(ranking=UCB1, second=n, num_random=1),
    lambda: select(ranking=WEIGHT, num_random=1),
    lambda: select(ranking=UCB_VARIANCE, second=s[:5]),
    lambda: select(ranking=UCB_VARIANCE, second=s.half()),
    lambda: select(ranking=UCB_VARIANCE, values=s.double(), second=s.double()),
    lambda: select(ranking=UCB1, values=s.half(), second=n),
    lambda: select(ranking=UCB1, second=s),
    lambda: select(ranking=UCB1, second=n.byte()),
    lambda: select(ranking=UCB1, second=n[:5]),
    lambda: select(ranking=WEIGHT, values=-s - 1),
    lambda: select(ranking=WEIGHT, values=n),
    lambda: ops.select_uniform(s, -5, 0, None, 0, False),
    lambda: ops.select_uniform(s, -5, -7, None, 0, False),
    lambda: ops.select_uniform(s, 5, 6, None, 0, False),
    lambda: ops.select_uniform(s, 1 << 40, 6, None, 0, False),
    lambda: keys(values=s.double()),
    lambda: keys(values=x),
    lambda: keys(ranking=EXPLORE),
    lambda: keys(ranking=UCB_VARIANCE, second=s[:5]),
    lambda: keys(ranking=UCB_VARIANCE, second=s.half()),
    lambda: keys(ranking=UCB1, values=s.half(), second=n),
    lambda: keys(ranking=UCB1, second=n[:5]),
    lambda: keys(ranking=UCB1, second=s),
    lambda: keys(ranking=WEIGHT, values=-s - 1),
    lambda: keys(ranking=WEIGHT, values=s.double()),
    lambda: keys(first=-1),
    lambda: keys(stride=0),
    lambda: keys(first=1 << 40),
    lambda: keys(stride=1 << 62),
    lambda: ops.shard_digit_counts(n, n[:2], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:1], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2].int(), None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:3:2], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], n, True, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], n[:2], False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], None, False, 6, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], None, False, -1, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int()[::2], n[:2], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2] * 0, None, 5, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2], None, 10, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2], None, -1, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2], n, 1, 0, 1, None, 0),
    lambda: ops.permutation_part(s, 5, 0, 1, 6, False, None, 0),
    lambda: ops.permutation_part(s, 5, 3, 2, 2, False, None, 0),
    lambda: ops.permutation_part(s, 5, 0, 1, -1, False, None, 0),
    lambda: ops.permutation_part(s, 1 << 40, 0, 1, 1, False, None, 0),
    lambda: ops.permutation_part(s, 5, 0, 1, 1, False, s[0], 0),
    lambda: ops.scored_cross_entropy(x[0], y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y[:2], None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y.float(), None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y + 2, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y - 1, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x[:, :0], y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y, s[:3], -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y, s[:4].double(), -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 1.5),
    lambda: ops.scored_cross_entropy(x, y, None, -100, float("nan")),
    lambda: ops.scored_cross_entropy(x.long(), y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy_backward(f(2), x, y, None, -100, 0.0, f(3, 4)),
    lambda: ops.scored_cross_entropy_backward(f(3), x, y, None, -100, 0.0, f(2, 4)),
    lambda: ops.scored_cross_entropy_backward(f(3), x, y, None, -100, 0.0, f(4, 3).T),
    lambda: ops.scored_cross_entropy_backward(f(3).half(), x, y, None, -100, 0.0, f(3, 4)),
    lambda: ops.scored_cross_entropy_backward(f(3), x, y, None, -100, 0.0, f(3, 4).double()),
    lambda: ops.scored_cross_entropy_with_gradient_(f(2), x + 0, y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy_with_gradient_(f(3).half(), x + 0, y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy_with_gradient_(f(3), x + 0, y - 9, None, -100, 0.0),
    lambda: ops.scored_cross_entropy_with_gradient_(f(3), f(4, 3).T, y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy_with_gradient_(f(3), f(1, 3, 4), y, None, -100, 0.0),
    lambda: ops.update_scores_(s, s[:5], n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n[:5], n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n.byte(), n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s[:5], 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n.int(), s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s.double(), 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n + 1, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n - 3, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, n, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, n.int()[:5], None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, (n > 1)[:5]),
    lambda: ops.update_scores_(f(18)[::2], s, n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(f(1).expand(9), s, n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(x, s, n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, n > 3, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, n[:5] > 3, n > 3),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, None, None, n.int()),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y, None),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y[:2], s[0]),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y + 2, s[0]),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y, s[:2]),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y, s[0].double()),
    lambda: ops.scored_binary_cross_entropy(x[0], x[0], None, None),
    lambda: ops.scored_binary_cross_entropy(x, x[:2], None, None),
    lambda: ops.scored_binary_cross_entropy(x, x.long(), None, None),
    lambda: ops.scored_binary_cross_entropy(x, x + 1.5, None, None),
    lambda: ops.scored_binary_cross_entropy(x, x * float("nan"), None, None),
    lambda: ops.scored_binary_cross_entropy(x[:, :0], x[:, :0], None, None),
    lambda: ops.scored_binary_cross_entropy(x, x, s[:3], None),
    lambda: ops.scored_binary_cross_entropy(x, x, x[:2], None),
    lambda: ops.scored_binary_cross_entropy(x, x, None, x),
    lambda: ops.scored_binary_cross_entropy(x, x, None, s[:4].double()),
    lambda: ops.scored_binary_cross_entropy_backward(f(2), x, x, None, None),
    lambda: ops.scored_binary_cross_entropy_backward(f(3).double(), x, x, None, None),
    lambda: ops.scored_binary_cross_entropy_backward(f(3), x, x - 2, None, None),
    lambda: binary_step(sample_ids=n[:2]),
    lambda: binary_step(sample_ids=n[:3] + 8),
    lambda: binary_step(target=x - 1),
    lambda: binary_step(mean=s[:5]),
    lambda: binary_step(score=len(Score)),
    lambda: binary_step(reduction=3),
    lambda: binary_step(gradient=-1),
    lambda: binary_step(sample_weight=s),
    lambda: binary_step(divisor=s),
    lambda: binary_step(grad_scale=s),
    lambda: step(sample_ids=n[:2]),
    lambda: step(sample_ids=n[:3] + 8),
    lambda: step(mean=s[:5]),
    lambda: step(forget_count=n.int()),
    lambda: step(score=len(Score)),
    lambda: step(reduction=-1),
    lambda: step(row_reduction=-1),
    lambda: step(row_reduction=len(RowReduction)),
    lambda: step(rows_per_id=0),
    lambda: step(rows_per_id=-1),
    lambda: step(rows_per_id=2),
    lambda: step(rows_per_id=3),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, row_reduction=3),
    lambda: step(gradient=len(GradientTime)),
    lambda: step(sample_weight=s),
    lambda: step(token_weight=s),
    lambda: step(divisor=s),
    lambda: step(grad_scale=s),
    lambda: ops.scale_gradient_(x.T, s[0], None),
    lambda: ops.scale_gradient_(x, s[:2], None),
    lambda: ops.scale_gradient_(x, s[0].double(), None),
    lambda: ops.scale_gradient_(x, s[0], s),
]
for i, call in enumerate(calls):
    try:
        call()
    except (RuntimeError, IndexError) as error:
        assert type(error) in (RuntimeError, IndexError), error
        assert len(str(error)) > 10, i
    else:
        raise SystemExit(f"call {i} did not fail")
# A backward without its forward's check of the targets stays inside its row.
g = ops.scored_cross_entropy_backward(torch.ones(3), x, y + (1 << 40), None, -100, 0.0, f(3, 4))
assert not g.any()
print(len(calls), "refused")
