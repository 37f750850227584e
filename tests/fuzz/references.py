# SPDX-License-Identifier: Apache-2.0
"""Whether the result of an accepted call is right, by slow NumPy references in float64.

Each function gets the arguments before and after the call, as plain tensors on the CPU, and the
result; it raises AssertionError if they do not fit. Reading an argument that no reference can read
raises, too: such a call should have been refused.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynprune_cuda._ops.contract import RankingKind
from dynprune_cuda.functional import FixedIds, Ranking, Tilted, Trimmed, Uniform
from tests.fuzz.exotic import saved_scores
from tests.support import reference

Values = dict[str, Any]


def equal_ids(found: Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.int64 and found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), expected)


def seed_of(before: Values) -> int:
    seed = before.get("seed", 0)
    return int(seed) if isinstance(seed, Tensor) else operator.index(seed)


def count_of(number: Any, limit: int) -> int:
    count = operator.index(number)
    assert 0 <= count <= limit, f"{count} is not in [0, {limit}]"
    return count


# ---- selection


def by_ranking(ranking: Ranking, k: int, seed: int, order: str) -> np.ndarray:
    """The ids that a ranking selects."""
    values = reference.as_float64(ranking.values)
    assert values.ndim == 1
    k = count_of(k, len(values))
    kind, second = ranking.kind, ranking.second
    if kind == RankingKind.SCORE:
        return reference.epsilon_greedy(values, k, ranking.random_share, seed, order)
    if kind in (RankingKind.UCB_VARIANCE, RankingKind.UCB_STD):
        bonus = "std" if kind == RankingKind.UCB_STD else "variance"
        bound = reference.ucb_bound(ranking.values, second, ranking.c, bonus)
        return reference.top_k(bound, k, seed, order)
    if kind == RankingKind.UCB1:
        bound = reference.ucb1_bound(
            ranking.values, second, ranking.c, float(np.exp(ranking.log_step))
        )
        return reference.top_k(bound, k, seed, order)
    if kind == RankingKind.WEIGHT:
        assert k == 0 or (values >= 0).all(), "a weight is negative or NaN"
        return reference.weighted(values, k, seed, order)
    return reference.weighted(weights_of(ranking), k, seed, order)


def weights_of(ranking: Ranking) -> np.ndarray:
    """What a ranking draws in proportion to."""
    values = reference.as_float64(ranking.values)
    if ranking.kind == RankingKind.WEIGHT:
        return values
    values = np.where(np.isnan(values), np.inf, np.maximum(values, 0.0))
    is_root = ranking.kind == RankingKind.SCORE_WEIGHT_SQRT
    # The root of a float32 is rounded to one.
    return np.sqrt(values).astype(np.float32).astype(np.float64) if is_root else values


def selection(make: Any) -> Any:
    """A reference of a function that selects by the ranking that `make` gives."""

    def check(before: Values, _after: Values, result: Any) -> None:
        ranking = make(before)
        if "shard" in before:
            assert len(ranking.values) == before["shard"].num_samples
        order = "ascending" if "shard" in before else before["order"]
        equal_ids(result, by_ranking(ranking, before["k"], seed_of(before), order))

    return check


top_k = selection(lambda before: Ranking(RankingKind.SCORE, before["scores"]))
epsilon_greedy = selection(
    lambda before: Ranking(
        RankingKind.SCORE, before["scores"], None, 0.0, 0.0, float(before["epsilon"])
    )
)
ucb = selection(
    lambda before: Ranking(
        RankingKind.UCB_STD if before["bonus"] == "std" else RankingKind.UCB_VARIANCE,
        before["mean"], before["variance"], float(before["c"]),
    )
)  # fmt: skip
weighted = selection(lambda before: Ranking(RankingKind.WEIGHT, before["weights"]))


def ucb1(before: Values, _after: Values, result: Any) -> None:
    bound = reference.ucb1_bound(
        before["mean"], before["count"], float(before["c"]), float(before["step"])
    )
    order = "ascending" if "shard" in before else before["order"]
    k = count_of(before["k"], len(bound))
    equal_ids(result, reference.top_k(bound, k, seed_of(before), order))


def uniform(before: Values, _after: Values, result: Any) -> None:
    size = before["shard"].num_samples if "shard" in before else before["num_samples"]
    n = operator.index(size)
    order = "ascending" if "shard" in before else before.get("order", "random")
    k = count_of(before.get("k", n), n)
    equal_ids(result, reference.uniform(n, k, seed_of(before), order))


def by_rule(before: Values, _after: Values, result: Any) -> None:
    """Of `select`; of tilted and trimmed rules only that they are distinct ids."""
    rule = before["rule"]
    n = operator.index(before["shard"].num_samples if "shard" in before else before["num_samples"])
    k = count_of(before["k"], n)
    order = before.get("order", "ascending")
    if isinstance(rule, Ranking):
        assert len(rule.values) == n
        equal_ids(result, by_ranking(rule, k, seed_of(before), order))
    elif isinstance(rule, Uniform):
        equal_ids(result, reference.uniform(n, k, seed_of(before), order))
    elif isinstance(rule, FixedIds):
        equal_ids(result, np.sort(rule.tensor.numpy()))
    else:
        assert isinstance(rule, Tilted | Trimmed)
        distinct_ids(result, k, n)


def distinct_ids(ids: Tensor, k: int, n: int) -> None:
    assert ids.dtype == torch.int64 and ids.shape == (k,) and len(ids.unique()) == k
    assert k == 0 or (int(ids.min()) >= 0 and int(ids.max()) < n)


def rescaled(before: Values, after: Values, result: Any) -> None:
    ids, factors = result
    by_rule({**before, "order": "ascending"}, after, ids)
    assert factors.dtype == torch.float32 and factors.shape == ids.shape
    rule, k = before["rule"], operator.index(before["k"])
    if isinstance(rule, Ranking) and k > 0:
        weights = weights_of(rule)
        if can_be_solved(weights):
            with np.errstate(divide="ignore"):
                expected = np.minimum(k / len(weights) / inclusion_of(weights, k), 10.0)
            np.testing.assert_allclose(factors, expected[ids.numpy()], rtol=2e-3)


def can_be_solved(weights: np.ndarray) -> bool:
    """Whether weights are as `inclusion_probabilities` promises its accuracy for."""
    positive = weights[(weights > 0) & np.isfinite(weights)]
    fits = len(positive) == 0 or (positive.min() > 1e-30 and positive.max() / positive.min() < 1e20)
    return bool(not np.isnan(weights).any() and (weights >= 0).all() and fits)


def inclusion_of(weights: np.ndarray, k: int) -> np.ndarray:
    """Probabilities that add up to k, by bisection in the logarithm of t."""
    infinite, zero = np.isinf(weights), weights == 0
    finite = ~infinite & ~zero
    if k <= infinite.sum():
        return np.where(infinite, k / max(infinite.sum(), 1), 0.0)
    wanted = k - infinite.sum()
    if wanted >= finite.sum():
        rest = (wanted - finite.sum()) / max(zero.sum(), 1)
        return np.where(zero, rest, 1.0)
    low, high = -150.0, 150.0
    some = weights[finite]
    for _ in range(200):
        time = (low + high) / 2
        with np.errstate(over="ignore"):
            total = -np.expm1(-some * np.exp(time)).sum()
        low, high = (time, high) if total < wanted else (low, time)
    return np.where(finite, -np.expm1(-np.where(finite, weights, 0) * np.exp(high)), infinite)


def inclusion(before: Values, _after: Values, result: Any) -> None:
    weights = reference.as_float64(before["weights"])
    assert weights.ndim == 1 and result.dtype == torch.float32 and len(result) == len(weights)
    k = count_of(before["k"], len(weights))
    if can_be_solved(weights):
        np.testing.assert_allclose(result, inclusion_of(weights, k), rtol=2e-3, atol=1e-6)


# ---- scoring


def number(value: Any) -> Tensor:
    """A tensor, or any number as one."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def target_of(before: Values, name: str = "target") -> np.ndarray:
    target = before[name]
    assert not target.dtype.is_floating_point and target.dim() == 1
    return target.long().numpy()


