# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions an element costs in the hot loops of the fused step, in machine code.

A loop has rare parts: a new greatest logit, the target's class. The count is that of the shortest
way round which handles every element, one exponential for each. A skipped instruction counts too:
it takes an issue slot.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Newer disassemblers read older objects; these wheels begin at 13.2.
DISASSEMBLER_WHEELS = ("nvidia-cuda-cuobjdump==13.2.78", "nvidia-cuda-nvdisasm==13.2.78")
ELEMENTS_PER_VECTOR = {"float": 4, "Half": 8, "BFloat16": 8}
MOST_VECTORS = 4  # of one way round a loop
# Of a row of the step's kernels: whole blocks share it.
HOT_KERNEL = re.compile(
    r"(?:wide_step_kernel<SlicedRow<(\w+), \w+>>|step_kernel<StagedTeamRow<(\w+), 256>>)$"
)


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # with its predicate

    @property
    def opcode(self) -> str:
        return re.sub(r"^@!?\w+\s+", "", self.text).split()[0]

    @property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @property
    def target(self) -> int:
        return int(self.text.rsplit("0x", 1)[1].rstrip(" `()"), 16)


@dataclass(frozen=True)
class LoopCost:
    """What an element costs in the two hot loops of a kernel."""

    kernel: str
    element: str
    read: float
    gradient: float


def parse_disassembly(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every kernel that `cuobjdump -sass` printed."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            current = kernels.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            current.append(Instruction(int(match[1], 16), match[2]))
    return kernels


def successors(code: Sequence[Instruction]) -> list[list[int]]:
    """Where each instruction may go on, as places in the code."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    meeting: dict[str, int] = {}  # of the threads that a BSSY lets diverge
    result = []
    for i, instruction in enumerate(code):
        name = instruction.opcode.split(".")[0]
        after = [i + 1] if i + 1 < len(code) else []
        jump: list[int] = []
        if name == "BSSY":
            barrier = instruction.text.split()[-2].rstrip(",")
            meeting[barrier] = place[instruction.target]
        elif name in ("BSYNC", "BREAK"):
            jump = [meeting[instruction.text.split()[-1]]]
        elif name == "BRA":
            jump = [place[instruction.target]]
        elif name in ("EXIT", "RET", "BRX"):
            after = after if instruction.predicated else []
        # BRA P0, target and BRA.DIV branch on an operand.
        conditional = instruction.predicated or (name == "BRA" and "," in instruction.text)
        result.append(jump + after if not jump or conditional else jump)
    return result


def shortest_way(
    code: Sequence[Instruction], following: list[list[int]], first: int, last: int, vector: str
) -> dict[tuple[int, int], int]:
    """Fewest instructions from `first` forwards to `last`, by (vectors, exponentials) passed."""
    most = MOST_VECTORS * max(ELEMENTS_PER_VECTOR.values())
    best: list[dict[tuple[int, int], int]] = [{} for _ in range(last - first + 1)]
    best[0] = {(0, 0): 0}
    for i in range(first, last + 1):
        opcode = code[i].opcode
        is_vector, is_exponential = opcode.startswith(vector), opcode == "MUFU.EX2"
        here: dict[tuple[int, int], int] = {}
        for (vectors, exponentials), count in best[i - first].items():
            state = (vectors + is_vector, min(exponentials + is_exponential, most))
            here[state] = min(count + 1, here.get(state, count + 1))
        best[i - first] = here
        for j in following[i]:
            if i < j <= last:
                ahead = best[j - first]
                for state, count in here.items():
                    ahead[state] = min(count, ahead.get(state, count))
    return best[-1]


def innermost_loops(
    code: Sequence[Instruction], following: list[list[int]], vector: str
) -> dict[int, list[int]]:
    """The loops with that vector access and none inside: first instruction, jumps back to it."""
    places = [i for i, instruction in enumerate(code) if instruction.opcode.startswith(vector)]
    jumps: dict[int, list[int]] = {}
    for i, ahead in enumerate(following):
        for j in ahead:
            if any(j <= place <= i for place in places):
                jumps.setdefault(j, []).append(i)
    return {
        first: back
        for first, back in jumps.items()
        if not any(first < other and max(jumps[other]) <= max(back) for other in jumps)
    }


def cost_of_loop(code: Sequence[Instruction], vector: str, size: int) -> float:
    """Instructions an element in the cheapest loop with that vector access and exponentials."""
    following = successors(code)
    ways: list[tuple[int, float]] = []
    for first, back in innermost_loops(code, following, vector).items():
        for last in back:
            found = shortest_way(code, following, first, last, vector)
            ways += [
                (vectors, count / vectors / size)
                for (vectors, exponentials), count in found.items()
                if 0 < vectors <= MOST_VECTORS and exponentials >= vectors * size
            ]
    # With fewer vectors, the way is that of a row's end.
    most = max((vectors for vectors, _ in ways), default=0)
    return min((cost for vectors, cost in ways if vectors == most), default=float("inf"))


def loop_costs(kernels: dict[str, list[Instruction]], names: dict[str, str]) -> list[LoopCost]:
    """The hot kernels' costs; `names` are readable ones."""
    costs = []
    for mangled, code in kernels.items():
        match = HOT_KERNEL.search(names[mangled])
        element = match and (match[1] or match[2])
        if element in ELEMENTS_PER_VECTOR:
            size = ELEMENTS_PER_VECTOR[element]
            read, gradient = (cost_of_loop(code, v, size) for v in ("LDG.E.128", "STG.E.128"))
            costs.append(LoopCost(names[mangled], element, read, gradient))
    return sorted(costs, key=lambda cost: cost.kernel)


def find_disassembler(root: Path) -> Path | None:
    """A cuobjdump that has nvdisasm beside it: of the toolkit at root, or of some package."""
    spec = find_spec("triton")
    places = [root / "bin", *(Path(p) / "nvidia/cu13/bin" for p in sys.path)]
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "backends/nvidia/bin")
    if (on_path := shutil.which("cuobjdump")) is not None:
        places.insert(0, Path(on_path).resolve().parent)
    for place in places:
        if (place / "cuobjdump").is_file() and (place / "nvdisasm").is_file():
            return place / "cuobjdump"
    return None


def disassemble(cuobjdump: Path, compiled: Path, arch: str) -> dict[str, list[Instruction]]:
    """The kernels of an object file, for one architecture."""
    command = [str(cuobjdump), "-sass", "-arch", f"sm_{arch}", str(compiled)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse_disassembly(done.stdout)
