# SPDX-License-Identifier: Apache-2.0
"""Draws by weights that share their random numbers: each takes what the one before left out."""

import math

import pytest
import reference
import torch

from dynprune_cuda import Pruner, functional, policies, schedules
from dynprune_cuda.functional import Ranking, Tilted, Trimmed
from dynprune_cuda.functional.tilted import tilt_of

N, K = 6000, 1800  # more than three passes in ten selections


def weights_of(seed=0, n=N):
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 1.2).exp()


def successive(make_rule, number, step=K / N, n=N, k=K, seed=3):
    """The visits of each sample by selections that follow each other, and the selections."""
    masks = torch.zeros(number, n, dtype=torch.bool)
    for t in range(number):
        ids = functional.select(make_rule(t * step % 1.0), n, k, seed=seed)
        masks[t, ids] = True
    return masks.sum(0), masks


@pytest.mark.parametrize("start", [0.0, 2.0**-24, 0.3, 1 - 2.0**-24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_draw_is_that_of_the_turned_words(device, start, dtype):
    weights = weights_of(n=777).to(dtype)
    weights[::7], weights[3::50] = 0, math.inf
    exact = weights.double().numpy()
    for k in (1, 300, 700):
        ids = functional.select(
            Ranking.by_weight(weights.to(device), start=start), 777, k, seed=k, device=device
        )
        expected = sorted(reference.weighted_ranking(exact, k, start)[:k])
        assert ids.tolist() == expected


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_draws_by_scores_are_turned_alike(device, power):
    scores = weights_of(n=900).to(device)
    by_score = Ranking.by_score_weight(scores, power=power, start=0.7)
    by_weight = Ranking.by_weight(scores**power, start=0.7)
    first, second = (
        functional.select(rule, 900, 270, seed=5, device=device) for rule in (by_score, by_weight)
    )
    assert torch.equal(first, second)


def test_equal_weights_go_through_all_samples():
    visits, masks = successive(lambda start: Ranking.by_weight(torch.ones(N), start=start), 10)
    # Three passes: the edges of a selection are random by the root of N.
    assert visits.float().mean() == 3
    assert (visits != 3).float().mean() < 0.1
    assert visits.min() >= 1 and visits.max() <= 5
    overlaps = (masks[1:] & masks[:-1]).sum(1)
    assert overlaps.max() < 0.05 * K  # 0.3 K if they were independent


def test_visits_follow_the_weights_with_less_noise():
    weights = weights_of(1).clamp(0.5, 2.0)
    wanted = functional.inclusion_probabilities(weights, K).double()
    step = 63 / 64 * K / N  # as a run does
    turned, _ = successive(lambda start: Ranking.by_weight(weights, start=start), 40, step)
    independent = torch.zeros(N)
    for seed in range(40):
        independent[functional.select_weighted(weights, K, seed=seed)] += 1

    def error(visits):
        return (visits - 40 * wanted).square().mean().item()

    assert error(turned) < 0.2 * error(independent)
    # The formula of the chances is a mean-field one; both agree with it alike.
    groups = weights.argsort().chunk(6)
    for group in groups:
        assert turned[group].double().mean() == pytest.approx(
            40 * wanted[group].mean().item(), rel=0.02
        )


@pytest.mark.parametrize("start", [0.25, 0.9])
def test_one_selection_has_the_chances_of_any_other(start):
    weights, draws = torch.linspace(0.2, 3.0, 60), 3000
    counts = torch.zeros(2, 60)
    for seed in range(draws):
        for row, turn in enumerate((0.0, start)):
            ids = functional.select(Ranking.by_weight(weights, start=turn), 60, 20, seed=seed)
            counts[row, ids] += 1
    chances = counts.mean(0) / draws
    deviation = (2 * draws * chances * (1 - chances)).sqrt()
    z = (counts[0] - counts[1]) / deviation
    assert z.abs().max() < 4.5 and 0.7 < z.std() < 1.3


def test_what_is_trimmed_is_looked_at_again(device):
    scores = weights_of(2).to(device)
    visits = torch.zeros(N, device=device)
    for t in range(20):
        start = t * 0.29 % 1.0
        rule = Trimmed(Ranking.by_score_weight(scores, power=0.5, start=start), 0.1)
        visits[functional.select(rule, N, K, seed=3, device=device)] += 1
    greatest = scores.topk(600).indices
    assert (visits[greatest] > 0).float().mean() > 0.5  # one fixed tenth would leave 0.1
    assert visits[greatest].mean() < 0.3 * visits.mean()


@pytest.mark.parametrize("keep", [0.3, [0.5, 0.2, 0.4, 0.1]])
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_the_default_policy_goes_through_all_samples_where_it_does_not_choose(keep, sharding):
    pruner = Pruner(N, keep, seed=4, sharding=sharding)
    times, total = torch.zeros(N), 0
    for epoch in range(9):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        if epoch > 0:  # after the warm-up
            times[ids] += 1
            total += len(ids)
        pruner.observe(ids, torch.ones(len(ids)))  # equal losses: the tilt is 0
    passes = total / N
    few, many = (times < math.floor(passes)), (times > math.ceil(passes))
    assert (few | many).float().mean() < 0.1  # 0.5 if they were independent


@pytest.mark.parametrize(
    ("keep", "shared", "once"), [(0.1, 0.1, 0.7), (0.2, 0.1, 0.7), (0.3, 0.42, 0.7)]
)
def test_the_members_of_the_harder_half_take_turns(keep, shared, once):
    scores = (torch.randn(N, generator=torch.Generator().manual_seed(1)) * 1.3).exp()
    hard = scores > scores.median() * 1.1  # without the bin of the median
    pruner = Pruner(N, keep, seed=4)
    visits, drawn, before, overlaps, singles = torch.zeros(N), torch.zeros(N), None, [], []
    for epoch in range(1 + 60):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        pruner.observe(ids, scores[ids])
        if epoch == 0:
            continue  # the warm-up
        assert policies.Adaptive.tilt(pruner.table) == 1
        chosen = torch.zeros(N, dtype=torch.bool)
        chosen[ids] = True
        visits += chosen
        drawn += chosen
        if before is not None:
            overlaps.append(((chosen & before).sum() / chosen.sum()).item())
        before = chosen
        if epoch % round(0.5 / keep) == 0:
            singles.append((drawn[hard] == 1).float().mean().item())
            drawn.zero_()
    assert sum(overlaps) / len(overlaps) < shared  # 2 * keep if they were independent
    assert sum(singles[1:]) / len(singles[1:]) > once  # 0.4 if they were independent
    each = 60 * 2 * keep
    assert visits[hard].min() > 0.8 * each and visits[hard].max() < 1.2 * each


def test_ties_of_what_is_unknown_or_learned_are_not_frozen():
    pruner = Pruner(N, 0.3, seed=2)
    nothing = torch.ones(N)
    nothing[: N // 2] = math.nan  # half of the samples cannot be scored
    visits = torch.zeros(N)
    for epoch in range(21):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        visits[ids] += epoch > 0
        pruner.observe(ids, nothing[ids])
    # 0.3 N of the N / 2 samples that come first, 20 times: 12 visits each.
    assert visits[: N // 2].min() >= 9 and visits[: N // 2].max() <= 15
    scores = torch.zeros(N)
    scores[: 3 * N // 5] = 1.0
    rules = [Tilted(scores, start=t * 0.689 % 1.0) for t in range(1, 21)]
    assert tilt_of(rules[0].histogram()) == 1
    chosen = torch.zeros(N)
    for rule in rules:
        chosen[functional.select(rule, N, int(0.7 * N), seed=3)] += 1
    # 0.2 N of the 0.5 N that weigh next to nothing, 20 times; some of the ones do, too.
    assert chosen[3 * N // 5 :].min() > 2  # no sample of loss 0 is left out for ever


def test_starting_points_keep_the_order_of_extreme_weights():
    scores = torch.cat([torch.full((300,), math.nan), torch.full((300,), math.inf)])
    scores = torch.cat([scores, torch.full((660,), 1.0), torch.full((540,), 1e-38)])
    for start in (0.1, 0.7):
        rule = Tilted(scores, start=start)
        assert tilt_of(rule.histogram()) > 0.9
        ranking = rule.ranking(rule.histogram(), rule.values)
        assert ranking.values.unique().tolist()[-1] == 2.0**100
        for k in (600, 1100):
            chosen = functional.select(ranking, 1800, k, seed=1)
            assert (chosen < 600).sum() == 600
        assert (chosen < 1260).sum() > 1000  # the others weigh at most a twentieth


@pytest.mark.parametrize("name", ["growing", "constant"])
def test_a_function_as_keep_draws_apart(name):
    keep = schedules.growing(0.3, 0.5, epochs=20, first_epoch=1)
    pruner = Pruner(N, keep if name == "growing" else lambda epoch: 0.3, seed=4)
    before, overlaps = None, []
    for epoch in range(15):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        pruner.observe(ids, torch.ones(len(ids)))
        mask = torch.zeros(N, dtype=torch.bool)
        mask[ids] = True
        if epoch > 1:
            overlaps.append(((mask & before).sum() / len(ids)).item() / (before.sum() / N).item())
        before = mask
    assert sum(overlaps) / len(overlaps) < 0.6  # 1 if they were independent


def test_groups_share_what_is_left_over_by_turns():
    groups = torch.arange(1000) // 2
    pruner = Pruner(1000, 0.25, policies.Adaptive(), groups=groups, class_shares="equal", seed=1)
    visits = torch.zeros(1000)
    for epoch in range(21):
        pruner.set_epoch(epoch)
        ids = pruner.epoch_order()
        visits[ids] += epoch > 0
        pruner.observe(ids, torch.ones(len(ids)))
    assert visits.view(-1, 2).sum(1).min() > 0


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_an_error_after_the_step_records_the_scores_once(kind):
    pruner = Pruner(10, 0.5)
    pruner.set_epoch(0)
    x, ids = torch.randn(10, 3, requires_grad=True), torch.arange(10)

    def fail(tensor):
        raise RuntimeError("no room")

    hooks = torch.autograd.graph.saved_tensors_hooks(fail, lambda x: x)
    with hooks, pytest.raises(RuntimeError, match="no room"):
        if kind == "classes":
            pruner.cross_entropy(x, torch.zeros(10, dtype=torch.int64), ids)
        else:
            pruner.binary_cross_entropy(x, torch.zeros(10, 3), ids)
    assert pruner.table.count.tolist() == [1] * 10


@pytest.mark.parametrize("start", [1.0, -0.1, math.nan, math.inf])
def test_a_starting_point_outside_of_the_circle_is_refused(start):
    for make in (Ranking.by_weight, Ranking.by_score_weight, Tilted):
        with pytest.raises(ValueError, match="start must be "):
            make(torch.ones(3), start=start)


def test_a_starting_point_is_a_number():
    with pytest.raises(TypeError, match="start must be a number, got 'x'"):
        Ranking.by_weight(torch.ones(3), start="x")


@pytest.mark.parametrize("c", [1.0, -3.0, 1e30, math.nan])
def test_an_operator_takes_other_numbers_as_the_beginning(c):
    weights = weights_of(n=50)
    ids = torch.ops.dynprune_cuda.select_ranked(weights, None, 4, c, 0.0, 20, 0, None, 1, True)
    assert torch.equal(ids, functional.select_weighted(weights, 20, seed=1, order="ascending"))
