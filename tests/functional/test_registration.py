# SPDX-License-Identifier: Apache-2.0
"""The operators as torch sees them: schemas, fake kernels, autograd, compilation, direct calls."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dynprune_cuda
from dynprune_cuda import functional as F
from dynprune_cuda._ops import BinaryArguments, compiled
from dynprune_cuda._ops.contract import (
    GradientTime,
    RankingKind,
    Reduction,
    RowReduction,
    SavedColumn,
    Score,
    StepArguments,
    StepColumn,
)
from dynprune_cuda._ops.fakes import FAKES

ops = torch.ops.dynprune_cuda
N = 37
SCORE, UCB_VARIANCE, UCB_STD, UCB1, WEIGHT, EXPLORE, *_ = map(int, RankingKind)
NAMES = {
    "select_ranked",
    "select_uniform",
    "shard_keys",
    "shard_digit_counts",
    "shard_positions",
    "shard_sample",
    "shard_bracket",
    "shard_candidate_counts",
    "shard_add_candidates_",
    "shard_list",
    "permutation_part",
    "scored_binary_cross_entropy",
    "scored_binary_cross_entropy_backward",
    "scored_binary_cross_entropy_step_",
    "scored_cross_entropy",
    "scored_cross_entropy_backward",
    "scored_cross_entropy_step_",
    "soft_cross_entropy",
    "soft_cross_entropy_backward",
    "soft_cross_entropy_step_",
    "scale_gradient_",
    "update_scores_",
    "take_errors",
}
MADE_OF_OTHERS = {"linear_cross_entropy"}  # in Python, see test_linear_cross_entropy.py


def samples(device):
    """Arguments of every op, several calls each."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(N, generator=generator).to(device)
    seed = torch.tensor(5, device=device)
    count = torch.arange(N, device=device)
    logits = torch.randn(6, 4, generator=generator).to(device).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, -100, 0], device=device)
    weight = torch.rand(4, device=device)
    # [2, 3, 4]: the classes apart, and a gap between the groups.
    columns3d = torch.randn(2, 4, 3, generator=generator).to(device).transpose(1, 2)
    columns3d.requires_grad_()
    groups3d = torch.randn(2, 5, 4, generator=generator).to(device)[:, 1:4].requires_grad_()
    saved = ops.scored_cross_entropy(logits.detach(), target, weight, -100, 0.1)[5]
    grad = torch.ones(6, device=device)
    soft = torch.rand(6, 4, generator=generator).softmax(1).to(device)
    soft_saved = ops.soft_cross_entropy(logits.detach(), soft, weight, 0.1)[5]
    keys, state = count.int(), torch.tensor([0, 4], device=device)

    def columns():
        return scores.clone(), scores.clone(), count.int()

    def forgetting(rows):
        return count[:rows] > 2, count > 3, count.int()

    def step(reduction, gradient):
        mean, variance, count32 = columns()
        half = torch.tensor(0.5, device=device)
        arguments = StepArguments(
            target=target,
            sample_ids=count[:6],
            mean=mean,
            variance=variance,
            count=count32,
            non_finite_count=count.int(),
            last_non_finite=count > 3,
            last_correct=count > 3,
            forget_count=count.int(),
            ticket=None,
            alpha=0.8,
            published_first_visit=False,
            score=Score.EL2N,
            row_reduction=RowReduction.MAX,
            rows_per_id=1,
            reduction=reduction,
            sample_weight=grad,
            token_weight=grad,
            divisor=half,
            weight=weight,
            ignore_index=-100,
            label_smoothing=0.1,
            second_target=target.clamp(min=0),
            lam=half,
            grad_scale=half,
        )
        return logits.detach(), arguments, gradient

    def hard_step(reduction, gradient):
        x, arguments, gradient = step(reduction, gradient)
        return (x, *arguments, gradient)

    def soft_step(reduction, gradient):
        x, arguments, gradient = step(reduction, gradient)
        return (x, *arguments._replace(target=soft).without_indices(), gradient)

    labels, mask = torch.rand(6, 4, generator=generator).to(device), target[:4] > 0

    def binary_step(reduction, gradient):
        half = torch.tensor(0.5, device=device)
        arguments = BinaryArguments(
            target=labels,
            sample_ids=count[:6],
            **dict(zip(("mean", "variance", "count"), columns(), strict=True)),
            non_finite_count=count.int(),
            last_non_finite=count > 3,
            last_correct=count > 3,
            forget_count=count.int(),
            ticket=None,
            alpha=0.8,
            published_first_visit=False,
            score=Score.MARGIN,
            row_reduction=RowReduction.MAX,
            reduction=reduction,
            sample_weight=grad,
            divisor=half,
            weight=labels,
            pos_weight=weight,
            grad_scale=half,
        )
        return (logits.detach(), *arguments, gradient)

    return [
        ("scored_binary_cross_entropy", (logits, labels, None, None)),
        ("scored_binary_cross_entropy", (logits, labels, weight, weight)),
        (
            "scored_binary_cross_entropy",
            (logits.detach().half()[::2], mask.expand(3, 4), labels[:3], None),
        ),
        ("scored_binary_cross_entropy", (logits.detach().double().t(), labels.t(), None, None)),
        ("scored_binary_cross_entropy_backward", (grad, logits.detach(), labels, labels, weight)),
        (
            "scored_binary_cross_entropy_backward",
            (grad[:4], logits.detach().t(), labels.t(), None, None),
        ),
        *(
            ("scored_binary_cross_entropy_step_", binary_step(*pair))
            for pair in zip(Reduction, GradientTime, strict=True)
        ),
        ("select_ranked", (scores, None, SCORE, 0.0, 0.0, 9, 0, None, 3, False)),
        ("select_ranked", (scores.bfloat16(), None, SCORE, 0.0, 0.0, 0, 0, seed, 0, True)),
        ("select_ranked", (scores, None, SCORE, 0.0, 0.0, 9, 4, None, 3, False)),
        ("select_ranked", (scores, scores, UCB_STD, 0.5, 0.0, 9, 0, None, 3, False)),
        ("select_ranked", (scores, count, UCB1, 0.5, 3.0, 9, 0, seed, 0, True)),
        ("select_ranked", (scores.double(), None, WEIGHT, 0.0, 0.0, 9, 0, None, 3, False)),
        ("select_uniform", (scores[:0], 1000, 9, None, 3, False)),
        ("shard_keys", (scores, None, SCORE, 0.0, 0.0, 2, 3, None, 3)),
        ("shard_keys", (scores.half(), scores.half(), UCB_STD, 0.5, 0.0, 2, 3, None, 3)),
        ("shard_keys", (scores, count, UCB1, 0.5, 3.0, 2, 3, None, 3)),
        ("shard_keys", (scores, None, WEIGHT, 0.0, 0.0, 2, 3, seed, 0)),
        ("shard_digit_counts", (keys, state, None, False, 3, 2, 3, None, 3)),
        ("shard_digit_counts", (keys, state, state, True, 2, 2, 3, seed, 0)),
        ("shard_positions", (keys, state * 0, None, N, 2, 3, seed, 0)),
        ("shard_positions", (keys, state * 0, state, N, 2, 3, None, 3)),
        ("permutation_part", (scores[:0], 1000, 5, 7, 100, False, None, 3)),
        ("permutation_part", (scores[:0], 1000, 5, 1, 9, True, seed, 0)),
        ("scored_cross_entropy", (logits, target, None, -100, 0.0)),
        ("scored_cross_entropy", (logits, target.clamp(min=0), weight, 2, 0.1)),
        ("scored_cross_entropy", (logits.detach().half(), target.int(), weight, -100, 0.1)),
        ("scored_cross_entropy", (logits.detach().double(), target, None, -100, 0.1)),
        ("scored_cross_entropy", (columns3d, target, weight, -100, 0.1)),
        ("scored_cross_entropy", (groups3d, target, None, -100, 0.0)),
        (
            "scored_cross_entropy_backward",
            (grad, logits.detach(), target, weight, -100, 0.1, saved),
        ),
        (
            "scored_cross_entropy_backward",
            (grad, columns3d.detach(), target, weight, -100, 0.1, saved),
        ),
        ("update_scores_", (*columns(), count[:5], scores[:5], 0.8, False, None, None)),
        (
            "update_scores_",
            (*columns(), count[:5], scores[:5], 0.8, True, count.int(), count > 3),
        ),
        (
            "update_scores_",
            (*columns(), count[:5], scores[:5], 0.8, True, None, None, *forgetting(5)),
        ),
        *(
            ("scored_cross_entropy_step_", hard_step(*pair))
            for pair in zip(Reduction, GradientTime, strict=True)
        ),
        ("scored_cross_entropy_step_", (columns3d.detach(), *hard_step(0, GradientTime.NOW)[1:])),
        ("soft_cross_entropy", (logits, soft, None, 0.0)),
        ("soft_cross_entropy", (logits.detach().half(), soft, weight, 0.1)),
        ("soft_cross_entropy", (logits.detach().double(), soft.double(), None, 0.1)),
        (
            "soft_cross_entropy_backward",
            (grad, logits.detach(), soft, weight, 0.1, soft_saved),
        ),
        *(
            ("soft_cross_entropy_step_", soft_step(*pair))
            for pair in zip(Reduction, GradientTime, strict=True)
        ),
        ("scale_gradient_", (logits.detach().clone(), torch.tensor(2.0, device=device), None)),
        ("scale_gradient_", (logits.detach().half(), grad, torch.tensor(2.0, device=device))),
        ("take_errors", (scores[:0],)),
        *(cpu_samples() if scores.device.type == "cpu" else []),
    ]


