# SPDX-License-Identifier: Apache-2.0
"""OrderDP, SeTa, IES and RePB against slow references of their descriptions."""

import copy
import math
import pickle

import published_ranks
import pytest
import ranks
import torch
import torch.distributed as dist
from published_rules import Ies, RePb, best_groups, binned, coins, cost_of, orderdp
from runs import BATCH, EPOCHS, N, assert_same_state, save, train
from torch.utils.data import DataLoader, TensorDataset
from waiting import no_waiting

from dynprune_cuda import IndexedDataset, Pruner, functional, policies
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.policies import IES, OrderDP, RePB, SeTa
from dynprune_cuda.policies.arithmetic import coins as fast_coins
from dynprune_cuda.policies.clusters import BINS, bins_of, k_means
from dynprune_cuda.scores import History, ScoreTable

PUBLISHED = [OrderDP(), SeTa(), IES(), RePB(batch_size=16)]


def losses_of(size, seed=0):
    """Distinct positive losses, many small and few great."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(1.5 * torch.randn(size, generator=generator) - 1)


def table_of(losses, device, *, epoch=1, epochs=None, memory=None):
    """A table with one visit per sample, as a run tells of its first selection."""
    size = len(losses)
    table = ScoreTable(size, device=device, alpha=1.0)
    seen = ~losses.isnan()
    table.update(seen.nonzero().flatten(), losses[seen])
    none = torch.zeros(size, dtype=torch.int32, device=device)
    order = functional.permutation(size, seed=9, device=device)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(size, device=device))
    return table.told(History(epoch, epochs, 1, 1, 0, none, size, places), memory)


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


# ---- all four, in runs


@pytest.mark.parametrize("policy", PUBLISHED, ids=repr)
def test_a_stopped_run_goes_on_bit_for_bit(device, policy):
    def make(seed):
        return Pruner(N, policy=policy, epochs=EPOCHS, seed=seed, device=device)

    whole = make(3)
    everything = train(whole, whole.batch_sampler(BATCH))
    for stop in (1, 9, 20, len(everything) - 1):
        first = make(3)
        sampler = first.batch_sampler(BATCH)
        seen = train(first, sampler, stop)
        state, position = save(first, sampler)
        second = make(8)
        second.load_state_dict(state)
        assert_same_memory(first, second)
        resumed = second.batch_sampler(BATCH)
        resumed.load_state_dict(position)
        assert seen + train(second, resumed) == everything
        assert_same_state_and_memory(second, whole)


def assert_same_memory(one, other):
    one, other = one.state_dict().get("memory"), other.state_dict().get("memory")
    assert (one is None) == (other is None)
    for name in one or {}:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, equal_nan=True)


def assert_same_state_and_memory(one, other):
    assert_same_memory(one, other)
    states = [{k: v for k, v in p.state_dict().items() if k != "memory"} for p in (one, other)]
    assert_same_state(*[Stated(state) for state in states])


class Stated:
    """Something with a state."""

    def __init__(self, state):
        self.state_dict = lambda: dict(state)


def test_a_damaged_memory_is_refused_as_a_whole():
    pruner = Pruner(N, policy="ies")
    train(pruner, pruner.batch_sampler(BATCH), 12)
    before = pruner.state_dict()
    assert set(before["memory"]) == {*(f"loss_{age}" for age in range(5)), "visits"}
    for damage, message in (
        ({"loss_0": torch.zeros(3)}, r"\['memory'\]\['loss_0'\] is damaged.*\(3,\)"),
        ({"visits": torch.zeros(N)}, r"\['memory'\]\['visits'\] is damaged: it must be torch.int"),
        ({"more": torch.zeros(N)}, r"\['memory'\] is damaged: .*unknown \['more'\]"),
    ):
        state = {**before, "memory": {**before["memory"], **damage}}
        with pytest.raises(ValueError, match=message):
            pruner.load_state_dict(state)
        assert_same_state_and_memory(pruner, Stated(before))
    state = {name: value for name, value in before.items() if name != "memory"}
    with pytest.raises(ValueError, match=r"lacks \['memory'\]"):
        pruner.load_state_dict(state)
    assert "memory" not in Pruner(N, policy="seta").state_dict()


@pytest.mark.parametrize("policy", PUBLISHED, ids=repr)
def test_selecting_waits_for_nothing_and_changes_no_score(policy):
    memory = policy.initial_memory(200, "cpu")
    table = table_of(losses_of(200), "cpu", epochs=9, memory=memory or None)
    before = copy.deepcopy(table)
    chosen = torch.ones(200, dtype=torch.bool)
    with no_waiting():
        if policy.weighs:
            weights = policy.weigh(table, seed=1)
        else:
            weights = policy.select(table, policy.fixed_count(200), seed=1)
        if memory:
            policy.remember(table, chosen)
    for name, column in before.state_dict().items():
        torch.testing.assert_close(getattr(table, name), column, equal_nan=True)
    for name, column in (memory or {}).items():
        torch.testing.assert_close(table.memory[name], column, equal_nan=True)
    clone = pickle.loads(pickle.dumps(policy))
    assert clone == policy
    if policy.weighs:
        assert torch.equal(clone.weigh(table, seed=1), weights)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_select_as_one_does(tmp_path):
    alone = [published_ranks.subsets(policy) for policy in published_ranks.POLICIES]
    for rank in ranks.run_world(2, tmp_path, published_ranks.work):
        for policy, mine, theirs in zip(published_ranks.POLICIES, alone, rank, strict=True):
            assert [ids for ids, _ in mine] == [ids for ids, _ in theirs], policy
            for (_, one), (_, other) in zip(mine, theirs, strict=True):
                assert torch.equal(one, other), policy


@pytest.mark.parametrize("policy", [SeTa(), IES(), RePB()], ids=repr)
def test_a_table_of_ones_own_must_be_told(policy):
    with pytest.raises(ValueError, match=r"table must have a (history|memory) for .* got None"):
        policy.weigh(ScoreTable(9), seed=0)


@pytest.mark.parametrize("name", ["orderdp", "seta", "ies", "repb"])
def test_shards_are_refused(name):
    with pytest.raises(ValueError, match=r"sharding must be 'replicate' .* got 'shard'"):
        Pruner(N, policy=name, sharding="shard")


@pytest.mark.parametrize("policy", [SeTa(), IES(0.6), RePB(batch_size=16)], ids=repr)
def test_groups_get_their_own_part_of_history_and_memory(policy):
    """Each group is weighed as if its samples were alone, with their own places and losses."""
    groups = torch.arange(N) % 3
    pruner = Pruner(N, policy=policy, groups=groups, epochs=EPOCHS)
    train(pruner, pruner.batch_sampler(BATCH))
    assert pruner.num_selected < N
    table = table_of(losses_of(N), "cpu", memory=policy.initial_memory(N, "cpu"))
    ids = (groups == 1).nonzero().flatten()
    part = table.part(ids)
    assert torch.equal(part.history.places, table.history.places[ids])
    assert all(len(column) == len(ids) for column in part.memory.values())
    balanced = policies.Balanced(policy, groups).weigh(table, seed=2)
    alone = policy.weigh(part, seed=derive_seed(2, "group", 1))
    assert torch.equal(balanced[ids], alone)


def test_repb_in_groups_still_means_the_batches_of_the_epoch(device):
    """A group's share of a batch is compared, not pieces of the group."""
    losses = torch.tensor([1.0, 5.0, 2.0, 6.0, 9.0, 7.0, 3.0, 8.0], device=device)
    none = torch.zeros(8, dtype=torch.int32, device=device)
    history = History(1, None, 1, 1, 0, none, 8, torch.arange(8, device=device))
    table = ScoreTable(8, device=device, alpha=1.0)
    table.update(torch.arange(8, device=device), losses)
    part = table.told(history, None).part(torch.tensor([0, 2, 4, 6], device=device))
    policy = RePB(1 - 2**-40, batch_size=4)  # no coin says so
    assert policy.weigh(part, seed=0).tolist() == [0.0, 1.0, 1.0, 0.0]


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
