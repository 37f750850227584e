# SPDX-License-Identifier: Apache-2.0
"""The model of sharded scores: limits that can be worked out by hand."""

import dataclasses
import json
import subprocess
import sys

import pytest
from paths import ROOT

from benchmarks.sharding import model, tables
from benchmarks.sharding import simulate_sharding as program

GPU = model.assumed_gpu()
NOTHING = {field.name: 0.0 for field in dataclasses.fields(GPU) if field.type == "float"}
# No work and no latency: what is left are bytes, at one a second.
BYTES = dataclasses.replace(GPU, **{**NOTHING, "bandwidth": 1.0})
# Nothing costs anything, until a test says so.
FREE = dataclasses.replace(BYTES, bandwidth=float("inf"))
N = 10**9


def test_one_rank_sends_nothing():
    assert model.all_reduce(1e9, 1, GPU) == model.all_to_all(1e9, 1, GPU) == 0
    silent = dataclasses.replace(GPU, latency=1e9, bandwidth=1e-9)
    for method in model.METHODS:
        assert model.stages(method, N, 1, silent) == model.stages(method, N, 1, GPU)


def test_messages_by_hand():
    m = dataclasses.replace(FREE, latency=2.0, bandwidth=10.0, tree=False)
    assert model.all_reduce(40.0, 4, m) == 6 * (2 + 1)  # a ring
    assert model.all_to_all(40.0, 4, m) == 3 * (2 + 1)
    assert model.gather(40.0, 4, m) == 3 * (2 + 4)
    assert model.routed((40.0, 80.0), 4, m) == 3 * (2 + 0.8) + 3 * (2 + 1) + 3 * (2 + 2)
    at_once = dataclasses.replace(m, at_once=True)
    assert model.all_to_all(40.0, 4, at_once) == 2 + 3 * 1
    tree = dataclasses.replace(m, tree=True)
    assert model.all_reduce(40.0, 4, tree) == 2 * (2 * 2 + 4)  # less than a ring
    assert model.all_reduce(4000.0, 4, tree) == 6 * (2 + 100)  # a ring after all
    adding = dataclasses.replace(m, reduce=1.0)
    assert model.all_reduce(40.0, 4, adding) == 6 * (2 + 1) + 30


def test_the_search_moves_what_the_design_says():
    assert model.search("plain", N, 2, BYTES) == pytest.approx(81_920)
    assert model.search("one-read", N, 2, BYTES) == pytest.approx(524_288 + 49_152 + 24)


def test_the_sample_of_one_read_grows_up_to_a_limit():
    assert [model.draws(size) for size in (1000, 10**8, N)] == [99, 65536, 65536]
    m = dataclasses.replace(FREE, sample=1.0)
    assert model.search("one-read", N, 1, m) == model.search("one-read", N, 8, m) == 65536


def test_small_shards_search_plainly():
    size = 2 * model.ONE_READ_FROM
    assert model.search("one-read", size, 2, GPU) != model.search("plain", size, 2, GPU)
    assert model.search("one-read", size - 1, 2, GPU) == model.search("plain", size - 1, 2, GPU)


def test_replicated_tables_move_28_bytes_a_sample():
    found = model.stages("replicate", N, 2, BYTES)
    assert found["exchange"] == pytest.approx(28 * N + 80)
    assert found["steps"] == found["enter"] == found["order"] == 0


def test_replicated_tables_meet_in_two_collectives_for_each_piece():
    m = dataclasses.replace(FREE, latency=1.0, tree=False)
    found = model.stages("replicate", 2 * model.MERGED + 1, 3, m)
    assert found["exchange"] == 3 * 2 * 4 + 2  # pieces, collectives, messages; a gathering


@pytest.mark.parametrize("method", ["plain", "one-read"])
def test_visits_move_12_bytes_and_ids_8(method):
    found = model.stages(method, N, 2, BYTES)
    counts, kept = 8 * 2 / 2, model.KEEP * N / 2
    assert found["exchange"] == pytest.approx(2 * 80 + counts + 12 * kept / 2)
    assert found["order"] == pytest.approx(counts + 8 * kept / 2)
    assert found["steps"] == found["enter"] == 0


@pytest.mark.parametrize("method", ["plain", "one-read"])
def test_a_sharded_epoch_waits_for_five_all_to_alls(method):
    m = dataclasses.replace(FREE, latency=1.0)
    found = model.stages(method, N, 8, m)
    assert found["exchange"] + found["order"] == 5 * 7 + 2 * 7  # and two gatherings
    at_once = model.stages(method, N, 8, dataclasses.replace(m, at_once=True))
    assert at_once["exchange"] + at_once["order"] == 5 + 2 * 7


@pytest.mark.parametrize(
    ("cost", "replicated", "sharded"),
    [
        ("update", model.KEEP * N / 8, 0),
        ("repeat", model.KEEP * N / 8, 0),
        ("merge", N, 0),
        ("alone", N, 0),
        ("checksum", model.KEEP * N, 0),
        ("walk", model.KEEP * N, 0),
        ("look_up", model.KEEP * N / 8, 0),
        ("ranking", N, N / 8),
        ("history", N, N / 8),
        ("buffer", 0, model.KEEP * N / 8),
        ("pack", 0, model.KEEP * N / 8),
        ("enter", 0, model.KEEP * N / 8),
        ("place", 0, model.KEEP * N / 8),
        ("keys", 0, N / 8),
        ("digit", 0, 3 * N / 8),
        ("listing", 0, N / 8),
    ],
)
def test_every_cost_counts_as_often_as_it_is_paid(cost, replicated, sharded):
    m = dataclasses.replace(FREE, **{cost: 1.0})
    assert model.epoch("replicate", N, 8, m) == pytest.approx(replicated)
    assert model.epoch("plain", N, 8, m) == pytest.approx(sharded)


