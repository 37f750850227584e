# SPDX-License-Identifier: Apache-2.0
"""The Markdown tables of bench_selection.py, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import markdown
from benchmarks.common.targets import Target
from benchmarks.common.timing import median_ms
from benchmarks.selection import targets
from benchmarks.selection.cases import USUAL

Row = dict[str, Any]

TITLES = {
    "ops": "Every op, lognormal scores",
    "weighted": "Weighted draws without replacement",
    "distributions": "Distributions of scores",
    "shares": "Kept shares",
    "order": "Random order, materialised or looked up batch by batch",
}
CPU_COLUMNS = ["op", "ms", "limit, B per sample", "times a plain read of the limit"]
GPU_COLUMNS = ["op", "ms", "ms, graph replay", "kernels", "limit, B per sample"]
GPU_COLUMNS += ["% of the copy rate", "host waits"]
RIVAL_COLUMNS = ["rival", "its ms", "ours is faster by", "target", "reached"]


def preamble(
    machine: Mapping[str, Any], copy_rate: float | None, packages: Mapping[str, bool]
) -> list[str]:
    """The machine, and what a reader must know of the tables."""
    lines = ["# Selection: ours and its rivals", ""]
    lines += [f"- {name.replace('_', ' ')}: {value or 'none'}" for name, value in machine.items()]
    if copy_rate is not None:
        lines.append(f"- copy rate, read and written: {copy_rate / 1e9:.0f} GB/s")
    absent = [name for name, present in packages.items() if not present]
    if absent:
        lines.append(f"- not installed, so not measured: {', '.join(absent)}")
    busy = machine["load_average"][0]
    if busy > 0.25 * machine["cores"]:
        lines += [
            "",
            f"**This machine is busy** (load {busy}). Threads wait for each other then: ratios of "
            "threaded calls to numpy are too low. Repeat it on an idle machine, or with "
            "OMP_NUM_THREADS=1.",
        ]
    lines += [
        "",
        "ms: median of the rounds, in which ours and its rivals take turns. limit: every score is "
        "read once, every int64 id written once.",
    ]
    if copy_rate is None:
        return [*lines, "Targets are stated for 2 cores, k = 0.3 N and lognormal scores."]
    return [
        *lines,
        "ms are CUDA events around one call after the L2 cache was flushed, gaps between launches "
        "included; a graph replay has hardly any.",
        "% of the copy rate: the limit's bytes over the time of the replay.",
        "host waits: how often the host waited for the GPU, by torch's count / by the profiler's; "
        "- where nobody counted.",
        "Targets are stated for an H100 and k = N/3.",
    ]


def table_of(row: Row) -> tuple[Any, ...]:
    """The key of the table that a row belongs to."""
    return row["part"], row["num_samples"]


def header(row: Row) -> list[str]:
    """Title and head of the table of a row."""
    title = f"## {TITLES[row['part']]}, N = {row['num_samples']:,}"
    if row["part"] in ("distributions", "order"):
        title += f", k = {row['k']:,}"
    columns = (GPU_COLUMNS if on_gpu(row) else CPU_COLUMNS) + RIVAL_COLUMNS
    return ["", title, "", *markdown.head(columns)]


def lines(row: Row) -> list[str]:
    """A line for each rival; the first one holds our own numbers."""
    own = _own_cells(row)
    found = []
    for cells in [*_measured(row), *_refused(row)] or [["-"] * len(RIVAL_COLUMNS)]:
        found.append(markdown.row([*own, *cells]))
        own = [""] * len(own)
    return found


def _own_cells(row: Row) -> list[str]:
    own = own_ms(row)
    names = {
        "distributions": f"{row['op']}: {row['scores']}",
        "shares": f"{row['op']}: k = {row['k']:,}",
    }
    name = names.get(row["part"], str(row["op"]))
    limit = f"{row['limit_bytes'] / row['num_samples']:.2f}"
    if not on_gpu(row):
        return [name, _ms(own), limit, f"{own / median_ms(row['seconds']['read']):.1f}"]
    replay = replay_ms(row)
    rate = row["limit_bytes"] / ((replay or own) / 1e3)
    launches = sum(kernel["launches"] for kernel in row.get("kernels", []))
    return [
        name,
        _ms(own),
        "-" if replay is None else _ms(replay),
        str(launches or "-"),
        limit,
        f"{100 * rate / row['copy_rate']:.0f} %",
        f"{_waits(row, 'ours')} / {row.get('waits', '-')}",
    ]


def _measured(row: Row) -> list[list[str]]:
    found = []
    for rival, seconds in rival_seconds(row).items():
        ratio = median_ms(seconds) / own_ms(row)
        target = _target(row, rival)
        promise = ["-", "-"] if target is None else [target.text, _yes(target.reached(ratio))]
        time = _ms(median_ms(seconds))
        if len(seconds) < len(row["seconds"]["ours"]):
            time += f" ({len(seconds)} rounds)"
        if on_gpu(row):
            time += f" ({_waits(row, rival)} host waits)"
        if rival in row.get("rival_graph_seconds", {}):
            time += f", {_ms(median_ms(row['rival_graph_seconds'][rival]))} in a replay"
        found.append([rival, time, f"{ratio:.2f}x", *promise])
    return found


def _refused(row: Row) -> list[list[str]]:
    promise = ["ours runs", "yes"] if _beyond_torch(row) else ["-", "-"]
    return [[rival, "refuses", reason[:70], *promise] for rival, reason in row["refused"].items()]


@dataclass(frozen=True)
class Verdict:
    """A target that applies to a measurement, and whether it is reached."""

    what: str
    measured: str
    target: str
    reached: bool


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts of all targets that apply to these rows."""
    found = []
    for row in rows:
        what = f"{row['op']}, {row['scores']} scores, N = {row['num_samples']:,}"
        for rival, seconds in rival_seconds(row).items():
            if target := _target(row, rival):
                ratio = median_ms(seconds) / own_ms(row)
                versus = f"{what}, against {rival}"
                found.append(Verdict(versus, f"{ratio:.2f}x", target.text, target.reached(ratio)))
        if row["refused"] and _beyond_torch(row):
            found.append(Verdict(what, "runs", "runs where torch.multinomial refuses", True))
        replay, wanted = replay_ms(row), _wanted_ms(row)
        if replay is not None and wanted is not None:
            target_text = f"at most {wanted:g} ms in a replay"
            found.append(Verdict(what, f"{_ms(replay)} ms", target_text, replay <= wanted))
    ratio_of_extremes = spread(rows)
    if ratio_of_extremes is not None:
        what = "select_top_k, slowest over fastest distribution"
        reached = ratio_of_extremes <= targets.SPREAD
        found.append(
            Verdict(what, f"{ratio_of_extremes:.2f}", f"at most {targets.SPREAD}", reached)
        )
    return found


