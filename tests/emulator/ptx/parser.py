# SPDX-License-Identifier: Apache-2.0
"""Reads the PTX that nvcc writes: a module's kernels as texts, and a kernel as statements."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

# Sizes in bytes.
TYPE_BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)},
    "f32": 4,
    "f64": 8,
}
# What a kernel may say before its body; all of it is about performance.
KERNEL_DIRECTIVES = re.compile(r"\s*(\.(maxntid|minnctapersm|maxnreg|reqntid)\s+[\d, ]+\s*)*")


class PtxError(ValueError):
    """PTX that the translator does not know; the message names the line."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    line: int
    guard: str  # the predicate, perhaps with "!"; empty: none
    opcode: str
    operands: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Label:
    line: int
    name: str


@dataclasses.dataclass(frozen=True)
class Registers:
    """Names of registers of one type; "%r*" stands for %r0, %r1 and so on."""

    line: int
    type: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scope:
    line: int
    opens: bool


Statement = Instruction | Label | Registers | Scope


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable in memory: a parameter, in shared memory, or in a thread's local memory."""

    name: str
    align: int
    bytes: int


@dataclasses.dataclass
class Kernel:
    """A kernel; lines count from 1 in the text that it was read from."""

    name: str
    parameters: list[Variable]
    shared: list[Variable]
    dynamic: list[str]  # names of the dynamic shared memory
    local: list[Variable] = dataclasses.field(default_factory=list)
    body: list[Statement] = dataclasses.field(default_factory=list)


VARIABLE = re.compile(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$%]+)(?:\[(\d*)\])?$")
DYNAMIC = re.compile(r"^\s*\.extern\s+\.shared\s+[^;]*?([\w$]+)\[\];", re.M)
SHARED = re.compile(r"^\s*(?:\.visible\s+|\.weak\s+)?\.shared\s+([^;]+);", re.M)
ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)?\.entry\s+([\w$]+)\s*\(([^)]*)\)")
ANONYMOUS = re.compile(r"(\d+)(_GLOBAL__N__)")


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def without_comments(text: str) -> str:
    """The text with its lines kept."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def with_host_names(text: str) -> str:
    """Anonymous namespaces as g++ mangles them; nvcc's names hold a hash of the file's path."""
    parts, end = [], 0
    for match in ANONYMOUS.finditer(text):
        if match.start() < end:
            continue
        parts += [text[end : match.start()], "12_GLOBAL__N_1"]
        end = match.start(2) + int(match[1])
    return "".join([*parts, text[end:]])


def closing_brace(text: str, opening: int) -> int:
    """Where the brace at `opening` is closed."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, opening):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise PtxError(f"line {line_of(text, opening)}: this brace is never closed")


def variable(text: str, line: int) -> Variable:
    """A variable from its declaration, without the state space; of an open size: 0 bytes."""
    match = VARIABLE.match(text.strip())
    if match is None or match[2] not in TYPE_BYTES:
        raise PtxError(f"line {line}: unknown declaration {text.strip()!r}")
    size = TYPE_BYTES[match[2]]
    count = 1 if match[4] is None else int(match[4] or 0)
    return Variable(match[3], int(match[1] or size), size * count)


def split_kernels(module: str) -> dict[str, str]:
    """Each kernel's own text, with the shared variables of the module that it names, by its name.

    The text does not depend on where in the module the kernel stands, nor on the source's path.
    """
    text = with_host_names(without_comments(module))
    bodies: list[tuple[str, str]] = []
    outside, end = [], 0
    for match in ENTRY.finditer(text):
        last = closing_brace(text, text.index("{", match.end()))
        bodies.append((match[1], text[match.start() : last + 1]))
        outside.append(text[end : match.start()])
        end = last + 1
    rest = "\n".join([*outside, text[end:]])
    for word in (".func", ".const", ".global", ".tex"):
        if re.search(rf"^\s*(\.visible\s+|\.weak\s+|\.extern\s+)?\{word}\b", rest, re.M):
            raise PtxError(f"the module has a {word}, which the translator does not know")
    declarations = [m[0].strip() for m in (*DYNAMIC.finditer(rest), *SHARED.finditer(rest))]
    kernels = {}
    for name, body in bodies:
        words = set(re.findall(r"[\w$]+", body))
        used = [d for d in declarations if re.split(r"[\[;]", d)[0].split()[-1] in words]
        kernels[name] = "\n".join([*used, re.sub(r"\$L__BB\d+_", "$L__BB_", body)]) + "\n"
    return kernels


