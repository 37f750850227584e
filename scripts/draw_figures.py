# SPDX-License-Identifier: Apache-2.0
"""Draws the diagrams of the documentation as SVG files: boxes and arrows, without a library.

    python scripts/draw_figures.py           # writes docs/images/*.svg

`tests/project/test_docs.py` checks that the committed files are what this program draws.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
INK, GREY = "#1f2933", "#52606d"
FILLS = {"data": "#e8f1fb", "work": "#e6f6ec", "result": "#fff3d6"}
EDGES = {"data": "#3b7dbf", "work": "#2f9e5b", "result": "#c58a12"}
LINE = 17


class Box(NamedTuple):
    """A box with a title and lines below it."""

    x: int
    y: int
    width: int
    kind: str
    title: str
    lines: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return 34 + LINE * len(self.lines)

    def side(self, name: str) -> tuple[float, float]:
        """The middle of a side: "left", "right", "top" or "bottom"."""
        x, y = self.x + self.width / 2, self.y + self.height / 2
        return {
            "left": (self.x, y),
            "right": (self.x + self.width, y),
            "top": (x, self.y),
            "bottom": (x, self.y + self.height),
        }[name]


class Arrow(NamedTuple):
    """An arrow between the sides of two boxes, with a label at its middle."""

    start: Box
    start_side: str
    end: Box
    end_side: str
    label: str = ""


def box_svg(box: Box) -> str:
    """The SVG elements of a box."""
    middle = box.x + box.width / 2
    parts = [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="7" '
        f'fill="{FILLS[box.kind]}" stroke="{EDGES[box.kind]}" stroke-width="1.5"/>',
        f'<text x="{middle:g}" y="{box.y + 22}" font-weight="600">{escape(box.title)}</text>',
    ]
    for row, line in enumerate(box.lines):
        y = box.y + 22 + LINE * (row + 1)
        parts.append(f'<text x="{middle:g}" y="{y}" fill="{GREY}">{escape(line)}</text>')
    return "\n".join(parts)


def arrow_svg(arrow: Arrow) -> str:
    """The SVG elements of an arrow."""
    (x1, y1), (x2, y2) = arrow.start.side(arrow.start_side), arrow.end.side(arrow.end_side)
    parts = [
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{GREY}" '
        'stroke-width="1.5" marker-end="url(#head)"/>'
    ]
    if arrow.label:
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        x, y, anchor = (x, y - 7, "middle") if y1 == y2 else (x + 8, y + 4, "start")
        parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{GREY}" text-anchor="{anchor}">'
            f"{escape(arrow.label)}</text>"
        )
    return "\n".join(parts)


def figure(title: str, size: tuple[int, int], boxes: list[Box], arrows: list[Arrow]) -> str:
    """A whole SVG file."""
    width, height = size
    body = "\n".join([*map(box_svg, boxes), *map(arrow_svg, arrows)])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" role="img" font-family="system-ui, sans-serif" \
font-size="13" fill="{INK}" text-anchor="middle">
<title>{escape(title)}</title>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" \
orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>
<rect width="{width}" height="{height}" fill="#ffffff"/>
{body}
</svg>
"""


def loop() -> str:
    """Steps record scores; selections read them."""
    batch = Box(20, 30, 150, "data", "batch", ("samples and ids",))
    step = Box(240, 30, 210, "work", "cross_entropy", ("loss, gradient, scores",))
    table = Box(520, 30, 180, "data", "score table", ("one row per sample",))
    choose = Box(520, 150, 180, "work", "set_epoch", ("selects k samples",))
    subset = Box(240, 150, 210, "result", "subset", ("ids of the epoch",))
    sampler = Box(20, 150, 150, "work", "batch sampler", ("a random order",))
    return figure(
        "The loop of a pruned training",
        (720, 220),
        [batch, step, table, choose, subset, sampler],
        [
            Arrow(batch, "right", step, "left"),
            Arrow(step, "right", table, "left", "updates"),
            Arrow(table, "bottom", choose, "top", "each period"),
            Arrow(choose, "left", subset, "right"),
            Arrow(subset, "left", sampler, "right"),
            Arrow(sampler, "top", batch, "bottom"),
        ],
    )


