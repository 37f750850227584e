# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of a sweep, from results made up here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.common.records import Epoch, Evaluation, Run
from benchmarks.sweep.plots import plot_curves, plot_keeps, style
from benchmarks.sweep.report import (
    main_table,
    overhead_table,
    sampling_error,
    time_to_full,
    write_report,
)
from benchmarks.training.methods import METHODS

pytestmark = pytest.mark.slow  # draws figures


def run(
    method: str,
    keep: float | None,
    seed: int,
    accuracies: list[float],
    *,
    samples: int = 1000,
    seconds: float = 10.0,
    static: float = 0.0,
) -> Run:
    """A run of as many epochs as accuracies."""
    parts = {"selection": 0.1, "data": 0.2, "loss": 0.4, "step": seconds - 0.7, "evaluation": 2.0}
    looks = [
        Evaluation(samples * number, seconds * number, accuracy)
        for number, accuracy in enumerate(accuracies, 1)
    ]
    return Run(
        method,
        METHODS[method].label,
        seed,
        keep,
        [Epoch(samples, 0.5, parts) for _ in accuracies],
        looks,
        {"seconds": static} if static else None,
    )


FULL = [run("full", None, seed, [0.5, 0.8, 0.9 + 0.002 * seed]) for seed in (0, 1)]
UCB = [
    run("ucb", 0.3, seed, [0.5, accuracy, 0.901], samples=400, seconds=4.0)
    for seed, accuracy in ((0, 0.88), (1, 0.897))
]
EL2N = [run("static_el2n", 0.3, seed, [0.4, 0.5, 0.6], seconds=5.0, static=7.5) for seed in (0, 1)]


def test_main_table_text() -> None:
    assert main_table([*FULL, *UCB, *EL2N, run("ucb", 0.5, 0, [0.7])], 0.3) == (
        "| method | accuracy, % | samples | training, s | static scoring, s | total, s | speed-up "
        "| to within 0.5 of full, s |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| full data | 90.10 ± 0.14 | 3,000 | 30.0 | - | 30.0 | 1.00x | 30.0 |\n"
        "| UCB | 90.10 ± 0.00 | 1,200 | 12.0 | - | 12.0 | 2.50x | 10.0 |\n"
        "| static EL2N | 60.00 ± 0.00 | 3,000 | 15.0 | 7.5 | 22.5 | 1.33x | never |"
    )


def test_time_to_full() -> None:
    """The goal is 90.1 - 0.5 points; scores that came first count."""
    assert time_to_full(UCB, FULL) == "10.0"  # after 12 and after 8 seconds
    assert time_to_full([UCB[0], run("ucb", 0.3, 1, [0.2])], FULL) == "12.0 (1 of 2)"
    early = [run("static_el2n", 0.3, 0, [0.4, 0.896, 0.9], seconds=5.0, static=7.5)]
    assert time_to_full(early, FULL) == "17.5"
    assert time_to_full(EL2N, FULL) == "never"
    assert time_to_full(EL2N, None) == "-"


def test_sampling_error_is_that_of_one_keep() -> None:
    runs = [run("full", None, 0, [0.9]), run("ucb", 0.1, 0, [0.1]), run("ucb", 0.3, 0, [0.7])]
    # 2 * sqrt(2 * rate * (1 - rate) / 200) at rates of 0.5 and 0.8
    assert "below 10.0 points" in sampling_error(runs, 0.1, 200)
    text = sampling_error(runs, 0.3, 200)
    assert "below 8.0 points" in text and "share the same test images" in text


def test_table_without_full_data_has_no_speed_up() -> None:
    row = main_table(UCB, 0.3).splitlines()[-1]
    assert row == "| UCB | 90.10 ± 0.00 | 1,200 | 12.0 | - | 12.0 | - | - |"


def test_overhead_table_text() -> None:
    rows = overhead_table([*FULL, *UCB]).splitlines()
    assert rows[0].split(" | ")[3:5] == [
        "loss and scores, µs per 1,000 samples",
        "scoring and selection",
    ]
    # The loss takes 0.4 of 10 s for 1,000 samples, and with scores 0.4 of 4 s for 400.
    assert rows[2] == (
        "| full data | - | 30.0 | 400,000 | 1.00 % | 4.00 % | 1.00 % | 2.00 % | 93.00 % | 6.0 |"
    )
    assert rows[3] == (
        "| UCB | 0.3 | 12.0 | 1,000,000 | 8.50 % | 10.00 % | 2.50 % | 5.00 % | 82.50 % | 6.0 |"
    )
    alone = overhead_table(UCB).splitlines()[2]
    assert alone.split(" | ")[4] == "-"


