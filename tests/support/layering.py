# SPDX-License-Identifier: Apache-2.0
"""Finds out which file of a source tree uses which, and compares that with a table of levels.

A table gives every folder and every top-level module a level. A file may use the files of its own
folder and those of places on lower levels. Places on one level may not use each other.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

Levels = Mapping[str, int]
# The files that each file uses, sorted. A file is named by its path below the tree.
Uses = Mapping[str, list[str]]
# Patterns of files, and the top-level folders or modules that may use them.
Reserved = Mapping[str, Sequence[str]]

CPP_SUFFIXES = {".h", ".cuh", ".cu", ".cpp"}


def numbered(*rows: str) -> Levels:
    """A table from its rows, the lowest level first; a row names the places of one level."""
    table = {name: level for level, row in enumerate(rows) for name in row.split()}
    assert len(table) == sum(len(row.split()) for row in rows), "a place is named twice"
    return table


def place(file: str) -> str:
    """The name that a table has for a file: its folder, or the module if it is in none."""
    folder, _, name = file.rpartition("/")
    return folder or name.split(".")[0]


def unnamed(uses: Uses, levels: Levels) -> list[str]:
    """Every place without a level, and every level without a place."""
    places = {place(file) for file in uses}
    missing = [f"{name} has no level in the table" for name in sorted(places - levels.keys())]
    return missing + [f"{name} is only in the table" for name in sorted(levels.keys() - places)]


def not_downwards(uses: Uses, levels: Levels) -> list[str]:
    """Every use of another place that is not on a lower level. Unnamed places are skipped."""
    found = []
    for file, used in uses.items():
        for other in used:
            here, there = place(file), place(other)
            if here == there or not {here, there} <= levels.keys():
                continue
            if levels[there] >= levels[here]:
                way = "upwards" if levels[there] > levels[here] else "sideways"
                found.append(f"{file} uses {other}: {way}, from {here} to {there}")
    return found


def out_of_reach(uses: Uses, reserved: Reserved) -> list[str]:
    """Every use of a file that is reserved for others."""
    return [
        f"{file} uses {other}: only {' and '.join(users) or 'no file'} may use {pattern}"
        for file, used in uses.items()
        for other in used
        for pattern, users in reserved.items()
        if fnmatch(other, pattern) and place(file).split("/")[0] not in users
    ]


def cycles(uses: Uses) -> list[str]:
    """The cycles that a depth-first search finds; none if and only if there is no cycle."""
    found: list[str] = []
    finished: set[str] = set()

    def visit(file: str, trail: list[str]) -> None:
        if file in trail:
            cycle = trail[trail.index(file) :]
            first = cycle.index(min(cycle))
            names = [*cycle[first:], *cycle[:first], cycle[first]]
            found.append("cycle: " + " -> ".join(names))
        elif file not in finished:
            for other in uses.get(file, ()):
                visit(other, [*trail, file])
            finished.add(file)

    for file in sorted(uses):
        visit(file, [])
    return found


def violations(uses: Uses, levels: Levels, reserved: Reserved | None = None) -> list[str]:
    """Everything in a tree that its tables do not allow."""
    found = unnamed(uses, levels) + not_downwards(uses, levels)
    return found + out_of_reach(uses, reserved or {}) + cycles(uses)


# Python


def imported_names(path: Path, package: Path) -> Iterator[str]:
    """What a file imports anywhere, as absolute dotted names; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = path.parent.relative_to(package.parent).parts
                parts = above[: len(above) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_file(name: str, package: Path) -> str | None:
    """The file of the package's module that a dotted name is or is in; None for other packages."""
    first, *parts = name.split(".")
    if first != package.name:
        return None
    for length in range(len(parts), -1, -1):
        path = package.joinpath(*parts[:length])
        if (path / "__init__.py").is_file():
            return (path / "__init__.py").relative_to(package).as_posix()
        for suffix in (".py", ".pyi"):  # a compiled module has a stub
            if length and path.with_suffix(suffix).is_file():
                return path.with_suffix(suffix).relative_to(package).as_posix()
    return None


def python_uses(package: Path) -> Uses:
    """The files of a package that each of its files imports."""
    uses = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        file = path.relative_to(package).as_posix()
        files = {module_file(name, package) for name in imported_names(path, package)}
        uses[file] = sorted(other for other in files if other not in (None, file))
    return uses


# C++


class Include(NamedTuple):
    name: str
    quoted: bool
    guarded: bool  # inside an #if


def without_comments(text: str) -> str:
    """C++ without comments and string contents, same lines; #include lines keep their names."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith(('"', "'")):
            line_start = text.rfind("\n", 0, match.start()) + 1
            if text[line_start : match.start()].lstrip().startswith("#"):
                return found
            return found[0] * 2
        return "\n" * found.count("\n")

    literal = r'"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\''
    return re.sub(rf"//[^\n]*|/\*.*?\*/|{literal}", blank, text, flags=re.S)


def includes(text: str) -> list[Include]:
    """The #include lines of a C++ file."""
    found, depth = [], 0
    for line in without_comments(text).splitlines():
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        if not directive:
            continue
        word, rest = directive[1], directive[2]
        depth += {"if": 1, "ifdef": 1, "ifndef": 1, "endif": -1}.get(word, 0)
        if word == "include" and (name := re.match(r'<([^>]+)>|"([^"]+)"', rest)):
            found.append(Include(name[1] or name[2], name[2] is not None, depth > 0))
    return found


def cpp_files(tree: Path) -> list[Path]:
    """The C++ and CUDA sources of a tree."""
    return sorted(path for path in tree.rglob("*") if path.suffix in CPP_SUFFIXES)


def included_file(path: Path, name: str, tree: Path) -> str | None:
    """The file that #include "name" finds, beside the including file or from the tree's root."""
    for target in (path.parent / name, tree / name):
        if target.is_file():
            return target.resolve().relative_to(tree.resolve()).as_posix()
    return None


def cpp_uses(tree: Path) -> Uses:
    """The files of a C++ tree that each of its files includes."""
    uses = {}
    for path in cpp_files(tree):
        names = [include.name for include in includes(path.read_text()) if include.quoted]
        files = {included_file(path, name, tree) for name in names}
        uses[path.relative_to(tree).as_posix()] = sorted(files - {None})
    return uses
