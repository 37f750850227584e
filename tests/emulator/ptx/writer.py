# SPDX-License-Identifier: Apache-2.0
"""Writes a kernel as a C++ function over the emulator: each PTX thread is a fiber that runs it.

The statement of a PTX line stands on the line of that number, so that the emulator's reports name
lines of the PTX. Registers are variables of the function, unsigned unless they are floats.
"""

from __future__ import annotations

import re
from collections import defaultdict

from ptx import access
from ptx.access import cpp_type
from ptx.opcodes import OPERATIONS
from ptx.parser import (
    TYPE_BYTES,
    Instruction,
    Kernel,
    Label,
    PtxError,
    Registers,
    Scope,
    Statement,
)

SPECIAL_REGISTERS = {
    **{f"%tid.{d}": f"threadIdx.{d}" for d in "xyz"},
    **{f"%ntid.{d}": f"blockDim.{d}" for d in "xyz"},
    **{f"%ctaid.{d}": f"blockIdx.{d}" for d in "xyz"},
    **{f"%nctaid.{d}": f"gridDim.{d}" for d in "xyz"},
    "%laneid": "emulator::lane()",
    "%lanemask_eq": "1u << emulator::lane()",
    "%lanemask_lt": "(1u << emulator::lane()) - 1",
    "%lanemask_ge": "~0u << emulator::lane()",
    # Where the driver tells cooperative groups that the blocks of a grid meet: 0 if they cannot.
    "%envreg1": "reinterpret_cast<u64>(emulator_grid_workspace()) >> 32",
    "%envreg2": "reinterpret_cast<u64>(emulator_grid_workspace())",
}
INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")
FLOAT = re.compile(r"0([fF][0-9a-fA-F]{8}|[dD][0-9a-fA-F]{16})")


def is_float(t: str) -> bool:
    return t.startswith("f")


def numbered(name: str) -> str:
    """What declares a register among numbered ones: "%r*" of "%r12"."""
    return re.sub(r"\d+$", "*", name)


