# SPDX-License-Identifier: Apache-2.0
"""Checks the language of pages, docstrings, comments and messages: short, in the field's words.

    python scripts/check_language.py            # every page, and the sources of KINDS
    python scripts/check_language.py FILE ...   # these files only, exceptions included

A sentence has at most 25 words. Inline code, a link and a formula count as one word. Code blocks
are not read. `scripts/language_exceptions.txt` lists what is not checked yet; an
entry that is not needed any more is a finding, so that the list only shrinks.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from language_sources import texts_in

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = ROOT / "scripts" / "language_exceptions.txt"
MAX_WORDS = 25

# Words that say something indirectly, and what to write instead.
BANNED = {
    r"\bnobody\b": "name who does not",
    r"\bsomebody\b": "name who does",
    r"\b(meet|meets|met|meeting)\b": "exchange, synchronize, encounter",
    r"\bask(s|ed|ing)? for\b": "request, read, need",
    r"\bleft behind\b": "kept, not removed",
    r"\bturn(s|ed)? round\b": "transpose, reverse",
    r"\bas there\b[.,;:]": "repeat what holds",
    r"\benter(s|ed|ing)? (the |its |their |other |no )?(scores?|loss(es)?|values?|visits?)\b":
        "record, update",
    r"\b(is|are|was|were) entered\b|\bentered on purpose\b": "is recorded",
    r"\benters? the \w+'s? scores": "record",
    r"\bgrain of\b": "resolution",
    r"\b(is|are) (undone|taken back)\b": "roll back",
    r"\bgets there\b": "reaches",
    r"\bbusiness of\b": "the task of",
    r"\bas ever\b": "as before",
    r"\bgo(es)? the same way\b": "work alike",
}  # fmt: skip
# Which texts of the sources are checked.
ALL_KINDS = ("docstring", "message", "comment")
KINDS = {
    "dynprune_cuda": ALL_KINDS,
    "scripts": ALL_KINDS,
    "csrc": ("comment",),
    "benchmarks": ("docstring", "message"),
    "examples": ("docstring", "message"),
}
SOURCES = (".py", ".h", ".cuh", ".cu", ".cpp")
PROSE_DIRECTIVES = ("note", "tip", "warning", "important", "glossary", "admonition", "figure")
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|al|Fig|Eq|No)\.")
SECTION = re.compile(
    r"(Args|Arguments|Attributes|Returns|Raises|Yields|Note|Notes|Example|Examples|References):$"
)
ENTRY = re.compile(r"\*{0,2}[A-Za-z_][\w.]*(, \*{0,2}\w+)*( \([^)]*\))?: ")


class Finding(NamedTuple):
    """Something to rewrite: where it is, and why."""

    path: str
    line: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}: {self.text}"


def plain(text: str) -> str:
    """The text as it is read: inline code is one word, a link is its text."""
    text = re.sub(r"(`+)(.+?)\1", "Code", text)
    text = re.sub(r"\{[\w:]+\}(?=Code)", "", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"https?://[^\s)]*[^\s).,;:]", "link", text)
    return re.sub(r"\s+", " ", re.sub(r"(\*\*|__)", "", text)).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph that `plain` has prepared."""
    text = ABBREVIATIONS.sub(r"\1", text)
    return [one for one in re.split(r"(?<=[.!?])[)\"']?\s+(?=[^a-z])", text) if one]


def num_words(sentence: str) -> int:
    """Words with a letter or a digit; an operator is none."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def markdown_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, list items, headings and table cells, with their first line's number."""
    block: list[str] = []
    start, fence, is_prose, in_comment, is_indented = 1, "", False, False, False

    def take() -> Iterator[tuple[int, str]]:
        if block:
            yield start, " ".join(block)
            block.clear()

    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        mark = re.match(r"(`{3,}|:{3,})(.*)", stripped)
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            yield from take()
            fence = ""
        elif mark and (not fence or is_prose):
            yield from take()
            name = re.match(r"\{(\w+)\}", mark[2])
            is_prose = name is not None and name[1] in PROSE_DIRECTIVES
            fence = mark[1]
        elif fence and (not is_prose or re.match(r":[\w-]+:", stripped)):
            continue
        elif fence and block and line.startswith(" ") != is_indented:  # a term of a glossary
            yield from take()
            start = number
            block.append(stripped)
        elif in_comment or stripped.startswith("<!--"):
            in_comment = "-->" not in stripped
        elif line.startswith("    ") and not (block or fence):
            continue  # an indented block is code
        elif not stripped or re.fullmatch(r"\([\w-]+\)=", stripped):
            yield from take()
        elif stripped.startswith("|"):
            yield from take()
            yield from ((number, cell) for cell in re.split(r"(?<!\\)\|", stripped) if cell.strip())
        else:
            item = re.match(r"(#+|[-*+]|\d+\.|:|>) +", stripped)
            if item:
                yield from take()
            if not block:
                start = number
            block.append(stripped[item.end() :] if item else stripped)
            if item and item[1].startswith("#"):
                yield from take()
        is_indented = line.startswith(" ")
    yield from take()


