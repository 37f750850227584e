# SPDX-License-Identifier: Apache-2.0
"""scored_cross_entropy: loss and scores against their definitions, and what it refuses."""

import itertools
import math
import re

import numpy as np
import pytest
import reference
import torch
from torch.nn.functional import cross_entropy

from dynprune_cuda import ScoredLoss
from dynprune_cuda import functional as F
from dynprune_cuda.functional.cross_entropy import SCORES

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CLASSES = [1, 2, 10, 21, 100, 1000, 1025, 5003]

INF, NAN = math.inf, math.nan
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def batch(rows, classes, dtype=torch.float32, scale=3.0):
    """Logits and targets on the CPU."""
    generator = torch.Generator().manual_seed(1000 * rows + classes)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


def assert_scores(got: ScoredLoss, exact: dict[str, np.ndarray]):
    for name in SCORES:
        reference.assert_close(getattr(got, name), exact[name], name)
    assert got.correct.dtype == torch.bool
    np.testing.assert_array_equal(got.correct.cpu().numpy(), np.asarray(exact["margin"]) > 0)


def confident_rows(dtype):
    """Rows whose target has d = lse_{j != y} - x_y from 40 to -40, and a target class each."""
    rows, targets = [], []
    for classes, d in itertools.product((2, 10, 101), np.linspace(40, -40, 17)):
        rng = np.random.default_rng([classes, int(d) + 40])
        row, y = rng.normal(size=101) * 2 - 500.0, int(rng.integers(classes))
        row[:classes] += 500.0
        others = np.delete(row[:classes], y)
        row[y] = np.log(np.exp(others).sum()) - d
        rows.append(row[:classes])
        targets.append(y)
    return [torch.from_numpy(row).to(dtype) for row in rows], targets


def test_the_references_agree():
    """The fast one in float64 with the definitions in 60 digits."""
    for row, y in zip(*confident_rows(torch.float64), strict=True):
        exact = reference.exact_row(row.tolist(), y)
        fast = reference.scores(row.numpy()[None], np.array([y]))
        for name in SCORES:
            np.testing.assert_allclose(fast[name][0], exact[name], rtol=1e-13, atol=1e-15)


@every_dtype
def test_confident_rows_keep_their_relative_precision(device, dtype):
    """Target probabilities of 1e-17 to 1 - 1e-17, each row against 60 digits."""
    probabilities = []
    for row, y in zip(*confident_rows(dtype), strict=True):
        exact = reference.exact_row(row.tolist(), y)
        got = F.scored_cross_entropy(row[None].to(device), torch.tensor([y], device=device))
        assert_scores(got, {name: [value] for name, value in exact.items()})
        probabilities.append(exact["loss"])
    assert min(probabilities) < 1e-17 and max(probabilities) > 39.9


@pytest.mark.parametrize("offset", [-1e4, 1e4, 3e37])
def test_adding_a_constant_to_a_row_changes_nothing(device, offset):
    """Where the sum is exact: small multiples of the offset's last place."""
    step = float(np.spacing(np.float32(abs(offset))))
    row = torch.arange(10, dtype=torch.float32) * step + offset
    shifted = row.double() - offset
    exact = reference.exact_row(shifted.tolist(), 4)
    got = F.scored_cross_entropy(row[None].to(device), torch.tensor([4], device=device))
    if offset < 1e30:
        assert_scores(got, {name: [value] for name, value in exact.items()})
    else:
        assert got.margin.item() == pytest.approx(-5 * step) and got.loss.item() == -got.margin


@every_dtype
@pytest.mark.parametrize("classes", CLASSES)
def test_scores_are_what_their_definitions_say(device, classes, dtype):
    for rows in (0, 1, 3, 64):
        logits, target = batch(rows, classes, dtype)
        got = F.scored_cross_entropy(logits.to(device), target.to(device))
        for name in SCORES:
            value = getattr(got, name)
            assert value.dtype == reference.compute_dtype(dtype) and value.shape == (rows,)
            assert value.device.type == device.type
        if rows > 0:
            assert_scores(got, reference.scores(reference.as_float64(logits), target.numpy()))


