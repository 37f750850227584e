# SPDX-License-Identifier: Apache-2.0
"""Opcodes that move data, jump, or order threads: memory, shuffles, barriers, fences.

Their names are made of parts; write() knows each part or refuses the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptx.parser import TYPE_BYTES, Instruction, PtxError

if TYPE_CHECKING:
    from ptx.writer import Writer

SPACES = ("param", "global", "shared", "local")
# Hints for caches: no meaning.
HINTS = ("nc", "ca", "cg", "cs", "lu", "wb", "wt", "L1::no_allocate")
ORDERS = ("relaxed", "acquire", "release", "acq_rel")
DEVICE_SCOPES = ("gpu", "sys")
VECTORS = {"v2": 2, "v4": 4}
# Values as functions of the old one and the operands.
UPDATES = {
    "add": "old + {0}",
    "min": "ptx::minimum(old, {0})",
    "max": "ptx::maximum(old, {0})",
    "and": "old & {0}",
    "or": "old | {0}",
    "xor": "old ^ {0}",
    "exch": "{0}",
    "cas": "old == {0} ? {1} : old",
    "inc": "ptx::increment(old, {0})",
    "dec": "ptx::decrement(old, {0})",
}


def cpp_type(t: str) -> str:
    """PTX's type, or that of a register, in C++."""
    return "bool" if t == "pred" else t.replace("b", "u")


def elements(operand: str) -> list[str]:
    """The registers of a vector in braces, or the one register."""
    return [part.strip() for part in operand.strip("{}").split(",")]


class Parts:
    """The parts of an opcode behind its first; each is taken once, and none may be left."""

    def __init__(self, opcode: str) -> None:
        self.left = opcode.split(".")[1:]

    def take(self, candidates: tuple[str, ...] | dict[str, int], default: str = "") -> str:
        """The next part, if it is one of the candidates."""
        if self.left and self.left[0] in candidates:
            return self.left.pop(0)
        return default

    def done(self) -> None:
        if self.left:
            raise PtxError(f"unknown modifier .{self.left[0]}")


def ordering(parts: Parts) -> str:
    """The memory order of an access: "", volatile or one of ORDERS, of device scope."""
    order = parts.take(("volatile", "weak", *ORDERS)).replace("weak", "")
    if order in ORDERS and not parts.take(DEVICE_SCOPES):
        raise PtxError("an ordered access needs .gpu or .sys; other scopes are unknown")
    return order


def memory_operand(writer: Writer, operand: str, space: str) -> None:
    writer.emit(f"address = {writer.address(operand, space)};")