def cpu_samples():
    """Of the ops that only the CPU has."""
    scores, count = torch.rand(N, generator=torch.Generator().manual_seed(2)), torch.arange(N)
    bits, words = torch.tensor([0b1011]), count[:5] << 40
    options = (0.5, 3.0)
    sample = ops.shard_sample(scores, None, 0, *options, 111, 50, 2, 3, 7)
    hashes = (scores, None, 5, *options, None, None, 37, 5)
    candidates = int(ops.shard_bracket(*hashes, N, 0, 1, 7)[3][1])
    # Room for all candidates and no more: the rest is not written. Of 50 draws, all are candidates.
    return [
        ("shard_sample", (scores.half(), scores.half(), 2, *options, 1000, 300, 2, 3, 7)),
        ("shard_sample", (scores, count, 3, *options, 111, 50, 0, 1, 7)),
        (
            "shard_bracket",
            (scores, None, 0, *options, sample, bits, 111, 30, N - 3, 2, 3, 7),
        ),
        ("shard_bracket", (*hashes, candidates, 0, 1, 7)),
        ("shard_candidate_counts", (words, torch.tensor([0, 4]), 40, 2)),
        (
            "shard_add_candidates_",
            (bits.clone(), words, count[:5].int(), torch.tensor([1 << 40, 0])),
        ),
        ("shard_list", (bits, 3, N, 2, 3)),
    ]


