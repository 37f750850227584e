# SPDX-License-Identifier: Apache-2.0
"""The table, the figure and the numbers of train.py, from results made up here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.common.plots import COLOURS
from benchmarks.common.records import Epoch, Evaluation, Run, run_from_json
from benchmarks.training.report import make_notes, make_table, plot, write_runs


def run(
    method: str, label: str, seed: int, samples: int, seconds: float, *accuracies: float
) -> Run:
    epochs = [Epoch(samples, 0.5, {"step": seconds, "evaluation": 1.0}) for _ in accuracies]
    looks = [
        Evaluation(samples * (epoch + 1), seconds * (epoch + 1), accuracy)
        for epoch, accuracy in enumerate(accuracies)
    ]
    return Run(method, label, seed, epochs=epochs, evaluations=looks)


FULL = run("full", "full data", 0, 4000, 2.0, 0.90, 0.95, 0.982)
UCB = run("ucb", "UCB", 0, 1200, 0.5, 0.85, 0.96, 0.977)


def test_run_adds_up_its_epochs_and_takes_the_last_accuracy() -> None:
    falling = run("full", "full data", 0, 4000, 2.0, 0.90, 0.99, 0.95)
    assert (falling.samples, falling.seconds, falling.accuracy) == (12_000, 6.0, 0.95)


def test_table_text() -> None:
    assert make_table([FULL, UCB]) == (
        "method     accuracy %  samples  seconds  speed-up\n"
        "-------------------------------------------------\n"
        "full data       98.20   12,000      6.0      1.0x\n"
        "UCB             97.70    3,600      1.5      4.0x"
    )


def test_table_text_over_seeds() -> None:
    again = run("ucb", "UCB", 1, 1200, 1.5, 0.85, 0.96, 0.979)
    assert make_table([FULL, UCB, again]).splitlines()[2:] == [
        "full data         98.20   12,000      6.0      1.0x",
        "UCB        97.80 ± 0.14    3,600      3.0      2.0x",
    ]


def test_table_without_the_reference_has_no_speed_up() -> None:
    assert make_table([UCB]).splitlines()[-1] == "UCB          97.70    3,600      1.5         -"


def test_notes_state_test_size_and_sampling_error() -> None:
    notes = make_notes([FULL, UCB], num_test=1000, note="digits")
    assert "on 1,000 test images, one seed." in notes
    # 2 * sqrt(2 * 0.9795 * 0.0205 / 1000) = 0.0127
    assert "Differences below 1.3 points" in notes
    assert "all rows share them" in notes
    assert notes.endswith("data: digits.")
    two_seeds = make_notes([FULL, run("full", "full data", 1, 1, 1.0, 0.9)], num_test=10)
    assert "mean ± standard deviation over 2 seeds" in two_seeds
    assert "data:" not in two_seeds


def colours_of(path: Path) -> set[str]:
    with Image.open(path) as image:
        counts = image.convert("RGB").getcolors(maxcolors=1 << 24)
    return {"#{:02x}{:02x}{:02x}".format(*rgb) for count, rgb in counts if count > 50}


@pytest.mark.parametrize("seeds", [1, 2])
def test_plot_draws_every_method(tmp_path: Path, seeds: int) -> None:
    runs = [
        run(f"m{i}", f"method {i}", seed, 100, 1.0, 0.5, 0.9, 0.95 + 0.001 * i + 0.002 * seed)
        for i in range(5)
        for seed in range(seeds)
    ]
    path = tmp_path / "accuracy.png"
    plot(runs, path, title="title", note="note")
    with Image.open(path) as image:
        assert image.size == (1350, 750)
    assert set(COLOURS[:5]) <= colours_of(path)


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 1.0])
def test_plot_of_extreme_accuracies(tmp_path: Path, accuracy: float) -> None:
    path = tmp_path / "accuracy.png"
    runs = [run(f"m{i}", f"method {i}", 0, 100, 1.0, accuracy, accuracy) for i in range(3)]
    plot(runs, path, title="title")
    assert COLOURS[2] in colours_of(path)  # the last one lies on top


def test_plot_takes_more_methods_than_colours_and_single_epochs(tmp_path: Path) -> None:
    runs = [run(f"m{i}", f"method {i}", 0, 100, 1.0, 0.1 * i) for i in range(len(COLOURS) + 1)]
    plot(runs, tmp_path / "accuracy.png", title="title")
    assert set(COLOURS) <= colours_of(tmp_path / "accuracy.png")


def test_json_holds_every_number(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_runs(path, [FULL, UCB], {"flags": {"out": Path("demo")}})
    document = json.loads(path.read_text())
    assert document["setting"] == {"flags": {"out": "demo"}}
    assert [run_from_json(entry) for entry in document["runs"]] == [FULL, UCB]
