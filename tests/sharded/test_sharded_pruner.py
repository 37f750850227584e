# SPDX-License-Identifier: Apache-2.0
"""A pruner whose scores are spread over processes does what a single process does, bit for bit."""

import pickle

import pytest
import ranks
import shard_pruner_ranks as shard_ranks
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import BATCH, EPOCHS, N
from runs import tilts
from shard_pruner_ranks import KEEP, POLICIES, make
from states import assert_same, assert_same_as_whole, joined

from dynprune_cuda import Pruner
from dynprune_cuda.scores import outbox

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning"),
]


@pytest.fixture(
    scope="module", params=[pytest.param(size, marks=pytest.mark.slow) for size in (1, 2, 3, 4, 8)]
)
def world(request, tmp_path_factory):
    """What each rank of a world found: one dict per rank, by scenario."""
    folder = tmp_path_factory.mktemp(f"sharded{request.param}")
    return ranks.run_world(request.param, folder, shard_ranks.work)


@pytest.fixture(scope="module")
def alone():
    """What one process finds that holds everything."""
    results = {}
    for name in POLICIES:
        pruner = make(name, "replicate")
        seen, subsets = ranks.train(pruner, pruner.batch_sampler(BATCH))
        results[name] = (seen, subsets, pruner.state_dict(), pruner.turnover)
    return results


def test_the_scores_let_adaptive_mix_and_follow():
    found = tilts(make("adaptive", "replicate"), EPOCHS, BATCH)
    assert 1 in found and any(0 < tilt < 1 for tilt in found)


@pytest.mark.parametrize("name", POLICIES)
def test_every_world_selects_and_scores_as_one_process(world, alone, name):
    _, subsets, state, turnover = alone[name]
    for rank in world:
        _, _, its_state, its_turnover = rank["whole_runs"][name, False]
        assert_same_as_whole(its_state, state)
        torch.testing.assert_close(its_turnover, turnover, rtol=0, atol=0, equal_nan=True)
    for epoch in range(EPOCHS):
        pieces = [rank["whole_runs"][name, False][1][epoch] for rank in world]
        assert torch.equal(torch.cat(pieces), subsets[epoch])