def selection() -> str:
    """A selection of many samples in one read of the scores."""
    scores = Box(20, 20, 190, "data", "scores", ("N values",))
    sample = Box(265, 20, 190, "work", "random sample", ("up to 2^15 or 2^16 scores",))
    bracket = Box(510, 20, 190, "result", "bracket", ("contains the k-th key",))
    one_pass = Box(20, 130, 190, "work", "one pass", ("compares N keys",))
    above = Box(265, 130, 190, "data", "above the bracket", ("one bit per sample",))
    inside = Box(510, 130, 190, "data", "candidates", ("2 to 4 % of the samples",))
    listing = Box(265, 240, 190, "result", "subset", ("k ids",))
    search = Box(510, 240, 190, "work", "exact search", ("digits of the keys",))
    return figure(
        "A selection in one read of the scores",
        (720, 310),
        [scores, sample, bracket, one_pass, above, inside, listing, search],
        [
            Arrow(scores, "right", sample, "left"),
            Arrow(sample, "right", bracket, "left"),
            Arrow(scores, "bottom", one_pass, "top"),
            Arrow(one_pass, "right", above, "left"),
            Arrow(above, "right", inside, "left", "and"),
            Arrow(bracket, "bottom", inside, "top"),
            Arrow(inside, "bottom", search, "top"),
            Arrow(search, "left", listing, "right"),
            Arrow(above, "bottom", listing, "top"),
        ],
    )


def scored_step() -> str:
    """The fused step reads the logits once and writes the gradient once."""
    logits = Box(20, 85, 160, "data", "logits", ("[batch, classes]", "read once"))
    row = Box(
        255, 85, 210, "work", "one team per row", ("max, sums, target", "row in shared memory")
    )
    gradient = Box(540, 15, 165, "result", "gradient", ("written once",))
    loss = Box(540, 94, 165, "result", "loss and scores", ("one per row",))
    table = Box(540, 175, 165, "data", "score table", ("updated",))
    return figure(
        "The fused scored step",
        (725, 245),
        [logits, row, gradient, loss, table],
        [
            Arrow(logits, "right", row, "left"),
            Arrow(row, "right", gradient, "left"),
            Arrow(row, "right", loss, "left"),
            Arrow(loss, "bottom", table, "top", "last block"),
        ],
    )


def sharding() -> str:
    """Ranks search the k-th key together."""
    ranks = [
        Box(20 + 240 * r, 20, 200, "data", f"rank {r}", ("scores of its samples",))
        for r in range(3)
    ]
    counts = [
        Box(20 + 240 * r, 115, 200, "work", "histogram", ("of a digit of the keys",))
        for r in range(3)
    ]
    reduce = Box(
        180,
        215,
        360,
        "result",
        "all-reduce",
        ("the same sums on every rank", "the next digit of the k-th key"),
    )
    picks = [Box(20 + 240 * r, 330, 200, "result", "its selected ids") for r in range(3)]
    return figure(
        "A selection over three ranks",
        (720, 385),
        [*ranks, *counts, reduce, *picks],
        [
            *(Arrow(a, "bottom", b, "top") for a, b in zip(ranks, counts, strict=True)),
            *(Arrow(b, "bottom", reduce, "top") for b in counts),
            *(Arrow(reduce, "bottom", p, "top") for p in picks),
        ],
    )


def emulator() -> str:
    """One kernel file, two compilers."""
    kernel = Box(20, 85, 170, "data", "kernel file", ("csrc/kernels/*.cu",))
    nvcc = Box(260, 25, 190, "work", "nvcc", ("registers, spills, PTX",))
    gxx = Box(260, 145, 190, "work", "g++ and emulator", ("a fiber per thread",))
    gpu = Box(520, 25, 185, "data", "GPU", ("not run so far",))
    checks = Box(520, 137, 185, "result", "checks", ("equal to the CPU", "races, bounds, memory"))
    return figure(
        "One kernel file, two compilers",
        (725, 220),
        [kernel, nvcc, gxx, gpu, checks],
        [
            Arrow(kernel, "right", nvcc, "left"),
            Arrow(kernel, "right", gxx, "left"),
            Arrow(nvcc, "right", gpu, "left"),
            Arrow(gxx, "right", checks, "left"),
        ],
    )


FIGURES = {
    "loop": loop,
    "selection": selection,
    "scored_step": scored_step,
    "sharding": sharding,
    "emulator": emulator,
}


def main() -> None:
    """Writes every figure."""
    for name, draw in FIGURES.items():
        (IMAGES / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
