# SPDX-License-Identifier: Apache-2.0
"""What selections refuse: the exception's type, and that it names the argument and the value."""

import re

import numpy as np
import pytest
import torch

from dynprune_cuda import functional as F
from dynprune_cuda._ops.contract import RankingKind

S = torch.arange(5.0)
COUNT = torch.arange(5)
WITH_K = {
    "top_k": lambda k, **o: F.select_top_k(S, k, **o),
    "epsilon_greedy": lambda k, **o: F.select_epsilon_greedy(S, k, 0.5, **o),
    "ucb": lambda k, **o: F.select_ucb(S, S, k, **o),
    "ucb1": lambda k, **o: F.select_ucb1(S, COUNT, k, step=9, **o),
    "uniform": lambda k, **o: F.select_uniform(5, k, **o),
    "weighted": lambda k, **o: F.select_weighted(S, k, **o),
}
WITH_SCORES = {
    "scores": [
        lambda t: F.select_top_k(t, 1),
        lambda t: F.select_epsilon_greedy(t, 1, 0.5),
    ],
    "mean": [lambda t: F.select_ucb(t, S, 1), lambda t: F.select_ucb1(t, COUNT, 1, step=9)],
    "variance": [lambda t: F.select_ucb(S, t, 1)],
    "count": [lambda t: F.select_ucb1(S, t, 1, step=9)],
    "weights": [lambda t: F.select_weighted(t, 1)],
}
every_op = pytest.mark.parametrize("op", WITH_K.values(), ids=WITH_K.keys())
every_tensor = pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, calls in WITH_SCORES.items() for call in calls]
)


def refuses(error, name, value, call):
    """The call raises exactly `error`, and its message has the argument and the value as words."""
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    message = str(caught.value)
    assert re.search(rf"(?<![\w.]){re.escape(name)}(?![\w])", message), (name, message)
    assert str(value) in message, (value, message)


@every_op
def test_k_must_be_a_count_of_samples(op):
    for k in (-1, 6, 2**40, -(2**70), 2**70):
        refuses(ValueError, "k", k, lambda k=k: op(k))
    for k, shown in (
        (2.0, "2.0"),
        ("2", "'2'"),
        (None, "None"),
        (True, "True"),
        (np.float32(1), 1),
    ):
        refuses(TypeError, "k", shown, lambda k=k: op(k))
    assert len(op(np.int64(2))) == len(op(torch.tensor(2))) == 2


@every_op
def test_order_must_be_one_of_two_words(op):
    refuses(ValueError, "order", "'sorted'", lambda: op(1, order="sorted"))
    refuses(ValueError, "order", "'Random'", lambda: op(1, order="Random"))
    refuses(TypeError, "order", "None", lambda: op(1, order=None))
    refuses(TypeError, "order", "True", lambda: op(1, order=True))


@every_op
def test_seed_must_be_an_int_or_a_0d_int64_tensor(op):
    for seed, shown in ((1.5, "1.5"), ("7", "'7'"), (None, "None"), (True, "True")):
        refuses(TypeError, "seed", shown, lambda seed=seed: op(1, seed=seed))
    for tensor, shown in (
        (torch.tensor([1]), "(1,)"),
        (torch.tensor(1.0), "float32"),
        (torch.tensor(1, dtype=torch.int32), "int32"),
    ):
        refuses(ValueError, "seed", shown, lambda tensor=tensor: op(1, seed=tensor))
    elsewhere = torch.tensor(1, device="meta")
    refuses(ValueError, "seed", "meta", lambda: op(1, seed=elsewhere))


@every_tensor
def test_scores_must_be_a_1d_tensor_of_an_accepted_dtype(name, call):
    for value, shown in (([1.0] * 5, "list"), (np.ones(5), "ndarray"), (None, "None")):
        refuses(TypeError, name, shown, lambda value=value: call(value))
    good = torch.int64 if name == "count" else torch.float32
    for shape in ((), (5, 1), (1, 5)):
        bad = torch.zeros(shape, dtype=good)
        refuses(ValueError, name, shape, lambda bad=bad: call(bad))
    for dtype in (torch.bool, torch.int16, torch.uint8, torch.complex64):
        refuses(ValueError, name, dtype, lambda dtype=dtype: call(torch.zeros(5, dtype=dtype)))
    if name != "count":
        refuses(ValueError, name, "torch.int64", lambda: call(torch.zeros(5, dtype=torch.int64)))


def test_dtypes_that_only_some_ops_take():
    refuses(ValueError, "mean", "float64", lambda: F.select_ucb(S.double(), S.double(), 1))
    refuses(ValueError, "variance", "float32", lambda: F.select_ucb(S.half(), S, 1))
    refuses(ValueError, "mean", "float16", lambda: F.select_ucb1(S.half(), COUNT, 1, step=9))
    refuses(ValueError, "count", "float32", lambda: F.select_ucb1(S, S, 1, step=9))


