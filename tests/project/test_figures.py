# SPDX-License-Identifier: Apache-2.0
"""The figures that pages quote are those of the committed results; missed targets are named.

A failure shows the text that the page should have. After a new measurement, paste it.
"""

from __future__ import annotations

import json
import re
import statistics
from typing import NamedTuple

import pytest
from paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"
SCORING = ROOT / "docs" / "benchmarks" / "scoring.md"
TRAINED_ON = {
    "": "classes",
    "soft": "probabilities",
    "labels": "several labels",
    "pixels": "pixels",
    "tokens": "tokens",
}
STEPS = {
    "eager": "obvious code",
    "torch.compile": "torch.compile",
    "two ops": "our two operators",
    "loss alone": "loss without scores",
}


class Row(NamedTuple):
    """A row of a measured table: the shape as its pages write it, and the text of its target."""

    kind: str
    shape: str
    step: str
    times_ours: float
    target: str
    verdict: str


def measured(name: str) -> list[Row]:
    """The rows of a result of bench_scoring."""
    rows = json.loads((RESULTS / "bench_scoring_cpu_2cores" / f"{name}.json").read_text())["rows"]
    assert len(rows) > 20
    found = []
    for row in rows:
        target, _, verdict = row["target"].partition(": ")
        assert verdict in ("reached", "missed") or not target
        shape = " × ".join(map(str, row["shape"]))
        kind = TRAINED_ON[row["kind"]]
        found.append(Row(kind, shape, row["name"], row["times_ours"], target, verdict))
    assert sum(bool(row.target) for row in found) >= 12
    return found


def one_line(path: str) -> str:
    """A page as one line, since a sentence may be broken anywhere."""
    return " ".join((ROOT / path).read_text().split())


@pytest.mark.parametrize("page", ["README.md", "docs/concepts.md", "docs/benchmarks/scoring.md"])
def test_the_range_beside_the_plain_loss_is_the_measured_one(page: str) -> None:
    ratios = [1 / row.times_ours for row in measured("bench_scoring") if row.step == "loss alone"]
    text = f"{min(ratios):.2f} to {max(ratios):.2f} times as long as PyTorch's loss alone"
    assert len(ratios) == 8 and text in one_line(page), f"{page} should have: {text}"


def test_the_table_of_the_scored_step_is_the_measured_one() -> None:
    rows = measured("bench_scoring")
    expected = []
    for kind, shape in dict.fromkeys((row.kind, row.shape) for row in rows):
        times = {row.step: f"{row.times_ours:.1f}" for row in rows if row[:2] == (kind, shape)}
        expected.append(f"| {kind} | {shape} | {' | '.join(times[step] for step in STEPS)} |")
    text = "\n".join(expected)
    assert len(expected) == 8 and text in SCORING.read_text(), text


def test_the_sentence_on_forgetting_is_the_measured_one() -> None:
    times = [f"{row.times_ours:.1f}" for row in measured("forgetting") if row.step == "eager"]
    text = f"takes {', '.join(times[:-1])} and {times[-1]} times as long"
    assert len(times) == 4 and text in one_line("docs/benchmarks/scoring.md"), text


def test_the_sentence_on_options_is_the_measured_one() -> None:
    rows = json.loads((RESULTS / "bench_scoring_cpu_2cores" / "options.json").read_text())["rows"]
    times = [f"{row['times_ours']:.1f}" for row in rows if row["name"] == "eager"]
    text = f"takes {', '.join(times[:-1])} and {times[-1]} times as long"
    assert len(times) == 4 and text in one_line("docs/benchmarks/scoring.md"), text
    assert all(row["class_weights"] and row["label_smoothing"] == 0.1 for row in rows)


def missed(name: str) -> list[str]:
    """The beginnings of the table's rows of missed targets."""
    return [
        f"| {row.kind} | {row.shape} | {STEPS[row.step]} | {row.target} |"
        for row in measured(name)
        if row.verdict == "missed"
    ]


def test_every_missed_target_is_named() -> None:
    without, with_events = missed("bench_scoring"), missed("forgetting")
    expected = []
    for row in dict.fromkeys(without + with_events):
        where = [("without", row in without), ("with", row in with_events)]
        expected.append(f"{row} {' and '.join(word for word, is_so in where if is_so)} |")
    text = SCORING.read_text()
    _, heading, rest = text.partition("| forgetting events |")
    table = rest.split("\n\n")[0].splitlines()[2:]
    assert table == expected, "\n".join(expected)
    assert bool(heading) == bool(expected)


def test_the_gains_of_the_readme_are_the_measured_ones() -> None:
    small, readme = RESULTS / "equal_steps_small", (ROOT / "README.md").read_text()
    text = (small / "report.md").read_text()
    budget = text[text.index("## budget10") :]
    gain = re.search(
        r"\| adaptive \(the default\), keep 0.3 \| [\d.]+ \| (\+[\d.]+ ± [\d.]+)", budget
    )
    assert gain and gain[1] in readme
    steps = re.search(r"^\| 10 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert steps and f"{steps[3]} epochs" in readme
    assert json.loads((small / "results.jsonl").read_text().splitlines()[0])


def test_the_head_takes_the_memory_and_time_that_the_guide_says() -> None:
    assert "below a\nninth of that of" in (ROOT / "docs/guides/language_models.md").read_text()
    rows = json.loads((RESULTS / "linear_head_cpu_2cores.json").read_text())["rows"]
    by_shape: dict[tuple[int, ...], dict[str, dict]] = {}
    for row in rows:
        by_shape.setdefault(tuple(row["shape"]), {})[row["name"]] = row
    for ways in by_shape.values():
        ours, eager = ways["scored_linear_cross_entropy"], ways["F.linear + F.cross_entropy"]
        assert ours["extra_bytes"] < eager["extra_bytes"] / 9
        assert statistics.median(ours["seconds"]) <= statistics.median(eager["seconds"])
    assert len(by_shape) == 2
