# SPDX-License-Identifier: Apache-2.0
"""Sharded scores with strided shards, and with processes that train on their own samples only."""

from itertools import cycle, islice

import pytest
import ranks
import shard_option_ranks
import shard_pruner_ranks
import torch
import torch.distributed as dist
from ranks import BATCH, EPOCHS, N
from shard_option_ranks import LOCAL, RUNS, STRIDED
from shard_pruner_ranks import KEEP, make
from states import assert_same_as_whole, joined

from dynprune_cuda import Pruner
from dynprune_cuda._epochs.order import Share
from dynprune_cuda._epochs.repeats import Repeats
from dynprune_cuda.distributed import Ranks
from dynprune_cuda.distributed.routing import moved_rows
from dynprune_cuda.sharded import Shard

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning"),
]


@pytest.fixture(
    scope="module", params=[pytest.param(size, marks=pytest.mark.slow) for size in (2, 3, 4, 8)]
)
def world(request, tmp_path_factory):
    """What each rank of a world found: one dict per rank, by scenario."""
    folder = tmp_path_factory.mktemp(f"options{request.param}")
    return ranks.run_world(request.param, folder, shard_option_ranks.work)


@pytest.fixture(scope="module")
def alone():
    """What one process finds that holds everything."""
    results = {}
    for name in {name for _, name in RUNS}:
        pruner = make(name, "replicate")
        seen, subsets = ranks.train(pruner, pruner.batch_sampler(BATCH))
        results[name] = seen, subsets, pruner.state_dict()
    return results


def in_epoch(seen, epoch):
    return joined(batch for its, batch in seen if its == epoch)


@pytest.mark.parametrize(("option", "name"), RUNS)
def test_every_world_selects_and_scores_as_one_process(world, alone, option, name):
    """Wherever a sample is trained on: each selected one enters its score once an epoch."""
    _, subsets, state = alone[name]
    for rank in world:
        assert_same_as_whole(rank["whole_runs"][option, name][2], state)
    for epoch in range(EPOCHS):
        pieces = [rank["whole_runs"][option, name][1][epoch] for rank in world]
        if option != "local":  # strided
            assert all((ids % len(world) == rank).all() for rank, ids in enumerate(pieces))
        assert torch.equal(torch.cat(pieces).sort().values, subsets[epoch])