def test_tensors_of_one_call_must_match():
    refuses(ValueError, "variance", "4", lambda: F.select_ucb(S, S[:4], 1))
    refuses(ValueError, "count", "4", lambda: F.select_ucb1(S, COUNT[:4], 1, step=9))
    meta = torch.zeros(5, device="meta")
    refuses(ValueError, "variance", "meta", lambda: F.select_ucb(S, meta, 1))
    refuses(ValueError, "count", "meta", lambda: F.select_ucb1(S, meta.long(), 1, step=9))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("epsilon", lambda v: F.select_epsilon_greedy(S, 2, v)),
        ("c", lambda v: F.select_ucb(S, S, 2, c=v)),
        ("c", lambda v: F.select_ucb1(S, COUNT, 2, c=v, step=9)),
        ("step", lambda v: F.select_ucb1(S, COUNT, 2, step=v)),
    ],
)
def test_numbers_must_be_finite_numbers(name, call):
    for value in (float("nan"), float("inf"), -float("inf")):
        refuses(ValueError, name, value, lambda value=value: call(value))
    for value, shown in (
        ("1", "'1'"),
        (None, "None"),
        (True, "True"),
        (np.bool_(True), "True"),
        (1j, "1j"),
        ([1.0], "[1.0]"),
    ):
        refuses(TypeError, name, shown, lambda value=value: call(value))
    assert len(call(1)) == len(call(np.float32(1.0))) == len(call(torch.tensor(1.0))) == 2


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("epsilon", lambda v: F.select_epsilon_greedy(S, 2, v)),
        ("c", lambda v: F.select_ucb(S, S, 2, c=v)),
        ("step", lambda v: F.select_ucb1(S, COUNT, 2, step=v)),
    ],
)
def test_numbers_that_no_float_holds_are_errors_of_the_argument(name, call):
    refuses(ValueError, name, "1000000", lambda: call(10**400))
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        call(torch.ones(3))


def test_ranges_of_numbers():
    for epsilon in (-1e-9, 1.0000001, 5, -1):
        refuses(ValueError, "epsilon", epsilon, lambda e=epsilon: F.select_epsilon_greedy(S, 2, e))
    for step in (0.999, 0, -5.0):
        refuses(ValueError, "step", step, lambda s=step: F.select_ucb1(S, COUNT, 2, step=s))
    refuses(ValueError, "bonus", "'sd'", lambda: F.select_ucb(S, S, 2, bonus="sd"))
    refuses(TypeError, "bonus", "None", lambda: F.select_ucb(S, S, 2, bonus=None))
    with pytest.raises(TypeError, match="step"):
        F.select_ucb1(S, COUNT, 2)


def test_num_samples_must_be_a_count_that_ids_can_be_hashed_for():
    too_many = (1 << 32) + 1
    for call in (lambda n: F.select_uniform(n, 0), F.permutation):
        refuses(ValueError, "num_samples", -1, lambda call=call: call(-1))
        refuses(ValueError, "num_samples", too_many, lambda call=call: call(too_many))
        refuses(ValueError, "num_samples", 2**80, lambda call=call: call(2**80))
        for value in (2.0, "3", None, True):
            refuses(TypeError, "num_samples", repr(value), lambda c=call, v=value: c(v))
    scores = torch.zeros(1).expand(too_many)
    refuses(ValueError, "scores", too_many, lambda: F.select_top_k(scores, 1))
    refuses(ValueError, "weights", too_many, lambda: F.select_weighted(scores, 1))


@pytest.mark.parametrize("bad", [-1.0, -1e-45, -torch.inf, torch.nan, -torch.nan])
@pytest.mark.parametrize("n", [1, 40, 200_003])
def test_negative_and_nan_weights_are_errors(device, n, bad):
    weights = torch.ones(n, device=device)
    weights[n // 2 :] = bad
    before = weights.clone()
    if device.type == "cpu":
        for k in {1, n}:
            refuses(ValueError, "weights", f"[{n // 2}]", lambda k=k: F.select_weighted(weights, k))
        torch.testing.assert_close(weights, before, rtol=0, atol=0, equal_nan=True)
    else:
        ids = F.select_weighted(weights, n)
        assert len(set(ids.tolist())) == n
        with pytest.raises(ValueError, match="weights"):
            F.check_errors(device)
    F.check_errors(device)
    weights.fill_(1)
    assert len(F.select_weighted(weights, n)) == n


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_negative_and_nan_weights_of_every_dtype(dtype):
    for value in (-1.0, float("nan")):
        weights = torch.ones(9, dtype=dtype)
        weights[7] = value
        refuses(ValueError, "weights", "[7]", lambda weights=weights: F.select_weighted(weights, 2))


def test_errors_of_the_operator_itself_have_the_same_type_in_every_torch():
    weights = torch.tensor([1.0, -1.0])

    def direct(k):
        return torch.ops.dynprune_cuda.select_ranked(
            weights, None, RankingKind.WEIGHT, 0.0, 0.0, k, 0, None, 0, False
        )

    torch.compiler.reset()
    compiled = torch.compile(F.select_weighted, fullgraph=True, backend="aot_eager")
    calls = (lambda: direct(1), lambda: direct(3), lambda: compiled(weights, 1))
    for call, says in zip(calls, (r"weights\[1\]", "k must", r"weights\[1\]"), strict=True):
        with pytest.raises(RuntimeError, match=says) as caught:
            call()
        assert caught.type is RuntimeError


def test_options_are_keywords():
    for call in (
        lambda: F.select_top_k(S, 1, 7),
        lambda: F.select_epsilon_greedy(S, 1, 0.5, 7),
        lambda: F.select_ucb(S, S, 1, 1.0),
        lambda: F.select_ucb1(S, COUNT, 1, 1.0),
        lambda: F.select_uniform(5, 1, 7),
        lambda: F.select_weighted(S, 1, 7),
        lambda: F.permutation(5, 7),
    ):
        with pytest.raises(TypeError, match="positional"):
            call()


@pytest.mark.needs_cuda
def test_tensors_on_two_devices_are_refused():
    on_gpu = S.cuda()
    refuses(ValueError, "variance", "cpu", lambda: F.select_ucb(on_gpu, S, 1))
    refuses(ValueError, "count", "cpu", lambda: F.select_ucb1(on_gpu, COUNT, 1, step=9))
    refuses(ValueError, "seed", "cpu", lambda: F.select_top_k(on_gpu, 1, seed=torch.tensor(1)))