def docstring_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and entries of a Google docstring; indented code is left out."""
    block: list[str] = []
    start, section, after_blank, in_code = 0, False, True, False

    def take() -> Iterator[tuple[int, str]]:
        if block:
            yield start, " ".join(block)
            block.clear()

    for number, line in enumerate(inspect.cleandoc(text).splitlines()):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if not stripped:
            yield from take()
            after_blank = True
            continue
        if indent == 0:
            in_code, section = False, bool(SECTION.match(stripped))
        elif not section and (after_blank or stripped.startswith(">>>")):
            in_code = True
        after_blank = False
        if in_code or (indent == 0 and section):
            yield from take()
            continue
        entry = ENTRY.match(stripped) if section and indent == 4 else None
        item = re.match(r"([-*]|\d+\.) +", stripped)
        begins = entry or item
        if begins:
            yield from take()
        if not block:
            start = number
        block.append(stripped[begins.end() :] if begins else stripped)
    yield from take()


def judged(path: str, blocks: Iterator[tuple[int, str]], first_line: int = 0) -> Iterator[Finding]:
    """What is wrong in these blocks of a file."""
    for line, block in blocks:
        text = plain(block)
        for sentence in sentences(text):
            if (count := num_words(sentence)) > MAX_WORDS:
                reason = f"{count} words, more than {MAX_WORDS}"
                yield Finding(path, first_line + line, sentence, reason)
        for pattern, instead in BANNED.items():
            if found := re.search(pattern, text, re.I):
                reason = f'"{found[0]}" is indirect ({instead})'
                yield Finding(path, first_line + line, text[:90], reason)


def check(path: Path) -> list[Finding]:
    """The findings of a page, or of a source file."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    text = path.read_text()
    if path.suffix == ".md":
        return list(judged(name, markdown_blocks(text)))
    kinds = KINDS.get(name.split("/")[0], ALL_KINDS)
    found: list[Finding] = []
    for kind, (line, said) in texts_in(path, text):
        if kind in kinds:
            blocks = docstring_blocks(said) if kind == "docstring" else iter([(0, said)])
            found += judged(name, blocks, line)
    return found


def checked_files() -> list[Path]:
    """The pages and source files whose language is checked."""
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")
    pages = [*(ROOT / name for name in names), *(ROOT / "docs").rglob("*.md")]
    places = [path for folder in KINDS for path in (ROOT / folder).rglob("*")]
    return sorted(pages) + sorted(path for path in places if path.suffix in SOURCES)


def exceptions(text: str) -> list[tuple[str, str]]:
    """(path, beginning of a sentence) of each entry; "" stands for the whole file."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    parts = [line.partition(": ") for line in lines if line]
    return [(path.strip(), sentence.strip()) for path, _, sentence in parts]


def without_exceptions(
    findings: list[Finding], allowed: list[tuple[str, str]]
) -> tuple[list[Finding], list[str]]:
    """The findings that no entry allows, and the entries that allow nothing."""

    def fits(finding: Finding, entry: tuple[str, str]) -> bool:
        return finding.path == entry[0] and finding.text.startswith(entry[1])

    kept = [one for one in findings if not any(fits(one, entry) for entry in allowed)]
    unused = [
        ": ".join(filter(None, entry))
        for entry in allowed
        if not any(fits(one, entry) for one in findings)
    ]
    return kept, unused


def main(arguments: list[str]) -> int:
    """Prints the findings; 0 if there is none."""
    if arguments:
        found = [one for path in arguments for one in check(Path(path).resolve())]
        unused: list[str] = []
    else:
        every = [one for path in checked_files() for one in check(path)]
        found, unused = without_exceptions(every, exceptions(EXCEPTIONS.read_text()))
    for finding in found:
        print(finding)
    for entry in unused:
        print(f"{EXCEPTIONS.name}: nothing needs this entry any more; remove it: {entry}")
    print(f"language: {len(found)} findings, {len(unused)} exceptions without need")
    return int(bool(found or unused))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
