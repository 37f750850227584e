# SPDX-License-Identifier: Apache-2.0
"""`BatchSelector` against NumPy: the choice, the weights, the seeds, the schedule of Composer."""

import copy
import math
import pickle

import numpy as np
import pytest
import reference
import torch
from torch.nn import functional as F

from dynprune_cuda import BatchSelector, Pruner, distributed, functional
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.schedules import SelectionWindow

B, C = 64, 7
POLICIES = ("top_k", "weighted", "percentile", "epsilon_greedy", "uniform")


def batch(device="cpu", rows=B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, C, generator=generator)
    return logits.to(device), torch.randint(C, (rows,), generator=generator).to(device)


def expected_scores(logits, target, by):
    """By torch alone."""
    logits = logits.double()
    loss = F.cross_entropy(logits, target, reduction="none")
    if by == "loss":
        return loss
    p = logits.softmax(1)
    if by == "el2n":
        return (p - F.one_hot(target, C)).norm(dim=1)
    if by == "entropy":
        return -(p * p.log()).sum(1)
    own = logits.gather(1, target[:, None])[:, 0]
    others = logits.scatter(1, target[:, None], -math.inf).amax(1)
    return others - own


def seed_of(selector_seed, call, rank=0):
    return derive_seed(selector_seed, "batch selection", rank) + call


def selective_backprop(losses, keep, seed):
    """Composer's rule as its documentation describes it, with the random numbers of the package.

    Losses are sorted, percentiles raised to 1/keep - 1, rows drawn without replacement.
    """
    losses = losses.numpy()
    percentiles = np.empty(len(losses))
    percentiles[np.argsort(losses, kind="stable")] = (np.arange(len(losses)) + 0.5) / len(losses)
    weights = (percentiles ** (1 / keep - 1)).astype(np.float32).astype(np.float64)
    return reference.weighted(weights, int(keep * len(losses)), seed, "ascending")


@pytest.mark.parametrize("by", ["loss", "el2n", "entropy", "margin"])
def test_greatest_scores_are_chosen(device, by):
    logits, target = batch(device)
    rows, weights = BatchSelector(0.25, by=by, device=device)(logits, target)
    wanted = expected_scores(logits, target, by).topk(16).indices.sort().values
    assert weights is None and rows.dtype == torch.int64
    assert rows.equal(wanted)


def test_excess_is_the_loss_less_a_reference(device):
    logits, target = batch(device)
    base = torch.rand(B, device=device) * 5
    rows, _ = BatchSelector(10, by="excess", device=device)(logits, target, base)
    scores = expected_scores(logits, target, "loss") - base
    assert rows.equal(scores.topk(10).indices.sort().values)


@pytest.mark.parametrize("call", [0, 1, 5])
@pytest.mark.parametrize("keep", [0.5, 0.25, 0.125])
def test_percentile_chooses_as_selective_backprop(device, keep, call):
    logits, target = batch(device)
    selector = BatchSelector(keep, policy="percentile", seed=3, device=device)
    for _ in range(call):
        selector(logits, target)
    rows, _ = selector(logits, target)
    losses = F.cross_entropy(logits, target, reduction="none").cpu()
    wanted = selective_backprop(losses, keep, seed_of(3, call))
    assert rows.cpu().numpy().tolist() == wanted.tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_choices_are_those_of_the_reference(device, policy):
    scores = torch.rand(B, generator=torch.Generator().manual_seed(1)).to(device)
    selector = BatchSelector(0.3, policy=policy, epsilon=0.4, seed=-5, device=device)
    k = 19
    values = scores.cpu().double().numpy()
    by_policy = {
        "top_k": lambda seed: reference.top_k(values, k, seed, "ascending"),
        "weighted": lambda seed: reference.weighted(values, k, seed, "ascending"),
        "percentile": lambda seed: selective_backprop_k(values, k, seed),
        "epsilon_greedy": lambda seed: reference.epsilon_greedy(values, k, 0.4, seed, "ascending"),
        "uniform": lambda seed: reference.uniform(B, k, seed, "ascending"),
    }
    for call in range(3):
        wanted = by_policy[policy](seed_of(2**64 - 5, call))
        assert selector.choose(scores).rows.cpu().numpy().tolist() == wanted.tolist()


