# SPDX-License-Identifier: Apache-2.0
"""Other ways to select, by torch, NumPy and GPU packages; one function per op.

Each function returns calls by name. On a GPU, the packages of GPU_PACKAGES take part where they are
installed. Their first result is checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.timing import Call

# cub_topk is not on PyPI: `make gpu-bundle` builds it from scripts/gpu/cub.
GPU_PACKAGES = ("cub_topk", "cupy", "pylibraft", "flashinfer")
HOST_ROUND_TRIP = "host round trip"
CAPTURABLE = ("torch.topk", "cub::DeviceTopK")  # in a CUDA graph, like ours

Rivals = dict[str, Call]


def top_k(x: Tensor, k: int) -> Rivals:
    """The ids of the k greatest scores, in any order."""
    rivals: Rivals = {
        "torch.topk": lambda: torch.topk(x, k, sorted=False).indices,
        "torch.topk(sorted=True)": lambda: torch.topk(x, k).indices,
        "torch.sort[:k]": lambda: torch.sort(x, descending=True).indices[:k],
    }
    if x.dtype != torch.bfloat16:  # NumPy has no bfloat16
        name = HOST_ROUND_TRIP if x.is_cuda else "np.argpartition"
        rivals[name] = _on_host(x, lambda values: _partition(values, k))
    if x.is_cuda:
        return rivals | _gpu_packages(x, k)
    rivals[HOST_ROUND_TRIP] = _not_applicable
    return rivals


def top_k_shuffled(x: Tensor, k: int) -> Rivals:
    generator = np.random.default_rng(0)

    def topk() -> Tensor:
        ids = torch.topk(x, k, sorted=False).indices
        return ids[torch.randperm(k, device=x.device)]

    def partition(values: Any) -> Any:
        ids = _partition(values, k)
        generator.shuffle(ids)
        return ids

    name = f"{HOST_ROUND_TRIP} + shuffle" if x.is_cuda else "np.argpartition + shuffle"
    return {"torch.topk + randperm": topk, name: _on_host(x, partition)}


def epsilon_greedy(x: Tensor, k: int, epsilon: float) -> Rivals:
    def topk_isin() -> Tensor:
        num_random = math.floor(epsilon * k + 0.5)
        greedy = torch.topk(x, k - num_random).indices
        rest = torch.arange(len(x), device=x.device)
        rest = rest[~torch.isin(rest, greedy)]
        chosen = torch.randperm(len(rest), device=x.device)[:num_random]
        return torch.cat([greedy, rest[chosen]])

    return {"topk + isin + randperm": topk_isin}


def ucb(mean: Tensor, variance: Tensor, k: int) -> Rivals:
    return {"mean + variance, torch.topk": lambda: torch.topk(mean + variance, k, sorted=False)}


def ucb1(mean: Tensor, count: Tensor, k: int, step: float) -> Rivals:
    log_step = math.log(step)
    return {
        "bound, torch.topk": lambda: torch.topk(mean + (log_step / count).sqrt(), k, sorted=False)
    }


def uniform(n: int, k: int, device: torch.device) -> Rivals:
    return {"torch.randperm[:k]": lambda: torch.randperm(n, device=device)[:k]}


def weighted(weights: Tensor, k: int) -> Rivals:
    """torch.multinomial, which refuses more than 2^24 categories."""
    return {"torch.multinomial": lambda: torch.multinomial(weights, k, replacement=False)}


def packages(device: torch.device) -> dict[str, bool]:
    """Which optional GPU packages take part."""
    if device.type != "cuda":
        return {}
    return {name: importlib.util.find_spec(name) is not None for name in GPU_PACKAGES}


def _not_applicable() -> None:
    raise RuntimeError("not applicable: the scores are on the host")


def _partition(values: Any, k: int) -> Any:
    return np.argpartition(values, len(values) - k)[len(values) - k :]


def _on_host(x: Tensor, select: Callable[[Any], Any]) -> Call:
    """NumPy on the scores; scores on a GPU are copied to the host, and the ids back."""
    if x.is_cuda:
        return lambda: torch.from_numpy(select(x.cpu().numpy())).to(x.device)
    values = x.numpy()
    return lambda: select(values)


def _gpu_packages(x: Tensor, k: int) -> Rivals:
    rivals: Rivals = {}
    installed = packages(x.device)
    if x.dtype == torch.bfloat16:  # only flashinfer accepts it
        installed |= {"cub_topk": False, "cupy": False, "pylibraft": False}
    if installed["cub_topk"]:
        cub_topk = importlib.import_module("cub_topk")
        rivals["cub::DeviceTopK"] = lambda: cub_topk.top_k(x, k)
    if installed["cupy"]:
        cupy = importlib.import_module("cupy")
        rivals["cupy.argpartition"] = lambda: torch.as_tensor(
            cupy.argpartition(cupy.asarray(x), len(x) - k)[len(x) - k :], device=x.device
        )
    if installed["pylibraft"]:
        rivals["pylibraft.select_k (RAFT)"] = _raft(x, k)
    if installed["flashinfer"]:
        flashinfer = importlib.import_module("flashinfer")
        rivals["flashinfer.top_k"] = lambda: flashinfer.top_k(x[None], k)[1][0]
    return {name: _checked(call, x, k) for name, call in rivals.items()}


def _raft(x: Tensor, k: int) -> Call:
    select_k = importlib.import_module("pylibraft.matrix").select_k
    common = importlib.import_module("pylibraft.common")
    # With a handle of our stream the call does not allocate a handle and wait for it.
    handle = common.DeviceResources(torch.cuda.current_stream(x.device).cuda_stream)

    def call() -> Tensor:
        values = torch.empty((1, k), dtype=torch.float32, device=x.device)
        ids = torch.empty((1, k), dtype=torch.int64, device=x.device)
        select_k(x[None], k, values, ids, select_min=False, handle=handle)
        return ids[0]

    return call


def _checked(call: Callable[[], Any], x: Tensor, k: int) -> Call:
    """The call, with a check of its first result."""
    checked = False

    def checked_once() -> Any:
        nonlocal checked
        ids = call()
        if not checked:
            check_ids(ids, x, k)
            checked = True
        return ids

    return checked_once


def check_ids(ids: Tensor, x: Tensor, k: int) -> None:
    """Raises a RuntimeError unless these are k distinct ids of the k greatest scores."""
    ids = ids.long()
    distinct = len(torch.unique(ids))
    if len(ids) != k or distinct != k:
        raise RuntimeError(f"wrong result: {distinct} distinct ids, wanted {k}")
    best, got = torch.topk(x, k).values, x[ids].sort(descending=True).values
    if not torch.equal(best.nan_to_num(), got.nan_to_num()):
        raise RuntimeError("wrong result: not the greatest scores")
