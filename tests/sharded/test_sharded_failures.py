# SPDX-License-Identifier: Apache-2.0
"""Sharded scores when something is wrong: an error on every rank, and nothing half done."""

import pytest
import ranks
import shard_failure_ranks
import torch
import torch.distributed as dist

from dynprune_cuda import IndexedDataset, Pruner, ScoreTable, functional
from dynprune_cuda._epochs import sharded as sharded_epochs
from dynprune_cuda.distributed import Ranks, Shard, telling_of_lost_ranks
from dynprune_cuda.scores.sharded_table import ShardedScoreTable

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What each of two ranks found, by scenario."""
    folder = tmp_path_factory.mktemp("failures")
    return ranks.run_world(2, folder, shard_failure_ranks.work)


def assert_same(columns, expected):
    for name, column in expected.items():
        torch.testing.assert_close(columns[name], column, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.slow
def test_a_checkpoint_of_one_rank_is_refused_by_the_others(world):
    for rank, results in enumerate(world):
        found, _, _, unknown = results["torch_saved"]
        for text, count in (found[:2], found[2:]):
            if rank:
                assert text.startswith("ValueError: state_dict's 'subset' must hold the rows of")
                assert "rank 1, got those of rank 0: save and load with torch.distr" in text
            else:
                assert text.startswith("RuntimeError: load_state_dict failed on rank [1]")
            assert count == 0
        assert unknown.startswith("ValueError: state_dict's 'mean' must hold the rows of rank")
        assert "got rows without a rank" in unknown


@pytest.mark.slow
def test_a_checkpoint_of_every_rank_is_loaded(world):
    assert [rank["torch_saved"][1] for rank in world] == [True, True]


@pytest.mark.slow
def test_a_pruner_of_another_rank_is_refused(world):
    for call, name in enumerate(("set_epoch", "state_dict")):
        texts = [rank["torch_saved"][2][call] for rank in world]
        assert texts[0].startswith(f"RuntimeError: {name} failed on rank [1]")
        assert texts[1].startswith("RuntimeError: this pruner holds the scores of rank 0 of 2")


@pytest.mark.slow
def test_damage_of_one_ranks_rows_is_refused_by_all(world):
    for results in world:
        *columns, number = results["damaged_pieces"]
        for text, count, epoch in columns:
            assert text.startswith("ValueError: state_dict is damaged: its contents do not match")
            assert count == epoch == 0
        assert number[0].startswith(("ValueError", "RuntimeError: load_state_dict failed on rank"))


@pytest.mark.slow
def test_all_ranks_are_warned_once_of_a_loader_that_does_not_follow(world):
    for results in world:
        for texts in results["strays"]:
            assert [len(found) for found in texts] == [0, 0, 1, 0]
            assert texts[2][0].startswith("at least 13 visits in epoch 1 were of samples outside")


@pytest.mark.slow
def test_visits_are_entered_on_all_ranks_or_on_none(world):
    for rank, results in enumerate(world):
        calls, visits = results["failed_entry"]
        for name, (text, before, after, epoch) in zip(
            ("set_epoch", "state_dict"), calls, strict=True
        ):
            others = f"RuntimeError: {name} failed on rank [1]"
            assert text.startswith("OutOfMemoryError: no memory" if rank else others)
            assert epoch == 1
            assert_same(after, before)
        # Ranks visit samples 1 and N - 1 three times each.
        assert visits[9 if rank else 1] == 6 and sum(visits) == 6


@pytest.mark.slow
def test_numbers_of_other_libraries_are_numbers(world):
    plain = torch.arange(20.0)
    expected = [
        functional.select_top_k(plain, 7, seed=3, order="ascending"),
        functional.select_weighted(plain, 7, seed=3, order="ascending"),
        functional.select_epsilon_greedy(plain, 7, 0.5, seed=3, order="ascending"),
    ]
    for number, ids in enumerate(expected):
        assert torch.equal(torch.cat([rank["converted"][0][number] for rank in world]), ids)
    assert world[1]["converted"][1:] == (int, int, int)


@pytest.mark.slow
def test_calls_that_differ_are_errors(world):
    for rank in world:
        *wrong, right = rank["differing_calls"]
        for text in wrong:
            assert text.startswith("ValueError: the selection found ranks that differ: the func")
        assert right == "no error"


@pytest.mark.slow
def test_states_that_differ_are_errors(world):
    for rank in world:
        found, *after = rank["differing_states"]
        assert "load_state_dict found ranks that differ: epoch must be the same" in found["epoch"]
        assert "load_state_dict found ranks that differ: seed must be the same" in found["seed"]
        assert found["repeat"].startswith("TypeError: state_dict['repeat'] must be a tensor")
        assert "state_dict['repeat'] is damaged: it must be torch.bool of sh" in found["length"]
        assert "it lacks ['repeat']" in found["missing"]
        assert after == [0, 0, 0]


@pytest.mark.slow
def test_a_constructor_that_fails_on_one_rank_fails_on_all(world):
    texts = [rank["constructors"][0] for rank in world]
    assert texts[0].startswith("RuntimeError: making the pruner failed on rank [1]")
    assert texts[1].startswith("ValueError: track_forgetting needs sharding='replicate'")


def test_a_failed_entry_is_taken_back(monkeypatch):
    pruner = Pruner(6, 3, "ucb", sharding="shard")
    for _ in range(2):
        pruner.observe(torch.tensor([1, 4, 1]), torch.tensor([7.0, 2.0, 3.0]))
    real, calls = functional.update_scores_, []

    def fails(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(functional, "update_scores_", fails)
    with pytest.raises(KeyboardInterrupt):
        pruner.set_epoch(1)
    assert not pruner.table.count.any() and pruner.table.mean.isnan().all()
    assert pruner.epoch == 0
    monkeypatch.undo()
    pruner.set_epoch(1)
    assert pruner.table.count.tolist() == [0, 2, 0, 0, 2, 0]


@pytest.mark.parametrize("visits", [0, 1, 500])
def test_visits_are_entered_as_a_whole_table_enters_them(visits):
    generator = torch.Generator().manual_seed(visits)
    whole = ScoreTable(9, alpha=0.3)
    pieces = ShardedScoreTable(Shard(9, 0, 1), Ranks(), alpha=0.3)
    for _ in range(visits):
        # Few ids of many, so that samples are visited 0 to some hundred times.
        ids = (9 * torch.rand(4, generator=generator) ** 3).long()
        values = torch.rand(4, generator=generator)
        values[ids == 2] = float("nan")
        whole.update(ids, values)
        pieces.update(ids, values)
    pieces.enter(*pieces.exchange())
    assert_same(pieces.state_dict(), whole.state_dict())


def test_a_step_in_a_cuda_graph_is_refused(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    table = ShardedScoreTable(Shard(9, 0, 1), Ranks())
    with FakeTensorMode():
        ids = torch.zeros(3, dtype=torch.int64, device="cuda")
        with pytest.raises(RuntimeError, match="must not be captured in a CUDA graph"):
            table.update_target(ids)
    table.update(torch.tensor([1]), torch.tensor([1.0]))  # on the CPU there is nothing to capture


def test_lack_of_memory_is_no_lost_process(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError, match="40 GiB"), telling_of_lost_ranks():
        raise torch.OutOfMemoryError("tried to allocate 40 GiB")
    monkeypatch.setattr(dist, "all_to_all_single", lambda *_, **__: None)

    def no_memory(*_):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "new_empty", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate"):
        Ranks(None, 0, 2).exchange([torch.ones(2)], torch.tensor([1, 1]))


@pytest.fixture
def spread():
    """A pruner of one of two processes."""
    pruner = Pruner(6, 3, "ucb", sharding="shard")
    pruner._run.ranks = Ranks(None, 0, 2)
    return pruner


WANTED = "sharding must be 'replicate' here, got a pruner with sharding='shard' and 2 processes"


def test_lightning_refuses_pieces(spread):
    pytest.importorskip("lightning")
    from dynprune_cuda.integrations.lightning import PrunerCallback

    with pytest.raises(ValueError, match=WANTED):
        PrunerCallback(spread.batch_sampler(2))


def test_transformers_refuses_pieces(spread):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dynprune_cuda.integrations.transformers import PrunedTrainer

    with pytest.raises(ValueError, match=WANTED):
        PrunedTrainer(pruner=spread)


@pytest.mark.parametrize("sampler", ["batch_sampler", "sampler"])
def test_accelerate_refuses_pieces(spread, sampler):
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    from dynprune_cuda.integrations.accelerate import prepare_loader

    data = IndexedDataset(TensorDataset(torch.arange(6)))
    options = {"batch_sampler": spread.batch_sampler(2)}
    if sampler == "sampler":
        options = {"sampler": spread.sampler()}
    with pytest.raises(ValueError, match=WANTED):
        prepare_loader(Accelerator(cpu=True), DataLoader(data, **options))


@pytest.mark.parametrize("surplus", ["move", "local"])
def test_an_epoch_that_cannot_be_begun_can_be_begun_again(surplus, monkeypatch):
    def seen(pruner):
        return pruner.epoch, pruner.selected.tolist(), pruner.epoch_order().tolist()

    def begun():
        pruner = Pruner(12, 6, "ucb", sharding="shard", surplus=surplus, process_group=False)
        pruner.set_epoch(0)
        pruner.observe(torch.arange(12), torch.arange(12.0))
        return pruner

    def lack_memory(*_):
        raise torch.OutOfMemoryError

    pruner, other = begun(), begun()
    before = seen(pruner)
    with monkeypatch.context() as patch:
        patch.setattr(sharded_epochs.Repeats, "of", lack_memory)
        with pytest.raises(torch.OutOfMemoryError):
            pruner.set_epoch(1)
    assert seen(pruner) == before
    for one in (pruner, other):
        one.set_epoch(1)
    assert seen(pruner) == seen(other)
    assert pruner.selected.tolist() == [6, 7, 8, 9, 10, 11]
