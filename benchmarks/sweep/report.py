# SPDX-License-Identifier: Apache-2.0
"""The report of a sweep: Markdown tables and figures, made from its JSON lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import markdown
from benchmarks.common.records import Run, group_by, run_from_json
from benchmarks.sweep.plots import plot_curves, plot_keeps
from benchmarks.training.methods import METHODS
from benchmarks.training.report import accuracy_text, two_sigma

__all__ = ["TOLERANCE", "main_table", "overhead_table", "write_report"]

TOLERANCE = 0.005  # "within 0.5 points of full data"


def write_report(out: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes report.md and three figures in the same folder."""
    runs = [run_from_json(entry["run"]) for entry in entries]
    order = list(METHODS)
    runs.sort(key=lambda run: (order.index(run.method), run.keep or 0.0, run.seed))
    compared = [run for run in runs if METHODS[run.method].kind != "host"]
    last = entries[-1]
    title = f"{last['data']['name']}, {last['config']['training']['model']}"
    figures = []
    if compared:
        for axis, name in (("seconds", "time"), ("samples", "samples")):
            plot_curves(compared, out / f"accuracy_{name}.png", axis=axis, title=title)
            figures.append(f"![Accuracy against {name}](accuracy_{name}.png)")
        plot_keeps(compared, out / "accuracy_keep.png", title=title)
        figures.append("![Accuracy against keep](accuracy_keep.png)")
    keeps: list[float | None] = [*sorted({r.keep for r in compared if r.keep is not None})]
    parts = [f"# {title}", setting(entries)]
    num_test = last["data"]["test"]
    for keep in keeps or ([None] if compared else []):
        parts += [] if keep is None else [f"## keep {keep:g}"]
        parts += [main_table(compared, keep), sampling_error(compared, keep, num_test)]
    parts += [notes(compared, last["data"]), *figures]
    parts += ["## Where the time goes", overhead_table(runs), overhead_notes(runs)]
    (out / "report.md").write_text("\n\n".join(part for part in parts if part) + "\n")


def main_table(runs: Sequence[Run], keep: float | None) -> str:
    """One row per method with this keep or without a keep; means over the seeds."""
    groups = group_by(of_keep(runs, keep), "method")
    full = groups.get("full")
    rows = [
        (
            "method",
            "accuracy, %",
            "samples",
            "training, s",
            "static scoring, s",
            "total, s",
            "speed-up",
            f"to within {100 * TOLERANCE:g} of full, s",
        )
    ]
    for group in groups.values():
        seconds = mean(run.seconds for run in group)
        static = mean(run.static_seconds for run in group)
        rows.append(
            (
                group[0].label,
                accuracy_text(group),
                f"{mean(run.samples for run in group):,.0f}",
                f"{mean(run.train_seconds for run in group):.1f}",
                f"{static:.1f}" if static >= 0.05 else "-",
                f"{seconds:.1f}",
                f"{mean(run.seconds for run in full) / seconds:.2f}x" if full else "-",
                time_to_full(group, full),
            )
        )
    return markdown.table(rows)


def of_keep(runs: Sequence[Run], keep: float | None) -> list[Run]:
    """The runs with this keep, and those without a keep."""
    return [run for run in runs if run.keep in (keep, None)]


def sampling_error(runs: Sequence[Run], keep: float | None, num_test: int) -> str:
    """The difference that the table of this keep cannot resolve."""
    return (
        f"Differences below {two_sigma(of_keep(runs, keep), num_test):.1f} points are within the "
        "sampling error of two test sets of this size. All methods share the same test images, "
        "which mostly makes the error of a difference smaller."
    )


def time_to_full(group: Sequence[Run], full: Sequence[Run] | None) -> str:
    """Mean seconds until the accuracy is within TOLERANCE of that of full data at its end."""
    if not full:
        return "-"
    target = mean(run.accuracy for run in full) - TOLERANCE
    times = [run.seconds_to(target) for run in group]
    reached = [seconds for seconds in times if seconds is not None]
    if not reached:
        return "never"
    text = f"{mean(reached):.1f}"
    return text if len(reached) == len(group) else f"{text} ({len(reached)} of {len(group)})"


