# SPDX-License-Identifier: Apache-2.0
"""What scored_linear_cross_entropy multiplies and holds in memory; the tokens that it keeps."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from linear_heads import CLASSES, FEATURES, ROWS, gradients, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dynprune_cuda._ops import linear_cross_entropy as ops_module
from dynprune_cuda.functional import linear_cross_entropy as module
from dynprune_cuda.functional import scored_linear_cross_entropy


class Work(TorchDispatchMode):
    """Counts multiplications of matrix products, and notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            first, second = args[-2:]
            self.multiplications += first.shape[0] * first.shape[1] * second.shape[1]
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Sees into the operator, which dispatch modes take as one call."""
    plain = ops_module.linear_cross_entropy._init_fn
    monkeypatch.setattr(ops_module, "linear_cross_entropy", plain)
    return Work()


def test_three_products_and_no_whole_logits(work: Work) -> None:
    rows, classes = 400, 300
    hidden = torch.randn(rows, FEATURES, requires_grad=True)
    weight = torch.randn(classes, FEATURES, requires_grad=True)
    target = torch.arange(rows) % classes
    with work:
        loss = scored_linear_cross_entropy(hidden, weight, target, chunk_rows=16).loss
        loss.backward()
    assert work.multiplications == 3 * rows * FEATURES * classes
    assert work.largest <= max(16 * classes, rows * FEATURES, classes * FEATURES)


def test_a_loss_per_row_that_is_differentiable_takes_a_fourth_product(work: Work) -> None:
    """Its factors come after the forward pass, so that the backward pass needs the logits again."""
    rows, classes = 40, 300
    hidden = torch.randn(rows, FEATURES, requires_grad=True)
    weight = torch.randn(classes, FEATURES, requires_grad=True)
    target = torch.arange(rows) % classes

    def losses(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(hidden @ weight.t(), target, reduction="none")

    with work:
        of_rows = checkpoint(losses, hidden, weight, use_reentrant=False)
        (of_rows * (of_rows.detach() > 1)).mean().backward()
    assert work.multiplications == 4 * rows * FEATURES * classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_layout_of_a_chunk(dtype: torch.dtype) -> None:
    def by_class(rows: int, features: int, classes: int) -> bool:
        buffer = torch.empty(rows * classes, dtype=dtype)
        in_columns = ops_module.fits_columns(buffer, rows, torch.empty(classes, features))
        logits = ops_module.chunk_logits(buffer, rows, classes, in_columns=in_columns)
        assert logits.shape == (rows, classes) and logits.data_ptr() == buffer.data_ptr()
        return logits.stride() == (1, rows)

    assert by_class(16, 768, 16_384) == (dtype != torch.bfloat16)
    assert not by_class(15, 768, 16_384)
    assert not by_class(16, 767, 16_384)
    assert not by_class(16, 768, 16_383)


def test_rows_that_are_ignored_take_no_products_on_the_cpu(work: Work) -> None:
    rows, classes = 100, 300
    hidden = torch.randn(rows, FEATURES, requires_grad=True)
    weight = torch.randn(classes, FEATURES, requires_grad=True)
    target = torch.arange(rows) % classes
    target[10:70] = -100
    with work:
        scored_linear_cross_entropy(hidden, weight, target, chunk_rows=16).loss.backward()
    assert work.multiplications == 3 * 40 * FEATURES * classes


def peak_bytes(step: Callable[[], object]) -> int:
    """The most bytes that torch allocated at one time, in its C++ operators too."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocated = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(itertools.accumulate(number for _, number in sorted(allocated)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_tokens": 0.5},
        {"softcap": 30.0},
        {"z_loss": 0.01},
        {"softcap": 9.0, "z_loss": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("ignored", [0, 1])
def test_few_rows_have_larger_chunks_and_an_eighth_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, ignored: int, options: dict[str, float], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "CPU_CHUNK_BYTES", 16 << 10)
    monkeypatch.setattr(ops_module, "CLASSES_IN_COLUMNS", 2048)
    monkeypatch.setattr(ops_module, "FEATURES_IN_COLUMNS", FEATURES)
    rows, classes = 1024, 2048
    hidden = torch.randn(rows, FEATURES).to(dtype).requires_grad_()
    weight = torch.randn(classes, FEATURES).to(dtype).requires_grad_()
    target = torch.arange(rows) % classes
    target[:ignored] = -100

    def ours() -> object:
        found = scored_linear_cross_entropy(hidden, weight, target, **options)
        return torch.autograd.grad(found.loss, (hidden, weight))

    def eager() -> object:
        return torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), target), (hidden, weight))

    of_weights, logits = FEATURES * (rows + classes), rows * classes * dtype.itemsize
    eager_peak = peak_bytes(eager) - of_weights * dtype.itemsize
    assert eager_peak >= 2 * logits
    own = peak_bytes(ours) - 4 * of_weights  # float32 sums
    assert own <= eager_peak / 8
    assert own >= logits / 6 or dtype == torch.bfloat16 or "softcap" in options


