# SPDX-License-Identifier: Apache-2.0
"""OrderDP, SeTa, IES and RePB against slow references of their descriptions."""

import math

import pytest
import torch
from published_rules import Ies, RePb, best_groups, binned, coins, cost_of, orderdp
from published_tables import losses_of, table_of
from runs import N
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner, functional
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.policies import IES, OrderDP, RePB, SeTa
from dynprune_cuda.policies.arithmetic import coins as fast_coins
from dynprune_cuda.policies.clusters import BINS, bins_of, k_means
from dynprune_cuda.scores import ScoreTable

# ---- OrderDP


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.0, 0.3), (0.3, 1.0), (0.01, 0.01)])
@pytest.mark.parametrize("size", [1, 2, 31, 500])
def test_orderdp_keeps_the_greatest_losses_of_the_drawn(device, size, shares):
    policy, losses = OrderDP(*shares), losses_of(size)
    losses[size // 2] = math.nan
    drawn = max(1, math.floor(shares[0] * size + 0.5))
    kept = max(1, math.floor(shares[1] * drawn + 0.5))
    assert policy.fixed_count(size) == kept
    for seed in range(5):
        ids = policy.select(table_of(losses, device), kept, seed=seed)
        subset = functional.permutation(size, seed=derive_seed(seed, "subset"))[:drawn]
        assert ids.tolist() == orderdp(losses.tolist(), subset.tolist(), kept)


def test_orderdp_selects_each_rank_as_often_as_the_order_statistics_say():
    """Rank j of n is kept if it is drawn, and fewer than q of the drawn are greater."""
    size, drawn, kept, rounds = 20, 10, 6, 4000
    table = table_of(torch.arange(size, 0, -1).float(), "cpu")  # rank j is sample j
    times = torch.zeros(size)
    for seed in range(rounds):
        times[OrderDP().select(table, kept, seed=seed)] += 1
    for j in range(size):
        ways = sum(
            math.comb(j, above) * math.comb(size - 1 - j, drawn - 1 - above)
            for above in range(kept)
        )
        chance = ways / math.comb(size, drawn)
        deviation = math.sqrt(chance * (1 - chance) / rounds)
        assert abs(float(times[j]) / rounds - chance) <= 5 * deviation, j


def test_orderdp_decides_keep_itself():
    pruner = Pruner(N, policy="orderdp", epochs=9)
    plan = pruner.schedule
    assert (plan.keep, plan.period, plan.anneal_epochs, pruner.table.alpha) == (18, 1, 0, 1.0)
    assert pruner.total_steps(3, 6) == 10 + 3 + 3
    with pytest.raises(ValueError, match=r"keep must agree with OrderDP.* 18 of 60 .* got 0.5"):
        Pruner(N, 0.5, "orderdp")
    with pytest.raises(ValueError, match=r"k must be 18 for OrderDP.* got 17"):
        OrderDP().select(ScoreTable(N), 17, seed=0)


# ---- SeTa


@pytest.mark.parametrize("num_groups", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [10, 60, 150])
def test_k_means_divides_as_well_as_can_be(device, size, num_groups):
    values, counts = losses_of(size, seed=size), torch.arange(size) % 7 != 3
    bins, same = bins_of(values.to(device), counts.to(device))
    group = k_means(bins, counts.to(device), num_groups).cpu()[counts].tolist()
    known = values[counts].tolist()
    places = binned(known, BINS)
    assert not same and bins.cpu()[counts].tolist() == places
    assert group == best_groups(places, num_groups)[1]
    best, _ = best_groups(known, num_groups)
    assert best * 0.999 <= cost_of(known, group) <= best * 1.05 + 1e-6 * size


def test_k_means_finds_groups_that_are_apart(device):
    truth = torch.arange(300) % 5
    values = 3.0 * truth + torch.rand(300, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(300, dtype=torch.bool, device=device)
    group = k_means(bins_of(values.to(device), everything)[0], everything, 5)
    assert torch.equal(group.cpu(), truth)


@pytest.mark.parametrize("policy", [SeTa(), SeTa.imagenet(), SeTa(0.3, 7, 0.4)], ids=repr)
def test_seta_trains_on_a_window_that_moves(device, policy):
    size, epochs = 90, 16
    losses = losses_of(size)
    losses[17] = math.nan
    window = {SeTa(): 4, SeTa.imagenet(): 3}.get(policy, 3)
    for epoch in range(epochs):
        table = table_of(losses, device, epoch=epoch, epochs=epochs)
        weights = policy.weigh(table, seed=epoch).cpu()
        assert set(weights.tolist()) <= {0.0, 1.0}
        selected = set(weights.nonzero().flatten().tolist())
        order = functional.permutation(size, seed=derive_seed(epoch, "random")).tolist()
        stays = order[math.floor(policy.random_share * size + 0.5) :]
        if epoch == 0:
            expected = set(range(size))
        elif epoch >= 14:  # 0.875 of 16
            expected = set(stays)
        else:
            known = [i for i in stays if i != 17]
            places = binned([losses[i].item() for i in known], BINS)
            group = best_groups(places, policy.num_groups)[1]
            start = epoch % (policy.num_groups - window + 1)
            inside = range(start, start + window)
            expected = {i for i, g in zip(known, group, strict=True) if g in inside}
            expected |= {17} & set(stays)
        assert selected == expected, epoch


def test_seta_of_equal_losses_takes_the_share_of_its_window(device):
    for value in (0.0, 2.5, 3e38):
        weights = SeTa(0.0, 5, 0.6).weigh(table_of(torch.full((100,), value), device), seed=0)
        assert weights.sum() == 60, value
    nothing = ScoreTable(9, device=device).told(table_of(torch.ones(9), device).history, None)
    assert SeTa(0.0).weigh(nothing, seed=0).sum() == 9


def test_seta_never_trains_on_nothing(device):
    losses = torch.tensor([0.0] * 50 + [100.0])
    for epoch in range(1, 6):  # the middle groups are empty
        table = table_of(losses, device, epoch=epoch)
        assert SeTa(0.0, 5, 0.2).weigh(table, seed=0).sum() >= 1


def test_seta_moves_with_each_selection_whatever_the_period():
    """With period 3 and a cycle of three windows, the epoch's number would never move it."""
    pruner = Pruner(N, policy=SeTa.imagenet(), period=3, epochs=40)
    ids = torch.arange(N)
    pruner.observe(ids, ids.float())
    hardest = []
    for epoch in range(1, 19):
        pruner.set_epoch(epoch)
        hardest.append(int(pruner.selected.max()))
    assert hardest == [v for v in (47, 59, 35) for _ in range(3)] * 2


# ---- IES


def course(i, epoch):
    """A loss whose course bends less and less, at another rate for each sample.

    Some never settle, and some that had settled begin to move again.
    """
    back = 0.5 if i % 12 == 7 or (i % 12 == 5 and epoch >= 9) else 0.0
    return 3.0 * (0.35 + 0.01 * (i % 30)) ** epoch + back * (epoch % 2)


@pytest.mark.filterwarnings("ignore:.*outside its subset")  # all are observed, on purpose
@pytest.mark.parametrize("is_rescored", [True, False])
def test_ies_leaves_out_what_no_longer_changes_its_course(device, is_rescored):
    pruner = Pruner(N, policy=IES(0.05), device=device)
    reference, counts, returned = Ies(N, 0.05), [], 0
    before = set()
    for epoch in range(14):
        pruner.set_epoch(epoch)
        out = reference.left_out() if epoch else []
        assert pruner.unselected.tolist() == out
        counts.append(len(out))
        returned += len(before - set(out))
        before = set(out)
        selected = pruner.selected
        # As with drop_last, some that are selected are not visited.
        visited = [selected[(selected * 7 + epoch) % 5 > 0]]
        if is_rescored:
            visited = [selected, pruner.unselected]
        for ids in visited:
            values = torch.tensor([course(i, epoch) for i in ids.tolist()], device=device)
            pruner.observe(ids, values.float())
            for i in ids.tolist():
                reference.losses[i].append(torch.tensor(course(i, epoch)).float().item())
    assert counts[:5] == [0] * 5 and max(counts) > 10
    assert (returned > 0) == is_rescored


def test_ies_sees_what_a_scoring_pass_sees(device):
    """What was left out is scored by forward passes, and its newest loss enters the memory."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, 4, generator=generator)
    target = (inputs[:, 0] > 0).long()
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    data = IndexedDataset(TensorDataset(inputs, target))
    pruner = Pruner(N, policy=IES(2e-3), device=device)
    train_loader = DataLoader(data, batch_sampler=pruner.batch_sampler(16))
    rest = DataLoader(data, batch_sampler=pruner.unselected_sampler(16))
    num_out = []
    for epoch in range(12):
        pruner.set_epoch(epoch)
        for rows, labels, ids in train_loader:
            loss = pruner.cross_entropy(model(rows.to(device)), labels.to(device), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        out = pruner.unselected
        num_out.append(len(out))
        assert pruner.rescore(model, rest).samples == len(out)
        assert (pruner.table.count == epoch + 1).all()
    scored = functional.scored_cross_entropy(model(inputs.to(device))[out], target.to(device)[out])
    pruner.set_epoch(12)
    torch.testing.assert_close(pruner.state_dict()["memory"]["loss_0"][out], scored.loss.detach())
    assert num_out[:5] == [0] * 5 and N > max(num_out) > 5


def test_ies_ignores_broken_losses_and_never_trains_on_nothing(device):
    policy = IES()
    memory = policy.initial_memory(4, device)
    for epoch in range(7):
        table = table_of(torch.full((4,), 1.0), device, memory=memory)
        table.count.fill_(epoch + 1)
        table.last_non_finite[2] = epoch == 6
        weights = policy.weigh(table, seed=0).tolist()
        memory = policy.remember(table, torch.ones(4, dtype=torch.bool, device=device))
    assert weights == [0.0, 0.0, 1.0, 0.0]
    table.last_non_finite[2] = False
    assert policy.weigh(table, seed=0).tolist() == [1.0] * 4


# ---- RePB


def test_coins_are_those_of_splitmix(device):
    seed = derive_seed(5, "coins")
    for chance in (0.0, 0.3, 1.0):
        assert fast_coins(1000, chance, seed=5, device=device).tolist() == coins(1000, chance, seed)
    fair = torch.stack([fast_coins(50, 0.3, seed=s, device=device).cpu() for s in range(4000)])
    assert (fair.float().mean(0) - 0.3).abs().max() < 5 * math.sqrt(0.21 / 4000)
    pairs = torch.corrcoef(fair.float().T).fill_diagonal_(0)
    assert pairs.abs().max() < 5.5 / math.sqrt(4000)


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize(("ratio", "batch_size"), [(0.5, 16), (0.8, 7), (0.0, 16), (0.5, 1000)])
def test_repb_compares_within_batches_and_counts_uses(device, ratio, batch_size, warmup):
    pruner = Pruner(N, policy=RePB(ratio, batch_size), warmup_epochs=warmup, seed=4, device=device)
    reference, newest, sizes = RePb(N, ratio, batch_size), [math.nan] * N, []
    for epoch in range(9):
        pruner.set_epoch(epoch)
        if epoch:
            selection = derive_seed(derive_seed(4, "select", epoch), "stay")
            weights = reference.end(order, newest, derive_seed(selection, "coins"))  # noqa: F821
            if epoch < warmup:  # everything, whatever the rule says
                reference.uses = [epoch + 1] * N
                weights = dict.fromkeys(range(N), 1.0)
            assert pruner.selected.tolist() == list(weights)
            ones = torch.ones(len(weights), device=device)
            factors = pruner.rescale(pruner.selected, ones).cpu()
            torch.testing.assert_close(factors, torch.tensor(list(weights.values())))
        ids = pruner.epoch_order()
        order = ids.tolist()
        sizes.append(len(order))
        values = losses_of(N, seed=epoch)[order]
        values[3] = math.nan
        pruner.observe(ids, values.to(device))
        for i, value in zip(order, values.tolist(), strict=True):
            newest[i] = value
    assert sizes[0] == N and (ratio == 0 or min(sizes) < 0.8 * N)


def test_repb_readmits_and_weighs_in_expectation(device):
    """A sample that is always easy is used in a share of the epochs, and counts as often more."""
    pruner = Pruner(N, policy=RePB(0.7, 20), device=device)
    values, totals = torch.arange(N).float().to(device) + 1, torch.zeros(N)
    epochs = 400
    for epoch in range(epochs):
        pruner.set_epoch(epoch)
        ids = pruner.selected
        totals[ids.cpu()] += pruner.rescale(ids, torch.ones(len(ids), device=device)).cpu()
        pruner.observe(pruner.epoch_order(), values[pruner.epoch_order()])
    assert pruner.times_selected[:5].float().mean() < 0.4 * epochs
    assert (totals / epochs - 1).abs().max() < 0.4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OrderDP(0.0), ValueError, "subset_share .* 0.0"),
        (lambda: OrderDP(top_share=1.5), ValueError, "top_share .* 1.5"),
        (lambda: OrderDP("x"), TypeError, "subset_share .* 'x'"),
        (lambda: SeTa(1.0), ValueError, "random_share must be below 1, got 1.0"),
        (lambda: SeTa(num_groups=0), ValueError, "num_groups .* 0"),
        (lambda: SeTa(num_groups=2.0), TypeError, "num_groups .* 2.0"),
        (lambda: SeTa(num_groups=2, window_scale=0.2), ValueError, "window_scale=0.2 of num_gr"),
        (lambda: IES(0.0), ValueError, "delta .* 0.0"),
        (lambda: RePB(1.0), ValueError, "prune_ratio must be below 1, got 1.0"),
        (lambda: RePB(batch_size=0), ValueError, "batch_size .* 0"),
    ],
)
def test_bad_parameters_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