@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_targets_of_every_dtype_and_stride(device, target_dtype):
    logits, target = batch(64, 200)
    expected = F.scored_cross_entropy(logits.to(device), target.to(device))
    strided = (
        torch.stack([target, target * 0 - 1], dim=1)[:, 0]
        if target_dtype.is_signed
        else (torch.stack([target, target * 0 + 255], dim=1)[:, 0])
    )
    for t in (target.to(target_dtype), strided.to(target_dtype)):
        got = F.scored_cross_entropy(logits.to(device), t.to(device))
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


@every_dtype
def test_strides_and_offsets_of_the_logits_do_not_matter(device, dtype):
    logits, target = batch(33, 21, dtype)
    logits, target = logits.to(device), target.to(device)
    expected = F.scored_cross_entropy(logits, target)
    padded = torch.full((33, 30), 99.0, dtype=dtype, device=device)
    padded[:, 5:26] = logits
    flat = torch.full((33 * 21 + 3,), 99.0, dtype=dtype, device=device)
    flat[3:] = logits.flatten()
    every_other = torch.full((66, 42), 99.0, dtype=dtype, device=device)
    every_other[::2, ::2] = logits
    for name, view in {
        "rows apart": padded[:, 5:26],
        "transposed": logits.T.contiguous().T,
        "offset": flat[3:].view(33, 21),
        "both strided": every_other[::2, ::2],
    }.items():
        for a, b in zip(F.scored_cross_entropy(view, target), expected, strict=True):
            assert torch.equal(a, b), name
    one = F.scored_cross_entropy(logits[:1].expand(5, 21), target[:1].expand(5))
    for a, b in zip(one, expected, strict=True):
        assert torch.equal(a, b[:1].expand(5))


@every_dtype
def test_a_tie_for_the_greatest_logit_is_not_correct(device, dtype):
    rows = [[1, 1, 0], [1, 1, 0], [0, 1, 1], [2, 1, 1], [-0.0, 0.0, -1], [5, 5, 5]]
    target = torch.tensor([0, 1, 0, 0, 0, 2])
    got = F.scored_cross_entropy(torch.tensor(rows, dtype=dtype, device=device), target.to(device))
    assert got.margin.tolist() == [0, 0, -1, 1, 0, 0]
    assert got.correct.tolist() == [False, False, False, True, False, False]


def test_one_class_is_always_right(device):
    got = F.scored_cross_entropy(
        torch.tensor([[3.0], [-1e30]], device=device), torch.zeros(2, dtype=torch.int64).to(device)
    )
    assert [v.tolist() for v in got] == [[0, 0], [0, 0], [0, 0], [INF, INF], [True, True]]


# logits, target -> loss, el2n, entropy, margin
ROOT = math.sqrt(2)
SPECIAL = {
    "others impossible": ([2.0, -INF, -INF], 0, (0, 0, 0, INF)),
    "target impossible": ([-INF, 1.0, 1.0], 0, (INF, math.sqrt(1.5), math.log(2), -INF)),
    "target impossible, one other": ([-INF, 1.0], 0, (INF, ROOT, 0, -INF)),
    "one other impossible": ([0.0, 0.0, -INF], 0, (math.log(2), math.sqrt(0.5), math.log(2), 0)),
    "all impossible": ([-INF, -INF], 0, (NAN,) * 4),
    "target certain": ([INF, 0.0], 0, (NAN,) * 4),
    "other certain": ([0.0, INF], 0, (NAN,) * 4),
    "two certain": ([INF, INF, 0.0], 2, (NAN,) * 4),
    "NaN at the target": ([NAN, 0.0], 0, (NAN,) * 4),
    "NaN elsewhere": ([0.0, 1.0, NAN], 0, (NAN,) * 4),
    "NaN and impossible": ([0.0, -INF, NAN], 0, (NAN,) * 4),
    "NaN alone": ([NAN], 0, (NAN,) * 4),
}


@every_dtype
@pytest.mark.parametrize("case", SPECIAL.values(), ids=SPECIAL.keys())
def test_infinite_and_nan_logits(device, case, dtype):
    row, y, expected = case
    logits, target = torch.tensor([row], dtype=dtype), torch.tensor([y])
    loss = cross_entropy(logits.double(), target)
    np.testing.assert_equal(loss.item(), float(expected[0]))  # torch says the same
    got = F.scored_cross_entropy(logits.to(device), target.to(device))
    assert_scores(got, {n: [float(v)] for n, v in zip(SCORES, expected, strict=True)})