class Writer:
    """One kernel's way to C++."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.lines: dict[int, list[str]] = defaultdict(list)
        self.line = 0
        self.previous = ""  # the opcode of the instruction before
        self.registers: list[dict[str, str]] = [{}]  # types, by name, of each open scope
        self.shared = [v.name for v in kernel.shared]
        self.locals = [v.name for v in kernel.local]
        self.parameters = [v.name for v in kernel.parameters]
        body = [s for s in kernel.body if isinstance(s, Instruction)]
        self.used: dict[str, list[str]] = defaultdict(list)  # registers, by what declares them
        named = " ".join(" ".join((s.guard, *s.operands)) for s in body)
        for name in sorted(set(re.findall(r"%\w+", named))):
            for declared in {name, numbered(name)}:
                self.used[declared].append(name)

    def emit(self, code: str) -> None:
        self.lines[self.line].append(code)

    # ---- operands

    def register(self, name: str) -> tuple[str, str]:
        """A register's name in C++, and its type."""
        for scope in reversed(self.registers):
            for known in (name, numbered(name)):
                if known in scope:
                    return name.replace("%", "_"), scope[known]
        raise PtxError(f"unknown register {name}")

    def value(self, operand: str, t: str) -> str:
        """An operand as a C++ expression of type `t`."""
        if operand.startswith("!") and t == "pred":
            return f"!{self.value(operand[1:], t)}"
        if operand in SPECIAL_REGISTERS:
            return f"({cpp_type(t)})({SPECIAL_REGISTERS[operand]})"
        if operand.startswith("%"):
            return self.read_register(operand, t)
        if FLOAT.fullmatch(operand):
            return self.float_constant(operand, t)
        if INTEGER.fullmatch(operand):
            return self.integer_constant(operand, t)
        return f"({cpp_type(t)})({self.symbol(operand)})"

    def read_register(self, operand: str, t: str) -> str:
        name, kind = self.register(operand)
        if (kind == "pred") != (t == "pred"):
            raise PtxError(f"{operand} is a {kind}, no {t}")
        if kind == "pred":
            return name
        size, wanted = TYPE_BYTES[kind], TYPE_BYTES[t]
        if is_float(kind) or is_float(t):
            if size != wanted:
                raise PtxError(f"{operand} is a {kind}, no {t}")
            return name if kind == t else f"ptx::bits<{cpp_type(t)}>({name})"
        if size < wanted:
            raise PtxError(f"{operand} is a {kind}, too small for {t}")
        return name if size == wanted and not t.startswith("s") else f"({cpp_type(t)}){name}"

    def float_constant(self, operand: str, t: str) -> str:
        size = 4 if operand[1] in "fF" else 8
        if TYPE_BYTES[t] != size:
            raise PtxError(f"{operand} is no {t}")
        pattern = f"0x{operand[2:]}{'u' if size == 4 else 'ull'}"
        return f"ptx::bits<{t}>({pattern})" if is_float(t) else f"({cpp_type(t)}){pattern}"

    def integer_constant(self, operand: str, t: str) -> str:
        number = int(operand.rstrip("U"), 0)
        if t == "pred":
            return "true" if number else "false"
        if is_float(t):
            raise PtxError(f"{operand} is no {t}")
        return f"({cpp_type(t)}){number % 2**64}ull"

    def symbol(self, text: str) -> str:
        """The address of a variable, perhaps with an offset: shared ones' in the window."""
        match = re.fullmatch(r"([\w$]+)(?:\s*\+\s*(-?\d+))?", text)
        if match is None:
            raise PtxError(f"unknown operand {text!r}")
        name, offset = match[1], int(match[2] or 0)
        if name in self.kernel.dynamic or name in self.shared:
            number = 0 if name in self.kernel.dynamic else 1 + self.shared.index(name)
            return f"{number}u * ptx::kWindowBytes + ptx::kWindowMiddle + {offset}"
        if name in self.locals:
            return f"reinterpret_cast<u64>({name}) + {offset}"
        if name in self.parameters:
            return f"reinterpret_cast<u64>(P[{self.parameters.index(name)}]) + {offset}"
        raise PtxError(f"unknown operand {text!r}")

    def address(self, operand: str, space: str) -> str:
        """A pointer to what [operand] names in a state space."""
        match = re.fullmatch(r"\[\s*(%?[\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if match is None:
            raise PtxError(f"unknown address {operand!r}")
        base, offset = match[1], int(match[2] or 0)
        if space == "shared":
            if base.startswith("%"):
                return f"ptx::shared(window, {self.value(base, 'b32')} + {offset % 2**32}u)"
            number = self.symbol(base).split("u", 1)[0]
            return f"variables[{number}] + {offset}"
        if base.startswith("%"):
            base = self.value(base, "b64")
        elif space in ("param", "local"):
            base = self.symbol(base)
        else:
            raise PtxError(f"{base} is no address in {space} memory")
        return f"reinterpret_cast<char*>({base}) + {offset}"

    def assign(self, operand: str, t: str, code: str, widens: bool = False) -> None:
        """Sets a register to a C++ expression that is converted to type `t` first."""
        if operand == "_":
            self.emit(f"(void)({code});")
            return
        name, kind = self.register(operand)
        if kind == "pred" or t == "pred":
            if kind != t:
                raise PtxError(f"{operand} is a {kind}, the result a {t}")
            self.emit(f"{name} = {code};")
            return
        size, wanted = TYPE_BYTES[kind], TYPE_BYTES[t]
        mixed = is_float(kind) != is_float(t)
        if size != wanted and (not widens or size < wanted or mixed or is_float(t)):
            raise PtxError(f"{operand} is a {kind}, the result a {t}")
        if kind == t:
            self.emit(f"{name} = {code};")
        elif mixed:
            self.emit(f"{name} = ptx::bits<{cpp_type(kind)}>(({cpp_type(t)})({code}));")
        else:  # extended as the type says
            self.emit(f"{name} = ({cpp_type(t)})({code});")

    @property
    def site(self) -> str:
        """Where a collective operation stands, for reports: two arguments."""
        return f"kFile, {self.line}"

    # ---- statements

    def statement(self, statement: Statement) -> None:
        self.line = statement.line
        if isinstance(statement, Label):
            self.emit(f"{self.label(statement.name)}:;")
        elif isinstance(statement, Scope):
            self.emit("{" if statement.opens else "}")
            if statement.opens:
                self.registers.append({})
            else:
                self.registers.pop()
        elif isinstance(statement, Registers):
            self.declare(statement)
        else:
            self.instruction(statement)

    def label(self, name: str) -> str:
        return name.replace("$", "L")

    def declare(self, registers: Registers) -> None:
        for name in registers.names:
            self.registers[-1][name] = registers.type
            if self.used[name]:
                names = ", ".join(used.replace("%", "_") for used in self.used[name])
                self.emit(f"{cpp_type(registers.type)} {names};")

    def instruction(self, instruction: Instruction) -> None:
        if instruction.guard:
            negated = instruction.guard.startswith("!")
            name = self.value(instruction.guard.lstrip("!"), "pred")
            self.emit(f"if ({'!' if negated else ''}{name}) {{")
        operation = OPERATIONS.get(instruction.opcode)
        if operation is not None:
            result, *operands = instruction.operands
            if len(operands) != len(operation.operands):
                raise PtxError(f"{instruction.opcode} has {len(operation.operands)} operands")
            values = [
                f"({value})" if " " in value else value
                for value in map(self.value, operands, operation.operands)
            ]
            self.assign(result, operation.result, operation.code.format(*values), operation.widens)
        else:
            access.write(self, instruction)
        if instruction.guard:
            self.emit("}")
        self.previous = instruction.opcode


def write_kernel(kernel: Kernel, function: str, file: str) -> str:
    """The C++ of a kernel.

    Args:
        kernel: what parse_kernel() returned.
        function: the name of the C++ function.
        file: what the emulator's reports call the PTX.

    Raises:
        PtxError: for PTX that the translator does not know, with the line.
    """
    writer = Writer(kernel)
    for statement in kernel.body:
        try:
            writer.statement(statement)
        except PtxError as error:
            text = getattr(statement, "opcode", "")
            raise PtxError(f"{file}:{statement.line}: {text}: {error}") from None
    last = max(writer.lines, default=0)
    body = "\n".join(" ".join(writer.lines.get(n, ())) for n in range(1, last + 1))
    tags = [f"static char shared_tag_{i};" for i in range(len(kernel.shared))]
    variables = ["static_cast<char*>(emulator_dynamic_shared())"]
    for i, v in enumerate(kernel.shared):
        call = f'emulator_shared_variable(&shared_tag_{i}, {v.bytes}, "{v.name}")'
        variables.append(f"static_cast<char*>({call})")
    local = [f"alignas({v.align}) char {v.name}[{v.bytes}];" for v in kernel.local]
    lines = [
        f'extern "C" void {function}(const void* const* P) {{',
        "using namespace ptx;",
        f'static const char kFile[] = "{file}";',
        *tags,
        f"char* const variables[] = {{{', '.join(variables)}}};",
        f"const SharedWindow window = {{variables, {len(variables)}}};",
        *local,
        "bool carry = false; char* address; (void)P, (void)window, (void)carry, (void)address,",
        "(void)kFile;",
        f'#line 1 "{file}"',
        body,
        "}",
    ]
    return "\n".join(lines) + "\n"
