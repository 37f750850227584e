# SPDX-License-Identifier: Apache-2.0
"""The operators as functions: selection, scoring, score updates.

Every selection returns distinct int64 sample ids on the device of its input, without waiting for
the device. One total order decides: score descending (NaN is the greatest, -0 equals +0), equal
scores by a hash of (seed, sample id). The subset and its order depend on the values, k and the seed
only: not on device, grid or thread count.

Arguments common to all selections:
    k: How many samples, 0 <= k <= N, N at most 2^32.
    seed: Any Python int (modulo 2^64), or a 0-d int64 tensor on the device, read when the kernels
        run, so that a captured CUDA graph can be replayed with a new seed.
    order: "random", a seeded uniformly random order, ready for SGD; or "ascending".

Errors in arguments are ValueError or TypeError and name the argument and the value. Errors in the
data of CUDA tensors (targets or sample ids out of range, negative weights) cannot be raised without
waiting: the offender is skipped and remembered on the device until `check_errors` raises it; on the
CPU they are raised at once.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dynprune_cuda._arguments import as_choice, as_float, as_int
from dynprune_cuda._ops import ops

__all__ = [
    "ScoredLoss",
    "check_errors",
    "permutation",
    "scored_cross_entropy",
    "select_epsilon_greedy",
    "select_top_k",
    "select_ucb",
    "select_ucb1",
    "select_uniform",
    "select_weighted",
    "update_scores_",
]

Order = Literal["random", "ascending"]

_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_UCB_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_COUNT_DTYPES = (torch.int32, torch.int64)
_TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)
_MAX_SAMPLES = 1 << 32
_FLOAT32_MAX = torch.finfo(torch.float32).max


def select_top_k(
    scores: Tensor, k: int, *, seed: int | Tensor = 0, order: Order = "random"
) -> Tensor:
    """The k samples with the greatest scores.

    Args:
        scores: [N] float32, float16, bfloat16 or float64; any strides.
        k: See the module.
        seed: See the module; it breaks ties and draws the order.
        order: See the module.

    Returns:
        [k] int64 sample ids.
    """
    _check_vector("scores", scores, _FLOATING)
    k = _check_k(k, scores.numel())
    return _ids(ops.select_top_k(scores.detach(), k, *_seed_and_order(seed, order, scores.device)))


def select_epsilon_greedy(
    scores: Tensor, k: int, epsilon: float, *, seed: int | Tensor = 0, order: Order = "random"
) -> Tensor:
    """The greatest scores, with a share of the k samples drawn uniformly from all others.

    n_random = floor(epsilon * k + 0.5) samples are drawn without replacement from what the k -
    n_random greatest scores left over (epsilon-greedy, Sutton & Barto 2018, section 2.2, for a set
    of arms).

    Args:
        scores: [N] float32, float16, bfloat16 or float64; any strides.
        k: See the module.
        epsilon: Share of random samples, in [0, 1].
        seed: See the module.
        order: See the module.

    Returns:
        [k] int64 sample ids.
    """
    _check_vector("scores", scores, _FLOATING)
    k = _check_k(k, scores.numel())
    epsilon = as_float("epsilon", epsilon, low=0.0, high=1.0)
    num_random = math.floor(epsilon * k + 0.5)
    common = _seed_and_order(seed, order, scores.device)
    return _ids(ops.select_epsilon_greedy(scores.detach(), k, num_random, *common))


def select_ucb(
    mean: Tensor,
    variance: Tensor,
    k: int,
    *,
    c: float = 1.0,
    bonus: Literal["variance", "std"] = "variance",
    seed: int | Tensor = 0,
    order: Order = "random",
) -> Tensor:
    """The k samples with the greatest upper confidence bound.

    Computed inside the selection and never stored: the bound is mean + c * variance (as in the UCB
    baseline that the authors of InfoBatch released) or mean + c * sqrt(variance), in float32 with
    one fused multiply-add.

    Args:
        mean: [N] float32, float16 or bfloat16; NaN ranks first.
        variance: [N], dtype and device of mean.
        k: See the module.
        c: Weight of the bonus, finite.
        bonus: "variance" or "std".
        seed: See the module.
        order: See the module.

    Returns:
        [k] int64 sample ids.
    """
    _check_vector("mean", mean, _UCB_DTYPES)
    _check_vector("variance", variance, (mean.dtype,), mean)
    k = _check_k(k, mean.numel())
    c = as_float("c", c, low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
    sqrt_bonus = as_choice("bonus", bonus, ("variance", "std")) == "std"
    common = _seed_and_order(seed, order, mean.device)
    return _ids(ops.select_ucb(mean.detach(), variance.detach(), k, c, sqrt_bonus, *common))


def select_ucb1(
    mean: Tensor,
    count: Tensor,
    k: int,
    *,
    c: float = 1.0,
    step: float,
    seed: int | Tensor = 0,
    order: Order = "random",
) -> Tensor:
    """The k samples with the greatest mean + c * sqrt(log(step) / count); count 0 ranks first.

    Auer, Cesa-Bianchi & Fischer 2002 (UCB1, where c is sqrt(2)), in float32 with one fused
    multiply-add.

    Args:
        mean: [N] float32.
        count: [N] int32 or int64, visits of each sample.
        k: See the module.
        c: Weight of the bonus, finite.
        step: Number of visits of all samples so far, at least 1.
        seed: See the module.
        order: See the module.

    Returns:
        [k] int64 sample ids.
    """
    _check_vector("mean", mean, (torch.float32,))
    _check_vector("count", count, _COUNT_DTYPES, mean)
    k = _check_k(k, mean.numel())
    c = as_float("c", c, low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
    log_step = math.log(as_float("step", step, low=1.0))
    common = _seed_and_order(seed, order, mean.device)
    return _ids(ops.select_ucb1(mean.detach(), count, k, c, log_step, *common))


def select_uniform(
    num_samples: int,
    k: int,
    *,
    seed: int | Tensor = 0,
    device: torch.device | str | int = "cpu",
    order: Order = "random",
) -> Tensor:
    """A uniformly random subset: the first k elements of `permutation` with the same seed.

    In random order this is O(k) work and reads nothing.

    Args:
        num_samples: N.
        k: See the module.
        seed: See the module.
        device: Where the ids go.
        order: See the module.

    Returns:
        [k] int64 sample ids.
    """
    num_samples = as_int("num_samples", num_samples, minimum=0)
    _check_num_samples("num_samples", num_samples)
    k = _check_k(k, num_samples)
    like = torch.empty((0,), device=device)
    return _ids(
        ops.select_uniform(like, num_samples, k, *_seed_and_order(seed, order, like.device))
    )


def select_weighted(
    weights: Tensor, k: int, *, seed: int | Tensor = 0, order: Order = "random"
) -> Tensor:
    """Draws k samples without replacement, with probability proportional to the weights left.

    Efraimidis & Spirakis 2006: the k greatest w / E with E ~ Exp(1). Infinite weights come first;
    zero weights only when no positive ones remain, at random. The order is independent of the
    weights.

    Args:
        weights: [N] float32, float16, bfloat16 or float64, >= 0. A negative or NaN weight is a
            ValueError on the CPU; on CUDA it counts as zero and `check_errors` raises.
        k: See the module.
        seed: See the module.
        order: See the module.

    Returns:
        [k] int64 sample ids.
    """
    _check_vector("weights", weights, _FLOATING)
    k = _check_k(k, weights.numel())
    return _ids(
        ops.select_weighted(weights.detach(), k, *_seed_and_order(seed, order, weights.device))
    )


def permutation(
    num_samples: int, *, seed: int | Tensor = 0, device: torch.device | str | int = "cpu"
) -> Tensor:
    """A seeded random permutation of 0 .. num_samples - 1, the same on every device.

    A keyed bijection (Mitchell et al. 2021, arXiv:2106.06161) evaluated position by position: no
    sort, no memory beside the result.

    Args:
        num_samples: N.
        seed: See the module.
        device: Where the ids go.

    Returns:
        [N] int64.
    """
    return select_uniform(num_samples, num_samples, seed=seed, device=device)


class ScoredLoss(NamedTuple):
    """What `scored_cross_entropy` computes from one read of the logits; B rows.

    The scores describe the plain softmax p and the target y, whatever the class weights and the
    label smoothing. Rows whose target is `ignore_index` have loss and scores 0 and are not correct.

    Attributes:
        loss: [B] as torch.nn.functional.cross_entropy(reduction="none"); differentiable. float32,
            or float64 for float64 logits, as the other scores.
        el2n: [B] Euclidean norm of p - onehot(y) (Paul, Ganguli & Dziugaite 2021, section 3).
        entropy: [B] of p, in nats.
        margin: [B] logit of the target minus the greatest other logit.
        correct: [B] bool, margin > 0; a tie for the greatest logit is not correct.
    """

    loss: Tensor
    el2n: Tensor
    entropy: Tensor
    margin: Tensor
    correct: Tensor


def scored_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> ScoredLoss:
    """Per-sample cross-entropy and the scores that data pruning ranks by, from one pass.

    Arithmetic is in float32 (float64 for float64 logits) whatever the logits' dtype, and keeps its
    relative precision where the target's probability is near 1, which is where easy samples are
    ranked. Differentiable once, with respect to the logits through the loss.

    Args:
        logits: [B, C] float32, float16, bfloat16 or float64.
        target: [B] int64, int32 or uint8 class indices. Out of range: IndexError on the CPU; on
            CUDA loss and scores are NaN, the gradient is 0, and `check_errors` raises.
        weight: [C] class weights, or None; they scale the loss, not the scores.
        ignore_index: Target of rows without loss and scores.
        label_smoothing: In [0, 1]; as in torch.nn.functional.cross_entropy.

    Returns:
        A `ScoredLoss`.
    """
    _check_tensor("logits", logits, _FLOATING)
    if logits.dim() != 2:
        raise ValueError(f"logits must be 2-D [B, C], got shape {tuple(logits.shape)}")
    rows, classes = logits.shape
    if classes == 0 and rows > 0:
        raise ValueError(f"logits must have at least one class, got shape {tuple(logits.shape)}")
    _check_vector("target", target, _TARGET_DTYPES, logits, rows)
    if weight is not None:
        _check_vector("weight", weight, _FLOATING, logits, classes)
        compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
        weight = weight.detach().to(compute)
    ignore_index = as_int("ignore_index", ignore_index, minimum=-(1 << 63), maximum=(1 << 63) - 1)
    label_smoothing = as_float("label_smoothing", label_smoothing, low=0.0, high=1.0)
    *scored, _saved = ops.scored_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing
    )
    return ScoredLoss(*scored)


def update_scores_(
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    sample_ids: Tensor,
    values: Tensor,
    *,
    alpha: float,
    first_visit: Literal["zero", "published"] = "zero",
    non_finite_count: Tensor | None = None,
    last_non_finite: Tensor | None = None,
) -> None:
    """Enters a batch of values into the moving averages of their samples, in place.

    The rule of the UCB baseline that the authors of InfoBatch released: with d = (value - mean)^2
    by the old mean, mean = (1 - alpha) * mean + alpha * value, variance = (1 - alpha) * variance +
    alpha * d, count += 1. At the first visit (count 0), mean = value. Of an id that occurs twice,
    the last value is entered, once. The id -1 marks a row without a sample and is skipped. Any
    other id out of range is an IndexError on the CPU before anything changes; on CUDA it is skipped
    and `check_errors` raises.
    The tensors must not share memory with each other.

    Args:
        mean: [N] float32, contiguous.
        variance: [N] float32, contiguous.
        count: [N] int32 or int64, contiguous.
        sample_ids: [B] int64.
        values: [B] floating point, read as float32. A value that is not finite changes no average
            and no count.
        alpha: Weight of the new value, in (0, 1].
        first_visit: Variance after the first visit: "zero", or "published": alpha * value^2.
        non_finite_count: [N] int32, or None; grows by one with each value that is not finite.
        last_non_finite: [N] bool, or None; whether the sample's last value was not finite.
    """
    _check_vector("mean", mean, (torch.float32,))
    num_samples = mean.numel()
    _check_vector("variance", variance, (torch.float32,), mean)
    _check_vector("count", count, _COUNT_DTYPES, mean)
    if non_finite_count is not None:
        _check_vector("non_finite_count", non_finite_count, (torch.int32,), mean)
    if last_non_finite is not None:
        _check_vector("last_non_finite", last_non_finite, (torch.bool,), mean)
    columns = {"mean": mean, "variance": variance, "count": count}
    columns |= {
        name: column
        for name, column in {
            "non_finite_count": non_finite_count,
            "last_non_finite": last_non_finite,
        }.items()
        if column is not None
    }
    for name, column in columns.items():
        if not column.is_contiguous():
            raise ValueError(
                f"{name} is updated in place and must be contiguous, got strides {column.stride()}"
            )
    _check_vector("sample_ids", sample_ids, (torch.int64,), mean, None)
    _check_vector("values", values, _FLOATING, mean, sample_ids.numel(), like_name="sample_ids")
    _check_num_samples("mean", num_samples)
    alpha = as_float("alpha", alpha, low=0.0, high=1.0, above_low=True)
    published = as_choice("first_visit", first_visit, ("zero", "published")) == "published"
    ops.update_scores_(
        mean,
        variance,
        count,
        sample_ids,
        values.detach().to(torch.float32),
        alpha,
        published,
        non_finite_count,
        last_non_finite,
    )
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(list(columns.values()))


def check_errors(device: torch.device | str | int) -> None:
    """Raises what kernels on `device` found wrong with their data; waits for the device.

    Raises:
        IndexError: For targets or sample ids out of range.
        ValueError: For negative or NaN weights.
    """
    place = torch.empty((0,), device=device)
    if not place.is_cuda:
        return  # CPU ops raise at once
    (targets, target), (ids, sample_id), (weights, weight_id) = ops.take_errors(place).tolist()
    out_of_range, negative = [], []
    if targets:
        out_of_range.append(f"{targets} targets were out of range, for example {target}")
    if ids:
        out_of_range.append(f"{ids} sample ids were out of range, for example {sample_id}")
    if weights:
        negative.append(f"{weights} weights were negative or NaN, as weights[{weight_id}]")
    message = f"on {place.device}: " + "; ".join(out_of_range + negative)
    if out_of_range:
        raise IndexError(message)
    if negative:
        raise ValueError(message)


_UNSET: Any = object()


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must have dtype {allowed}, got {value.dtype}")


def _check_vector(
    name: str,
    value: Any,
    dtypes: tuple[torch.dtype, ...],
    like: Tensor | None = None,
    length: int | None = _UNSET,
    like_name: str = "",
) -> None:
    """A 1-D tensor of one of dtypes; with `like`, on its device and of its length (None: any)."""
    _check_tensor(name, value, dtypes)
    if value.dim() != 1:
        raise ValueError(f"{name} must be 1-D, got shape {tuple(value.shape)}")
    if like is None:
        _check_num_samples(name, value.numel())
        return
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")
    wanted = like.shape[0] if length is _UNSET else length
    if wanted is not None and value.shape[0] != wanted:
        other = f", the length of {like_name}" if like_name else ""
        raise ValueError(f"{name} must have {wanted} elements{other}, got {value.shape[0]}")


def _check_num_samples(name: str, num_samples: int) -> None:
    if num_samples > _MAX_SAMPLES:
        raise ValueError(f"{name}: at most 2^32 samples are supported, got {num_samples}")


def _check_k(k: Any, num_samples: int) -> int:
    number = as_int("k", k)
    if not 0 <= number <= num_samples:
        raise ValueError(f"k must be in [0, {num_samples}], got {number}")
    return number


def _seed_and_order(seed: Any, order: Any, device: torch.device) -> tuple[Tensor | None, int, bool]:
    """seed_tensor, seed and ascending, as every selection op takes them last."""
    ascending = as_choice("order", order, ("random", "ascending")) == "ascending"
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise ValueError(
                "seed must be an int or a 0-d int64 tensor, "
                f"got {seed.dtype} of shape {tuple(seed.shape)}"
            )
        if seed.device != device:
            raise ValueError(f"seed must be on {device}, got {seed.device}")
        return seed, 0, ascending
    signed = (as_int("seed", seed) + (1 << 63)) % (1 << 64) - (1 << 63)
    return None, signed, ascending


def _ids(ids: Tensor) -> Tensor:
    """An op's result, typed."""
    return ids