def test_rows_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_of(rows: int, **options: int) -> int:
        hidden, weight = torch.empty(rows, FEATURES), torch.empty(2048, FEATURES)
        return module.default_chunk_rows(hidden, weight, weight.dtype, **options)

    assert rows_of(10) == rows_of(9999) == 4096  # 32 MiB
    assert rows_of(9999, bytes_each=12) == 1365
    monkeypatch.setattr(module, "CPU_CHUNK_BYTES", 16 << 10)  # 2 rows
    assert rows_of(1024) == 208  # at most 0.21, in nearly equal parts of whole sixteens
    assert rows_of(1024, bytes_each=12) == 71
    assert [rows_of(rows) for rows in (0, 1, 9, 200, 9216)] == [2, 2, 2, 42, 928]
    with_softcap = {torch.float32: 8, torch.float64: 16, torch.bfloat16: 10}
    assert {d: module.bytes_of_logit(d, True, False) for d in with_softcap} == with_softcap
    assert module.bytes_of_logit(torch.bfloat16, True, True) == 14
    assert module.bytes_of_logit(torch.bfloat16, False, False) == 2


@pytest.mark.parametrize(("wanted", "products"), [("none", 1), ("hidden", 2), ("weight", 2)])
def test_no_product_for_nothing(work: Work, wanted: str, products: int) -> None:
    hidden, weight, target, _ = make(torch.float32)
    hidden.requires_grad_(wanted == "hidden")
    weight.requires_grad_(wanted == "weight")
    with work:
        scored_linear_cross_entropy(hidden, weight, target)
    counted = int((target >= 0).sum())
    assert work.multiplications == products * counted * FEATURES * CLASSES
    work.multiplications = 0
    weight.requires_grad_()
    with work, torch.no_grad():
        scored_linear_cross_entropy(hidden, weight, target)
    assert work.multiplications == counted * FEATURES * CLASSES


def test_kept_tokens_are_the_worst_and_cost_less(work: Work) -> None:
    hidden, weight, target, offset = make(torch.float32, rows=100)
    with work:
        found = scored_linear_cross_entropy(hidden, weight, target, bias=offset, keep_tokens=0.2)
    counted = int((target >= 0).sum())
    assert work.multiplications == (counted + 3 * 20) * FEATURES * CLASSES
    losses = F.cross_entropy(F.linear(hidden, weight, offset), target, reduction="none")
    wanted = losses.topk(20).indices.sort().values
    assert torch.equal(found.kept, wanted)
    expected = losses[wanted].mean()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(
        gradients(found.loss, hidden, weight, offset), gradients(expected, hidden, weight, offset)
    )
    torch.testing.assert_close(found.row_loss, losses.detach())


def test_kept_tokens_by_excess_loss() -> None:
    hidden, weight, target, _ = make(torch.float32)
    reference = torch.rand(ROWS, generator=torch.Generator().manual_seed(3)) * 5
    found = scored_linear_cross_entropy(
        hidden, weight, target, keep_tokens=0.3, reference_loss=reference
    )
    excess = found.row_loss - reference
    excess[target == -100] = -math.inf
    assert torch.equal(found.kept, excess.topk(math.ceil(0.3 * ROWS)).indices.sort().values)


def test_ignored_tokens_are_kept_last_and_count_for_nothing() -> None:
    hidden, weight, target, _ = make(torch.float32, rows=10)
    target[2:] = -100
    found = scored_linear_cross_entropy(hidden, weight, target, keep_tokens=0.5)
    assert {0, 1} < set(found.kept.tolist()) and len(found.kept) == 5
    torch.testing.assert_close(found.loss, F.cross_entropy(hidden @ weight.t(), target))


def test_ties_of_kept_tokens_are_broken_by_the_seed() -> None:
    hidden, weight = torch.zeros(200, FEATURES), torch.zeros(CLASSES, FEATURES)
    target = torch.zeros(200, dtype=torch.int64)

    def kept(seed: int) -> list[int]:
        found = scored_linear_cross_entropy(hidden, weight, target, keep_tokens=0.25, seed=seed)
        return found.kept.tolist()  # type: ignore[union-attr]

    assert kept(1) == kept(1) != kept(2) and len(set(kept(1))) == 50
