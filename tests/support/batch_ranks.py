# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_batch_ranks.py` does; compared there with one process."""

from pathlib import Path

import torch
import torch.distributed as dist

from dynprune_cuda import BatchSelector

ROWS, C, CALLS, K = 33, 5, 3, 10
SELECTORS = {
    "top_k": {"policy": "top_k"},
    "el2n": {"policy": "top_k", "by": "el2n"},
    "weighted": {"policy": "weighted"},
    "weighted rescaled": {"policy": "weighted", "rescale": True},
    "percentile": {"policy": "percentile"},
    "percentile rescaled": {"policy": "percentile", "rescale": True},
    "epsilon_greedy": {"policy": "epsilon_greedy", "epsilon": 0.4},
    "epsilon_greedy rescaled": {"policy": "epsilon_greedy", "epsilon": 0.4, "rescale": True},
    "uniform": {"policy": "uniform"},
}
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.int64)


def whole_batch(size, call):
    """Logits and targets of all ranks; one row is ignored, hard ones are all with the last rank."""
    generator = torch.Generator().manual_seed(call)
    logits = 3 * torch.randn(size * ROWS, C, generator=generator)
    target = torch.randint(C, (size * ROWS,), generator=generator)
    logits[-ROWS:] *= 4
    target[3] = -100
    return logits, target


def awkward_scores(size):
    """Ties, NaN, infinities, and a rank whose scores are all -inf, as non-contiguous columns."""
    scores = torch.zeros(size * ROWS)
    scores[1::5] = 2.0
    scores[2], scores[ROWS + 2] = float("nan"), float("inf")
    scores[5:9] = -float("inf")
    scores[:ROWS:2] = -float("inf")
    return scores


def values(size):
    """Tensors of the batch, of several dtypes and shapes."""
    numbers = torch.arange(size * ROWS)
    several = [((numbers * 37) % 251).to(dtype) for dtype in DTYPES]
    return [*several, torch.randn(size * ROWS, 2, 3, generator=torch.Generator().manual_seed(5))]


def message(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def run(rank, size):
    """Every policy, calls one after the other; then the tensors, and what is refused."""
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    results = {}
    for name, options in SELECTORS.items():
        selector = BatchSelector(0.3, over_ranks=True, seed=7, **options)
        calls = []
        for call in range(CALLS):
            logits, target = whole_batch(size, call)
            choice = selector(logits[mine], target[mine])
            calls.append((choice, selector.take(choice, logits[mine], target[mine])))
        results[name] = calls, selector.state_dict()
    for name in ("top_k", "weighted", "percentile", "uniform"):
        selector = BatchSelector(K, over_ranks=True, seed=7, **SELECTORS[name])
        scores = torch.stack([awkward_scores(size)] * 2, 1)[mine, 0]
        results["awkward", name] = selector.choose(scores).rows
    selector = BatchSelector(K, over_ranks=True)
    choice = selector.choose(torch.rand(ROWS, generator=torch.Generator().manual_seed(rank)))
    tensors = [tensor[mine] for tensor in values(size)]
    tensors += [tensors[-1].transpose(1, 2), tensors[-1][:, :0]]
    results["values"] = choice.rows, selector.take(choice, *tensors)
    last = rank == size - 1
    other = BatchSelector(K, over_ranks=True)
    results["errors"] = {
        "keep": message(lambda: BatchSelector(K + last, over_ranks=True)),
        "seed": message(lambda: BatchSelector(K, over_ranks=True, seed=int(last))),
        "length": message(lambda: other.choose(torch.rand(ROWS + last))),
        "first call": message(lambda: selector.choose(torch.rand(ROWS - 1))),
        "rows": message(lambda: selector.take(choice, torch.rand(ROWS + 1))),
        "gradient": message(lambda: selector.take(choice, torch.rand(ROWS, requires_grad=True))),
    }
    results["calls"] = selector.state_dict()["calls"]
    return results


def work(rank, size, folder):
    """One process of a world."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(run(rank, size), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
