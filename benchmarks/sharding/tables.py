# SPDX-License-Identifier: Apache-2.0
"""The tables of simulate_sharding.py: those of the model, and measured rows beside it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import markdown
from benchmarks.sharding.model import (
    KEEP,
    METHODS,
    STAGES,
    Machine,
    epoch,
    memory,
    search,
    stages,
    with_cross_entropy,
)

SAMPLES = (10**9, 10**10, 10**11)
SMALLER = (10**6, 10**7, 10**8)
RANKS = (1, 8, 64, 512, 4096)
SIZES = tuple(2**power for power in range(1, 13))  # numbers of ranks that are compared
PERIOD = 10  # the default of a Pruner
GPU_BYTES = (24e9, 80e9)


def sharded_method(m: Machine) -> str:
    """The search that `sharding="shard"` uses on such a machine."""
    return "plain" if m.tree else "one-read"


def where(wins: Callable[[int], bool]) -> str:
    """The numbers of ranks among SIZES for which `wins` is true, in words."""
    won = [size for size in SIZES if wins(size)]
    if not won:
        return "never"
    first, last = SIZES.index(won[0]), SIZES.index(won[-1])
    if last - first + 1 > len(won):  # with a gap
        return ", ".join(map(str, won))
    if won[-1] == SIZES[-1]:
        return f"from {won[0]}"
    return f"at {won[0]}" if len(won) == 1 else f"{won[0]} to {won[-1]}"


def sharding_wins(samples: int, m: Machine, **options: Any) -> str:
    """The numbers of ranks on which an epoch is faster with sharded scores."""
    method = sharded_method(m)
    return where(
        lambda ranks: (
            epoch(method, samples, ranks, m, **options)
            < epoch("replicate", samples, ranks, m, **options)
        )
    )


def one_read_wins(samples: int, m: Machine) -> str:
    """The numbers of ranks on which one read searches faster, and the greatest speed-up."""
    ratios = {
        ranks: search("plain", samples, ranks, m) / search("one-read", samples, ranks, m)
        for ranks in SIZES
    }
    found = where(lambda ranks: ratios[ranks] > 1)
    return found if found == "never" else f"{found}, up to {max(ratios.values()):.1f}x"


def ranks_that_fit(samples: int, limit: float) -> str:
    """The least number of ranks on which sharded scores take less than `limit` bytes."""
    for ranks in (1, *SIZES):
        if memory("plain", samples, ranks, visited=1.0) < limit:
            return str(ranks)
    return f"> {SIZES[-1]}"


def winners(m: Machine) -> str:
    """Markdown: on which ranks sharding is faster, and how that depends on the setting."""
    overlapped = dataclasses.replace(m, at_once=True)
    questions: dict[str, Callable[[int], str]] = {
        "sharding faster": lambda n: sharding_wins(n, m),
        "without the steps": lambda n: sharding_wins(n, m, steps=False),
        f"selecting every {PERIOD}th epoch": lambda n: sharding_wins(n, m, period=PERIOD),
        "all-to-alls at once": lambda n: sharding_wins(n, overlapped),
    }
    if m.tree:
        questions["with `cross_entropy`"] = lambda n: sharding_wins(n, with_cross_entropy(m))
    questions["one read faster than plain search"] = lambda n: one_read_wins(n, m)
    rows = [["N", *questions]]
    for samples in (*SMALLER, *SAMPLES):
        rows.append([f"{samples:.0e}", *(answer(samples) for answer in questions.values())])
    return f"**{m.name}**\n\n{markdown.table(rows)}"


def memory_table() -> str:
    """Markdown: memory per rank, and where it fits."""
    names = " or ".join(f"{limit / 1e9:.0f} GB" for limit in GPU_BYTES)
    head = ["N", "replicate, GB per rank", f"fits {names}", f"sharded: fits {names} from, ranks"]
    rows = [head]
    for samples in (*SMALLER, *SAMPLES):
        whole = memory("replicate", samples, 64)
        fits = " / ".join("yes" if whole < limit else "no" for limit in GPU_BYTES)
        ranks = " / ".join(ranks_that_fit(samples, limit) for limit in GPU_BYTES)
        rows.append([f"{samples:.0e}", f"{whole / 1e9:.3g}", fits, ranks])
    return markdown.table(rows)


def seconds_text(seconds: float) -> str:
    """Seconds with three digits, in us, ms or s."""
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3)):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def long_table(m: Machine) -> str:
    """Markdown: seconds and memory of each method."""
    rows = [["N", "ranks", *METHODS, "GB per rank: replicate / sharded"]]
    for samples in SAMPLES:
        for ranks in RANKS:
            cells = [seconds_text(epoch(method, samples, ranks, m)) for method in METHODS]
            sizes = [memory(method, samples, ranks) / 1e9 for method in METHODS[:2]]
            text = " / ".join(f"{size:.3g}" for size in sizes)
            rows.append([f"{samples:.0e}", str(ranks), *cells, text])
    return markdown.table(rows)


def stage_table(m: Machine, samples: int = SAMPLES[0]) -> str:
    """Markdown: seconds of each stage."""
    rows = [[f"N = {samples:.0e}, ranks", "method", *STAGES]]
    for ranks in RANKS[1:]:
        for method in ("replicate", sharded_method(m)):
            cells = [
                seconds_text(s) if s else "" for s in stages(method, samples, ranks, m).values()
            ]
            rows.append([str(ranks), method, *cells])
    return markdown.table(rows)


def meanings() -> dict[str, str]:
    """What the docstring of `Machine` says of each attribute."""
    _, _, attributes = inspect.cleandoc(str(Machine.__doc__)).partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.*)$", attributes, re.MULTILINE)
    return {name: text.removesuffix(".") for name, text in found}


def parameters(machines: Sequence[Machine]) -> str:
    """Markdown: the parameters of the model for some machines, and their costs in ns."""
    skipped = ("name", "origin", "rounds", "latency", "bandwidth", "tree", "at_once", "cores")
    names = [f.name for f in dataclasses.fields(Machine) if f.name not in skipped]
    meaning = meanings()
    rows = [["nanoseconds per item", *(m.name for m in machines), "meaning"]]
    for name in names:
        rows.append([name, *(f"{getattr(m, name) * 1e9:.3g}" for m in machines), meaning[name]])
    origins = "\n".join(f"- {m.name}: {m.origin}; {m.rounds} rounds." for m in machines)
    return f"## Parameters\n\n{origins}\n\n{markdown.table(rows)}\n"


def tables(machines: Sequence[Machine]) -> str:
    """Markdown: all tables of the model."""
    lines = [
        "# The model of sharding",
        "",
        f"`benchmarks/sharding/simulate_sharding.py` wrote this page; k = {KEEP} N. Nothing here "
        "ran on a GPU or on several machines.",
        "The costs of one rank are measured or assumed; `benchmarks/sharding/model.py` holds the "
        "model. Numbers of ranks are powers of two,",
        "from 2 to 4096.",
        "",
        "## What wins where",
        "",
        "The tables name the numbers of ranks for which sharded scores add less time to an epoch "
        "than replicated ones. The time is that of",
        "recording the visits by `observe`, and of the beginning of the next epoch, with a "
        "selection. Each further column changes one thing.",
        "Sharded ranks search plainly on a GPU, and in one read on a CPU. The last column is "
        "about the search alone; for a GPU it is what",
        "one read would save.",
        "",
    ]
    for m in machines:
        lines += [winners(m), ""]
    lines += [
        "**Memory**: the most for scores and selections, after an epoch that visited "
        "everything. It is counted as on a CPU, where sums over",
        "masks take 8 bytes a sample.",
        "",
        memory_table(),
        "",
        "## Seconds per epoch that selects",
        "",
        "With `replicate`, every rank holds the scores of all samples. `plain` and `one-read` have "
        "sharded scores. `plain` searches keys in",
        "several passes; `one-read` reads the scores once and searches a few candidates. "
        "The stages of an epoch are:",
        "",
        "- steps: visits are recorded in the training steps",
        "- exchange: replicated tables are made equal, or visits are sent to the ranks that own "
        "their samples",
        "- enter: the owners update their tables by these visits",
        "- selection: the ranks select the samples of the next epoch",
        "- order: each rank computes the order of its samples",
        "",
    ]
    for m in machines:
        lines += [f"**{m.name}**", "", long_table(m), "", stage_table(m), ""]
    return "\n".join(lines)


def epoch_table(rows: Sequence[dict[str, Any]], m: Machine | None) -> str:
    """Markdown: measured epochs on few ranks of one machine, and the model's."""
    lines = [["ranks"]]
    for name in ("replicate", "sharded"):
        lines[0] += [f"{name}, seconds: steps + begin", "model", "GB", "model"]
    for row in rows:
        cells = [str(row["ranks"])]
        for name, method in (("replicate", "replicate"), ("shard", "one-read")):
            run, place = row["epochs"][name], (method, row["samples"], row["ranks"])
            cells.append(f"{run['seconds']:.2f}: {run['steps']:.2f} + {run['begin']:.2f}")
            cells.append(f"{epoch(*place, m):.2f}" if m else "")
            cells += [f"{run['bytes_per_rank'] / 1e9:.2f}", f"{memory(*place) / 1e9:.2f}"]
        lines.append(cells)
    return markdown.table(lines)


def series_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: measured selections on few ranks of one machine."""
    lines = [
        [
            *("ranks", "one-read, seconds", "sample", "pass", "search", "list", "GB per rank"),
            *("plain, seconds", "keys", "search", "list", "GB per rank", "exact"),
        ]
    ]
    for row in rows:
        cells = [str(row["ranks"])]
        for run, names in (
            (row, ("seconds", "sample", "pass", "search", "list")),
            (row["plain"], ("seconds", "keys", "search", "list")),
        ):
            cells += [f"{run[name]:.3f}" for name in names]
            cells.append(f"{run['peak_bytes_per_rank'] / 1e9:.2f}")
        cells.append("yes" if row["exact"] else "NO")
        lines.append(cells)
    return markdown.table(lines)