def losses_of(before: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses in float64, whether rows are ignored, and what a mean divides by, of each row."""
    logits, target = before["logits"].double(), before["target"].long()
    ignore, smoothing = operator.index(before["ignore_index"]), float(before["label_smoothing"])
    weight = before["weight"]
    weight = torch.ones(logits.shape[1]).double() if weight is None else weight.double()

    # A row is ignored if either target is; the other one is then not looked at.
    second = before["target_b"]
    skipped = target == ignore
    skipped = skipped if second is None else skipped | (second.long() == ignore)

    def of(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left_out = skipped
        assert bool(((labels >= 0) & (labels < logits.shape[1]))[~left_out].all())
        labels = labels.masked_fill(left_out, 0)
        if not len(labels):
            return torch.zeros(0).double(), left_out, torch.zeros(0).double()
        losses = torch.nn.functional.cross_entropy(
            logits, labels, weight, label_smoothing=smoothing, reduction="none"
        )
        return losses, left_out, weight[labels]

    losses, ignored, factors = of(target)
    if before["target_b"] is not None:
        second, ignored_too, factors_too = of(before["target_b"].long())
        lam = number(before["lam"]).double()
        losses = lam * losses + (1 - lam) * second
        factors = lam * factors + (1 - lam) * factors_too
        ignored = ignored | ignored_too
    losses, factors = losses.masked_fill(ignored, 0.0), factors.masked_fill(ignored, 0.0)
    return losses.numpy(), ignored.numpy(), factors.numpy()


def judge_scores(before: Values, result: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares the scores of rows with finite logits; returns what `losses_of` does."""
    logits = reference.as_float64(before["logits"])
    assert logits.ndim == 2
    losses, ignored, factors = losses_of(before)
    target = np.where(ignored, 0, target_of(before))
    usual = np.isfinite(logits).all(axis=1) & ~ignored
    # Differences that do not fit the dtype of the result have no exact score in it.
    dtype = result.el2n.dtype
    with np.errstate(over="ignore"):
        usual &= np.isfinite(np.ptp(logits, axis=1).astype(str(dtype).removeprefix("torch.")))
    exact = reference.scores(logits[usual], target[usual])
    for name in ("el2n", "entropy", "margin"):
        found = getattr(result, name)
        assert found.shape == (len(logits),)
        # Near the least normal number the last digits are gone, in float32 at 1e-38.
        found_usual = found[torch.from_numpy(usual)]
        large = np.abs(exact[name]) > 2 * torch.finfo(found.dtype).tiny
        reference.assert_close(found_usual[torch.from_numpy(large)], exact[name][large], name)
        assert bool((found_usual[torch.from_numpy(~large)].abs() < 1e-37).all()), name
        assert not bool(found[torch.from_numpy(ignored)].any()), f"{name} of ignored rows"
    assert bool((result.correct[torch.from_numpy(usual)].numpy() == (exact["margin"] > 0)).all())
    return np.where(usual | ignored, losses, np.nan), ignored, factors


def is_ordinary(before: Values) -> bool:
    """Whether factors are such that a float32 sum has few rounding errors."""
    named = [before["weight"], before.get("sample_weight"), before["lam"]]
    for factor in named:
        if factor is None:
            continue
        values = reference.as_float64(number(factor))
        if not (np.isfinite(values).all() and (values >= 0).all() and (values < 1e6).all()):
            return False
    lam = before["lam"]
    return lam is None or bool((number(lam) <= 1).all())


def judge_loss(before: Values, loss: Tensor, losses: np.ndarray, factors: np.ndarray) -> None:
    named = ("token_weight", "num_items")
    if not is_ordinary(before) or any(before.get(name) is not None for name in named):
        return
    scale = before.get("sample_weight")
    if scale is not None:
        losses = losses * reference.as_float64(scale)
    if before["reduction"] == "none":
        known = np.isfinite(losses) & (np.abs(losses) < 1e30)
        assert loss.shape == losses.shape
        found = loss.detach().double().numpy()[known]
        np.testing.assert_allclose(found, losses[known], rtol=2e-5, atol=2e-5)
        return
    total = losses.sum()
    assert loss.dim() == 0
    with np.errstate(all="ignore"):
        expected = total / factors.sum() if before["reduction"] == "mean" else total
    if np.isfinite(total) and abs(total) < 1e30 and (factors.sum() > 1e-3 or not factors.any()):
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-4, atol=1e-4)