@pytest.mark.parametrize("row", [[-INF, 0.0, 1.0], [0.0, -INF, 1.0], [INF, 0.0, 1.0]])
def test_label_smoothing_of_infinite_logits_is_torch_s(device, row):
    logits, target = torch.tensor([row]), torch.tensor([0])
    expected = cross_entropy(logits, target, label_smoothing=0.1)
    got = F.scored_cross_entropy(logits.to(device), target.to(device), label_smoothing=0.1)
    np.testing.assert_equal(got.loss.item(), expected.item())


@every_dtype
def test_classes_masked_with_the_lowest_number(device, dtype):
    """Common in masking: finite, so neither impossible nor a reason for infinities in scores."""
    low = torch.finfo(dtype).min
    rows = [[low, low], [low, low], [5.0, low], [low, 5.0], [low, low, low]]
    target = torch.tensor([0, 1, 0, 0, 2])
    losses = [math.log(2), math.log(2), 0.0, 5.0 - low, math.log(3)]
    margins = [0.0, 0.0, 5.0 - low, low - 5.0, 0.0]
    for row, y, loss, margin in zip(rows, target.tolist(), losses, margins, strict=True):
        got = F.scored_cross_entropy(
            torch.tensor([row], dtype=dtype, device=device), torch.tensor([y], device=device)
        )
        assert got.loss.item() == pytest.approx(loss, rel=1e-6), row
        assert got.margin.item() == pytest.approx(margin, rel=1e-6), row
        assert got.correct.item() == (margin > 0), row


@pytest.mark.parametrize("row", [[2e38, -3e38], [3e38, -2e38, -1e38]])
def test_entropy_survives_differences_beyond_float32(device, row):
    """One class has all the probability, whichever is the target."""
    for y in range(len(row)):
        got = F.scored_cross_entropy(
            torch.tensor([row], device=device), torch.tensor([y], device=device)
        )
        assert got.entropy.item() == 0


@every_dtype
@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 12345])
def test_ignored_rows_have_no_loss_and_no_scores(device, ignore_index, dtype):
    """ignore_index may be a class or not; what an ignored row holds is not looked at."""
    logits, target = batch(64, 10, dtype)
    target[::3] = ignore_index
    logits[::6] = NAN
    logits[3] = -INF
    kept = (target != ignore_index).numpy()
    got = F.scored_cross_entropy(logits.to(device), target.to(device), ignore_index=ignore_index)
    for value in got:
        assert not value.cpu()[~kept].any()
    exact = reference.scores(reference.as_float64(logits)[kept], target.numpy()[kept])
    assert_scores(ScoredLoss(*(v.cpu()[kept] for v in got)), exact)
    assert kept.sum() > 30


def test_a_batch_of_ignored_rows(device):
    logits, target = torch.full((5, 3), NAN, device=device), torch.full((5,), -100, device=device)
    for value in F.scored_cross_entropy(logits, target):
        assert value.shape == (5,) and not value.any()


def test_scores_ignore_class_weights_and_smoothing(device):
    logits, target = batch(64, 21)
    logits, target = logits.to(device), target.to(device)
    plain = F.scored_cross_entropy(logits, target)
    weight = torch.rand(21, device=device) * 3
    other = F.scored_cross_entropy(logits, target, weight=weight, label_smoothing=0.2)
    for name in ("el2n", "entropy", "margin", "correct"):
        assert torch.equal(getattr(plain, name), getattr(other, name))
    assert not torch.allclose(plain.loss, other.loss)