@pytest.mark.parametrize(
    ("name", "drop_last"), [*((name, False) for name in POLICIES), ("ucb", True)]
)
def test_the_batches_are_those_of_replicated_scores(world, alone, name, drop_last):
    """The share of each rank, in the same order, in as many steps."""
    size = len(world)
    runs = [rank["whole_runs"][name, drop_last][0] for rank in world]
    for epoch in range(EPOCHS):
        if drop_last and epoch > 0:
            break  # what is left out depends on the number of ranks, and so do the scores
        order = joined(batch for its, batch in alone[name][0] if its == epoch)
        for number, run in enumerate(runs):
            ids = joined(batch for its, batch in run if its == epoch)
            own = order[number::size]
            if drop_last:
                assert ids == own[: len(order) // size // BATCH * BATCH]
                continue
            rest = own[:1] or [order[number % len(order)]]
            assert ids == own + rest * (len(own) < -(-len(order) // size))


def test_keep_goes_below_the_number_of_ranks():
    assert min(KEEP[1:]) < 2


def test_a_run_resumed_by_all_ranks_goes_on_bit_for_bit(world, alone):
    for rank in world:
        for (name, stop), (seen, state) in rank["resumed_runs"].items():
            assert seen == rank["whole_runs"][name, False][0], (name, stop)
            assert_same_as_whole(state, alone[name][2])


def test_copies_go_on_alike(world):
    for rank in world:
        first = rank["copies"][0]
        for batches, count, selected in rank["copies"][1:]:
            assert batches == first[0]
            assert torch.equal(count, first[1]) and torch.equal(selected, first[2])


def test_the_scored_step_enters_what_replicated_scores_enter(world):
    for rank in world:
        for (losses, table), (its_losses, its_table) in rank["cross_entropy"]:
            assert its_losses == losses
            for name, column in table.items():
                torch.testing.assert_close(
                    its_table[name], column, rtol=0, atol=0, equal_nan=True, msg=name
                )


def test_visits_of_many_ranks_are_entered_one_after_the_other(world):
    size = len(world)
    mean = torch.full((2,), float("nan"))
    for rank in range(size):
        for visit in range(300):
            values = torch.tensor([rank + visit / 8, 1.0 + visit])
            mean = torch.where(mean.isnan(), values, 0.5 * mean + 0.5 * values)
    for rank in world:
        its_mean, count, broken = rank["repeated_visits"]
        assert torch.equal(its_mean[[3, 60]], mean)
        assert count[[3, 60]].tolist() == [300 * size] * 2
        assert count.sum() == 600 * size
        assert broken[7] == size == broken.sum()


def test_a_rank_holds_its_part_only(world):
    size = len(world)
    piece = -(-N // size)
    for number, rank in enumerate(world):
        rows = min(piece, N - number * piece)
        assert rank["memory"] == [rows, rows, N]


def test_errors_are_raised_on_every_rank(world):
    if len(world) == 1:
        pytest.skip("a single rank agrees with itself")
    last = len(world) - 1
    for number, rank in enumerate(world):
        found, epoch, length = rank["errors"]
        for name in ("policy", "infobatch", "groups"):
            assert found[name].startswith("ValueError: sharding must be 'replicate' for groups")
        assert found["forgetting"].startswith("ValueError: track_forgetting needs sharding='repl")
        assert found["few"].startswith("ValueError: sharding='shard' needs samples for every pro")
        assert "sharding must be the same on every rank" in found["sharding"]
        assert found["is_selected"].startswith("RuntimeError: is_selected needs sharding='repl")
        assert (
            found["id"]
            == f"IndexError: sample_ids[1] = {N} is out of range: expected 0 <= id < {N}"
        )
        assert "epoch must be the same" in found["epoch"]
        text = "TypeError: state_dict['seed'] must be an int"
        if number != last:
            text = f"RuntimeError: load_state_dict failed on rank [{last}]"
        assert found["state"].startswith(text)
        assert found["num_selections"].startswith("ValueError: state_dict['subset'] is damaged")
        assert epoch == 1 and length == -(-KEEP[1] // len(world))


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 1, 5])
def test_a_checkpoint_of_four_ranks_is_loaded_by_others(tmp_path, alone, size):
    ranks.run_world(4, tmp_path, shard_ranks.saving)
    results = ranks.run_world(size, tmp_path, shard_ranks.loading)
    seen, _, state, _ = alone["ucb"]
    for epoch, _, its_state in results:
        assert epoch == 2
        assert_same_as_whole(its_state, state)
    for epoch in range(3, EPOCHS):
        order = joined(batch for its, batch in seen if its == epoch)
        for number, (_, its_seen, _) in enumerate(results):
            ids = joined(batch for its, batch in its_seen if its == epoch)
            own = order[number::size]
            assert ids[: len(own)] == own


@pytest.mark.slow
@pytest.mark.parametrize("collective", ["all_gather", "all_to_all_single", "all_reduce"])
def test_a_rank_killed_in_a_selection_is_a_clear_error_on_the_others(tmp_path, alone, collective):
    """Within the timeout, with nothing half written; the last checkpoint goes on, here by two."""
    mp.get_context("forkserver").set_forkserver_preload(["dynprune_cuda", "torch._dynamo"])
    arguments = (3, str(tmp_path), collective)
    context = mp.start_processes(
        shard_ranks.killed, arguments, nprocs=3, start_method="forkserver", join=False
    )
    for process in context.processes:
        process.join(60)
    assert [process.exitcode for process in context.processes] == [0, 0, -9]
    for rank in range(2):
        found, seconds, before, after = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found.startswith("RuntimeError: another process of the group is gone"), found
        assert "start all processes again from the last checkpoint" in found
        assert seconds < 30
        (epoch, table, selected, number), changed = before, after
        assert changed[0] == epoch == 1 and changed[3] == number
        assert torch.equal(changed[2], selected)
        for name, column in table.items():
            torch.testing.assert_close(
                changed[1][name], column, rtol=0, atol=0, equal_nan=True, msg=name
            )
    results = ranks.run_world(2, tmp_path, shard_ranks.loading)
    for epoch, _, state in results:
        assert epoch == 1
        assert_same_as_whole(state, alone["ucb"][2])


def test_one_process_without_a_group_shards_into_one_piece():
    pruner, other = make("ucb"), make("ucb", "replicate")
    ends = [ranks.train(one, one.batch_sampler(BATCH)) for one in (pruner, other)]
    assert ends[0][0] == ends[1][0]
    assert all(map(torch.equal, ends[0][1], ends[1][1]))
    assert isinstance(pruner, Pruner) and type(pickle.loads(pickle.dumps(pruner))) is type(pruner)
    assert dict(pruner.stats()) == pytest.approx(dict(other.stats()), nan_ok=True)
    whole = make("ucb")
    whole.load_state_dict(other.state_dict())  # of replicated scores
    assert torch.equal(whole.selected, other.selected)
    with pytest.raises(ValueError, match="sharding must be one of 'replicate', 'shard'"):
        Pruner(N, 0.3, sharding="split")


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_a_subclass_of_pruner_may_be_sharded(sharding):
    class Own(Pruner):
        """Counts its epochs, and observes twice the values."""

        begun = 0

        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            self.begun += 1

        def observe(self, ids, values, correct=None):
            super().observe(ids, 2 * values, correct)

    own, plain = Own(N, 0.3, sharding=sharding), Pruner(N, 0.3, sharding=sharding)
    assert type(own) is Own
    for pruner, factor in ((own, 1.0), (plain, 2.0)):
        pruner.set_epoch(0)
        pruner.observe(torch.arange(N), factor * torch.arange(float(N)))
        pruner.set_epoch(1)
    assert own.begun == 2
    assert torch.equal(own.table.mean, plain.table.mean)
    assert torch.equal(own.epoch_order(), plain.epoch_order())
    assert_same(own.state_dict(), plain.state_dict())


def test_what_waits_does_not_change_with_the_callers_tensors(device):
    pruner = Pruner(5, 0.5, device=device, sharding="shard")
    ids, values = torch.tensor([1, 3], device=device), torch.tensor([2.0, 4.0], device=device)
    pruner.observe(ids, values)
    ids.zero_()
    values.zero_()
    assert not pruner.table.count.any()  # nothing is entered before the epoch begins
    pruner.set_epoch(1)
    assert pruner.table.mean[[1, 3]].tolist() == [2.0, 4.0]
    assert pruner.table.count.tolist() == [0, 1, 0, 1, 0]


def test_a_failed_step_enters_nothing():
    pruner = Pruner(5, 0.5, sharding="shard")
    with pytest.raises(IndexError, match="target"):
        pruner.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]), torch.tensor([1, 2]))
    pruner.set_epoch(0)
    pruner.set_epoch(1)
    assert not pruner.table.count.any()


def test_no_visit_is_lost_when_waiting_batches_are_put_together(monkeypatch):
    monkeypatch.setattr(outbox, "LOOSE_BATCHES", 2)
    tables = {}
    for sharding in ("shard", "replicate"):
        pruner = Pruner(24, 0.5, sharding=sharding, process_group=False)
        pruner.set_epoch(0)
        generator = torch.Generator().manual_seed(0)
        for first in range(0, 24, 3):
            logits = torch.randn(3, 5, generator=generator)
            pruner.cross_entropy(logits, torch.arange(3), torch.arange(first, first + 3))
        pruner.set_epoch(1)
        tables[sharding] = pruner.table
    assert tables["shard"].count.tolist() == [1] * 24
    assert torch.equal(tables["shard"].mean, tables["replicate"].mean)