SAMPLES = range(len(samples("cpu")))


def sample(device, index):
    """One call."""
    if index >= len(calls := samples(device)):
        pytest.skip("an op of the CPU")
    return calls[index]


def test_every_op_is_sampled():
    assert {name for name, _ in samples("cpu")} == NAMES
    registered = {
        schema.name.removeprefix("dynprune_cuda::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("dynprune_cuda::")
    }
    assert registered == NAMES | MADE_OF_OTHERS


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_fake_kernel_has_the_parameters_of_its_schema(name):
    schema = getattr(ops, name).default._schema
    wanted = [
        (argument.name, argument.default_value if argument.has_default_value() else "none")
        for argument in schema.arguments
    ]
    empty = inspect.Parameter.empty
    assert wanted == [
        (parameter.name, "none" if parameter.default is empty else parameter.default)
        for parameter in inspect.signature(FAKES[name]).parameters.values()
    ]


def test_there_is_a_fake_kernel_per_op_and_no_other():
    assert set(FAKES) == NAMES


@pytest.mark.parametrize(
    ("exported", "mirror"),
    [
        ("RANKINGS", RankingKind),
        ("SCORES", Score),
        ("REDUCTIONS", Reduction),
        ("ROW_REDUCTIONS", RowReduction),
        ("GRADIENT_TIMES", GradientTime),
        ("STEP_COLUMNS", StepColumn),
        ("SAVED_COLUMNS", SavedColumn),
    ],
)
def test_the_numbers_of_the_ops_are_those_of_the_compiled_module(exported, mirror):
    names = getattr(compiled, exported).split()
    assert {name.upper(): number for number, name in enumerate(names)} == {
        member.name: member.value for member in mirror
    }


def test_step_arguments_are_the_schema_s():
    schema = ops.scored_cross_entropy_step_.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names == ["logits", *StepArguments._fields, "gradient"]
    schema = ops.soft_cross_entropy_step_.default._schema
    names = [argument.name for argument in schema.arguments]
    by_name = StepArguments._make(StepArguments._fields)
    assert names == ["logits", *by_name.without_indices(), "gradient"]
    schema = ops.scored_binary_cross_entropy_step_.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names == ["logits", *BinaryArguments._fields, "gradient"]


def test_the_step_s_columns_are_the_scores_by_name():
    """The scores of one row by its own op, and the row's part in a sum."""
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(3))
    target = torch.tensor([1])
    loss, el2n, entropy, margin, _, saved = ops.scored_cross_entropy(
        logits, target, None, -100, 0.0
    )
    table = {"mean": torch.zeros(3), "variance": torch.zeros(3), "count": torch.zeros(3).int()}
    arguments = StepArguments(**dict.fromkeys(StepArguments._fields))._replace(
        target=target,
        sample_ids=target,
        **table,
        alpha=1.0,
        published_first_visit=False,
        score=Score.LOSS,
        row_reduction=RowReduction.MEAN,
        rows_per_id=1,
        reduction=Reduction.SUM,
        sample_weight=torch.tensor([2.5]),
        ignore_index=-100,
        label_smoothing=0.0,
    )
    _, scores, _, _ = ops.scored_cross_entropy_step_(logits, *arguments, GradientTime.LATER)
    for column, expected in (
        (StepColumn.LOSS, loss),
        (StepColumn.EL2N, el2n),
        (StepColumn.ENTROPY, entropy),
        (StepColumn.MARGIN, margin),
        (StepColumn.ROW_WEIGHT, torch.tensor([2.5])),
    ):
        assert torch.equal(scores[column], expected), column
    assert torch.equal(scores[len(StepColumn) :].view(-1, len(SavedColumn)), saved)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck looks at it