def has_more_dimensions(before: Values) -> bool:
    """Whether logits are of another shape than [B, C], which other tests judge."""
    return before["logits"].dim() != 2 or before["target"].dim() != 1


def has_probabilities(before: Values) -> bool:
    """Whether the target of logits [B, C] is a distribution over the classes, not an index."""
    target, logits = before["target"], before["logits"]
    return target.is_floating_point() and logits.dim() == 2 and target.shape == logits.shape


def judge_probabilities(before: Values, result: Any) -> None:
    """Compares EL2N and the losses of each row, where rows and factors are finite."""
    logits, target = before["logits"].double(), before["target"].double()
    assert before["target_b"] is None and before["lam"] is None
    usual = logits.isfinite().all(1) & target.isfinite().all(1)
    usual &= (logits.abs() < 1e30).all(1) & (target.abs() < 1e6).all(1)
    norms = torch.linalg.vector_norm(logits.softmax(1) - target, dim=1)
    assert result.el2n.shape == norms.shape
    found = result.el2n.detach().double()[usual]
    torch.testing.assert_close(found, norms[usual], rtol=1e-4, atol=1e-4)
    named = ("token_weight", "num_items", "sample_weight")
    is_plain = not any(before.get(name) is not None for name in named)
    if before["reduction"] != "none" or not is_plain or not is_ordinary(before):
        return
    weight = None if before["weight"] is None else before["weight"].double()
    smoothing = float(before["label_smoothing"])
    losses = torch.nn.functional.cross_entropy(
        logits[usual], target[usual], weight, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(result.loss.detach().double()[usual], losses, rtol=1e-4, atol=1e-4)


def cross_entropy(before: Values, _after: Values, result: Any) -> None:
    if has_probabilities(before):
        judge_probabilities(before, result)
    if has_more_dimensions(before):
        return
    losses, _, factors = judge_scores(before, result)
    judge_loss(before, result.loss, losses, factors)


COLUMNS = (
    "mean", "variance", "count", "non_finite_count", "last_non_finite", "last_correct",
    "forget_count",
)  # fmt: skip


def judge_update(
    before: Values,
    after: Values,
    ids: np.ndarray,
    values: np.ndarray,
    correct: np.ndarray | None,
    tolerance: float,
) -> None:
    """Compares the columns of a table with one row after the other, of which the last counts."""
    expected = {name: before[name].numpy().copy() for name in COLUMNS if before[name] is not None}
    size = len(expected["mean"])
    assert ((ids >= -1) & (ids < size)).all(), "an id is out of range"
    for name, dtype in (("non_finite_count", np.int32), ("last_non_finite", bool)):
        expected.setdefault(name, np.zeros(size, dtype))
    alpha, published = float(before["alpha"]), before["first_visit"]
    rule = before["row_reduction"]
    rule = rule if isinstance(rule, str) else float(rule)
    with np.errstate(all="ignore"):
        reference.update_scores(expected, ids, values.astype(np.float32), alpha, published, rule)
    limit = np.finfo(np.float32).max
    touched = np.isin(np.arange(size), ids)
    overflows = touched & (expected["variance"] > limit)  # the operators write a finite number
    expected["variance"][overflows] = after["variance"].numpy()[overflows]
    assert np.isfinite(expected["variance"][overflows]).all()
    if correct is not None and "last_correct" in expected:
        for i in set(ids[ids != -1].tolist()):
            is_correct = correct[ids == i].all()
            if "forget_count" in expected:
                expected["forget_count"][i] += bool(expected["last_correct"][i] and not is_correct)
            expected["last_correct"][i] = is_correct
    for name in COLUMNS:
        if before[name] is None:
            continue
        found, wanted = after[name].numpy(), expected[name]
        if found.dtype != np.float32:
            np.testing.assert_array_equal(found, wanted, err_msg=name)
            continue
        # What was not finite before has no exact average.
        known = ~touched | (np.isfinite(wanted) & np.isfinite(before[name].numpy()))
        known |= before["count"].numpy() == 0
        size_of = np.abs(wanted[known]) + np.abs(before["mean"].numpy()[known])
        size_of = size_of + size_of**2 if name == "variance" else size_of
        allowed = tolerance * np.where(np.isfinite(size_of), size_of, 0) + 1e-37
        close = np.abs(found[known] - wanted[known]) <= allowed
        same = (found[known] == wanted[known]) | (np.isnan(found[known]) & np.isnan(wanted[known]))
        assert (close | same).all(), (name, found[known][~close], wanted[known][~close])


def update(before: Values, after: Values, result: Any) -> None:
    assert result is None
    ids, values = before["sample_ids"].numpy(), before["values"].to(torch.float32).numpy()
    assert ids.shape == values.shape and ids.ndim == 1
    correct = None if before["correct"] is None else before["correct"].numpy()
    judge_update(before, after, ids, values, correct, 1e-6)


def step(before: Values, after: Values, result: Any) -> None:
    if has_probabilities(before):
        judge_probabilities(before, result)
    if has_more_dimensions(before):
        return
    losses, ignored, factors = judge_scores(before, result)
    judge_loss(before, result.loss, losses, factors)
    if not is_ordinary(before):
        return
    score = before["score"]
    values = losses if score == "loss" else getattr(result, score).double().numpy()
    values = -values if score == "margin" else values
    if np.isnan(values[~ignored]).any():
        return  # rows with infinite logits: what they enter is tested elsewhere
    ids = np.where(ignored, -1, before["sample_ids"].numpy())
    judge_update(before, after, ids, values, result.correct.numpy(), 1e-4)


def last_layer_grand(before: Values, _after: Values, result: Any) -> None:
    el2n, features = before["el2n"], before["features"]
    norm = (reference.as_float64(features) ** 2).sum(axis=1)
    with np.errstate(all="ignore"):
        expected = reference.as_float64(el2n) * np.sqrt(norm + (1 if before["bias"] else 0))
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in (el2n, features))
    known = np.isfinite(expected) & (expected < 1e30)
    assert result.dtype == el2n.dtype and result.shape == el2n.shape
    found = result.double().numpy()[known]
    limit = torch.finfo(el2n.dtype).max
    kept = np.abs(expected[known]) < limit / 2
    np.testing.assert_allclose(found[kept], expected[known][kept], rtol=4 * epsilon, atol=1e-7)