@pytest.mark.parametrize("method", model.METHODS)
def test_what_an_epoch_is_made_of(method):
    once, seldom = (model.stages(method, N, 8, GPU, period=period) for period in (1, 10))
    assert tuple(once) == model.STAGES
    assert once.pop("selection") == pytest.approx(10 * seldom.pop("selection"))
    assert once == seldom
    with_steps, without = (model.epoch(method, N, 8, GPU, steps=steps) for steps in (True, False))
    assert with_steps - without == pytest.approx(once["steps"])
    everything = model.stages(method, N, 8, GPU, visited=1.0)
    assert everything["steps"] == pytest.approx(once["steps"] / model.KEEP)


def test_ranks_that_share_cores_take_longer():
    shared = dataclasses.replace(GPU, cores=2)
    assert [shared.sharing(ranks) for ranks in (1, 2, 8)] == [1, 1, 4]
    assert model.epoch("plain", N, 8, shared) == pytest.approx(4 * model.epoch("plain", N, 8, GPU))


@pytest.mark.parametrize("method", ["plain", "one-read"])
def test_memory_falls_with_the_ranks_and_a_replicated_table_does_not(method):
    sizes = [model.memory(method, 10**10, ranks) for ranks in (1, 8, 64)]
    assert sizes[0] == pytest.approx(8 * sizes[1]) == pytest.approx(64 * sizes[2])
    assert model.memory("replicate", N, 4096) > (17 + 4 + 16 * model.KEEP) * N
    assert model.memory(method, N, 1, visited=1.0) == pytest.approx((21 + 191 + 4.8) * N)


def test_every_parameter_has_a_meaning():
    names = {field.name for field in dataclasses.fields(model.Machine)}
    meaning = tables.meanings()
    assert set(meaning) == names and all(meaning.values())
    assert meaning["walk"] == "One position of a permutation is computed"


def test_the_committed_page_is_that_of_the_program(tmp_path, monkeypatch):
    results = ROOT / "benchmarks" / "results"
    files = ["--measured", str(results / "sharding_cpu_2cores.json")]
    files += ["--billion", str(results / "billion_cpu_2cores.json")]
    monkeypatch.setattr(program, "draw", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["simulate", *files, "--out", str(tmp_path / "model")])
    program.main()
    page = (ROOT / "docs" / "design" / "sharding_model.md").read_text()
    assert (tmp_path / "model.md").read_text() == page, "run simulate_sharding"


def test_where_says_which_ranks():
    assert tables.where(lambda ranks: ranks > 1) == "from 2"
    assert tables.where(lambda ranks: ranks > 4096) == "never"
    assert tables.where(lambda ranks: ranks >= 8) == "from 8"
    assert tables.where(lambda ranks: 8 <= ranks <= 64) == "8 to 64"
    assert tables.where(lambda ranks: ranks == 2) == "at 2"
    assert tables.where(lambda ranks: ranks in (2, 8)) == "2, 8"


def test_the_cheaper_way_wins():
    assert tables.sharding_wins(N, dataclasses.replace(FREE, merge=1.0)) == "from 2"
    assert tables.sharding_wins(N, dataclasses.replace(FREE, enter=1.0)) == "never"
    # Entering k / R visits takes 300 / R times as long as walking through k places.
    m = dataclasses.replace(FREE, enter=300.0, walk=1.0)
    assert tables.sharding_wins(N, m) == "from 512"
    m = dataclasses.replace(FREE, keys=1.0, sort_out=0.5)
    assert tables.one_read_wins(2**20, m) == "2 to 4, up to 2.0x"
    assert tables.ranks_that_fit(10**9, 1e12) == "1"
    assert tables.ranks_that_fit(10**9, 24e9) == "16"  # 216.8 GB of all ranks


def test_latency_and_bandwidth_come_back_out_of_a_ring():
    m = dataclasses.replace(FREE, latency=3e-5, bandwidth=1e9, reduce=2e-10, tree=False, cores=1)
    small, large = (model.all_reduce(size, 2, m) * m.sharing(2) for size in (0, 2**25))
    network = {"small_seconds": small, "large_seconds": large, "large_bytes": 2**25}
    found = program.measured_network({"network": network}, m.reduce, m.cores)
    assert found == pytest.approx({"latency": 3e-5, "bandwidth": 1e9})


@pytest.mark.slow
def test_the_programs_run_and_their_selections_are_exact(tmp_path):
    series, out = tmp_path / "series.json", tmp_path / "model"
    options = ["--samples", "100_000", "--keep", "30_000", "--ranks", "1", "2", "--rounds", "1"]
    for command in (
        ["billion", *options, "--out", str(series)],
        ["simulate_sharding", "--measured", str(series), "--out", str(out)],
    ):
        program = [sys.executable, "-m", f"benchmarks.sharding.{command[0]}", *command[1:]]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    rows = json.loads(series.read_text())["rows"]
    assert [(row["ranks"], row["exact"]) for row in rows] == [(1, True), (2, True)]
    assert set(rows[0]["costs"]) == set(model.MEASURED)
    assert all(seconds >= 0 for seconds in rows[0]["costs"].values())
    assert all(set(row["epochs"]) == {"replicate", "shard"} for row in rows)
    text = out.with_suffix(".md").read_text()
    assert "| 1e+11 | 4096 |" in text and text.index("What wins where") < 400
    assert out.with_suffix(".png").stat().st_size > 10_000
