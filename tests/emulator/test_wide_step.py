# SPDX-License-Identifier: Apache-2.0
"""The fused step on rows that several blocks share: as clusters, in a cooperative grid, or neither.

A block stages at most 96 KB: 24,576 float32 or 49,152 of a 16-bit type, less where a row begins.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernels import ABOVE, BELOW, MIXED, Kernels, on_schedule
from steps import TOLERANCES, check_step, make_columns, make_logits, make_target, step_bytes
from torch import Tensor

from dynprune_cuda import functional as F

NO_CLUSTERS = {"max_cluster": 0}
# How the blocks of a team meet. Random schedules preempt; clusters come in any order, of which a
# machine with one resident block runs one at a time.
MEETINGS = {
    "cluster": {"multiprocessors": 16, **ABOVE},
    "cluster, random": {
        **MIXED,
        **{"seed": 3, "order": 2, "preempt": 64, "resident": 9, "multiprocessors": 16},
    },
    "cluster, one at a time": {"seed": 1, "order": 1, "preempt": 8, "resident": 1, **BELOW},
    "grid": {**NO_CLUSTERS, "multiprocessors": 13, **BELOW},
    "grid, random": {
        **NO_CLUSTERS,
        **ABOVE,
        **{"seed": 2, "order": 2, "preempt": 64, "resident": 3, "multiprocessors": 7},
    },
    "grid, as clusters are refused": {"refuse_clusters": True, "multiprocessors": 13},
}
# Without room for a team, or without leave to use it, one block reads a row twice.
ALONE = {
    "one multiprocessor": {**NO_CLUSTERS, "multiprocessors": 1, **MIXED},
    "no leave": {**NO_CLUSTERS, "multiprocessors": 16, "granted_blocks": 3},
    "neither": {"refuse_clusters": True, "multiprocessors": 16, "granted_blocks": 3},
}


@pytest.fixture(params=MEETINGS)
def meeting(request: pytest.FixtureRequest) -> Kernels:
    return on_schedule(**MEETINGS[request.param])


@pytest.fixture(params=[*MEETINGS, *ALONE])
def any_way(request: pytest.FixtureRequest) -> Kernels:
    return on_schedule(**{**MEETINGS, **ALONE}[request.param])


OPTIONS = [
    {},
    {"reduction": "sum", "score": "el2n", "label_smoothing": 0.2, "padding": 3},
    {"reduction": "none", "score": "margin", "ignore_index": 2, "grad_scale": 4.0},
    {"ignore_index": 2, "weighted": True, "mixed": True, "padding": 1, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "smooth", "none", "weighted"])
@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (24_600, torch.float32),
        (50_257, torch.bfloat16),
        (49_999, torch.float16),
        (24_577, torch.float64),
    ],
    ids=str,
)
def test_equals_cpu(
    any_way: Kernels, classes: int, dtype: torch.dtype, options: dict[str, object]
) -> None:
    if dtype == torch.float16:
        options = {"grad_scale": 1.0, **options}
    # The rows: scored ones, one that ignore_index names, and a sample weight of 0 at the first.
    check_step(any_way, 3, classes, dtype, **options)


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_every_number_of_rows_and_teams(rows: int) -> None:
    """Fewer rows than teams, as many, and more."""
    for schedule in ({"multiprocessors": 8}, {**NO_CLUSTERS, "multiprocessors": 8}):
        check_step(on_schedule(**schedule), rows, 50_001, torch.bfloat16, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(128_257, torch.bfloat16), (131_072, torch.float32), (262_144, torch.float32)],
    ids=str,
)
def test_the_longest_rows(classes: int, dtype: torch.dtype) -> None:
    """Teams of 4 to 16; the last, as clusters, of 8 with a multiprocessor each."""
    for schedule in ({}, {**NO_CLUSTERS, "multiprocessors": 17}):
        check_step(on_schedule(**schedule), 2, classes, dtype)


def run(kernels: Kernels, rows: int, classes: int, dtype: torch.dtype) -> list[Tensor]:
    columns = make_columns(rows)
    logits, target = make_logits(rows, classes, dtype), make_target(rows, classes)
    result = kernels.scored_cross_entropy_step_(logits, target, torch.arange(rows), columns)
    return [*result, *columns.values()]


def test_the_number_of_teams_changes_no_bit() -> None:
    schedules = [{"multiprocessors": n, "max_cluster": m} for n in (4, 9, 64) for m in (0, 8)]
    results = [run(on_schedule(**s), 7, 70_001, torch.bfloat16) for s in schedules]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0))


def test_broken_rows_are_broken_everywhere_and_alone(meeting: Kernels) -> None:
    """A NaN or an infinity in one slice reaches the gradient of all; other rows never know."""
    classes, rows = 49_999, 6
    logits = make_logits(rows, classes, torch.float32).to(torch.bfloat16)
    target = torch.tensor([0, 30_000, 49_998, 25_000, 7, 8])
    logits[1, 49_998] = math.nan  # in the last slice
    logits[2, 0] = math.inf  # in the first
    logits[3, :] = -math.inf
    logits[4, :] = -math.inf  # all but the target
    logits[4, 7] = 3.0
    columns = make_columns(rows)
    _, scores, correct, gradient = meeting.scored_cross_entropy_step_(
        logits, target, torch.arange(rows), columns, reduction=2
    )
    leaf = logits.clone().requires_grad_()
    scored = F.scored_cross_entropy(leaf, target)
    scored.loss.sum().backward()
    for a, e in zip(scores[:4], scored[:4], strict=True):
        torch.testing.assert_close(a, e.detach(), **TOLERANCES[torch.float32], equal_nan=True)
    assert torch.equal(correct, scored.correct)
    broken = torch.tensor([False, True, True, True, False, False])
    assert torch.equal(gradient.isnan().all(dim=1), broken)
    assert torch.equal(gradient.isnan().any(dim=1), broken)
    torch.testing.assert_close(gradient[~broken], leaf.grad[~broken], **TOLERANCES[torch.bfloat16])
    assert columns["non_finite_count"].tolist() == [0, 1, 1, 1, 0, 0]


def test_bad_targets_count_for_nothing(meeting: Kernels) -> None:
    classes = 50_001
    logits, target = make_logits(4, classes, torch.bfloat16), torch.tensor([5, classes, -1, 9])
    columns = make_columns(4)
    loss, scores, _, gradient = meeting.scored_cross_entropy_step_(
        logits, target, torch.arange(4), columns
    )
    count, example = meeting.errors[0]
    assert count == 2 and example in (classes, -1)
    assert scores[0].isnan().tolist() == [False, True, True, False]
    torch.testing.assert_close(loss[0], (scores[0, 0] + scores[0, 3]) / 2)
    assert gradient.ne(0).any(dim=1).tolist() == [True, False, False, True]
    assert columns["count"].tolist() == [1, 0, 0, 1]


def test_one_launch_of_few_rows_for_every_reduction(meeting: Kernels) -> None:
    for rows, reduction in itertools.product((1, 40), (0, 1, 2)):
        logits, target = make_logits(rows, 24_601, torch.float32), make_target(rows, 24_601)
        meeting.emulator.statistics()
        meeting.scored_cross_entropy_step_(
            logits, target, torch.arange(rows), make_columns(rows), reduction=reduction
        )
        assert meeting.emulator.statistics()["launches"] == 1


@pytest.mark.parametrize("way", ["cluster", "grid"])
@pytest.mark.parametrize(("rows", "rows_per_id", "every"), [(513, 1, 100), (528, 33, 20)])
def test_launches_of_many_rows(way: str, rows: int, rows_per_id: int, every: int) -> None:
    """As of any step: the divisor, losses and their sum, three for the table. Most rows are ignored
    ones on a small device, for which the emulator has less to do."""
    meeting = on_schedule(**MEETINGS[way], shared_bytes=48 * 1024)
    classes = 23_600
    target = torch.full((rows,), -100)
    target[::every] = make_target(rows, classes)[::every]
    scored = target >= 0
    logits, columns = make_logits(rows, classes, torch.bfloat16), make_columns(rows // rows_per_id)
    meeting.emulator.statistics()
    loss, scores, _, gradient = meeting.scored_cross_entropy_step_(
        logits, target, torch.arange(rows // rows_per_id), columns
    )
    assert meeting.emulator.statistics()["launches"] == 1 + 6
    torch.testing.assert_close(loss[0], scores[0, scored].mean())
    assert torch.equal(gradient.ne(0).any(dim=1), scored)
    counted = scored.view(-1, rows_per_id).sum(dim=1)
    assert torch.equal(columns["count"].bool(), counted > 0)
    expected = scores[0].where(scored, 0.0).view(-1, rows_per_id).double().sum(dim=1) / counted
    assert torch.equal(columns["mean"][counted > 0], expected[counted > 0].float())


# ---- less shared memory


@pytest.mark.parametrize("way", ["cluster", "grid", "no leave"])
@pytest.mark.parametrize("shared_kb", [48, 64, 99, 163])
def test_devices_with_less_shared_memory(shared_kb: int, way: str) -> None:
    """48 KB is the least of all; 64 KB is Turing's, 99 KB an RTX card's, 163 KB an A100's."""
    kernels = on_schedule(**{**MEETINGS, **ALONE}[way], shared_bytes=shared_kb * 1024)
    check_step(kernels, 2, 16_000, torch.float32)  # 64,000 bytes: one block, or two
    check_step(kernels, 2, 1000, torch.float64)  # 8 rows of a block: 64,128 bytes
    check_step(kernels, 2, 100_000, torch.bfloat16)
    if way != "no leave":
        assert step_bytes(kernels, 2, 16_000, torch.float32)[1] <= 2.1
        assert step_bytes(kernels, 2, 100_000, torch.bfloat16)[1] <= 2.1


