# SPDX-License-Identifier: Apache-2.0
"""The TOML files of benchmarks/sweep/reproduce.py, and the forecast of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from benchmarks.common.records import Epoch, Run
from benchmarks.sweep.config import Cell, SweepConfig, read_config
from benchmarks.sweep.estimate import Forecast, Speed, hours

TEXT = """
[data]
dataset = "mnist5k"
[training]
model = "cnn"
epochs = 10
batch_size = 64
lr = 1
[sweep]
methods = ["full", "static_el2n", "static_grand", "ucb", "infobatch"]
keeps = [0.1, 0.5]
seeds = [0, 1]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sweep.toml"
    file.write_text(TEXT)
    return file


def test_cells_are_seed_by_seed_and_never_twice(path: Path) -> None:
    changes = ["overhead.methods=['ucb', 'ucb_host']", "overhead.keeps=[0.5]", "overhead.seeds=[1]"]
    cells = read_config(path, changes).cells()
    names = [cell.name for cell in cells]
    assert names[:8] == [
        "full-seed0",
        "static_el2n-keep0.1-seed0",
        "static_el2n-keep0.5-seed0",
        "static_grand-keep0.1-seed0",
        "static_grand-keep0.5-seed0",
        "ucb-keep0.1-seed0",
        "ucb-keep0.5-seed0",
        "infobatch-seed0",
    ]
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 9
    assert names[-1] == "ucb_host-keep0.5-seed1" and len(set(names)) == len(names)


def test_values_have_their_types(path: Path) -> None:
    config = read_config(path, ["data.root='/a b'", "pruning.epsilon=0.25"])
    assert config.training.lr == 1.0 and isinstance(config.training.lr, float)
    assert config.sweep.keeps == (0.1, 0.5) and config.data.root == "/a b"
    assert (config.pruning.epsilon, config.pruning.period) == (0.25, 2)