# ---- objects


def observed(before: Values, after: Values, result: Any) -> None:
    """Of `ScoreTable.update` and of `Pruner.observe`."""
    assert result is None
    start, end = (
        thing["table"] if "table" in thing else thing["pruner"].table for thing in (before, after)
    )
    columns = [{name: getattr(table, name) for name in COLUMNS} for table in (start, end)]
    alpha = before.get("alpha")
    ids, values, correct = before["ids"].long(), before["values"], before["correct"]
    if values.dim() == 0:
        alpha, values = 0.1 if len(ids) > 1 else alpha, values.expand(len(ids))
    assert ids.shape == values.shape and ids.dim() == 1
    options = {
        "alpha": start.alpha if alpha is None else alpha, "first_visit": start.first_visit,
        "row_reduction": start.row_reduction,
    }  # fmt: skip
    told = None if correct is None or not start.track_forgetting else correct.numpy()
    judge_update(
        {**columns[0], **options}, columns[1], ids.numpy(), values.float().numpy(), told, 1e-6
    )


def is_selected(before: Values, _after: Values, result: Any) -> None:
    ids, chosen = before["sample_ids"].long(), before["pruner"].selected
    expected = np.isin(ids.numpy(), chosen.numpy())
    np.testing.assert_array_equal(result.numpy(), expected)