@pytest.mark.parametrize("name", [name for option, name in RUNS if option == "strided"])
def test_the_batches_of_strided_shards_are_those_of_replicated_scores(world, alone, name):
    size = len(world)
    for epoch in range(EPOCHS):
        order = in_epoch(alone[name][0], epoch)
        for number, rank in enumerate(world):
            own = order[number::size]
            rest = own[:1] or [order[number % len(order)]]
            ids = in_epoch(rank["whole_runs"]["strided", name][0], epoch)
            assert ids == own + rest * (len(own) < -(-len(order) // size))


@pytest.mark.parametrize(("option", "name"), [run for run in RUNS if run[0] != "strided"])
def test_a_process_trains_on_its_own_samples_only(world, option, name):
    """In as many steps as the others, its own ids from the beginning again if there are too few."""
    size, layout = len(world), "contiguous" if option == "local" else "strided"
    for epoch in range(EPOCHS):
        selected = [rank["whole_runs"][option, name][1][epoch].tolist() for rank in world]
        longest = max(map(len, selected))
        for number, rank in enumerate(world):
            ids = in_epoch(rank["whole_runs"][option, name][0], epoch)
            own = ids[: len(selected[number])]
            assert sorted(own) == selected[number]
            if not own:
                held = Shard(N, number, size, layout).ids().tolist()
                own = ids[: len(held)]
                assert set(own) <= set(held) and len(set(own)) == len(own)
            assert ids == list(islice(cycle(own), longest))
    assert any(not ids for ids in selected) == (
        name in ("ucb", "rescaled") or (name, size > 2) == ("static", 1)
    )


def test_own_orders_are_drawn_anew_each_epoch(world):
    for rank in world:
        seen = rank["whole_runs"]["both", "ucb_std"][0]
        one, other = in_epoch(seen, 1), in_epoch(seen, 2)
        if len(set(one)) > 4:
            assert one != other
    first = [in_epoch(rank["whole_runs"]["both", "ucb_std"][0], 0) for rank in world]
    size = len(world)
    positions = {tuple(id // size for id in ids[: N // size]) for ids in first}
    assert len(positions) == size  # not one permutation for all


def test_what_is_too_much_can_be_left_out(world):
    for epoch in range(EPOCHS):
        counts = [len(rank["dropped"][1][epoch]) for rank in world]
        for rank in world:
            ids = in_epoch(rank["dropped"][0], epoch)
            assert len(ids) == min(filter(None, counts)) // BATCH * BATCH
            if len(rank["dropped"][1][epoch]):
                assert set(ids) <= set(rank["dropped"][1][epoch].tolist())
                assert len(set(ids)) == len(ids)
    lengths = {tuple(map(len, rank["dropped"][2])) for rank in world}
    assert len(lengths) == 1  # the same on all ranks
    for rank in world:
        _, _, (filled, cut), order = rank["dropped"]
        assert filled == order and cut == order[: len(cut)]


def test_a_resumed_run_goes_on_bit_for_bit(world, alone):
    for rank in world:
        for (option, name), (seen, state) in rank["resumed_runs"].items():
            assert seen == rank["whole_runs"][option, name][0], option
            assert_same_as_whole(state, alone[name][2])


def test_the_length_of_an_epoch_is_known_once_it_has_begun(world):
    pieces = [Shard(N, rank, len(world)).ids().tolist() for rank in range(len(world))]
    static = [len(set(piece) & set(range(3, 40, 2))) for piece in pieces]
    empty = [rank for rank, number in enumerate(static) if not number]
    full = -(-len(pieces[0]) // BATCH)
    for rank in world:
        found, total = rank["lengths"]
        assert total == 3 * full
        (first, text), (steps, batches, kept, _), _ = found["ucb"]
        assert first == full and steps == batches and kept == KEEP[1]
        assert text.startswith("ValueError: epoch must be one whose selection was made, got 1: wit")
        assert found["full"][0] == [full, "no error"] == [*found["full"][1][:1], "no error"]
        # The ids of a static subset are known to all.
        (first, text), (steps, batches, kept, later), warned = found["static"]
        assert (first, text, later, kept) == (full, "no error", "no error", 19)
        assert steps == batches == -(-max(static) // BATCH)
        assert len(warned) == bool(empty)
        for text, file in warned:
            assert text.startswith(f"rank {empty} holds none of the selected samples")
            assert file == "shard_option_ranks.py"


def test_a_data_set_of_own_samples_is_enough(world):
    for rank in world:
        for rows, ids, order in rank["own_loader"]:
            assert torch.equal(rows, 10 * ids) and torch.equal(ids, order)


def test_ddp_trains_where_the_samples_are(world):
    own = torch.cat([rank["trained"][2] for rank in world])
    assert own.tolist() == list(range(3, 40, 2))
    expected = torch.ones(N, dtype=torch.int32)
    expected[own] += 1
    for rank in world:
        steps, difference, _, count, weights = rank["trained"]
        assert steps == world[0]["trained"][0]
        assert difference < 1e-6  # padding trains like any other row
        assert torch.equal(count, expected)
        assert all(map(torch.equal, weights, world[0]["trained"][4]))


def test_a_refused_step_does_not_use_up_a_repeated_sample(world):
    size = len(world)
    for rank in world:
        found = rank["refused_step"]
        counts = [one for one in found if isinstance(one, list)]
        assert counts == [[1] * (size + 1)] * 2
        texts = [one for one in found if isinstance(one, str)]
        assert all("target" in text for text in texts[::2])
        assert all("same length" in text for text in texts[1::2])


def test_strided_shards_may_be_tiny(world):
    for number, rank in enumerate(world):
        (first, second), rows = rank["few_samples"]
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        assert_same_as_whole(second[2], {**first[2], "table": {}, "repeat": None})
        size = len(world)
        assert rows == (1 + (number < 1), len(Shard(size + 1, number, size)))


def test_errors_are_raised_on_every_rank(world):
    size, last = len(world), len(world) - 1
    for number, rank in enumerate(world):
        found, unchanged, count = rank["errors"]
        assert found["layout"].startswith("ValueError: shard_layout='strided' needs sharding='sha")
        assert found["surplus"].startswith("ValueError: surplus='local' needs sharding='shard'")
        assert "surplus must be one of 'move', 'local', got 'stay'" in found["choice"]
        assert "shard_layout must be the same on every rank" in found["layouts differ"]
        assert "surplus must be the same on every rank" in found["surplus differs"]
        assert f"got {size - 1} samples for {size} processes" in found["few"]
        text = "ValueError: state_dict['times_selected'] is damaged: it must be torch.int32"
        if number != last:
            text = f"RuntimeError: load_state_dict failed on rank [{last}]"
        assert found["state"].startswith(text)
        assert found["missing"].startswith("ValueError: state_dict['table'] is damaged: it lacks")
        assert found["respread"] == "RuntimeError: no answer" and unchanged
        assert (count == size).all()  # every rank visited every sample: nothing was lost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "loaded"), [({**STRIDED, **LOCAL}, {}), (LOCAL, STRIDED)], ids=["both", "local"]
)
@pytest.mark.filterwarnings("ignore:rank .* holds none:RuntimeWarning")
def test_a_checkpoint_is_loaded_by_other_ranks_with_other_options(tmp_path, alone, saved, loaded):
    ranks.run_world(4, tmp_path, shard_pruner_ranks.saving, saved)
    results = ranks.run_world(3, tmp_path, shard_pruner_ranks.loading, loaded)
    seen, _, state = alone["ucb"]
    for number, (epoch, its_seen, its_state) in enumerate(results):
        assert epoch == 2
        assert_same_as_whole(its_state, state)
        for following in range(3, EPOCHS):
            own = in_epoch(seen, following)[number::3]
            assert in_epoch(its_seen, following)[: len(own)] == own


@pytest.mark.parametrize("options", [STRIDED, LOCAL, {**STRIDED, **LOCAL}])
def test_one_process_is_all_there_is(alone, options):
    pruner = make("ucb", **options)
    assert pruner.total_steps(EPOCHS, BATCH) == sum(-(-kept // BATCH) for kept in (N, *KEEP[1:]))
    seen, subsets = ranks.train(pruner, pruner.batch_sampler(BATCH))
    assert seen == alone["ucb"][0] and all(map(torch.equal, subsets, alone["ucb"][1]))
    other = make("ucb")
    other.load_state_dict(pruner.state_dict())
    assert torch.equal(other.selected, pruner.selected)
    again = make("ucb", **options)
    again.load_state_dict(other.state_dict())
    assert_same_as_whole(shard_pruner_ranks.whole(again, again.state_dict()), alone["ucb"][2])


def test_options_of_shards_need_shards():
    with pytest.raises(ValueError, match=r"surplus='local' needs sharding='shard'"):
        Pruner(9, 0.5, surplus="local")
    with pytest.raises(ValueError, match="shard_layout must be one of 'contiguous', 'strided'"):
        Pruner(9, 0.5, sharding="shard", shard_layout="rows")


def test_only_first_visits_of_repeated_samples_count(device):
    share = Share(torch.tensor([5, 2, 9, 5, 2], device=device), 3)
    repeats = Repeats.of(share)
    batch = torch.tensor([9, 2, 5, -1, 2, 7], device=device)
    assert repeats.without(batch).tolist() == [9, 2, 5, -1, 2, 7]  # rows of one batch are one visit
    repeats.mark(batch[:2])
    assert repeats.without(batch).tolist() == [9, -1, 5, -1, -1, 7]
    assert repeats.visited_ids().tolist() == [2]
    strangers = Repeats.of(Share(share.ids, 0))
    assert strangers.without(batch).tolist() == [-1, -1, -1, -1, -1, 7]


def test_rows_of_one_process_stay():
    rows = [torch.arange(5), torch.rand(5)]
    moved = moved_rows(rows, Shard(5, 0, 1, "strided"), Shard(5, 0, 1), Ranks())
    assert all(map(torch.equal, rows, moved))
