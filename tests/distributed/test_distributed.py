# SPDX-License-Identifier: Apache-2.0
"""Real processes over gloo: however many there are, they choose what a single one chooses."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import ranks
import torch
import torch.distributed as dist
import torchrun_script
from ranks import BATCH, EPOCHS, KEEP, MAKERS, N
from runs import tilts
from states import assert_same, joined

from dynprune_cuda import Pruner, distributed
from dynprune_cuda._epochs.order import Share
from dynprune_cuda._epochs.repeats import Repeats
from dynprune_cuda._epochs.replicated import ReplicatedRun
from dynprune_cuda._epochs.sharded import ShardedRun
from dynprune_cuda._schedule.schedule import num_batches

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.filterwarnings("ignore:no score was observed:RuntimeWarning"),
]


@pytest.fixture(
    scope="module", params=[pytest.param(size, marks=pytest.mark.slow) for size in (1, 2, 3, 4)]
)
def world(request, tmp_path_factory):
    """What each rank of a world found: one dict per rank, by scenario."""
    return ranks.run_world(request.param, tmp_path_factory.mktemp(f"world{request.param}"))


@pytest.fixture(scope="module")
def alone():
    """What a single process finds."""
    return ranks.whole_runs(0, 1)


def by_epoch(seen):
    epochs = {epoch: [] for epoch in range(EPOCHS)}
    for epoch, batch in seen:
        epochs[epoch].append(batch)
    return epochs


def test_the_scores_let_adaptive_mix_and_follow():
    found = tilts(MAKERS["adaptive"](), EPOCHS, BATCH)
    assert 1 in found and any(0 < tilt < 1 for tilt in found)


@pytest.mark.parametrize("name", MAKERS)
def test_all_worlds_choose_the_same(world, alone, name):
    _, subsets, state = alone[name, False]
    for rank in world:
        _, its_subsets, its_state = rank["whole_runs"][name, False]
        assert len(its_subsets) == EPOCHS
        assert all(map(torch.equal, its_subsets, subsets))
        assert_same(its_state, state)


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_a_missed_warmup_runs_on_all_ranks(world, sharding):
    runs = [rank["late_start"][sharding] for rank in world]
    for expected, rest, texts, firsts in runs:
        assert rest == [step for step in expected if step[0] > 3]
        assert len(texts) == 1 and texts[0].startswith("set_epoch(3) is the first of this pruner")
        assert firsts == [3, 3, 0]
    for epoch, count in ((3, N), (4, 18), (5, 18), (6, 18)):
        visited = {i for run in runs for step in run[0] if step[0] == epoch for i in step[1]}
        assert len(visited) == count


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_rank_trains_on_its_share(world, alone, name, drop_last):
    size = len(world)
    runs = [rank["whole_runs"][name, drop_last] for rank in world]
    if drop_last:  # what was left out depends on the number of ranks, and so do the scores
        for run in runs:
            assert all(map(torch.equal, run[1], runs[0][1]))
            assert_same(run[2], runs[0][2])
    shares = [by_epoch(run[0]) for run in runs]
    whole = by_epoch(alone[name, False][0])
    for epoch in range(EPOCHS):
        selected = runs[0][1][epoch].tolist()
        k = len(selected)
        batches = [share[epoch] for share in shares]
        lengths = {tuple(map(len, its)) for its in batches}
        assert len(lengths) == 1  # as many steps, of the same sizes, on every rank
        ids = [[sample_id for batch in its for sample_id in batch] for its in batches]
        if drop_last:
            everything = joined(ids)
            assert len(set(everything)) == len(everything) == k // size // BATCH * BATCH * size
            assert set(everything) <= set(selected)
            continue
        order = [sample_id for batch in whole[epoch] for sample_id in batch]
        for number, its in enumerate(ids):
            own = order[number::size]
            rest = own[:1] or [order[number % k]]
            assert its == own + rest * (len(own) < -(-k // size))
        assert set(joined(ids)) == set(selected)


def test_keep_goes_below_the_number_of_ranks():
    assert set(KEEP) >= {1, 2, 3}  # so that the tests above see ranks without a sample


def test_a_run_resumed_by_all_ranks_goes_on_bit_for_bit(world):
    for rank in world:
        for (name, stop), (seen, state) in rank["resumed_runs"].items():
            whole = rank["whole_runs"][name, False]
            assert seen == whole[0], (name, stop)
            assert_same(state, whole[2])


def test_all_ranks_may_go_on_from_the_state_of_one(world):
    steps, subsets, state = world[0]["one_state_for_all"]
    for rank in world:
        its_steps, its_subsets, its_state = rank["one_state_for_all"]
        assert its_steps == steps
        assert all(map(torch.equal, its_subsets, subsets))
        assert_same(its_state, state)


def test_copies_keep_their_place_and_count_no_id_twice(world):
    """Made in mid-epoch, after the first visit of the id that comes again."""
    for number, rank in enumerate(world):
        batches, count = rank["copies"][0][:2]
        assert len(joined(batches)) == -(-KEEP[3] // len(world))
        for its_batches, its_count, place, *_ in rank["copies"]:
            assert place == number and its_batches == batches
            assert torch.equal(its_count, count)
    # All began the epoch with the same counts; in it each selected sample got one visit.
    counts = torch.stack([rank["copies"][0][1] for rank in world])
    before, selected = world[0]["copies"][0][3:]
    assert torch.equal((counts - before).sum(0).nonzero().flatten(), selected)
    assert (counts - before).sum() == KEEP[3]


def test_loaders_hand_out_the_share(world):
    size = len(world)
    shares = [rank["loaders"] for rank in world]
    k, longest, shortest = 26, -(-26 // size), 26 // size
    handed_out = []
    for selected, order, (by_batch, by_id, on_device), lengths in shares:
        assert len(selected) == k and len(order) == longest
        assert joined(by_batch) == order
        whole = shortest // BATCH * BATCH
        assert joined(by_id) == joined(on_device) == order[:whole]
        epochs = [N, k, k, k]
        steps = [num_batches(count, size * BATCH, False) for count in epochs]
        assert lengths == [steps[1], whole // BATCH, whole // BATCH, sum(steps)]
        handed_out += order
    assert set(handed_out) == set(shares[0][0])


def test_a_model_under_ddp_selects_as_one_process_with_the_same_scores(world):
    observed = sorted(row for rank in world for row in rank["ddp"][0])
    reference = Pruner(N, 0.35, "ucb", period=1, seed=8)
    subsets = []
    for epoch in range(6):
        reference.set_epoch(epoch)
        subsets.append(reference.selected)
        rows = [row for row in observed if row[0] == epoch]
        assert sorted(row[1] for row in rows) == (subsets[-1].tolist() if epoch < 5 else [])
        reference.observe(
            torch.tensor([row[1] for row in rows], dtype=torch.int64),
            torch.tensor([row[2] for row in rows]),
        )
    assert not torch.equal(subsets[1], subsets[4])
    for rank in world:
        _, its_subsets, table, weights = rank["ddp"]
        assert all(map(torch.equal, its_subsets, subsets))
        assert_same(table, reference.table.state_dict())
        assert all(map(torch.equal, weights, world[0]["ddp"][3]))


def test_a_sample_that_two_ranks_visited_counts_once(world):
    size = len(world)
    padding = -N % size
    for rank in world:
        mean, count, selected = rank["torch_sampler"]
        for sample_id in range(N):
            visitors = [sample_id % size] + [(N + sample_id) % size] * (sample_id < padding)
            assert mean[sample_id] == 10.0 * sample_id + min(visitors)
        assert (count == 1).all()
        assert torch.equal(selected, world[0]["torch_sampler"][2])


def test_the_record_with_more_visits_wins(world):
    for rank in world:
        mean, count = rank["more_visits_win"]
        winner = min(1, len(world) - 1)
        assert (mean == winner).all() and (count == 1 + winner).all()


def test_errors_are_raised_on_every_rank(world):
    if len(world) == 1:
        pytest.skip("a single rank agrees with itself")
    last = len(world) - 1
    others = list(range(last))
    for number, rank in enumerate(world):
        found, subset_epoch, selected = rank["errors"]
        here = f"; this is rank {number}"
        for name, values in {
            "keep": (18, 24),
            "num_samples": (N, N + 1),
            "seed": (2**63, 2**63 + 1),
            "epochs": (9, 10),
        }.items():
            assert found[name] == (
                f"ValueError: {name} must be the same on every rank, got {values[0]} on rank "
                f"{others}, {values[1]} on rank [{last}]{here}"
            )
        for name in ("policy", "groups"):
            assert found[name].startswith("ValueError: policy must be the same on every rank, got ")
        assert "UCB" in found["policy"] and "UniformRandom" in found["policy"]
        for name, key, values in (("epoch", "epoch", (0, 1)), ("keep", "keep(0)", (20, 21))):
            assert found[key] == (
                f"ValueError: set_epoch found ranks that differ: {name} must be the same, got "
                f"{values[0]} on rank {others}, {values[1]} on rank [{last}]{here}"
            )
        own = f"ValueError: keep(0) as a count must be from 1 to num_samples={N}, got 0"
        failed = f"RuntimeError: set_epoch failed on rank [{last}], whose own error tells why"
        failed += f"; that of rank {last} is {own}"
        assert found["failed"] == (own if number == last else failed)
        assert "the selection of FunctionPolicy" in found["unseeded"]
        assert "unseeded" in found["unseeded"] and "differ" in found["unseeded"]
        assert found["too early"].startswith("RuntimeError: set_epoch must be called first")
        assert found["alone"] == "20"
        assert subset_epoch == -1
        assert torch.equal(selected, world[0]["errors"][2])


def test_a_group_of_some_ranks(world, alone):
    if len(world) == 1:
        pytest.skip("a single rank has no smaller group")
    *inside, outside = [rank["subgroup"] for rank in world]
    assert outside.startswith("ValueError: process_group must contain this process")
    for seen, subsets, state, lost in inside:
        assert len(seen) > EPOCHS
        assert all(map(torch.equal, subsets, alone["ucb", False][1]))
        assert_same(state, alone["ucb", False][2])
        assert ("a process group is not pickled" in lost) == (len(inside) > 1)


def test_torchrun_restarts_a_killed_rank_and_all_go_on_bit_for_bit(world, tmp_path):
    if len(world) != 2:
        pytest.skip("done once, with two ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    command += ["--nproc-per-node=2", torchrun_script.__file__, str(tmp_path), "25"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr, done.stderr
    for rank, results in enumerate(world):
        history = torchrun_script.read(tmp_path / f"history-{rank}")
        assert len(history) == 30
        assert history == results["checkpointed"]


@pytest.mark.slow
@pytest.mark.needs_cuda
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_scores_on_gpus_are_exchanged_there(alone, tmp_path, backend):
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a GPU for each rank")
    for results in ranks.run_world(2, tmp_path, ranks.work_on, backend):
        for name in ("ucb", "infobatch", "groups"):
            _, subsets, mean = results[name]
            expected = alone[name, False]
            assert all(map(torch.equal, subsets, expected[1]))
            torch.testing.assert_close(
                mean, expected[2]["table"]["mean"], rtol=0, atol=0, equal_nan=True
            )
        if backend == "nccl":
            assert "device must be one that the process group can reach" in results["on the CPU"]


def test_a_pruner_made_too_early_says_so(monkeypatch):
    pruner, alone = Pruner(N, 0.5), Pruner(N, 0.5, process_group=False)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 4)
    for made_early in (pruner, copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        with pytest.raises(RuntimeError, match="4 processes: make it after init_process_group"):
            made_early.set_epoch(1)
        assert made_early.epoch == 0
    alone.set_epoch(0)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 1)
    pruner.set_epoch(0)
    pruner.set_epoch(1)
    assert pruner.num_selected == len(pruner.epoch_order()) == 31


def test_a_state_with_a_repeat_out_of_range_is_refused():
    pruner = Pruner(N, 0.5)
    for wrong in ([N, 0], [-2, 0], [0, -2]):
        state = {**pruner.state_dict(), "repeat": torch.tensor(wrong)}
        with pytest.raises(ValueError, match=r"'repeat'.* damaged"):
            pruner.load_state_dict(state)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 40])
def test_shares_of_any_count(size, count):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    world = [distributed.Ranks(None, rank, size) for rank in range(size)]
    shares = [one.share(order) for one in world]
    assert {len(share) for share in shares} == {world[0].share_length(count)}
    assert set(torch.cat(shares).tolist()) == set(range(count))
    short = world[0].share_length(count, drop_last=True)
    kept = torch.cat([share[:short] for share in shares]).tolist()
    assert len(kept) == len(set(kept)) == count // size * size


def test_the_rows_of_a_repeated_id_are_one_visit_and_later_batches_none(device):
    config = Pruner(9, 0.5, device=device, alpha=1.0, process_group=False)._run.config
    run = ReplicatedRun(config, distributed.Ranks(None, 1, 3))
    table, memory = run.table, run._repeats.ids.data_ptr()
    table.update(torch.tensor([4]), torch.tensor([1.0]))
    share = torch.tensor([4, 2, 7, 4], device=device)
    assert run._scored(share).tolist() == share.tolist()
    run._note_repeat(Share(share, 3))
    assert run._scored(share).tolist() == share.tolist()
    table.update(run._scored(share), torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert table.mean[4] == 6.5 and table.count[4] == 2
    assert run._scored(share).tolist() == [-1, 2, 7, -1]
    run._note_repeat(Share(share, 3))  # drawn again: still the old visits
    assert run._scored(share).tolist() == [-1, 2, 7, -1]
    run._note_repeat(Share(share[1:2], 0))  # of another rank: never counts
    assert run._scored(share).tolist() == [4, -1, 7, 4]
    run._note_repeat(Share(share, 4))
    assert run._scored(share).tolist() == share.tolist()
    # A captured step goes on reading the same memory.
    assert run._repeats.ids.data_ptr() == memory


@pytest.mark.parametrize("kind", [ReplicatedRun, ShardedRun])
def test_a_repeated_id_counts_at_its_second_visit_if_the_first_was_ignored(device, kind):
    sharding = "shard" if kind is ShardedRun else "replicate"
    pruner = Pruner(9, 0.5, device=device, sharding=sharding, process_group=False)
    run, share = pruner._run, Share(torch.tensor([4, 2, 7, 4], device=device), 3)
    if kind is ReplicatedRun:
        run._repeats = Repeats(share.ids.new_full((1,), -1))
        run._note_repeat(share)
    else:
        run._repeats = Repeats.of(share)
    logits, target = torch.randn(4, 3, device=device), torch.tensor([-100, 0, 1, 2], device=device)
    pruner.cross_entropy(logits[:1], target[:1], share.ids[:1])
    pruner.cross_entropy(logits[1:], target[1:], share.ids[1:])
    pruner.cross_entropy(logits[1:], target[1:], share.ids[1:])  # all again: id 4 counts no more
    run._repeats = None
    pruner.set_epoch(1)
    assert pruner.table.count.tolist() == [0, 0, 2, 0, 1, 0, 0, 2, 0]


def test_checksums_tell_selections_apart():
    one, other = torch.tensor([1, 5, 6]), torch.tensor([2, 3, 7])  # equal sums, also of squares
    assert distributed.checksum(one, None) != distributed.checksum(other, None)
    assert distributed.checksum(one, None) == distributed.checksum(one.clone(), None)
    factors, changed = torch.ones(3), torch.tensor([1.0, 2.0, 1.0])
    assert distributed.checksum(one, factors) != distributed.checksum(one, changed)
