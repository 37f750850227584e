# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/guides/choosing.md are those of the committed runs of equal steps."""

import json
import re

from paths import ROOT

from benchmarks.equal_steps.config import read_experiment
from benchmarks.equal_steps.differences import difference_text, paired

RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "benchmarks" / "equal_steps" / "configs"
GUIDE = (ROOT / "docs" / "guides" / "choosing.md").read_text().replace("−", "-")
FIGURE = r"[+-]\d\.\d\d ± \d\.\d\d"


def tries_in_the_guide() -> str:
    return GUIDE[GUIDE.index("## What was tried") : GUIDE.index("## The design experiments")]


def runs_of(experiment: str) -> dict[str, dict[str, dict[int, dict]]]:
    """The committed runs, by setting, method and seed."""
    found: dict[str, dict[str, dict[int, dict]]] = {}
    for line in (RESULTS / f"equal_steps_{experiment}" / "results.jsonl").read_text().splitlines():
        run = json.loads(line)
        found.setdefault(run["setting"], {}).setdefault(run["method"], {})[run["seed"]] = run
    return found


def rows_below(heading: str) -> list[str]:
    """The rows of the guide's first table with this column."""
    return GUIDE[GUIDE.index(heading) :].split("\n\n")[0].splitlines()[2:]


def test_the_tries_in_the_guide_are_those_of_the_report() -> None:
    report = (RESULTS / "equal_steps_tried" / "report.md").read_text()
    found = re.findall(rf"\| ({FIGURE} \(\d\)) \| [+-]", report)
    rows = "\n".join(row for row in tries_in_the_guide().splitlines() if row.startswith("|"))
    shown = re.findall(rf"\| ({FIGURE})( \(\d\))?(?= \|)", rows)
    assert len(found) == 44 and sorted(found) == sorted(a + (b or " (3)") for a, b in shown)


# A row of the guide's table: the experiment, its setting, and the methods of the last column.
COMMITTED = {
    "CIFAR-10, ResNet-10": ("cifar10", "budget20", "default"),
    "Fashion-MNIST 20,000": ("small", "budget3", "default"),
    "the same, 10 epochs": ("small", "budget10", "default"),
    "the same, 30 epochs": ("small", "budget30", "default"),
    "memorised: 6,000": ("small", "memorised", "default"),
    "underfit: CIFAR-10": ("small", "underfit", "default"),
    "10 % wrong labels": ("small", "noise10", "default", "default_trim"),
    "20 % wrong labels": ("small", "noise20", "default", "default_trim"),
    "memorised, 10 % wrong": ("small", "memorised_noise10", "default", "default_trim"),
    "class sizes 50 : 1": ("small", "longtail", "default", "default_equal"),
    "memorised, class sizes 50 : 1": ("small", "memorised_longtail", "default", "default_equal"),
    "the language of a word": ("words", "budget10", "default", "default_proportional"),
}


def test_the_table_of_the_guide_has_the_committed_differences() -> None:
    table = rows_below("| setting |")
    assert len(table) == len(COMMITTED)
    for row, (label, (name, setting, *methods)) in zip(table, COMMITTED.items(), strict=True):
        assert row.startswith(f"| {label}")
        report = (RESULTS / f"equal_steps_{name}" / "report.md").read_text()
        section = report[report.index(f"\n## {setting}\n") :].split("\n## ")[1]
        labels = read_experiment(CONFIGS / f"{name}.toml").methods
        found = [
            re.search(rf"^\| {re.escape(labels[m].label)} \| \S+ \| ([^|]+) \|", section, re.M)
            for m in methods
        ]
        assert re.findall(rf"{FIGURE} \(\d+\)", row) == [match and match[1] for match in found]