@pytest.mark.parametrize("index", SAMPLES)
def test_opcheck(device, index):
    name, arguments = sample(device, index)
    torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.parametrize("index", SAMPLES)
def test_fake_tensors_have_the_shapes_dtypes_and_strides_of_real_ones(device, index):
    name, arguments = sample(device, index)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake = getattr(ops, name)(*fakes)
    real = getattr(ops, name)(*arguments)
    if real is None:
        assert fake is None
        return
    for a, b in zip(
        *((v if isinstance(v, list | tuple) else [v]) for v in (fake, real)), strict=True
    ):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


def test_the_functions_run_on_fake_tensors():
    """Their checks look at shapes and dtypes only; nothing waits for a value."""
    with FakeTensorMode():
        scores, count = torch.rand(100), torch.ones(100, dtype=torch.int64)
        for ids in (
            F.select_top_k(scores, 7),
            F.select_epsilon_greedy(scores, 7, 0.5),
            F.select_ucb(scores, scores, 7),
            F.select_ucb1(scores, count, 7, step=3),
            F.select_weighted(scores, 7),
            F.select_uniform(100, 7),
            F.permutation(7),
        ):
            assert ids.shape == (7,) and ids.dtype == torch.int64
        got = F.scored_cross_entropy(torch.rand(5, 3).bfloat16(), count[:5])
        assert [v.dtype for v in got] == [torch.float32] * 4 + [torch.bool]
        assert F.update_scores_(scores, scores, count, count[:5], got.loss, alpha=0.5) is None