def selective_backprop_k(values, k, seed):
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    weights = (((ranks + 0.5) / B) ** (B / k - 1)).astype(np.float32).astype(np.float64)
    return reference.weighted(weights, k, seed, "ascending")


@pytest.mark.slow  # judges randomness
def test_percentile_draws_as_numpy_does():
    """The rule of the description, drawn by NumPy's own generator: as frequent, row by row."""
    losses, keep, draws = np.arange(16.0), 0.5, 4000
    generator = np.random.default_rng(0)
    probabilities = ((np.arange(16) + 0.5) / 16) ** (1 / keep - 1)
    probabilities /= probabilities.sum()
    theirs = np.zeros(16)
    for _ in range(draws):
        theirs[generator.choice(16, 8, replace=False, p=probabilities)] += 1
    selector, ours = BatchSelector(keep, policy="percentile"), np.zeros(16)
    for _ in range(draws):
        ours[selector.choose(torch.as_tensor(losses)).rows.numpy()] += 1
    spread = np.sqrt((theirs + ours) * (1 - (theirs + ours) / (2 * draws)) + 1)
    assert np.abs(ours - theirs).max() / spread.min() < 5
    assert (np.abs(ours - theirs) < 4.5 * spread).all()


def capped_mean(losses, keep):
    """What "percentile" estimates: a row that is taken too rarely counts ten times at most."""
    values = losses.double().numpy()
    n, k = len(values), keep * len(values)
    weights = ((np.argsort(np.argsort(values)) + 0.5) / n) ** (1 / keep - 1)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-weights * middle)).sum() < k else (low, middle)
    taken = 1 - np.exp(-weights * low)
    return float((taken * np.minimum(10, keep / taken) * values).sum() / k)


@pytest.mark.slow  # judges randomness
@pytest.mark.parametrize("policy", ["weighted", "percentile", "epsilon_greedy", "uniform"])
def test_weights_keep_the_mean(policy):
    losses = torch.rand(256, generator=torch.Generator().manual_seed(2)) ** 3 + 0.05
    selector = BatchSelector(0.25, policy=policy, epsilon=0.25, rescale=True)
    means = []
    for _ in range(2000):
        rows, weights = selector.choose(losses)
        means.append(float((weights * losses[rows]).mean()))
    error = np.std(means) / math.sqrt(len(means))
    plain = float(losses[BatchSelector(0.25).choose(losses).rows].mean())
    wanted = capped_mean(losses, 0.25) if policy == "percentile" else float(losses.mean())
    # "weighted" and "percentile" know inclusion probabilities to about 1/256.
    slack = 0.004 * wanted if policy in ("weighted", "percentile") else 0.0
    assert abs(np.mean(means) - wanted) < 4 * error + slack < 0.1 * (plain - wanted)


def test_weights_of_a_random_share_are_exact():
    scores = torch.arange(20.0)
    rows, weights = BatchSelector(8, policy="epsilon_greedy", epsilon=0.5, rescale=True).choose(
        scores
    )
    assert set(rows.tolist()) >= {16, 17, 18, 19}
    wanted = [0.4 if row >= 16 else 0.4 * 16 / 4 for row in rows.tolist()]
    assert weights.tolist() == pytest.approx(wanted)
    assert float(weights.sum()) == pytest.approx(8)


def test_ignored_rows_rank_last(device):
    logits, target = batch(device)
    target[::2] = -100
    for policy in ("top_k", "weighted", "percentile"):
        rows, _ = BatchSelector(32, policy=policy, device=device)(logits, target)
        assert rows.tolist() == list(range(1, B, 2))
    rows, _ = BatchSelector(33, by="excess", device=device)(logits, target, target * 0.0 + 99)
    assert sum(row % 2 for row in rows.tolist()) == 32