def test_differences_between_tries_in_the_guide_are_those_of_the_rows() -> None:
    found = runs_of("tried")

    def above(
        setting: str, method: str, first: int = 0, of: str = "test", other: str = "by_root"
    ) -> str:
        runs = {seed: run for seed, run in found[setting][method].items() if seed >= first}
        return difference_text(paired(runs, found[setting][other], of))

    both = "budget10", "noise10"
    expected = [
        *(above(setting, "default") for setting in both),
        *(above(setting, "default", of="validation") for setting in both),
        above("budget10", "easy_01", other="default"),
        above("budget10", "soft_4", other="default"),
        above("budget10", "of_class", other="default"),
        above("budget10", "of_group", other="default"),
        *(above(setting, "margin") for setting in both),
        *(above(setting, "margin", first=3) for setting in both),
        *(above(setting, "margin", of="validation") for setting in both),
        *(above(setting, "saturating") for setting in both),
        *(above(setting, "saturating", of="validation") for setting in both),
        above("noise10", "constant"),
        above("noise10", "constant", of="validation"),
    ]
    text = "\n".join(row for row in tries_in_the_guide().splitlines() if not row.startswith("|"))
    assert re.findall(rf"{FIGURE} \(\d\)", text) == expected
    assert above("budget10", "constant") == "+0.00 ± 0.00 (3)"
    for method in ("falling", "aged"):
        for setting in both:
            assert -0.35 < float(above(setting, method).split()[0]) < -0.15

    def steps_of(wanted: str) -> set[int]:
        return {run["steps"] for by in found.values() for run in by.get(wanted, {}).values()}

    for method in ("part_65", "part_35", "easy_01", "soft_2", "soft_4"):
        assert above("budget10", method, of="validation", other="default").startswith("-")
    assert steps_of("in_batch") == {1483} and steps_of("default") == {3125}  # less than half


# The rows of the table of seeds that nothing was chosen with: experiment, setting, method of the
# option, and the first of these seeds.
FRESH = {
    "CIFAR-10, 20 epochs' worth": ("cifar10", "budget20", None, 5),
    "Fashion-MNIST, 3 epochs' worth": ("small", "budget3", None, 10),
    "the same, 10 epochs' worth": ("small", "budget10", None, 10),
    "10 % wrong labels": ("small", "noise10", "default_trim", 10),
    "20 % wrong labels": ("small", "noise20", None, 10),
    "class sizes 50 : 1": ("small", "longtail", "default_equal", 10),
}


def test_the_table_of_fresh_seeds_is_the_measured_one() -> None:
    table = rows_below("| setting | the default, keep 0.3 | with its")
    assert len(table) == len(FRESH)
    for row, (label, (name, setting, option, first)) in zip(table, FRESH.items(), strict=True):
        assert row.startswith(f"| {label} | ")
        assert read_experiment(CONFIGS / f"{name}.toml").fresh_from == first
        found = runs_of(name)[setting]
        fresh = [
            {seed: run for seed, run in found[method].items() if seed >= first}
            for method in ("default", option)
            if method
        ]
        expected = [difference_text(paired(runs, found["full"], "test")) for runs in fresh]
        assert re.findall(rf"{FIGURE} \(\d+\)", row) == expected


# The rows of the table of UCB in the guide: the experiment and its setting.
UCB_SETTINGS = {
    "CIFAR-10, 20 epochs' worth": ("cifar10", "budget20"),
    "Fashion-MNIST, 3 epochs' worth": ("small", "budget3"),
    "the same, 10 epochs' worth": ("small", "budget10"),
    "the same, 30 epochs' worth": ("small", "budget30"),
    "class sizes 50 : 1": ("small", "longtail"),
    "10 % wrong labels": ("small", "noise10"),
    "20 % wrong labels": ("small", "noise20"),
    "the language of a word": ("words", "budget10"),
    "underfit": ("small", "underfit"),
    "memorised": ("small", "memorised"),
    "memorised, 10 % wrong labels": ("small", "memorised_noise10"),
    "memorised, class sizes 50 : 1": ("small", "memorised_longtail"),
}


def test_the_table_of_ucb_is_the_measured_one() -> None:
    table = rows_below("| UCB - full data |")
    assert len(table) == len(UCB_SETTINGS)
    for row, (label, (experiment, setting)) in zip(table, UCB_SETTINGS.items(), strict=True):
        assert row.startswith(f"| {label} | ")
        runs = runs_of(experiment)[setting]
        pairs = [
            difference_text(paired(runs["ucb_05"], runs[other], "test"))
            for other in ("full", "default")
        ]
        assert row.endswith(f"| {' | '.join(pairs)} |"), f"{label}: {pairs}"