def parse_kernel(source: str) -> Kernel:
    """The kernel of a text that has one, as split_kernels() returns it."""
    text = without_comments(source)
    entry = ENTRY.search(text)
    if entry is None:
        raise PtxError("no .entry")
    opening = text.index("{", entry.end())
    between = text[entry.end() : opening]
    if KERNEL_DIRECTIVES.fullmatch(between) is None:
        raise PtxError(f"line {line_of(text, opening)}: unknown directive in {between.strip()!r}")
    parameters = []
    for part in filter(str.strip, entry[2].split(",")):
        declaration = re.sub(r"\.ptr\s+(\.\w+\s+)?\.align\s+\d+", "", part)
        declaration = declaration.strip().removeprefix(".param")
        parameters.append(variable(declaration, line_of(text, entry.start())))
    head = text[: entry.start()]
    shared = [variable(m[1], line_of(text, m.start())) for m in SHARED.finditer(head)]
    kernel = Kernel(entry[1], parameters, shared, DYNAMIC.findall(head))
    last = closing_brace(text, opening)
    for line, piece in pieces(text[opening + 1 : last], line_of(text, opening)):
        add_statement(kernel, line, piece)
    return kernel


def pieces(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Statements with the line that they begin in: braces of scopes, labels, what a ; ends."""
    token = re.compile(r"[;{}:]")
    start = position = 0
    while (match := token.search(text, position)) is not None:
        before = text[start : match.start()]
        position = match.end()
        if match[0] == "{" and before.strip():
            position = text.index("}", position) + 1  # the registers of a vector
            continue
        if match[0] == ":" and not re.fullmatch(r"\s*[\w$]+", before):
            continue  # of an opcode such as shared::cluster
        statement = before.strip()
        line += before.count("\n", 0, len(before) - len(before.lstrip()))
        if match[0] in "{}":
            if statement:
                raise PtxError(f"line {line}: {statement!r} has no end")
            yield line, match[0]
        elif match[0] == ":":
            yield line, statement + ":"
        elif statement:
            yield line, statement
        line += statement.count("\n") + before.count("\n", len(before.rstrip()) or len(before))
        start = position
    if text[start:].strip():
        raise PtxError(f"line {line}: {text[start:].strip()!r} has no end")


def add_statement(kernel: Kernel, line: int, text: str) -> None:
    if text in "{}":
        kernel.body.append(Scope(line, text == "{"))
    elif text.endswith(":"):
        kernel.body.append(Label(line, text[:-1]))
    elif text.startswith(".reg"):
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        if match is None or match[1] not in {*TYPE_BYTES, "pred"}:
            raise PtxError(f"line {line}: unknown declaration {text!r}")
        names = [re.sub(r"<\d+>", "*", name.strip()) for name in match[2].split(",")]
        kernel.body.append(Registers(line, match[1], tuple(names)))
    elif text.startswith(".shared"):
        kernel.shared.append(variable(text.removeprefix(".shared"), line))
    elif text.startswith(".local"):
        kernel.local.append(variable(text.removeprefix(".local"), line))
    elif not text.startswith(".pragma"):
        kernel.body.append(instruction(line, text))


def instruction(line: int, text: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S)
    if match is None:
        raise PtxError(f"line {line}: no instruction: {text!r}")
    operands = re.split(r",(?![^{\[]*[}\]])", match[3]) if match[3] else []
    return Instruction(line, match[1] or "", match[2], tuple(part.strip() for part in operands))