def ld(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    parts = Parts(name)
    order = ordering(parts)
    space = parts.take(SPACES)
    while parts.take(HINTS):
        pass
    count = VECTORS.get(parts.take(VECTORS), 1)
    t = parts.take(tuple(TYPE_BYTES))
    parts.done()
    registers = elements(operands[0])
    if len(registers) != count:
        raise PtxError(f"{len(registers)} registers for a vector of {count}")
    memory_operand(writer, operands[1], space)
    if order:
        if count > 1 or order not in ("acquire", "relaxed", "volatile"):
            raise PtxError(f"unknown load with .{order}")
        function = "load_acquire" if order == "acquire" else "load_relaxed"
        value = f"dynprune::{function}(reinterpret_cast<const {cpp_type(t)}*>(address))"
        writer.assign(registers[0], t, value, widens=True)
        return
    if space != "param":  # parameters are the host's
        writer.emit(f"PTX_READ(address, {count * TYPE_BYTES[t]});")
    for i, register in enumerate(registers):
        value = f"reinterpret_cast<const {cpp_type(t)}*>(address)[{i}]"
        writer.assign(register, t, value, widens=True)


def st(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    parts = Parts(name)
    order = ordering(parts)
    space = parts.take(SPACES[1:])
    while parts.take(HINTS):
        pass
    count = VECTORS.get(parts.take(VECTORS), 1)
    t = parts.take(tuple(TYPE_BYTES))
    parts.done()
    values = [writer.value(register, t) for register in elements(operands[1])]
    if len(values) != count:
        raise PtxError(f"{len(values)} registers for a vector of {count}")
    memory_operand(writer, operands[0], space)
    if order:
        if count > 1 or order not in ("release", "relaxed", "volatile"):
            raise PtxError(f"unknown store with .{order}")
        function = "store_release" if order == "release" else "store_relaxed"
        pointer = f"reinterpret_cast<{cpp_type(t)}*>(address)"
        writer.emit(f"dynprune::{function}({pointer}, ({cpp_type(t)}){values[0]});")
        return
    writer.emit(f"PTX_WRITE(address, {count * TYPE_BYTES[t]});")
    for i, value in enumerate(values):
        writer.emit(f"reinterpret_cast<{cpp_type(t)}*>(address)[{i}] = {value};")


def atom(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    """`atom` and `red`, which has no result."""
    parts = Parts(name)
    orders, order = parts.take(ORDERS), "relaxed"
    parts.take(DEVICE_SCOPES)
    space = parts.take(SPACES[1:3])
    update = parts.take(tuple(UPDATES))
    # nvcc writes the order behind the operation.
    order = orders or parts.take(ORDERS, order)
    parts.take(DEVICE_SCOPES)
    t = parts.take(tuple(TYPE_BYTES))
    parts.done()
    if not update or not t:
        raise PtxError("unknown atomic operation")
    result, memory, *given = operands if name.startswith("atom") else ("_", *operands)
    memory_operand(writer, memory, space)
    if order in ("release", "acq_rel"):
        writer.emit("emulator_note_release(address);")
    operand = "u" + t[1:] if t.startswith("s") and update == "add" else t
    values = [f"({writer.value(v, operand)})" for v in given]
    if len(values) != (2 if update == "cas" else 1):
        raise PtxError(f"{len(values)} operands for .{update}")
    kind = cpp_type(operand)
    code = UPDATES[update].format(*values)
    call = (
        f"emulator::read_modify_write(reinterpret_cast<{kind}*>(address), "
        f"[&]({kind} old) -> {kind} {{ (void)old; return ({kind})({code}); }}, "
        f"__ATOMIC_{order.upper()})"
    )
    writer.assign(result, t, call)


def mov(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    parts = Parts(name)
    t = parts.take((*TYPE_BYTES, "pred"))
    parts.done()
    if not t:
        raise PtxError("unknown type")
    target, source = operands
    if not (target + source).startswith("{") and not source.startswith("{"):
        writer.assign(target, t, writer.value(source, t))
        return
    registers = elements(target if target.startswith("{") else source)
    bits = 8 * TYPE_BYTES[t] // len(registers)
    part = f"b{bits}"
    if target.startswith("{"):
        value = writer.value(source, f"b{8 * TYPE_BYTES[t]}")
        writer.emit(f"{{ const auto whole = {value};")
        for i, register in enumerate(registers):
            writer.assign(register, part, f"({cpp_type(part)})(whole >> {i * bits})")
        writer.emit("}")
    else:
        pieces = [
            f"(u64{{{writer.value(register, part)}}} << {i * bits})"
            for i, register in enumerate(registers)
        ]
        writer.assign(target, f"b{8 * TYPE_BYTES[t]}", f"({cpp_type(t)})({' | '.join(pieces)})")


def cvta(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    """Only the shared window has addresses of its own; others are the host's pointers."""
    target, source = operands
    if name in (
        "cvta.to.global.u64",
        "cvta.global.u64",
        "cvta.local.u64",
        "cvta.to.local.u64",
        "cvta.param.u64",
        "cvta.to.param.u64",
    ):
        writer.assign(target, "u64", writer.value(source, "u64"))
    elif name == "cvta.shared.u64":
        pointer = f"ptx::shared(window, (u32)({writer.value(source, 'u64')}))"
        writer.assign(target, "u64", f"reinterpret_cast<u64>({pointer})")
    elif name == "cvta.to.shared.u64":
        value = writer.value(source, "u64")
        writer.assign(target, "u64", f"ptx::window_address(window, {value}, {writer.site})")
    else:
        raise PtxError("unknown opcode")


def shfl(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    match = re.fullmatch(r"shfl\.sync\.(up|down|bfly|idx)\.b32", name)
    if match is None:
        raise PtxError("unknown opcode")
    target, *given = operands
    values = ", ".join(writer.value(v, "b32") for v in given)
    writer.emit(f"{{ const auto got = ptx::shuffle_{match[1]}({values}, {writer.site});")
    value, *predicate = target.split("|")
    writer.assign(value, "b32", "got.value")
    if predicate:
        writer.assign(predicate[0], "pred", "got.in_range")
    writer.emit("}")


WARP_OPERATIONS = {
    "vote.sync.ballot.b32": ("kWarpBallot", "pred", "b32"),
    "match.any.sync.b32": ("kWarpMatchAny", "b32", "b32"),
    "match.any.sync.b64": ("kWarpMatchAny", "b64", "b32"),
    **{f"redux.sync.add.{t}": ("kWarpAdd", "b32", "b32") for t in ("u32", "s32")},
    "redux.sync.min.u32": ("kWarpMinUnsigned", "b32", "b32"),
    "redux.sync.max.u32": ("kWarpMaxUnsigned", "b32", "b32"),
    "redux.sync.min.s32": ("kWarpMinSigned", "b32", "b32"),
    "redux.sync.max.s32": ("kWarpMaxSigned", "b32", "b32"),
    **{f"redux.sync.{f}.b32": (f"kWarp{f.title()}", "b32", "b32") for f in ("and", "or", "xor")},
}


def warp_operation(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    if name == "bar.warp.sync":
        mask = writer.value(operands[0], "b32")
        writer.emit(f"ptx::warp_operation(kWarpSync, 0, {mask}, {writer.site});")
        return
    vote = {"vote.sync.any.pred": ("", "!= 0"), "vote.sync.all.pred": ("!", "== 0")}
    if name in vote:
        negation, test = vote[name]
        target, source, mask = operands
        arguments = f"{negation}{writer.value(source, 'pred')}, {writer.value(mask, 'b32')}"
        call = f"ptx::warp_operation(kWarpBallot, {arguments}, {writer.site})"
        writer.assign(target, "pred", f"{call} {test}")
        return
    if name not in WARP_OPERATIONS:
        raise PtxError("unknown opcode")
    operation, t, result = WARP_OPERATIONS[name]
    target, source, mask = operands
    arguments = f"{writer.value(source, t)}, {writer.value(mask, 'b32')}, {writer.site}"
    writer.assign(target, result, f"ptx::warp_operation({operation}, {arguments})")


REDUCING_BARRIERS = {
    "bar.red.popc.u32": ("kBarrierCount", "u32"),
    "bar.red.and.pred": ("kBarrierAnd", "pred"),
    "bar.red.or.pred": ("kBarrierOr", "pred"),
}


def barrier(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    whole_block = name in ("bar.sync", "barrier.sync", "barrier.sync.aligned")
    if whole_block and operands == ("0",):
        writer.emit(f"emulator_barrier(kBarrierPlain, 0, {writer.site});")
    elif name in REDUCING_BARRIERS and operands[1:2] == ("0",):
        kind, result = REDUCING_BARRIERS[name]
        predicate = writer.value(operands[2], "pred")
        writer.assign(operands[0], result, f"emulator_barrier({kind}, {predicate}, {writer.site})")
    elif name in ("barrier.cluster.arrive", "barrier.cluster.arrive.aligned"):
        pass  # what the cluster does together is at the wait
    elif name in ("barrier.cluster.wait", "barrier.cluster.wait.aligned"):
        if not writer.previous.startswith("barrier.cluster.arrive"):
            raise PtxError("known only next to its arrive")
        writer.emit(f"dynprune::cluster_sync({writer.site});")
    else:
        raise PtxError("unknown opcode: of barriers, 0 for the whole block is known")


def fence(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    device = re.fullmatch(r"membar\.(gl|sys)|fence\.(acq_rel|sc)\.(gpu|sys|cluster)", name)
    if device is None and re.fullmatch(r"membar\.cta|fence\.(acq_rel|sc)\.cta", name) is None:
        raise PtxError("unknown opcode")
    writer.emit(f"emulator_fence({1 if device else 0});")


def control(writer: Writer, name: str, operands: tuple[str, ...]) -> None:
    if name in ("bra", "bra.uni"):
        writer.emit(f"goto {writer.label(operands[0])};")
    elif name in ("ret", "exit"):
        writer.emit("return;")
    elif name == "trap":
        writer.emit(f"emulator_trap({writer.site});")
    elif name == "nanosleep.u32":
        writer.emit("emulator_poll(nullptr);")
    elif name == "activemask.b32":  # the most diverged answer that is allowed
        writer.assign(operands[0], "b32", "1u << emulator::lane()")
    elif name == "mapa.u64":
        rank = writer.value(operands[2], "b32")
        pointer = f"reinterpret_cast<void*>({writer.value(operands[1], 'b64')})"
        call = f"emulator_cluster_shared({pointer}, {rank}, {writer.site})"
        writer.assign(operands[0], "b64", f"reinterpret_cast<u64>({call})")
    else:
        raise PtxError("unknown opcode")


FAMILIES: dict[str, Callable[[Writer, str, tuple[str, ...]], None]] = {
    "ld": ld,
    "ldu": ld,
    "st": st,
    "atom": atom,
    "red": atom,
    "mov": mov,
    "cvta": cvta,
    "shfl": shfl,
    "vote": warp_operation,
    "match": warp_operation,
    "redux": warp_operation,
    "bar": barrier,
    "barrier": barrier,
    "membar": fence,
    "fence": fence,
    **dict.fromkeys(("bra", "ret", "exit", "trap", "nanosleep", "activemask", "mapa"), control),
}


def write(writer: Writer, instruction: Instruction) -> None:
    """Writes an instruction of this file's; PtxError if there is none of this name."""
    name = instruction.opcode
    if name == "bar.warp.sync":
        warp_operation(writer, name, instruction.operands)
        return
    function = FAMILIES.get(name.split(".")[0])
    if function is None:
        raise PtxError("unknown opcode")
    try:
        function(writer, name, instruction.operands)
    except (ValueError, IndexError) as error:
        if isinstance(error, PtxError):
            raise
        raise PtxError("unknown operands") from error