def test_the_fingerprint_covers_what_decides_a_run(path: Path) -> None:
    config = read_config(path)
    same = ["sweep.seeds=[7]", "data.root='x'", "training.threads=1", "overhead.keeps=[0.3]"]
    found = ("digits", 50, 10)
    other = ["training.lr=0.5", "data.limit=9", "pruning.period=3", "static.models=1"]

    def of(config: SweepConfig, device: str = "cpu", threads: int = 2, data: Any = found) -> str:
        return config.fingerprint(device, threads=threads, data=data)

    first = of(config)
    assert all(of(read_config(path, [change])) == first for change in same)
    assert all(of(read_config(path, [change])) != first for change in other)
    # What the file leaves open: the device, the threads that torch took, the data that were found.
    assert of(config, "cuda") != first != of(config, threads=1)
    assert of(config, "cuda") == of(config, "cuda", threads=1)
    for data in (("letters", 50, 10), ("digits", 49, 10), ("digits", 50, 9)):
        assert of(config, data=data) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epoch=3", "unknown training.epoch"),
        ("trainings.epochs=3", "unknown trainings"),
        ("training.epochs=2.5", "training.epochs must be int, got 2.5"),
        ("training.epochs=true", "training.epochs must be int, got True"),
        ("training.model=3", "training.model must be str, got 3"),
        ("training.compile=1", "training.compile must be bool, got 1"),
        ("sweep.keeps=0.3", "sweep.keeps must be a list, got 0.3"),
        ("sweep.keeps=[0.3, 0.0]", r"sweep.keeps must be in \(0, 1\], got 0.0"),
        ("sweep.seeds=['a']", "sweep.seeds must be int, got 'a'"),
        ("sweep.methods=['best']", "sweep.methods must be of full, .*, got 'best'"),
        ("overhead.methods=['best']", "overhead.methods must be of full, .*, got 'best'"),
        ("training.epochs=0", "training.epochs must be at least 1, got 0"),
        ("training.evaluations=11", "evaluations must be at most training.epochs=10, got 11"),
        ("static.epochs=11", "must be at most training.epochs=10"),
        ("training.precision='int8'", "precision must be float32, bfloat16, got 'int8'"),
        ("training.device='tpu'", "training.device must be auto, cpu, cuda, got 'tpu'"),
        ("training.lr=fast", "training.lr=fast is no TOML"),
        ("epochs=3", "a change must look like training.epochs=2, got 'epochs=3'"),
        ("training.epochs", "a change must look like training.epochs=2"),
    ],
)
def test_bad_entries_are_named(path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(path, [change])


def test_missing_entries_are_named(path: Path) -> None:
    path.write_text(TEXT.replace("epochs = 10\n", ""))
    with pytest.raises(ValueError, match=r"training\.epochs is missing"):
        read_config(path)
    path.write_text("[data]\ndataset = 'mnist5k'\n[training]\nmodel = 'cnn'\n")
    with pytest.raises(ValueError, match="is missing"):
        read_config(path)
    path.write_text("data = 3\n" + TEXT.partition("[training]")[2].join(["[training]", ""]))
    with pytest.raises(ValueError, match="data must be a table, got 3"):
        read_config(path)


@pytest.mark.parametrize("name", ["tiny", "cifar10_2cores"])
def test_committed_files_are_right(name: str) -> None:
    config = read_config(ROOT / "benchmarks" / "sweep" / "configs" / f"{name}.toml")
    assert config.sweep.keeps == (0.1, 0.3, 0.5)


# Forecast

SPEED = Speed(training=1.0, evaluation=0.25, gradient_norm=4.0)


def test_forecast_adds_up_the_work(path: Path) -> None:
    config = read_config(path, ["training.evaluations=5", "static.models=2", "static.epochs=3"])
    forecast = Forecast(config, 1000, 400, SPEED)
    looks = 5 * 400 * 0.25
    assert forecast.seconds([Cell("full", None, 0)]) == 10_000 + looks
    assert forecast.seconds([Cell("ucb", 0.1, 0)]) == 1_000 + 9 * 100 + looks
    el2n = [Cell("static_el2n", keep, 0) for keep in (0.1, 0.5)]
    scoring = 2 * 3 * 1000 + 2 * 1000 * 0.25
    assert forecast.seconds(el2n) == 1_900 + 5_500 + 2 * looks + scoring
    # GraNd looks at the same models: only the first of the two trains them.
    both = [*el2n[:1], Cell("static_grand", 0.1, 0)]
    assert forecast.seconds(both) == 2 * (1_900 + looks) + scoring + 2 * 1000 * 4.0


def seen(cell: Cell, training: float, evaluation: float, static: Any = None) -> Run:
    epochs = [Epoch(9, 0.5, {"step": training / 2, "evaluation": evaluation / 2})] * 2
    return Run(cell.method, "", cell.seed, cell.keep, epochs, static=static)


def test_forecast_learns_from_what_it_saw(path: Path) -> None:
    config = read_config(path, ["training.evaluations=5", "static.models=2", "static.epochs=3"])
    forecast = Forecast(config, 1000, 400, SPEED)
    looks, models = 5 * 400 * 0.25, 2 * 3 * 1000
    full, el2n = Cell("full", None, 0), [Cell("static_el2n", keep, 0) for keep in (0.1, 0.5)]
    grand = Cell("static_grand", 0.1, 0)
    # Everything takes three times what the speed says: evaluation and scores count, too.
    forecast.observe(seen(full, 30_000, 3 * looks))
    assert forecast.seconds([full]) == pytest.approx(3 * (10_000 + looks))
    cost = {"training_seconds": 3 * models, "measuring_seconds": 3 * 500, "seconds": 3 * 6500}
    for cell, samples in zip(el2n, (1_900, 5_500), strict=True):
        forecast.observe(seen(cell, 3 * samples, 3 * looks, cost))  # in both, done once
    assert forecast.seconds(el2n) == pytest.approx(3 * (1_900 + 5_500 + 2 * looks))
    assert forecast.seconds([grand]) == pytest.approx(3 * (1_900 + looks + 8000))
    cost = {"training_seconds": 3 * models, "measuring_seconds": 3 * 8000, "seconds": 3 * 14_000}
    forecast.observe(seen(grand, 3 * 1_900, 3 * looks, cost))  # the models were there
    assert forecast.seconds([full]) == pytest.approx(3 * (10_000 + looks))


def test_forecast_knows_scores_that_are_there(path: Path) -> None:
    config = read_config(path, ["training.evaluations=5", "static.models=2", "static.epochs=3"])
    forecast = Forecast(config, 1000, 400, SPEED)
    run = 1_900 + 5 * 400 * 0.25
    el2n, grand = (Cell(method, 0.1, 1) for method in ("static_el2n", "static_grand"))
    assert forecast.seconds([el2n], [("el2n", 1)]) == run
    assert forecast.seconds([grand], [("el2n", 1)]) == run + 2 * 1000 * 4.0
    assert forecast.seconds([el2n], [("el2n", 0)]) == run + 2 * 3 * 1000 + 2 * 1000 * 0.25


def test_there_is_no_forecast_of_nothing(path: Path) -> None:
    config = read_config(path)
    forecast, full = Forecast(config, 1000, 400), Cell("full", None, 0)
    assert forecast.seconds(config.cells()) is None
    forecast.observe(seen(full, 12.0, 3.0))
    assert forecast.seconds([full]) == pytest.approx(15.0)


def test_hours() -> None:
    assert [hours(20), hours(59 * 60), hours(9000)] == ["0 min", "59 min", "2 h 30 min"]