def summary(rows: Sequence[Row]) -> list[str]:
    """How many targets are reached, the verdicts, and the kernels where they were recorded."""
    found = verdicts(rows)
    reached = sum(verdict.reached for verdict in found)
    lines = ["", f"## Targets: {reached} of {len(found)} reached", ""]
    if found:
        lines += markdown.head(["what", "measured", "target", "reached"])
    else:
        lines.append("None of them is about these N, k and parts.")
    for verdict in found:
        cells = [verdict.what, verdict.measured, verdict.target, _yes(verdict.reached)]
        lines.append(markdown.row(cells))
    return lines + _kernel_table(rows)


def spread(rows: Sequence[Row]) -> float | None:
    """The slowest distribution's time over the fastest one's.

    Each time is relative to that of lognormal scores in the same rounds. bfloat16 scores count as
    slowest only: they have half the bytes.
    """
    costs = {
        row["scores"]: own_ms(row) / median_ms(row["seconds"][USUAL])
        for row in rows
        if row["part"] == "distributions"
        and row["num_samples"] >= targets.SPREAD_FROM
        and USUAL in row["seconds"]  # not so with --no-rivals
    }
    wide = [cost for scores, cost in costs.items() if scores != "bfloat16"]
    return max(costs.values()) / min(wide) if wide else None


def _kernel_table(rows: Sequence[Row]) -> list[str]:
    """The time of each kernel of each op at each N, slowest first."""
    profiled = [row for row in rows if row["part"] == "ops" and row.get("kernels")]
    if not profiled:
        return []
    lines = ["", "## Kernels", "", *markdown.head(["op", "N", "kernel", "launches", "µs"])]
    for row in profiled:
        own = [row["op"], f"{row['num_samples']:,}"]
        for kernel in row["kernels"]:
            name = kernel["kernel"].split("(")[0].replace("|", "/")
            cells = [name, str(kernel["launches"]), f"{kernel['microseconds']:.1f}"]
            lines.append(markdown.row([*own, *cells]))
            own = ["", ""]
    return lines


def on_gpu(row: Row) -> bool:
    return "copy_rate" in row


def own_ms(row: Row) -> float:
    return median_ms(row["seconds"]["ours"])


def replay_ms(row: Row) -> float | None:
    return median_ms(row["graph_seconds"]) if "graph_seconds" in row else None


def rival_seconds(row: Row) -> dict[str, list[float]]:
    return {name: times for name, times in row["seconds"].items() if name not in ("ours", "read")}


def _target(row: Row, rival: str) -> Target | None:
    kind = "cuda" if on_gpu(row) else "cpu"
    parts = ("ops", "weighted") + (("distributions",) if kind == "cuda" else ())
    if row["part"] not in parts:
        return None
    return targets.find(kind, row["op"], rival, row["num_samples"], row["keep"], row["scores"])


def _wanted_ms(row: Row) -> float | None:
    if not on_gpu(row) or row["part"] not in ("ops", "distributions"):
        return None
    return targets.gpu_milliseconds(row["op"], row["num_samples"], row["keep"])


def _beyond_torch(row: Row) -> bool:
    return row["part"] == "weighted" and bool(row["num_samples"] > targets.MULTINOMIAL_LIMIT)


def _waits(row: Row, name: str) -> str:
    count = row["host_syncs"].get(name)
    return "-" if count is None else str(count)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _yes(reached: bool) -> str:
    return "yes" if reached else "NO"
