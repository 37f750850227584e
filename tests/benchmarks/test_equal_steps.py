# SPDX-License-Identifier: Apache-2.0
"""The experiments of equal steps: their files, their data, their runs and their report."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from idx_images import write_fashion
from packed_cifar import jpegs, pack
from paths import ROOT

from benchmarks.equal_steps import experiment as program
from benchmarks.equal_steps.config import Cell, Method, Setting, read_experiment
from benchmarks.equal_steps.data import make_task
from benchmarks.equal_steps.differences import paired
from benchmarks.equal_steps.goals import goals_table
from benchmarks.equal_steps.report import write_report
from benchmarks.equal_steps.savings import budget_for, saving, steps_saved
from benchmarks.equal_steps.train import train

CONFIGS = sorted((ROOT / "benchmarks" / "equal_steps" / "configs").glob("*.toml"))

SMALL = """
title = "small"
[common]
data = "fashion"
model = "conv3-2"
image_size = 7
samples = 60
validation = 20
batch_size = 10
precision = "float32"
[settings.one]
budget = 2
[settings.two]
budget = 4
[settings.noisy]
budget = 2
label_noise = 0.5
[methods.full]
label = "full data"
policy = "full"
[methods.default]
label = "default"
pruner = { keep = 0.5 }
[methods.equal]
label = "equal"
policy = "Weighted"
options = { power = 0.5 }
pruner = { keep = 0.5, class_shares = "equal" }
groups = true
[methods.more]
label = "more"
policy = "full"
steps = 1.5
[[runs]]
settings = ["one", "two", "noisy"]
methods = ["full", "default", "equal", "more"]
seeds = [0, 1]
[steps]
settings = ["one", "two"]
method = "default"
[[goals]]
text = "never worse"
method = "default"
settings = ["one", "noisy"]
[[goals]]
text = "much better"
method = "equal"
settings = ["one"]
least = 99.0
[[goals]]
text = "fewer steps"
method = "default"
settings = ["one", "two"]
times = 1.5
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with 200 grey images in IDX files, and 40 packed colour images."""
    write_fashion(tmp_path / "data" / "fashion_mnist")
    images = jpegs(40)
    packed = pack(images, [i % 4 for i in range(40)], [0] * 30 + [1] * 10)
    (tmp_path / "data" / "cifar10.bin").write_bytes(packed)
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(autouse=True)
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def run(config: Path, out: Path, root: Path, *options: str) -> list[dict]:
    program.main([str(config), "--out", str(out), "--data-root", str(root), *options])
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:keep=")
def test_committed_files_are_right(path: Path) -> None:
    made = read_experiment(path)
    keys = {made.key(cell) for cell in made.cells}
    assert len(keys) == len(made.cells), "every run has a key of its own"
    for name in {cell.method for cell in made.cells}:
        made.methods[name].make(1000, [0, 1] * 500, 0, "cpu", budget=10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:keep=")
def test_the_runs_of_a_gpu_are_made_on_the_cpu(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method of `gpu_session.sh sweep`, with its network and bfloat16, on 40 tiny images."""
    packed = pack(jpegs(60), [i % 4 for i in range(60)], [0] * 50 + [1] * 10)
    (root / "cifar10.bin").write_bytes(packed)
    path = next(path for path in CONFIGS if path.stem == "cifar10_one_gpu")
    made = read_experiment(path)
    small = {
        name: dataclasses.replace(setting, validation=10, batch_size=16, budget=budget)
        for (name, setting), budget in zip(made.settings.items(), (1, 2), strict=True)
    }
    assert {setting.model for setting in small.values()} == {"resnet9"}
    assert {setting.precision for setting in small.values()} == {"bfloat16"}
    experiment = dataclasses.replace(made, settings=small)
    monkeypatch.setattr(program, "read_experiment", lambda _: experiment)
    out = tmp_path / "out"
    entries = run(path, out, root, "--seeds", "0", "--minutes", "20", "--settings", "budget20")
    assert {entry["method"] for entry in entries} == set(made.methods)
    assert all(entry["seconds"] > 0 and entry["test"] >= 0 for entry in entries)
    entries = run(path, out, root, "--seeds", "0", "--methods", made.baseline)
    assert len(entries) == len(made.methods) + 1, "the other setting's"
    assert "full data" in (out / "report.md").read_text()