# ---- bytes

LENGTHS = [
    (32_768, torch.float32),
    (32_768, torch.bfloat16),
    (50_257, torch.float32),
    (50_257, torch.bfloat16),
    (128_256, torch.float32),
    (128_256, torch.bfloat16),
    (128_257, torch.bfloat16),
    (262_144, torch.float32),
    (262_144, torch.bfloat16),
]


@pytest.mark.parametrize("clusters", [True, False], ids=["cluster", "grid"])
@pytest.mark.parametrize(("classes", "dtype"), LENGTHS, ids=str)
def test_each_logit_is_read_once_and_each_gradient_written_once(
    classes: int, dtype: torch.dtype, clusters: bool
) -> None:
    """In units of the logits' bytes; sectors that two blocks ask for come from memory once."""
    kernels = on_schedule(multiprocessors=33, max_cluster=8 if clusters else 0)
    memory, requests = step_bytes(kernels, 4, classes, dtype)
    aligned = classes * dtype.itemsize % 32 == 0
    assert 2.0 <= memory <= 2.01
    assert requests <= (2.05 if aligned else 2.15)


def test_unaligned_rows_are_read_once(meeting: Kernels) -> None:
    memory, requests = step_bytes(meeting, 4, 49_153, torch.bfloat16, padding=2)
    assert memory <= 2.01 and requests <= 2.4


def test_a_block_alone_asks_twice() -> None:
    memory, requests = step_bytes(on_schedule(**ALONE["no leave"]), 4, 50_256, torch.bfloat16)
    assert memory <= 2.01  # what the caches might make of it
    assert 3.0 <= requests <= 3.1
