# SPDX-License-Identifier: Apache-2.0
"""What choosing rows inside a batch costs, beside the same choice by eager PyTorch and Composer.

    python -m benchmarks.selection.batch_choice --rows 2048 --classes 1000 --keep 0.25 --out FILE

The rivals compute the losses of the batch by `torch.nn.functional.cross_entropy`. For "top_k" they
take `torch.topk`. For "percentile" they sort and draw with NumPy, as selective backpropagation does
(Composer's documentation), which waits for the device, or with `torch.multinomial`. Where Composer
is installed, its own function takes part. All calls of a case run in the same rounds; a ratio is
that of their medians. Before it is timed, each implementation that takes random numbers gets those
of `BatchSelector`, and must choose the same rows of the same batch.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.arguments import positive_int
from benchmarks.common.machine_info import git_commit, machine_info
from benchmarks.common.result_files import write_measurements
from benchmarks.common.timing import Call, time_rounds
from dynprune_cuda import BatchSelector, functional

OURS = "BatchSelector"


def eager_top_k(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """Rows of the greatest losses."""
    losses = F.cross_entropy(logits, target, reduction="none")
    return torch.topk(losses, k, sorted=False).indices


def eager_percentile(logits: Tensor, target: Tensor, k: int, on_host: bool) -> Tensor:
    """Rows drawn by the rank of their losses, with NumPy's generator or torch's."""
    losses = F.cross_entropy(logits, target, reduction="none")
    order, rows = torch.argsort(losses), len(losses)
    if on_host:
        weights = ((np.arange(rows) + 0.5) / rows) ** (rows / k - 1)
        places = np.random.choice(rows, k, replace=False, p=weights / weights.sum())
        return order[torch.as_tensor(places).to(order.device)]
    shares = (torch.arange(rows, device=order.device) + 0.5) / rows
    return order[torch.multinomial(shares ** (rows / k - 1), k)]


def composer_function() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Composer's selective backpropagation, None where it is not installed."""
    try:
        from composer.algorithms.selective_backprop.selective_backprop import select_using_loss
    except ImportError:
        return None
    return select_using_loss


def composer_rows(
    select: Callable[..., tuple[Tensor, Tensor]], logits: Tensor, target: Tensor, k: int
) -> Tensor:
    """Rows that Composer's own function takes; the batch is its row numbers, the model is free."""
    rows = torch.arange(len(logits), device=logits.device)
    keep = k / len(logits)
    return select(rows, target, lambda _: logits, F.cross_entropy, keep)[0]


def rivals(policy: str, logits: Tensor, target: Tensor, k: int) -> dict[str, Call]:
    """The other ways to choose the same, by name."""
    if policy == "top_k":
        return {"cross_entropy + topk": functools.partial(eager_top_k, logits, target, k)}
    draw = functools.partial(eager_percentile, logits, target, k)
    calls: dict[str, Call] = {
        "cross_entropy + argsort + np.random.choice": functools.partial(draw, True),
        "cross_entropy + argsort + torch.multinomial": functools.partial(draw, False),
    }
    select = composer_function()
    if select is not None:
        version = importlib.metadata.version("composer")
        calls[f"Composer {version}"] = functools.partial(composer_rows, select, logits, target, k)
    return calls


def drawn_by(selector: BatchSelector, losses: Tensor) -> Callable[..., np.ndarray]:
    """Stands in for `np.random.choice` with the random numbers of the selector's next call.

    The rivals draw places among the sorted losses; the package numbers its random numbers by row.
    """
    order, seed = torch.argsort(losses), selector._seed.clone()

    def choice(num_rows: int, k: int, *, replace: bool, p: np.ndarray) -> np.ndarray:
        assert not replace and len(order) == num_rows
        weights = torch.empty_like(losses)
        weights[order] = torch.as_tensor(p, dtype=torch.float32).to(losses.device)
        ranking = functional.Ranking.by_weight(weights)
        rows = functional.select(ranking, num_rows, k, seed=seed, device=losses.device)
        place = torch.empty_like(order)
        place[order] = torch.arange(num_rows, device=order.device)
        return place[rows].cpu().numpy()

    return choice


def same_rows(policy: str, logits: Tensor, target: Tensor, keep: float) -> dict[str, bool]:
    """Whether each rival takes the same rows of the batch, given the same random numbers.

    Rivals that draw by torch's generator cannot be given any, and are left out.
    """
    selector = BatchSelector(keep, policy=policy, device=logits.device)  # type: ignore[arg-type]
    losses = F.cross_entropy(logits, target, reduction="none")
    choice = drawn_by(selector, losses)
    rows = selector(logits, target).rows
    found = {}
    with mock.patch.object(np.random, "choice", choice):
        for name, call in rivals(policy, logits, target, len(rows)).items():
            if "multinomial" not in name:
                taken = call()
                assert isinstance(taken, Tensor)
                found[name] = taken.sort().values.equal(rows)
    return found


def measure(
    policy: str, logits: Tensor, target: Tensor, keep: float, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each way to choose."""
    selector = BatchSelector(keep, policy=policy, device=logits.device)  # type: ignore[arg-type]
    calls: dict[str, Call] = {OURS: functools.partial(selector, logits, target)}
    calls |= rivals(policy, logits, target, selector.num_chosen(len(logits)))
    with torch.no_grad():
        seconds = time_rounds(calls, logits.device, rounds)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=positive_int, default=2048)
    parser.add_argument("--classes", type=positive_int, default=1000)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=positive_int, default=20)
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(arguments.rows, arguments.classes, generator=generator).to(device)
    target = torch.randint(arguments.classes, (arguments.rows,), generator=generator).to(device)
    machine = {**machine_info(device), "commit": git_commit()}
    print(
        f"torch {torch.__version__}, {machine['threads']} threads, {machine['cpu']}, {device}, "
        f"{arguments.rows} rows, {arguments.classes} classes, keep {arguments.keep}"
    )
    found = []
    for policy in ("top_k", "percentile"):
        same = same_rows(policy, logits, target, arguments.keep)
        medians = measure(policy, logits, target, arguments.keep, arguments.rounds)
        for name, milliseconds in medians.items():
            ratio, agrees = milliseconds / medians[OURS], same.get(name)
            told = {True: "same rows", False: "OTHER ROWS", None: ""}[agrees]
            print(f"{policy:10} {name:45} {milliseconds:9.3f} ms {ratio:6.2f} x  {told}")
            found.append(
                {"policy": policy, "way": name, "median_ms": milliseconds, "same_rows": agrees}
            )
    if arguments.out:
        options = vars(arguments) | {"out": None}
        write_measurements(arguments.out, machine, found, options=options)


if __name__ == "__main__":
    main()