def training_step(logits, target, mean, variance, count, ids):
    """What a training script compiles: loss, update, and a selection by the updated scores."""
    scored = F.scored_cross_entropy(logits, target, label_smoothing=0.1)
    F.update_scores_(mean, variance, count, ids, scored.el2n, alpha=0.8)
    chosen = F.select_ucb(mean, variance, 20, bonus="std", seed=3)
    return scored.loss.mean(), chosen, scored.correct


def inputs(device, rows=8):
    generator = torch.Generator().manual_seed(rows)
    mean = torch.rand(60, generator=generator).to(device)
    logits = torch.randn(rows, 5, generator=generator).to(device).requires_grad_()
    target = torch.randint(5, (rows,), generator=generator).to(device)
    ids = torch.randperm(60, generator=generator)[:rows].to(device)
    count = torch.ones(60, dtype=torch.int32, device=device)
    return logits, target, mean, mean / 2, count, ids


def fused_step(logits, target, mean, variance, count, ids):
    scored = F.scored_cross_entropy_step_(
        logits, target, ids, mean, variance, count, alpha=0.8, score="el2n", label_smoothing=0.1
    )
    return scored.loss * 2, F.select_ucb(mean, variance, 20, seed=3), scored.correct


def assert_same_step(compiled, device, rows, eager=training_step):
    results = []
    for step in (eager, compiled):
        arguments = inputs(device, rows)
        loss, chosen, correct = step(*arguments)
        loss.backward()
        results.append([loss.detach(), chosen, correct, arguments[0].grad, *arguments[2:5]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert not torch.equal(results[1][4], inputs(device, rows)[2])  # the table did change


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, None, True])
def test_compiles_into_one_graph(device, dynamic):
    """With batches of two sizes, as an epoch's last batch is smaller."""
    torch.compiler.reset()
    compiled = torch.compile(training_step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (8, 5, 7):
        assert_same_step(compiled, device, rows)


@pytest.mark.slow
def test_compiles_with_inductor(device):
    torch.compiler.reset()
    assert_same_step(torch.compile(training_step, fullgraph=True), device, 8)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_fused_step_compiles_into_one_graph(device, backend):
    torch.compiler.reset()
    compiled = torch.compile(fused_step, fullgraph=True, backend=backend)
    for rows in (8, 5):
        assert_same_step(compiled, device, rows, fused_step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top_k", "epsilon", "ucb1", "weighted", "uniform", "permutation"])
def test_every_selection_compiles(device, name):
    functions = {
        "top_k": lambda t, k, s: F.select_top_k(t, k, seed=s),
        "epsilon": lambda t, k, s: F.select_epsilon_greedy(t, k, 0.25, seed=s),
        "ucb1": lambda t, k, s: F.select_ucb1(t, (t * 9).long(), k, step=50.0, seed=s),
        "weighted": lambda t, k, s: F.select_weighted(t, k, seed=s, order="ascending"),
        "uniform": lambda t, k, s: F.select_uniform(len(t), k, seed=s, device=t.device),
        "permutation": lambda t, k, s: F.permutation(k, seed=s, device=t.device),
    }
    torch.compiler.reset()
    compiled = torch.compile(functions[name], fullgraph=True, backend="aot_eager")
    scores = torch.rand(80, device=device)
    for k, seed in ((9, 1), (10, 2), (11, torch.tensor(7, device=device))):
        assert torch.equal(compiled(scores, k, seed), functions[name](scores, k, seed))


def test_options_that_change_between_calls_compile(device):
    """As an exploration rate or a bonus that decays over the epochs."""

    def step(scores, rate):
        return (
            F.select_epsilon_greedy(scores, 20, rate, seed=1),
            F.select_ucb(scores, scores, 20, c=rate, seed=1),
            F.select_ucb1(scores, (scores * 9).long(), 20, step=1 + rate, seed=1),
        )

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    scores = torch.rand(80, device=device)
    for rate in (0.5, 0.4, 0.3):
        for a, b in zip(compiled(scores, rate), step(scores, rate), strict=True):
            assert torch.equal(a, b)


def test_a_selection_is_not_merged_or_reordered_around_an_update(device):
    """The same selection before and after an update in one graph: two results."""

    def step(mean, variance, count, ids, values):
        before = F.select_top_k(mean, 5, order="ascending")
        F.update_scores_(mean, variance, count, ids, values, alpha=1.0)
        return before, F.select_top_k(mean, 5, order="ascending")

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    mean = torch.arange(10.0, device=device)
    count = torch.ones(10, dtype=torch.int64, device=device)
    ids, values = torch.arange(5, device=device), torch.full((5,), 99.0, device=device)
    before, after = compiled(mean, mean.clone(), count, ids, values)
    assert before.tolist() == [5, 6, 7, 8, 9] and after.tolist() == [0, 1, 2, 3, 4]


# What a caller of torch.ops can get wrong, past the checks of functional.py.
MISUSE = """
import torch, dynprune_cuda
from dynprune_cuda._ops.contract import GradientTime, RankingKind, RowReduction, Score
ops = torch.ops.dynprune_cuda
s, n = torch.rand(9), torch.arange(9)
SCORE, UCB_VARIANCE, UCB_STD, UCB1, WEIGHT, EXPLORE, *_ = map(int, RankingKind)
x, y, f = torch.rand(3, 4), torch.tensor([0, 1, 2]), torch.zeros
def step(**changed):
    arguments = dict(
        logits=x, target=y, sample_ids=n[:3], mean=s, variance=s.clone(), count=n.int(),
        non_finite_count=None, last_non_finite=None, last_correct=None, forget_count=None,
        ticket=None, alpha=0.5, published_first_visit=False, score=0, row_reduction=0,
        rows_per_id=1, reduction=1,
        sample_weight=None, token_weight=None, divisor=None, weight=None,
        ignore_index=-100, label_smoothing=0.0,
        second_target=None, lam=None, grad_scale=None, gradient=1,
    )
    ops.scored_cross_entropy_step_(**{**arguments, **changed})
def binary_step(**changed):
    arguments = dict(
        logits=x, target=x, sample_ids=n[:3], mean=s, variance=s.clone(), count=n.int(),
        non_finite_count=None, last_non_finite=None, last_correct=None, forget_count=None,
        ticket=None, alpha=0.5, published_first_visit=False, score=0, row_reduction=0, reduction=1,
        sample_weight=None, divisor=None, weight=None, pos_weight=None, grad_scale=None, gradient=1,
    )
    ops.scored_binary_cross_entropy_step_(**{**arguments, **changed})
ranked = dict(values=s, second=None, ranking=SCORE, c=1.0, log_step=1.0, seed_tensor=None, seed=0)
def select(**changed):
    ops.select_ranked(**{**ranked, "k": 3, "num_random": 0, "ascending": False, **changed})
def keys(**changed):
    ops.shard_keys(**{**ranked, "first": 0, "stride": 1, **changed})
calls = [
    lambda: select(k=10),
    lambda: select(k=-1),
    lambda: select(k=1 << 62, ascending=True),
    lambda: select(values=n),
    lambda: select(values=x),
    lambda: select(seed_tensor=s[0]),
    lambda: select(seed_tensor=n),
    lambda: select(seed_tensor=n[:0]),
    lambda: select(values=f(1).expand(1 << 50)),
    lambda: select(num_random=4),
    lambda: select(num_random=-1),
    lambda: select(ranking=-1),
    lambda: select(ranking=EXPLORE),
    lambda: select(ranking=len(RankingKind)),
    lambda: select(second=s),
    lambda: select(ranking=UCB_VARIANCE),
    lambda: select(ranking=UCB1),
    *(lambda r=r: select(ranking=r, second=s, num_random=1) for r in (UCB_VARIANCE, UCB_STD)),
    lambda: select(ranking=UCB1, second=n, num_random=1),
    lambda: select(ranking=WEIGHT, num_random=1),
    lambda: select(ranking=UCB_VARIANCE, second=s[:5]),
    lambda: select(ranking=UCB_VARIANCE, second=s.half()),
    lambda: select(ranking=UCB_VARIANCE, values=s.double(), second=s.double()),
    lambda: select(ranking=UCB1, values=s.half(), second=n),
    lambda: select(ranking=UCB1, second=s),
    lambda: select(ranking=UCB1, second=n.byte()),
    lambda: select(ranking=UCB1, second=n[:5]),
    lambda: select(ranking=WEIGHT, values=-s - 1),
    lambda: select(ranking=WEIGHT, values=n),
    lambda: ops.select_uniform(s, -5, 0, None, 0, False),
    lambda: ops.select_uniform(s, -5, -7, None, 0, False),
    lambda: ops.select_uniform(s, 5, 6, None, 0, False),
    lambda: ops.select_uniform(s, 1 << 40, 6, None, 0, False),
    lambda: keys(values=s.double()),
    lambda: keys(values=x),
    lambda: keys(ranking=EXPLORE),
    lambda: keys(ranking=UCB_VARIANCE, second=s[:5]),
    lambda: keys(ranking=UCB_VARIANCE, second=s.half()),
    lambda: keys(ranking=UCB1, values=s.half(), second=n),
    lambda: keys(ranking=UCB1, second=n[:5]),
    lambda: keys(ranking=UCB1, second=s),
    lambda: keys(ranking=WEIGHT, values=-s - 1),
    lambda: keys(ranking=WEIGHT, values=s.double()),
    lambda: keys(first=-1),
    lambda: keys(stride=0),
    lambda: keys(first=1 << 40),
    lambda: keys(stride=1 << 62),
    lambda: ops.shard_digit_counts(n, n[:2], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:1], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2].int(), None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:3:2], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], n, True, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], n[:2], False, 0, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], None, False, 6, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int(), n[:2], None, False, -1, 0, 1, None, 0),
    lambda: ops.shard_digit_counts(n.int()[::2], n[:2], None, False, 0, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2] * 0, None, 5, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2], None, 10, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2], None, -1, 0, 1, None, 0),
    lambda: ops.shard_positions(n.int(), n[:2], n, 1, 0, 1, None, 0),
    lambda: ops.permutation_part(s, 5, 0, 1, 6, False, None, 0),
    lambda: ops.permutation_part(s, 5, 3, 2, 2, False, None, 0),
    lambda: ops.permutation_part(s, 5, 0, 1, -1, False, None, 0),
    lambda: ops.permutation_part(s, 1 << 40, 0, 1, 1, False, None, 0),
    lambda: ops.permutation_part(s, 5, 0, 1, 1, False, s[0], 0),
    lambda: ops.scored_cross_entropy(x[0], y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y[:2], None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y.float(), None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y + 2, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y - 1, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x[:, :0], y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y, s[:3], -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y, s[:4].double(), -100, 0.0),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 1.5),
    lambda: ops.scored_cross_entropy(x, y, None, -100, float("nan")),
    lambda: ops.scored_cross_entropy(x.long(), y, None, -100, 0.0),
    lambda: ops.scored_cross_entropy_backward(f(2), x, y, None, -100, 0.0, f(3, 4)),
    lambda: ops.scored_cross_entropy_backward(f(3), x, y, None, -100, 0.0, f(2, 4)),
    lambda: ops.scored_cross_entropy_backward(f(3), x, y, None, -100, 0.0, f(4, 3).T),
    lambda: ops.scored_cross_entropy_backward(f(3).half(), x, y, None, -100, 0.0, f(3, 4)),
    lambda: ops.scored_cross_entropy_backward(f(3), x, y, None, -100, 0.0, f(3, 4).double()),
    lambda: ops.update_scores_(s, s[:5], n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n[:5], n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n.byte(), n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s[:5], 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n.int(), s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s.double(), 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n + 1, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n - 3, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, n, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, n.int()[:5], None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, (n > 1)[:5]),
    lambda: ops.update_scores_(f(18)[::2], s, n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(f(1).expand(9), s, n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(x, s, n, n, s, 0.5, False, None, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, n > 3, None),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, n[:5] > 3, n > 3),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, None, None, n.int()),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y, None),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y[:2], s[0]),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y + 2, s[0]),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y, s[:2]),
    lambda: ops.scored_cross_entropy(x, y, None, -100, 0.0, y, s[0].double()),
    lambda: ops.scored_binary_cross_entropy(x[0], x[0], None, None),
    lambda: ops.scored_binary_cross_entropy(x, x[:2], None, None),
    lambda: ops.scored_binary_cross_entropy(x, x.long(), None, None),
    lambda: ops.scored_binary_cross_entropy(x, x + 1.5, None, None),
    lambda: ops.scored_binary_cross_entropy(x, x * float("nan"), None, None),
    lambda: ops.scored_binary_cross_entropy(x[:, :0], x[:, :0], None, None),
    lambda: ops.scored_binary_cross_entropy(x, x, s[:3], None),
    lambda: ops.scored_binary_cross_entropy(x, x, x[:2], None),
    lambda: ops.scored_binary_cross_entropy(x, x, None, x),
    lambda: ops.scored_binary_cross_entropy(x, x, None, s[:4].double()),
    lambda: ops.scored_binary_cross_entropy_backward(f(2), x, x, None, None),
    lambda: ops.scored_binary_cross_entropy_backward(f(3).double(), x, x, None, None),
    lambda: ops.scored_binary_cross_entropy_backward(f(3), x, x - 2, None, None),
    lambda: binary_step(sample_ids=n[:2]),
    lambda: binary_step(sample_ids=n[:3] + 8),
    lambda: binary_step(target=x - 1),
    lambda: binary_step(mean=s[:5]),
    lambda: binary_step(score=len(Score)),
    lambda: binary_step(reduction=3),
    lambda: binary_step(gradient=-1),
    lambda: binary_step(sample_weight=s),
    lambda: binary_step(divisor=s),
    lambda: binary_step(grad_scale=s),
    lambda: step(sample_ids=n[:2]),
    lambda: step(sample_ids=n[:3] + 8),
    lambda: step(mean=s[:5]),
    lambda: step(forget_count=n.int()),
    lambda: step(score=len(Score)),
    lambda: step(reduction=-1),
    lambda: step(row_reduction=-1),
    lambda: step(row_reduction=len(RowReduction)),
    lambda: step(rows_per_id=0),
    lambda: step(rows_per_id=-1),
    lambda: step(rows_per_id=2),
    lambda: step(rows_per_id=3),
    lambda: ops.update_scores_(s, s, n, n, s, 0.5, False, None, None, row_reduction=3),
    lambda: step(gradient=len(GradientTime)),
    lambda: step(sample_weight=s),
    lambda: step(token_weight=s),
    lambda: step(divisor=s),
    lambda: step(grad_scale=s),
    lambda: ops.scale_gradient_(x.T, s[0], None),
    lambda: ops.scale_gradient_(x, s[:2], None),
    lambda: ops.scale_gradient_(x, s[0].double(), None),
    lambda: ops.scale_gradient_(x, s[0], s),
]
for i, call in enumerate(calls):
    try:
        call()
    except (RuntimeError, IndexError) as error:
        assert type(error) in (RuntimeError, IndexError), error
        assert len(str(error)) > 10, i
    else:
        raise SystemExit(f"call {i} did not fail")
# A backward without its forward's check of the targets stays inside its row.
g = ops.scored_cross_entropy_backward(torch.ones(3), x, y + (1 << 40), None, -100, 0.0, f(3, 4))
assert not g.any()
print(len(calls), "refused")
"""


@pytest.mark.slow
def test_direct_calls_with_wrong_arguments_raise_and_do_not_crash():
    """In another process, so that a crash fails this test only."""
    done = subprocess.run(
        [sys.executable, "-c", MISUSE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused" in done.stdout


def test_check_errors_on_the_cpu_has_nothing_to_report():
    assert F.check_errors("cpu") is None
    assert ops.take_errors(torch.empty(0)).tolist() == [[0, 0]] * 4


def test_what_was_built_is_visible():
    info = dynprune_cuda.build_info()
    assert info["torch"] == torch.__version__ and info["compiler"]
    assert set(info) >= {"version", "torch", "cuda", "cuda_architectures"}
