# SPDX-License-Identifier: Apache-2.0
"""The texts of source files that people read: docstrings, comments, and messages of errors."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

Text = tuple[int, str]  # the first line's number, and the text

# Of comments: what tools read, and lines that only divide.
_DIRECTIVE = re.compile(r"!|\s*(SPDX-|noqa|type:|fmt:|pragma|NOLINT|clang-format|mypy:|----|====)")
_OPERATOR = r"(?:[-+*/%^|&·×≤≥≠<>=!]+|mod|xor)"
_ITEM = re.compile(r"\s*([-*]|\d+\.|\w+(, \w+)*:) ")
_SHAPE = re.compile(r"\[[\w ,.+*/-]*\]|\w+\([\w ,]*\)")
_FORMULA = re.compile(rf"\S+(?: {_OPERATOR} \S+)+")
_CPP = re.compile(
    r"""//(?P<line>[^\n]*)|/\*(?P<block>.*?)\*/|R"\((?:.*?)\)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'""",
    re.DOTALL,
)


def docstrings(source: str) -> Iterator[Text]:
    """Every docstring of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.lineno, first.value.value


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What a module assigns to its names."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _said(node: ast.AST) -> list[ast.expr]:
    """The expressions of a node that become a message."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name in ("warnings.warn", "warn") or re.search(r"(Error|SystemExit)$", name):
            return node.args[:1]
    elif isinstance(node, ast.FunctionDef) and re.match("_?about_", node.name):  # warnings
        parts = [one for one in ast.walk(node) if isinstance(one, ast.Return | ast.Assign)]
        return [one.value for one in parts if one.value is not None]
    return []


def messages(source: str) -> Iterator[Text]:
    """The texts that errors and warnings show; what a text fills in is "{}"."""
    tree = ast.parse(source)
    constants = _constants(tree)
    for node in ast.walk(tree):
        for said in _said(node):
            part = constants.get(said.id, said) if isinstance(said, ast.Name) else said
            if isinstance(part, ast.JoinedStr):
                pieces = [p.value if isinstance(p, ast.Constant) else "{}" for p in part.values]
                yield part.lineno, "".join(map(str, pieces))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value


class _Comment(NamedTuple):
    """A line of a comment: where it is, its text, and whether code stands before it."""

    line: int
    column: int
    text: str
    is_trailing: bool


def _paragraphs(lines: list[_Comment]) -> Iterator[Text]:
    """The paragraphs of comments. A formula or a shape is one word; indented code is left out."""
    block: list[str] = []
    start, last = -1, _Comment(-1, -1, "", False)
    for one in [*lines, last]:
        is_code = one.text.startswith(("  ", "\t"))
        follows = (one.line, one.column) == (last.line + 1, last.column) and not one.is_trailing
        if block and (not follows or is_code or not one.text.strip() or _ITEM.match(one.text)):
            yield start, _prepared(" ".join(block))
            block = []
        if one.text.strip() and not is_code and not _DIRECTIVE.match(one.text):
            start = start if block else one.line
            block.append(one.text.strip())
        last = one


def _prepared(text: str) -> str:
    """A comment's text with formulas as one word; a name that begins a sentence is a capital."""
    text = _FORMULA.sub("`formula`", _SHAPE.sub("`shape`", text))
    return re.sub(r"(?<!e\.g)(?<!i\.e)([.!?]\)? )([a-z])", lambda m: m[1] + m[2].upper(), text)


def python_comments(source: str) -> Iterator[Text]:
    """The paragraphs of a module's comments."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from _paragraphs(
        [
            _Comment(
                *token.start, token.string.lstrip("#"), bool(token.line[: token.start[1]].strip())
            )
            for token in tokens
            if token.type == tokenize.COMMENT
        ]
    )


def cpp_comments(source: str) -> Iterator[Text]:
    """The paragraphs of the comments of a C++ or CUDA source."""
    lines = []
    for found in _CPP.finditer(source):
        text = found["line"] if found["line"] is not None else found["block"]
        begin = source.rfind("\n", 0, found.start()) + 1
        number, column = source.count("\n", 0, begin) + 1, found.start() - begin
        is_trailing = bool(source[begin : found.start()].strip())
        for i, one in enumerate((text or "").splitlines()):
            shown = re.sub(r"^\s*\* ?", " ", one) if i else one
            lines.append(_Comment(number + i, column, shown, is_trailing and not i))
    yield from _paragraphs(lines)


def texts_in(path: Path, source: str) -> Iterator[tuple[str, Text]]:
    """(kind, text) of all that people read in a source file: see the functions above."""
    if path.suffix != ".py":
        yield from (("comment", text) for text in cpp_comments(source))
        return
    yield from (("docstring", text) for text in docstrings(source))
    yield from (("message", text) for text in messages(source))
    yield from (("comment", text) for text in python_comments(source))
