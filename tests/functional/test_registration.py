# SPDX-License-Identifier: Apache-2.0
"""The operators as torch sees them: schemas, fake kernels, autograd, compilation, direct calls."""

import inspect

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
    "scored_cross_entropy_with_gradient_",
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
        (
            "scored_cross_entropy_with_gradient_",
            (grad, logits.detach().clone(), target, weight, -100, 0.1),
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


def test_check_errors_on_the_cpu_has_nothing_to_report():
    assert F.check_errors("cpu") is None
    assert ops.take_errors(torch.empty(0)).tolist() == [[0, 0]] * 4


def test_what_was_built_is_visible():
    info = dynprune_cuda.build_info()
    assert info["torch"] == torch.__version__ and info["compiler"]
    assert set(info) >= {"version", "torch", "cuda", "cuda_architectures"}