def overhead_table(runs: Sequence[Run]) -> str:
    """The parts of training time, one row per method and keep."""
    unscored = [run for run in runs if not METHODS[run.method].scores_samples]
    plain = mean(run.part("loss") / run.samples for run in unscored) if unscored else None
    rows: list[tuple[str, ...]] = [
        (
            "method",
            "keep",
            "training, s",
            "loss and scores, µs per 1,000 samples",
            "scoring and selection",
            "loss and scores",
            "selection",
            "data",
            "step",
            "evaluation, s",
        )
    ]
    for group in group_by(runs, "method", "keep").values():
        total = mean(run.train_seconds for run in group)
        shares = [
            f"{100 * mean(run.part(name) for run in group) / total:.2f} %"
            for name in ("loss", "selection", "data", "step")
        ]
        samples = mean(run.samples for run in group)
        loss, selection = (mean(run.part(name) for run in group) for name in ("loss", "selection"))
        scoring = 0.0
        if METHODS[group[0].method].scores_samples:
            scoring = math.nan if plain is None else loss - plain * samples
        share = (scoring + selection) / total
        keep = group[0].keep
        rows.append(
            (
                METHODS[group[0].method].label,
                "-" if keep is None else f"{keep:g}",
                f"{total:.1f}",
                f"{1e9 * loss / samples:,.0f}",
                "-" if math.isnan(share) else f"{100 * share:.2f} %",
                *shares,
                f"{mean(run.part('evaluation') for run in group):.1f}",
            )
        )
    return markdown.table(rows)


def setting(entries: Sequence[Mapping[str, Any]]) -> str:
    """The setting: data, model, parameters, machine."""
    last = entries[-1]
    data, machine, config = last["data"], last["machine"], last["config"]
    training, pruning = config["training"], config["pruning"]
    static = config["static"]
    hardware = sorted({entry["machine"].get("gpu", entry["machine"]["cpu"]) for entry in entries})
    commits = sorted({str(entry["machine"]["git"]) for entry in entries})
    lines = [
        f"- {data['name']}: {data['train']:,} training and {data['test']:,} test images"
        + (f"; {data['note']}" if data["note"] else ""),
        f"- {training['model']}, {training['epochs']} epochs of full data, batches of "
        f"{training['batch_size']}, one-cycle SGD with peak {training['lr']:g}, weight decay "
        f"{training['weight_decay']:g}, {training['precision']}",
        f"- dynamic methods: {pruning['warmup_epochs']} epochs on full data first, a selection "
        f"every {pruning['period']} epochs; UCB with c = {pruning['c']:g}, alpha = "
        f"{pruning['alpha']:g}, first visit {pruning['first_visit']!r}; epsilon = "
        f"{pruning['epsilon']:g}",
        f"- static scores: EL2N and GraNd over {static['models']} models of {static['epochs']} "
        f"epochs, forgetting over {static['forgetting_models']} of "
        f"{static['forgetting_epochs']}, anew for each seed",
        f"- {', '.join(hardware)}, {machine['threads']} threads; torch {machine['torch']}, "
        f"dynprune_cuda {machine['version']}, commit {', '.join(commits)}",
        f"- {len(entries)} runs; configuration {last['fingerprint']}",
    ]
    return "\n".join(lines)


def notes(runs: Sequence[Run], data: Mapping[str, Any]) -> str:
    """What a reader must know before comparing two rows."""
    if not runs:
        return ""
    seeds = len({run.seed for run in runs})
    spread = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    return "\n".join(
        [
            f"Accuracy is that after the last step, on {data['test']:,} test images, {spread}. "
            "Total time is training and static scoring; evaluation is in neither. Full data in "
            "fewer epochs and static subsets get as many samples as the dynamic methods, warm-up "
            "included; the last epoch is a random part, of at least a batch. InfoBatch decides "
            "itself how much it keeps: it is matched to no keep, and its samples differ from those "
            "of the other rows. The peak of the learning rate is one value for all, tuned for no "
            "pruned method; its shape is the same, stretched over the run's own steps, and for "
            "InfoBatch, whose steps are not known in advance, over its epochs. A model is "
            "evaluated as often in every run; the last column is the time of the first evaluation "
            "that is good enough, and so no finer than the distance of two evaluations.",
        ]
    )


def overhead_notes(runs: Sequence[Run]) -> str:
    text = (
        "Shares of training time. Loss and scores are one operator in the package's own methods: "
        "scoring is what it takes beyond torch's loss in the runs that keep no scores. Its "
        "gradient is in it too, and in the step of the others. “eager + host” is the same method "
        "by eager PyTorch operators, with the selection in NumPy on the host."
    )
    if not any(run.method == "infobatch_published" for run in runs):
        text += " InfoBatch's published code was not there to be timed."
    return text


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