@pytest.mark.slow
def test_runs_are_made_once_and_reported(config: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(config, out, root, "--settings", "one", "--seeds", "0")
    assert [(e["method"], e["steps"]) for e in first] == [
        ("full", 12),
        ("default", 12),
        ("equal", 12),
        ("more", 18),
    ]
    entries = run(config, out, root)
    assert entries[:4] == first and len(entries) == 24
    assert run(config, out, root) == entries
    by_cell = {(e["setting"], e["method"], e["seed"]): e for e in entries}
    assert len(by_cell) == 24
    for entry in entries:
        assert entry["samples"] <= 10 * entry["steps"] and entry["never_visited"] == 0
        assert (entry["wrong_labels"] > 20) == (entry["setting"] == "noisy")
        assert (entry["tilt"] is not None) == (entry["method"] == "default")
        assert 0 <= entry["gini"] < 1 and entry["machine"]["threads"] == 1
    full = by_cell["one", "full", 0]
    assert full["epochs"] == 2 and full["gini"] == 0
    report = (out / "report.md").read_text()
    assert "| default |" in report and "**missed**" in report and "(2)" in report
    assert "epochs' worth of steps, batches of 10" in report
    assert not list(out.glob("*.claim"))


@pytest.mark.slow
def test_forward_passes_cost_steps(config: Path, root: Path, tmp_path: Path) -> None:
    table = '[methods.rescored]\nlabel = "r"\npruner = { keep = 0.5 }\nrescore = true\n'
    table += '[[runs]]\nsettings = ["two"]\nmethods = ["rescored"]\nseeds = [0]\n[steps]'
    config.write_text(SMALL.replace("[steps]", table))
    (entry,) = run(config, tmp_path / "out", root, "--methods", "rescored")
    # To be spent: 24. The warm-up costs 6, four pruned epochs 3 + 1 (of 30 samples), the last 2.
    assert (entry["steps"], entry["rescored"], entry["epochs"]) == (20, 120, 6)


@pytest.mark.parametrize(
    ("policy", "kept", "budget", "epochs", "annealed"),
    [
        ("infobatch", 0.62, 10, 14, 2),  # 1 + 2 whole epochs, 11 of 0.62: 9.8; of 15 epochs 10.4
        ("infobatch", 1.0, 7, 7, 1),
        ("seta", 0.5, 6, 11, 0),  # 1 + 10 * 0.5
        ("seta", 0.1, 0.2, 1, 0),
    ],
)
def test_a_policy_is_told_how_long_its_run_is(
    policy: str, kept: float, budget: float, epochs: int, annealed: int
) -> None:
    pruner = Method("x", policy, kept=kept).make(1000, None, 0, "cpu", budget)
    assert (pruner.schedule.epochs, pruner.schedule.anneal_epochs) == (epochs, annealed)
    assert Method("x", policy).make(1000, None, 0, "cpu", budget).schedule.epochs is None
    longer = Method("x", policy, steps=2.0, kept=kept).make(1000, None, 0, "cpu", budget / 2)
    assert longer.schedule.epochs == epochs


@pytest.mark.slow
def test_a_run_reaches_its_last_phase(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("fashion", "conv3-2", 8, samples=100, image_size=7, batch_size=10)
    method = Method("x", "infobatch", kept=0.65)
    pruner = method.make(100, None, 0, "cpu", setting.budget)
    monkeypatch.setattr(Method, "make", lambda *_: pruner)
    result = train(setting, method, make_task(setting, root, 0), 0, "cpu")
    planned = pruner.schedule.epochs
    assert planned is not None and abs(result["epochs"] - planned) <= 1
    assert pruner.stats()["phase"] == "annealing" and pruner.num_selected == 100


@pytest.mark.slow
def test_a_run_depends_on_its_seed_only(config: Path, root: Path, tmp_path: Path) -> None:
    options = ("--settings", "one", "--methods", "default", "--seeds", "1")
    (first,), (second,) = (run(config, tmp_path / name, root, *options) for name in "ab")
    for name in ("seconds", "cpu_seconds", "finished", "machine"):
        first.pop(name), second.pop(name)
    assert first == second


def test_a_claimed_run_is_left_to_its_process(config: Path, root: Path, tmp_path: Path) -> None:
    made = read_experiment(config)
    key = made.key(made.cells[0])
    with program.claimed(tmp_path, key) as mine:
        assert mine and (tmp_path / f"{key}.claim").read_text() == str(os.getpid())
        with program.claimed(tmp_path, key) as other:
            assert not other
    (tmp_path / f"{key}.claim").write_text("999999999")  # of a process that was killed
    with program.claimed(tmp_path, key) as mine:
        assert mine
    assert not list(tmp_path.glob("*.claim"))


def test_tasks_are_drawn_by_the_seed(root: Path) -> None:
    setting = Setting("fashion", "conv3-2", 1, samples=100, validation=30, image_size=14)
    first, again, other = (make_task(setting, root, seed) for seed in (0, 0, 1))
    assert first.train.inputs.shape == (100, 1, 14, 14) and len(first.validation.labels) == 30
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert torch.equal(first.train.labels, first.clean) and first.num_classes == 4
    held_out = {image.numpy().tobytes() for image in first.validation.inputs}
    assert not held_out & {image.numpy().tobytes() for image in first.train.inputs}
    with pytest.raises(ValueError, match="samples must be at most 170, got 180"):
        make_task(Setting("fashion", "x", 1, samples=180, validation=30), root, 0)
    with pytest.raises(ValueError, match="data must be cifar10, digits, fashion or words, got 'x'"):
        make_task(Setting("x", "x", 1), root, 0)
    packed = make_task(Setting("cifar10", "x", 1), root, 0)
    assert packed.train.inputs.shape == (30, 3, 8, 8) and len(packed.test.labels) == 10


def test_a_long_tail_has_the_sizes_that_it_should(root: Path) -> None:
    setting = Setting("fashion", "conv3-2", 1, samples=40, imbalance=8)
    task = make_task(setting, root, 0)
    assert task.clean.bincount().tolist() == [40, 20, 10, 5]


def test_differences_are_paired() -> None:
    runs = {0: {"test": 3.0}, 1: {"test": 5.0}, 2: {"test": 9.0}}
    baseline = {0: {"test": 1.0}, 1: {"test": 1.0}, 7: {"test": 0.0}}
    assert paired(runs, baseline, "test") == (3.0, 1.0, 2)
    mean, error, number = paired({0: {"test": 2.0}}, baseline, "test")
    assert (mean, number) == (1.0, 1) and math.isnan(error)
    assert paired({5: {"test": 2.0}}, baseline, "test") is None


def runs_of(seeds: range = range(2), **values: float) -> dict[str, dict[int, dict[str, float]]]:
    """One run of every method for each seed, whose number decides between tenths of a point."""
    return {
        name: {seed: {"test": value + seed * 0.1} for seed in seeds}
        for name, value in values.items()
    }


def cells_of(table: str) -> list[list[str]]:
    """The rows of a table without its head."""
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]


def test_goals_and_steps(config: Path) -> None:
    made = read_experiment(config)
    found = {
        "one": runs_of(full=80.0, default=85.0, equal=81.0),
        "two": runs_of(full=90.0, default=91.0),
    }
    assert [row[2:] for row in cells_of(goals_table(made, found))] == [
        ["+5.00 ± 0.00 (2)", "reached"],
        ["", "not run"],
        ["+1.00 ± 0.00 (2)", "**missed**"],
        ["1.41 ± 0.00 times (2)", "**missed**"],
        ["more than 1.00 times (2)", "no run on full data was long enough"],
    ]
    table = steps_saved(made, found).splitlines()
    # Half-way between budgets 2 and 4, and beyond all of them.
    assert "| 2 | 80.05 | 85.05 | 2.8 | 1.41 ± 0.00 | 2 |" in table
    assert "| 4 | 90.05 | 91.05 | more than 4 | more than 1.00 | 2 |" in table


def test_fresh_seeds_are_judged_for_themselves(config: Path) -> None:
    config.write_text("fresh_from = 3\n" + SMALL)
    made = read_experiment(config)
    old, new = (
        runs_of(range(3), full=80.0, default=81.0),
        runs_of(range(3, 5), full=80.0, default=77),
    )
    found = {"one": {name: {**old[name], **new[name]} for name in old}, "noisy": old}
    first, second, *_ = cells_of(goals_table(made, found))
    assert first[2:] == ["-0.60 ± 0.98 (5)", "reached", "-3.00 ± 0.00 (2)", "**missed**"]
    assert second[2:] == ["+1.00 ± 0.00 (3)", "reached", "", "not run"]
    assert "seeds from 3 on" in goals_table(made, found).splitlines()[0]


def test_the_factor_has_the_error_of_its_seeds(config: Path) -> None:
    made = read_experiment(config)
    found = {
        "one": {"full": {0: {"test": 80.0}, 1: {"test": 80.0}}},
        "two": {"full": {0: {"test": 90.0}, 1: {"test": 90.0}}},
    }
    found["one"]["default"] = {0: {"test": 80.0}, 1: {"test": 90.0}}
    both = saving(made, found, "one", "default")
    assert both is not None and both.times == pytest.approx(math.sqrt(2))
    assert both.error == pytest.approx((2 - 1) / 2)  # of the factors 1 and 2
    found["one"]["default"][1] = {"test": 91.0}  # beyond the curve
    beyond = saving(made, found, "one", "default")
    assert beyond is not None and math.isnan(beyond.error) and "±" not in str(beyond)
    found["one"]["default"] = {0: {"test": 70.0}}
    below = saving(made, found, "one", "default")
    assert below is not None and below.seeds == 1 and str(below) == "less than the least budget"
    assert saving(made, found, "noisy", "default") is None
    assert saving(made, {"one": found["one"]}, "one", "default") is None


@pytest.mark.parametrize(
    ("accuracy", "budget"),
    [(9, 0), (10, 2), (15, 4), (20, 8), (18, 2 * 4**0.8), (21, 16), (22, math.inf)],
)
def test_budgets_are_read_from_the_curve(accuracy: float, budget: float) -> None:
    curve = [(2.0, 10.0), (8.0, 20.0), (12.0, 19.0), (16.0, 21.0)]
    assert budget_for(accuracy, curve) == pytest.approx(budget)


def test_the_report_has_both_times_the_tilt_and_the_cost(config: Path, tmp_path: Path) -> None:
    config.write_text("fresh_from = 3\n" + SMALL)
    made = read_experiment(config)
    out = tmp_path / "out"
    out.mkdir()
    numbers = {"test": 1.0, "validation": None, "train": 2.0, "gini": 0.5, "cpu_seconds": 1800.0}
    tilts = {0: 0.25, 1: 0.75}
    lines = [
        {
            **{"key": made.key(cell), "setting": "one", "method": cell.method, "seed": cell.seed},
            **{**numbers, "seconds": 3600.0 + cell.seed},
            "tilt": tilts[cell.seed] if cell.method == "default" else None,
        }
        for cell in made.cells
        if cell.setting == "one" and cell.method in ("full", "default")
    ]
    lines.append({**lines[0], "key": "of another file"})
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(made, out)
    text = (out / "report.md").read_text()
    assert "4 runs took 2.0\ncore-hours in all" in text
    assert "with seeds below 3 in these settings" in " ".join(text.split())
    table = text[text.index("| method |") :].splitlines()
    assert table[0].endswith("| Gini | tilt | wall time, s | CPU time, s |")
    assert table[2].endswith("| 0.50 |  | 3600 | 1800 |")
    assert table[3].endswith("| 0.50 | 0.50 | 3600 | 1800 |")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budget = 4", "budgets = 4", "settings.two: unknown budgets"),
        ("budget = 4", 'budget = "4"', "settings.two: budget must be float, got '4'"),
        ('label = "more"', "", "methods.more: .*'label'"),
        ("steps = 1.5", "kept = 1.5", r"methods.more: kept must be in \(0, 1\], got 1.5"),
        ('["full", "default", "equal", "more"]', '["none"]', r"runs.methods .* got 'none'"),
        ("seeds = [0, 1]", "", "runs needs settings, methods and seeds"),
        ('method = "equal"', 'method = "none"', "goals names the unknown none"),
        ('title = "small"', 'titles = "small"', "unknown titles"),
        ('title = "small"', "fresh_from = true", "fresh_from must be an int from 0, got True"),
        ("times = 1.5", "times = 1.5\nleast = 1.0", "least and times exclude each other"),
        ('["one", "two"]\ntimes', '["noisy"]\ntimes', "goals with times need steps of noisy"),
        ('title = "small"', "title =", "is no TOML"),
    ],
)
def test_wrong_files_are_refused(config: Path, old: str, new: str, message: str) -> None:
    config.write_text(SMALL.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_experiment(config)


def test_keys_tell_what_a_run_depends_on(config: Path) -> None:
    made = read_experiment(config)
    keys = {made.key(cell) for cell in made.cells}
    assert len(keys) == 24
    config.write_text(SMALL.replace('label = "default"', 'label = "another name"'))
    assert read_experiment(config).key(Cell("one", "default", 0)) in keys
    config.write_text(SMALL.replace("keep = 0.5 }", "keep = 0.4 }"))
    assert read_experiment(config).key(Cell("one", "default", 0)) not in keys
    config.write_text(SMALL.replace("steps = 1.5", "steps = 1.5\nkept = 0.5"))
    told = read_experiment(config)
    assert {told.key(cell) for cell in told.cells} - keys == {
        told.key(cell) for cell in told.cells if cell.method == "more"
    }


def test_words_are_split_and_encoded() -> None:
    pytest.importorskip("wordfreq")
    from benchmarks.equal_steps.words import LANGUAGES, LENGTH, load_words

    (letters, labels), (test_letters, test_labels) = load_words()
    assert letters.shape == (len(labels), LENGTH) and len(labels) > 30_000
    assert 0.15 < len(test_labels) / (len(labels) + len(test_labels)) < 0.25
    assert set(labels.tolist()) == set(range(len(LANGUAGES)))
    assert len(torch.unique(torch.cat([letters, test_letters]), dim=0)) > 0.95 * (
        len(labels) + len(test_labels)
    )
