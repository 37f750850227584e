# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: captured graphs, other streams, no waiting, errors that come later."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from waiting import no_cuda_waiting

from dynprune_cuda import Pruner
from dynprune_cuda import functional as F

pytestmark = pytest.mark.needs_cuda
N, K = 50_000, 15_000


def scores(kind: str = "levels", n: int = N) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    return ((x * 2).round() if kind == "levels" else x).cuda()


# On the chip, and with more scores than any chip holds.
@pytest.mark.parametrize("n", [N, 20_000_000])
def test_a_captured_selection_is_replayed_with_a_new_seed(n: int) -> None:
    k, x, seed = n // 3, scores(n=n), torch.zeros((), dtype=torch.int64, device="cuda")
    F.select_top_k(x, k, seed=seed)  # warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        top_k = F.select_top_k(x, k, seed=seed)
        greedy = F.select_epsilon_greedy(x, k, 0.2, seed=seed)
        weighted = F.select_weighted(x.abs(), k, seed=seed)
        uniform = F.select_uniform(n, k, seed=seed, device="cuda")
    for value in (3, -7, 2**62):
        seed.fill_(value)
        graph.replay()
        cpu = x.cpu()
        assert torch.equal(top_k.cpu(), F.select_top_k(cpu, k, seed=value))
        assert torch.equal(greedy.cpu(), F.select_epsilon_greedy(cpu, k, 0.2, seed=value))
        assert torch.equal(weighted.cpu(), F.select_weighted(cpu.abs(), k, seed=value))
        assert torch.equal(uniform.cpu(), F.select_uniform(n, k, seed=value))


def test_two_threads_select_different_numbers_at_once() -> None:
    small, large = scores("normal"), scores("normal", 2_000_000)

    def many(x: Tensor) -> list[Tensor]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return [F.select_top_k(x, len(x) // 3, seed=i).cpu() for i in range(50)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(many, (small, large)))
    for x, ids in zip((small, large), found, strict=True):
        assert torch.equal(ids[-1], F.select_top_k(x.cpu(), len(x) // 3, seed=49))


def step(
    pruner: Pruner, logits: Tensor, target: Tensor, ids: Tensor, smoothing: float = 0.1
) -> tuple[Tensor, Tensor]:
    """One training step: the loss and the gradient of the logits."""
    loss = pruner.cross_entropy(logits, target, ids, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


# A warp per row, a block per row, rows that several blocks share.
@pytest.mark.parametrize("classes", [10, 1000, 32_768, 128_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_step_is_replayed_with_new_logits(classes: int, dtype: torch.dtype) -> None:
    rows, n = 24, 1000
    captured, eager = (Pruner(n, 0.3, track_forgetting=True, device="cuda") for _ in range(2))
    captured.set_epoch(0)
    eager.set_epoch(0)
    logits = torch.zeros(rows, classes, dtype=dtype, device="cuda", requires_grad=True)
    target = torch.zeros(rows, dtype=torch.int64, device="cuda")
    ids = torch.full((rows,), -1, device="cuda")  # of no sample: the table stays as it is
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # capture wants a warm-up elsewhere
        for _ in range(2):
            step(captured, logits, target, ids)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = step(captured, logits, target, ids)
    assert not captured.table.count.any()
    generator = torch.Generator().manual_seed(classes)
    for _ in range(5):
        new = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
        with torch.no_grad():
            logits.copy_(new)
        target.copy_(torch.randint(classes, (rows,), generator=generator))
        target[5] = -100
        ids.copy_(torch.randperm(40, generator=generator)[:rows])  # most of them come again
        graph.replay()
        expected = step(eager, new.cuda().requires_grad_(), target, ids)
        assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1])
        for name, column in eager.table.state_dict().items():
            got = getattr(captured.table, name)
            torch.testing.assert_close(got, column, rtol=0, atol=0, equal_nan=True, msg=name)
    assert int(captured.table.count.sum()) == 5 * (rows - 1)


@pytest.mark.parametrize("classes", [24_601, 50_257, 128_256, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_rows_equal_the_cpu(classes: int, dtype: torch.dtype) -> None:
    """More rows than teams of blocks, so that each team takes several."""
    rows = 300
    generator = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator)
    results = []
    for device in ("cpu", "cuda"):
        pruner = Pruner(rows, 0.3, score="el2n", device=device)
        leaf = logits.to(device).requires_grad_()
        ids = torch.arange(rows, device=device)
        results.append((*step(pruner, leaf, target.to(device), ids), pruner.table.mean))
    (loss, gradient, mean), found = results[0], [t.cpu() for t in results[1]]
    torch.testing.assert_close(found[0], loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[2], mean, rtol=1e-5, atol=0)
    one_ulp = {"rtol": 1e-5, "atol": 1e-9} if dtype == torch.float32 else {"rtol": 8e-3}
    torch.testing.assert_close(found[1], gradient, **{"atol": 1e-9, **one_ulp})


def test_ops_run_on_the_current_stream() -> None:
    expected = F.select_top_k(scores("normal").cpu() + 1, K, seed=1)
    x, stream = scores("normal"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        y = x + 1  # late, on this stream only
        ids = F.select_top_k(y, K, seed=1)
    stream.synchronize()
    assert torch.equal(ids.cpu(), expected)


def test_a_training_step_and_a_selection_never_wait() -> None:
    pruner = Pruner(N, 0.3, "ucb", device="cuda")
    logits = torch.randn(512, 10, device="cuda", requires_grad=True)
    target, ids = torch.arange(512, device="cuda") % 10, torch.arange(512, device="cuda")
    pruner.cross_entropy(logits, target, ids).backward()  # first calls set things up
    table = pruner.table
    with no_cuda_waiting():
        pruner.cross_entropy(logits, target, ids).backward()
        F.select_ucb(table.ranking_mean(), table.variance, K, seed=1)
        F.select_epsilon_greedy(table.ranking_mean(), K, 0.1, seed=1)
        F.select_weighted(table.variance, K, seed=1)
        F.permutation(N, seed=1, device="cuda")


def test_all_data_errors_are_raised_together_and_once() -> None:
    F.check_errors("cuda")
    logits = torch.randn(4, 3, device="cuda")
    scored = F.scored_cross_entropy(logits, torch.tensor([0, 3, 1, 2], device="cuda"))
    assert scored.loss.isnan().tolist() == [False, True, False, False]
    columns = [torch.zeros(5, device="cuda") for _ in range(2)]
    count = torch.zeros(5, dtype=torch.int32, device="cuda")
    F.update_scores_(*columns, count, torch.tensor([9], device="cuda"), columns[0][:1] + 1, alpha=1)
    with pytest.raises(IndexError, match=r"1 targets .* 3; 1 sample ids .* 9"):
        F.check_errors("cuda")
    F.check_errors("cuda")
    assert not count.any()