def test_narrow_targets_are_compared_by_value(device):
    """-100 is 156 modulo 256, and a class here."""
    logits = torch.zeros(4, 200, device=device)
    target = torch.tensor([156, 1, 156, 2], dtype=torch.uint8, device=device)
    logits[torch.arange(4), [0, 1, 0, 2]] = 9.0
    rows, _ = BatchSelector(2, device=device)(logits, target)
    assert rows.tolist() == [0, 2]
    weight = torch.rand(200, device=device) + 0.5
    loss = functional.scored_cross_entropy(logits, target, weight=weight, reduction="mean").loss
    assert loss.item() == pytest.approx(F.cross_entropy(logits, target.long(), weight).item())
    pruner = Pruner(4, 0.5, device=device)
    loader = [(logits[:, :8], target, torch.arange(4, device=device))]
    pruner.rescore(torch.nn.Linear(8, 200).to(device), loader)
    assert pruner.table.count.tolist() == [1, 1, 1, 1]
    shares = Pruner(4, 0.5, row_reduction=0.5, device=device)
    shares.set_epoch(0)
    wide = torch.zeros(4, 300, device=device)  # 300 is 44 modulo 256
    shares.cross_entropy(wide, target, torch.arange(4, device=device))
    assert shares.table.count.tolist() == [1, 1, 1, 1]


def test_gradients_and_grad_mode_stay_as_they_are():
    logits, target = batch()
    logits.requires_grad_()
    choice = BatchSelector(8, policy="weighted", rescale=True)(logits, target)
    assert torch.is_grad_enabled()
    assert not choice.weights.requires_grad
    with torch.inference_mode():
        selector = BatchSelector(8)
    assert selector(logits, target).rows.shape == (8,)


@pytest.mark.parametrize("policy", ["weighted", "uniform", "epsilon_greedy"])
def test_a_run_resumes(policy):
    scores = torch.rand(B)
    selector = BatchSelector(0.2, policy=policy, seed=2**64 - 1)
    for _ in range(3):
        selector.choose(scores)
    state = selector.state_dict()
    assert state["calls"] == 3 and state["seed"] == 2**64 - 1
    later = [selector.choose(scores).rows.tolist() for _ in range(3)]
    assert later[0] != later[1]
    resumed = BatchSelector(0.2, policy=policy, seed=1)
    seed_tensor = resumed._seed
    resumed.load_state_dict(state)
    assert resumed._seed is seed_tensor and resumed.seed == 2**64 - 1  # a graph reads it
    copies = [copy.deepcopy(resumed), pickle.loads(pickle.dumps(resumed))]
    for other in [resumed, *copies]:
        assert [other.choose(scores).rows.tolist() for _ in range(3)] == later


def test_ranks_draw_their_own(monkeypatch):
    scores = torch.rand(B)
    chosen = []
    for rank in range(3):
        ranks = distributed.Ranks(None, rank, 3)
        selector = BatchSelector(0.5, policy="uniform", seed=4, process_group=ranks)
        state = selector.state_dict()
        assert state == BatchSelector(0.5, policy="uniform", seed=4).state_dict()
        chosen.append(selector.choose(scores).rows.tolist())
        wanted = reference.uniform(B, 32, seed_of(4, 0, rank), "ascending")
        assert chosen[-1] == wanted.tolist()
    assert chosen[0] != chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep": 1.5}, ValueError, r"keep as a fraction must be in \(0, 1\], got 1.5"),
        ({"keep": 0}, ValueError, "keep must be at least 1, got 0"),
        ({"ignore_index": 2**63}, ValueError, "ignore_index must be at most"),
        ({"keep": "half"}, TypeError, "keep must be a float"),
        ({"by": "length"}, ValueError, "by must be one of 'loss'"),
        ({"policy": "best"}, ValueError, "policy must be one of 'top_k'"),
        ({"power": 2.0, "policy": "weighted"}, ValueError, "power must be 0.5 or 1, got 2.0"),
        ({"by": "margin", "policy": "weighted"}, ValueError, "by='margin' does not fit"),
        ({"rescale": True}, ValueError, "rescale=True does not fit policy='top_k'"),
        ({"rescale": True, "policy": "epsilon_greedy", "epsilon": 0}, ValueError, "epsilon > 0"),
        (
            {"rescale": True, "policy": "weighted", "by": "excess"},
            ValueError,
            "use 'percentile'",
        ),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchSelector(**{"keep": 0.5, **arguments})


