# SPDX-License-Identifier: Apache-2.0
"""The cases of bench_selection.py: scores, our call, its rivals, and a lower bound of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.timing import Call
from benchmarks.selection import rivals
from dynprune_cuda import functional as F

EPSILON = 0.1
USUAL = "select_top_k, lognormal scores"
CHUNK_IDS = 1 << 20  # ids that a sampler copies from the device at a time

# Kinds of scores that occur in training.
DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lognormal": lambda x: x,
    "equal": lambda x: torch.full_like(x, 1.5),  # the first epoch of a run
    "99 % zeros": lambda x: torch.where(torch.rand_like(x) < 0.01, x, 0.0),  # nearly solved
    "early training": lambda x: 2.3 + 0.15 * torch.randn_like(x),  # ten classes, after few steps
    "eight levels": lambda x: x.mul(4).floor().clamp(max=7),  # counts, such as forgetting events
    "sorted": lambda x: x.sort().values,
    "10 % NaN": lambda x: torch.where(torch.rand_like(x) < 0.1, torch.nan, x),
    "bfloat16": lambda x: x.bfloat16(),
}


@dataclass(frozen=True)
class Case:
    """One of our calls and its rivals on the same data."""

    part: str
    op: str
    num_samples: int
    k: int
    limit_bytes: int
    call: Call
    rivals: dict[str, Call] = field(default_factory=dict)
    scores: str = "lognormal"


def make_scores(kind: str, n: int, device: torch.device) -> Tensor:
    return DISTRIBUTIONS[kind](torch.empty(n, device=device).log_normal_(-1.0, 1.2))


def limit_bytes(num_samples: int, k: int, *read_per_sample: int) -> int:
    """Bytes that no implementation can avoid: each score read once, each int64 id written once."""
    return num_samples * sum(read_per_sample) + 8 * k


def ops(n: int, k: int, device: torch.device) -> Iterator[Case]:
    """Every selection op, on lognormal scores."""
    x, variance = make_scores("lognormal", n, device), torch.rand(n, device=device)
    count = torch.randint(1, 30, (n,), dtype=torch.int32, device=device)
    step = 15.0 * n
    ascending = {"order": "ascending"}

    def case(op: str, num_bytes: int, call: Call, against: dict[str, Call]) -> Case:
        return Case("ops", op, n, k, num_bytes, call, against)

    one, two = limit_bytes(n, k, 4), limit_bytes(n, k, 4, 4)
    top_k = _bind(F.select_top_k, x, k, **ascending)
    yield case("select_top_k, ascending", one, top_k, rivals.top_k(x, k))
    yield case(
        "select_top_k, random", one, _bind(F.select_top_k, x, k), rivals.top_k_shuffled(x, k)
    )
    yield case(
        "select_ucb, ascending",
        two,
        _bind(F.select_ucb, x, variance, k, **ascending),
        {"select_top_k, ascending": top_k, **rivals.ucb(x, variance, k)},
    )
    yield case(
        "select_ucb1, ascending",
        two,
        _bind(F.select_ucb1, x, count, k, step=step, **ascending),
        rivals.ucb1(x, count, k, step),
    )
    yield case(
        "select_epsilon_greedy, ascending",
        one,
        _bind(F.select_epsilon_greedy, x, k, EPSILON, **ascending),
        rivals.epsilon_greedy(x, k, EPSILON),
    )
    yield case(
        "select_uniform, random",
        limit_bytes(n, k),
        _bind(F.select_uniform, n, k, device=device),
        rivals.uniform(n, k, device),
    )
    yield Case(
        "ops",
        "permutation",
        n,
        n,
        limit_bytes(n, n),
        _bind(F.permutation, n, device=device),
        rivals.uniform(n, n, device),
    )
    yield from weighted(n, k, device, part="ops")


def weighted(n: int, k: int, device: torch.device, part: str = "weighted") -> Iterator[Case]:
    """Draws without replacement, also of more samples than torch.multinomial accepts."""
    x = make_scores("lognormal", n, device)
    call = _bind(F.select_weighted, x, k, order="ascending")
    against = rivals.weighted(x, k)
    yield Case(part, "select_weighted, ascending", n, k, limit_bytes(n, k, 4), call, against)


def distributions(n: int, k: int, device: torch.device) -> Iterator[Case]:
    """select_top_k on every kind of scores, and on lognormal scores in the same rounds."""
    lognormal = make_scores("lognormal", n, device)
    usual = _bind(F.select_top_k, lognormal, k, order="ascending")
    for kind in DISTRIBUTIONS:
        x = make_scores(kind, n, device)
        yield Case(
            "distributions",
            "select_top_k, ascending",
            n,
            k,
            limit_bytes(n, k, x.element_size()),
            _bind(F.select_top_k, x, k, order="ascending"),
            {USUAL: usual, "torch.topk": rivals.top_k(x, k)["torch.topk"]},
            kind,
        )


def shares(n: int, keeps: list[float], device: torch.device) -> Iterator[Case]:
    """select_top_k for every kept share."""
    x = make_scores("lognormal", n, device)
    for keep in keeps:
        k = max(1, int(n * keep))
        against = rivals.top_k(x, k)
        names = [name for name in ("torch.topk", "np.argpartition") if name in against]
        yield Case(
            "shares",
            "select_top_k, ascending",
            n,
            k,
            limit_bytes(n, k, 4),
            _bind(F.select_top_k, x, k, order="ascending"),
            {name: against[name] for name in names},
        )


def order(n: int, k: int, batch_size: int, device: torch.device) -> Iterator[Case]:
    """An epoch's batches in random order: shuffled by the selection, or looked up batch by batch.

    Both start from the scores and end with the last batch of ids.
    """
    x = make_scores("lognormal", n, device)

    def materialised() -> None:
        ids = F.select_top_k(x, k)
        for begin in range(0, k, batch_size):
            _ = ids[begin : begin + batch_size]

    def lazy(size: int) -> Call:
        def call() -> None:
            ids = F.select_top_k(x, k, order="ascending")
            places = F.permutation(k, seed=1, device=device)
            for begin in range(0, k, size):
                _ = ids[places[begin : begin + size]]

        return call

    yield Case(
        "order",
        f"select_top_k, random, in batches of {batch_size:,}",
        n,
        k,
        limit_bytes(n, k, 4),
        materialised,
        {
            f"ascending, ids[permutation] per batch of {size:,}": lazy(size)
            for size in sorted({batch_size, CHUNK_IDS})
        },
    )


def _bind(op: Any, *arguments: Any, **options: Any) -> Call:
    return lambda: op(*arguments, **options)