@pytest.mark.parametrize("bad", [-1, -101, 10, 11, 2**40, -(2**63)])
@pytest.mark.parametrize("rows", [1, 3, 5000])
def test_a_target_out_of_range_is_an_index_error(device, rows, bad):
    logits, target = batch(rows, 10)
    target[rows // 2 :] = bad
    if device.type == "cuda":
        got = F.scored_cross_entropy(logits.to(device), target.to(device))
        assert got.loss[rows // 2 :].isnan().all() and not got.loss[: rows // 2].isnan().any()
        with pytest.raises(IndexError, match=str(bad)):
            F.check_errors(device)
        return
    with pytest.raises(IndexError, match=rf"target\[{rows // 2}\] = {bad}\b"):
        F.scored_cross_entropy(logits, target)
    with pytest.raises(IndexError, match=rf"target\[{rows // 2}\] = {bad}\b"):
        F.scored_cross_entropy(logits, target, ignore_index=0)


def test_out_of_range_targets_of_narrow_dtypes():
    logits = torch.zeros(2, 3)
    for dtype, bad in ((torch.uint8, 255), (torch.uint8, 3), (torch.int32, -7)):
        with pytest.raises(IndexError, match=rf"target\[1\] = {bad}\b"):
            F.scored_cross_entropy(logits, torch.tensor([0, bad], dtype=dtype))


X, Y = torch.zeros(3, 4), torch.tensor([0, 1, 2])
W = torch.ones(4)
ERRORS = {
    "logits not a tensor": (TypeError, "logits", "list", lambda: F.scored_cross_entropy([[1]], Y)),
    "logits 1-D": (ValueError, "logits", "(4,)", lambda: F.scored_cross_entropy(X[0], Y)),
    "logits 3-D": (ValueError, "logits", "(1, 3, 4)", lambda: F.scored_cross_entropy(X[None], Y)),
    "logits int": (ValueError, "logits", "int64", lambda: F.scored_cross_entropy(X.long(), Y)),
    "no classes": (ValueError, "logits", "(3, 0)", lambda: F.scored_cross_entropy(X[:, :0], Y)),
    "target a list": (TypeError, "target", "list", lambda: F.scored_cross_entropy(X, [0, 1, 2])),
    "target float": (ValueError, "target", "float32", lambda: F.scored_cross_entropy(X, Y.float())),
    "target int16": (ValueError, "target", "int16", lambda: F.scored_cross_entropy(X, Y.short())),
    "target 2-D": (ValueError, "target", "(3, 1)", lambda: F.scored_cross_entropy(X, Y[:, None])),
    "target short": (ValueError, "target", "2", lambda: F.scored_cross_entropy(X, Y[:2])),
    "target elsewhere": (
        ValueError,
        "target",
        "meta",
        lambda: F.scored_cross_entropy(X, Y.to("meta")),
    ),
    "weight short": (ValueError, "weight", "3", lambda: F.scored_cross_entropy(X, Y, weight=W[:3])),
    "weight int": (
        ValueError,
        "weight",
        "int64",
        lambda: F.scored_cross_entropy(X, Y, weight=W.long()),
    ),
    "weight a list": (
        TypeError,
        "weight",
        "list",
        lambda: F.scored_cross_entropy(X, Y, weight=[1.0] * 4),
    ),
    "smoothing negative": (
        ValueError,
        "label_smoothing",
        "-0.1",
        lambda: F.scored_cross_entropy(X, Y, label_smoothing=-0.1),
    ),
    "smoothing above 1": (
        ValueError,
        "label_smoothing",
        "1.1",
        lambda: F.scored_cross_entropy(X, Y, label_smoothing=1.1),
    ),
    "smoothing NaN": (
        ValueError,
        "label_smoothing",
        "nan",
        lambda: F.scored_cross_entropy(X, Y, label_smoothing=NAN),
    ),
    "smoothing a bool": (
        TypeError,
        "label_smoothing",
        "True",
        lambda: F.scored_cross_entropy(X, Y, label_smoothing=True),
    ),
    "ignore_index 1.0": (
        TypeError,
        "ignore_index",
        "1.0",
        lambda: F.scored_cross_entropy(X, Y, ignore_index=1.0),
    ),
    "ignore_index None": (
        TypeError,
        "ignore_index",
        "None",
        lambda: F.scored_cross_entropy(X, Y, ignore_index=None),
    ),
    "ignore_index beyond int64": (
        ValueError,
        "ignore_index",
        str(2**70),
        lambda: F.scored_cross_entropy(X, Y, ignore_index=2**70),
    ),
}


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS.keys())
def test_bad_arguments_are_named(case):
    error, name, value, call = case
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    assert re.search(rf"\b{name}\b", str(caught.value)) and value in str(caught.value)