def entries(runs: list[Run]) -> list[dict[str, Any]]:
    config = {
        "training": {"model": "net", "epochs": 3, "batch_size": 8, "lr": 0.1}
        | {"weight_decay": 0.0, "precision": "float32"},
        "pruning": {"warmup_epochs": 1, "period": 2, "c": 1.0, "alpha": 0.8, "epsilon": 0.1}
        | {"first_visit": "zero"},
        "static": {"models": 2, "epochs": 1, "forgetting_models": 1, "forgetting_epochs": 2},
    }
    machine = {"cpu": "a cpu", "threads": 2, "torch": "2.14", "version": "0.1", "git": "abc"}
    data = {"name": "stripes", "note": "made up", "train": 1000, "test": 500}
    return [
        {"run": asdict(each), "config": config, "machine": machine, "data": data}
        | {"fingerprint": "0123"}
        for each in runs
    ]


def all_methods() -> list[Run]:
    """Three seeds of everything, with a line of its own for each."""
    runs = []
    for number, (name, method) in enumerate(METHODS.items()):
        for seed in range(3):
            for keep in (0.1, 0.3) if method.takes_keep else (None,):
                end = 0.5 + 0.03 * number + 0.01 * seed
                runs.append(run(name, keep, seed, [0.2, 0.4, end], seconds=4.0 + number))
    return runs


def test_report_holds_tables_figures_and_conditions(tmp_path: Path) -> None:
    write_report(tmp_path, entries(all_methods()))
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# stripes, net\n")
    for piece in (
        "1,000 training and 500 test images; made up",
        "## keep 0.1",
        "## keep 0.3",
        "a cpu, 2 threads; torch 2.14, dynprune_cuda 0.1, commit abc",
        "over 3 seeds",
        "## Where the time goes",
        "matched to no keep",
        "over its epochs",
        "tuned for no pruned method",
        "the last epoch is a random part",
    ):
        assert piece in text
    assert text.count("sampling error") == 2  # one for each keep
    assert "was not there to be timed" not in text
    for name in ("accuracy_time.png", "accuracy_samples.png", "accuracy_keep.png"):
        assert f"({name})" in text
        with Image.open(tmp_path / name) as image:
            assert image.width > 800 and image.height == 600


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(FULL[:1], id="one run"),
        pytest.param([run("ucb", 0.3, 0, [0.0])], id="no reference, accuracy 0"),
        pytest.param([run("ucb_host", 0.3, 0, [0.5])], id="only overhead"),
        pytest.param([*FULL[:1], run("ucb", 0.3, 0, [1.0])], id="accuracy 1"),
        pytest.param([*FULL, UCB[0]], id="a seed is missing"),
    ],
)
def test_report_of_a_sweep_that_is_not_complete(tmp_path: Path, runs: list[Run]) -> None:
    write_report(tmp_path, entries(runs))
    text = (tmp_path / "report.md").read_text()
    assert "published code was not there to be timed" in text
    assert METHODS[runs[0].method].label in text


def test_report_is_sorted_whatever_came_first(tmp_path: Path) -> None:
    write_report(tmp_path, entries([*UCB, *EL2N, *FULL]))
    table = (tmp_path / "report.md").read_text().partition("## keep 0.3")[2]
    assert table.index("full data") < table.index("static EL2N") < table.index("UCB")


def test_styles_tell_methods_apart() -> None:
    compared = [name for name, method in METHODS.items() if method.kind != "host"]
    looks = {(style(name)["color"], style(name)["linestyle"]) for name in compared}
    assert len(looks) == len(compared)


def colours_of(path: Path) -> set[str]:
    with Image.open(path) as image:
        counts = image.convert("RGB").getcolors(maxcolors=1 << 24)
    return {"#{:02x}{:02x}{:02x}".format(*rgb) for count, rgb in counts if count > 30}


def test_figures_draw_every_method(tmp_path: Path) -> None:
    runs = [each for each in all_methods() if METHODS[each.method].kind != "host"]
    wanted = {style(each.method)["color"] for each in runs}
    plot_curves(runs, tmp_path / "time.png", axis="seconds", title="title")
    plot_keeps(runs, tmp_path / "keep.png", title="title")
    for name in ("time.png", "keep.png"):
        assert wanted <= colours_of(tmp_path / name)