def loaded(name: str) -> Any:
    """A reference of `load_state_dict` of the object `name`: what was loaded is what is there."""

    def check(before: Values, after: Values, result: Any) -> None:
        assert result is None
        state, found = before["state_dict"], after[name].state_dict()
        same_state(state, found)

    return check


def same_state(saved: Any, found: Any, name: str = "state_dict") -> None:
    """Whether an accepted state is there; the version may be a newer one."""
    if isinstance(found, dict):
        assert set(saved) == set(found), name
        for key, value in found.items():
            if key != "version":
                same_state(saved[key], value, f"{name}[{key!r}]")
    elif isinstance(found, Tensor):
        value = saved.detach().cpu()
        assert value.dtype == found.dtype and value.shape == found.shape, name
        np.testing.assert_array_equal(value.numpy(), found.numpy(), err_msg=name)
    else:
        assert saved == found or (saved != saved and found != found), f"{name}: {saved}, {found}"


def intact_scores(before: Values, _after: Values, result: Any) -> None:
    """Of a damaged file of static scores that was read nevertheless: nothing of it was changed."""
    state = torch.load(before["path"], weights_only=True)
    whole = dict(torch.load(saved_scores(len(state["values"])), weights_only=True))
    for name in ("values", "method", "seeds", "epochs", "about"):
        same_state(state[name], whole[name], name)
    np.testing.assert_array_equal(result.values.numpy(), whole["values"].numpy())