def test_wrong_batches_change_nothing():
    logits, target = batch()
    selector = BatchSelector(70)
    before = selector.state_dict()
    with pytest.raises(ValueError, match="at most the 64 rows of the batch, got 70"):
        selector(logits, target)
    with pytest.raises(TypeError, match="reference must be left out with by='loss'"):
        selector(logits, target, torch.zeros(B))
    with pytest.raises(TypeError, match="reference must be given with by='excess'"):
        BatchSelector(7, by="excess")(logits, target)
    with pytest.raises(IndexError, match="target"):
        selector(logits, target + C)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        selector.choose(torch.zeros(0))
    rare = BatchSelector(4, policy="epsilon_greedy", epsilon=0.1, rescale=True)
    with pytest.raises(ValueError, match=r"at least one of 4 rows .* at least 0.125"):
        rare.choose(torch.rand(B))
    assert selector.state_dict() == before and rare.state_dict()["calls"] == 0
    for name, value in (("policy", "uniform"), ("version", 9), ("calls", -1)):
        with pytest.raises(ValueError, match=name):
            selector.load_state_dict({**before, name: value})
    with pytest.raises(ValueError, match="lacks"):
        selector.load_state_dict({"seed": 1})
    assert selector.state_dict() == before


def plain_window(progress, batch_index, start, end, interrupt):
    """As Composer's documentation says: inside the interval, but for each `interrupt`-th batch."""
    inside = start <= progress and progress < end
    vanilla = interrupt > 0 and batch_index % interrupt == interrupt - 1
    return inside and not vanilla


def test_the_window_is_that_of_composer():
    for interrupt in (0, 1, 2, 3):
        window = SelectionWindow(0.5, 0.9, interrupt)
        for progress in (0.0, 0.49, 0.5, 0.7, 0.9, 1.0):
            for step in range(7):
                wanted = plain_window(progress, step, 0.5, 0.9, interrupt)
                assert window(progress, step) == wanted
    assert SelectionWindow() == SelectionWindow(0.5, 0.9, 2)
    with pytest.raises(ValueError, match=r"end must be in \[0.5, 1\], got 0.4"):
        SelectionWindow(0.5, 0.4)
    with pytest.raises(ValueError, match="progress must be in"):
        SelectionWindow()(1.1, 0)
    with pytest.raises(ValueError, match="interrupt must be at least 0"):
        SelectionWindow(interrupt=-1)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("policy", POLICIES)
def test_a_captured_graph_advances_the_seed(policy):
    logits, target = batch("cuda")
    rescale = policy != "top_k"

    def make():
        return BatchSelector(0.25, policy=policy, rescale=rescale, epsilon=0.5, device="cuda")

    eager, captured = make(), make()
    wanted = [eager(logits, target) for _ in range(4)]
    start = captured.state_dict()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        captured(logits, target)  # warms up
    torch.cuda.current_stream().wait_stream(stream)
    captured.load_state_dict(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, weights = captured(logits, target)
    for choice in wanted:
        graph.replay()
        assert rows.equal(choice.rows)
        assert weights is None if choice.weights is None else weights.equal(choice.weights)


def test_one_process_alone_may_choose_over_ranks():
    logits, target = batch()
    alone, over = (BatchSelector(0.3, "loss", "weighted", over_ranks=x) for x in (False, True))
    for _ in range(2):
        choice, wanted = over(logits, target), alone(logits, target)
        assert choice.rows.equal(wanted.rows)
        for selector in (alone, over):
            x, y = selector.take(choice, logits, target)
            assert x.equal(logits[wanted.rows]) and y.equal(target[wanted.rows])
    with pytest.raises(ValueError, match=r"must have 64 rows, as at the first call .* got 63"):
        over(logits[1:], target[1:])
    with pytest.raises(TypeError, match="over_ranks must be a bool"):
        BatchSelector(0.3, over_ranks=1)


def test_rows_are_taken_from_tensors_of_the_batch():
    selector = BatchSelector(0.5)
    choice = selector.choose(torch.rand(8))
    rows = torch.arange(8)
    (taken,) = selector.take(choice, rows)
    assert torch.equal(taken, choice.rows)
    with pytest.raises(TypeError, match="choice must be a BatchChoice"):
        selector.take(choice.rows, rows)
    for tensor, error in (
        (None, TypeError),
        (torch.ones(8).to_sparse(), ValueError),
        (rows[:0], ValueError),
        (rows[:3], ValueError),
    ):
        with pytest.raises(error, match=r"tensors\[0\] must"):
            selector.take(choice, tensor)
