# SPDX-License-Identifier: Apache-2.0
"""What choosing rows inside a batch costs, beside the same choice by eager PyTorch.

    python -m benchmarks.selection.batch_choice --rows 2048 --classes 1000 --keep 0.25

The rivals compute the losses of the batch by `torch.nn.functional.cross_entropy`. For "top_k" they
take `torch.topk`. For "percentile" they sort and draw with NumPy, as selective backpropagation does
(Composer's documentation), which waits for the device, or with `torch.multinomial`. All calls of a
case run in the same rounds; a ratio is that of their medians.
"""

from __future__ import annotations

import argparse
import functools
import statistics

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.arguments import positive_int
from benchmarks.common.timing import Call, time_rounds
from dynprune_cuda import BatchSelector

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


def rivals(policy: str, logits: Tensor, target: Tensor, k: int) -> dict[str, Call]:
    """The other ways to choose the same, by name."""
    if policy == "top_k":
        return {"cross_entropy + topk": functools.partial(eager_top_k, logits, target, k)}
    draw = functools.partial(eager_percentile, logits, target, k)
    return {
        "cross_entropy + argsort + np.random.choice": functools.partial(draw, True),
        "cross_entropy + argsort + torch.multinomial": functools.partial(draw, False),
    }


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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logits = torch.randn(arguments.rows, arguments.classes, device=arguments.device)
    target = torch.randint(arguments.classes, (arguments.rows,), device=arguments.device)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.device}, "
        f"{arguments.rows} rows, {arguments.classes} classes, keep {arguments.keep}"
    )
    for policy in ("top_k", "percentile"):
        medians = measure(policy, logits, target, arguments.keep, arguments.rounds)
        for name, milliseconds in medians.items():
            ratio = milliseconds / medians[OURS]
            print(f"{policy:10} {name:45} {milliseconds:9.3f} ms {ratio:6.2f} x")


if __name__ == "__main__":
    main()
