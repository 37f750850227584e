# SPDX-License-Identifier: Apache-2.0
"""Reads off the machine code what the kernels' speed depends on.

The hot loops of the fused step: instructions an element. A loop has rare parts: a new greatest
logit, the target's class. The count is that of the shortest way round which handles every element,
one exponential for each. A skipped instruction counts too: it takes an issue slot.

The read of a selection: loads in flight, and instructions a sample on the shortest way which
compares every sample with the bracket. A tie hash on that way, or code for as many as there are
samples, is not one for the ends of the bracket only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
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
# What a thread of classify_kernel handles, with two ballots for each sample.
SAMPLES_PER_THREAD = 16
BALLOTS_PER_SAMPLE = 2
LOADS_PER_SAMPLE = {
    "ScoreRanking": 1,
    "UcbRanking": 2,
    "Ucb1Ranking": 2,
    "WeightRanking": 1,
    "ScoreWeightRanking": 1,
}
READING_KERNEL = re.compile(
    r"(classify_kernel|select_on_chip_kernel|shard_keys_kernel)<(\w+Ranking)<.*>>$"
)
HASH_MULTIPLIER = "0x7feb352d"  # of mix32; a hash of an id multiplies by it twice
HASHES_OF_KEYS = {"WeightRanking": 1, "ScoreWeightRanking": 1}  # a sample, but not of weight 0
# Kernels whose blocks hand over single words: they need no fence.
LISTING_KERNEL = re.compile(r"(?:list_kernel<.*>|list_uniform_kernel|positions_kernel)$")
FENCES = ("MEMBAR", "CCTL", "FENCE")


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

    @property
    def registers(self) -> set[int]:
        """Those that it names; with .64 also the upper half."""
        found = re.findall(r"(?<!\w)R(\d+)(\.64)?", self.text)
        return {int(number) + upper for number, wide in found for upper in range(2 if wide else 1)}

    @property
    def loaded(self) -> set[int]:
        """The registers that a load from global memory fills; of another instruction none."""
        match = re.search(r"\bLDG(\S*) R(\d+)", self.text)
        if match is None:
            return set()
        width = next((n for suffix, n in ((".64", 2), (".128", 4)) if suffix in match[1]), 1)
        return set(range(int(match[2]), int(match[2]) + width))


@dataclass(frozen=True)
class LoopCost:
    """What an element costs in the two hot loops of a kernel."""

    kernel: str
    element: str
    read: float
    gradient: float


@dataclass(frozen=True)
class ReadCost:
    """How a kernel reads what a selection ranks samples by."""

    kernel: str
    ranking: str
    loads: int  # in flight at once
    # Of classify_kernel, from the entry to an exit with all loads and ballots; else no figure.
    instructions: float | None = None  # a sample, with the hashes of its key
    multiplications: int | None = None  # of hashes, on the way with the fewest
    tie_multiplications: int | None = None  # in all of the code, but those of keys


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
    code: Sequence[Instruction],
    following: list[list[int]],
    first: int,
    last: int,
    counted: Sequence[tuple[Callable[[Instruction], bool], int]],
) -> dict[tuple[int, ...], int]:
    """Fewest instructions from `first` forwards to `last`, by how many of each kind are passed.

    counted: tells whether an instruction is of the kind, and how many are told apart.
    """
    best: list[dict[tuple[int, ...], int]] = [{} for _ in range(last - first + 1)]
    best[0] = {(0,) * len(counted): 0}
    for i in range(first, last + 1):
        kinds = [is_kind(code[i]) for is_kind, _ in counted]
        here: dict[tuple[int, ...], int] = {}
        for passed, count in best[i - first].items():
            state = tuple(
                min(n + kind, most)
                for n, kind, (_, most) in zip(passed, kinds, counted, strict=True)
            )
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
    counted: list[tuple[Callable[[Instruction], bool], int]] = [
        (lambda i: i.opcode.startswith(vector), MOST_VECTORS + 1),
        (lambda i: i.opcode == "MUFU.EX2", MOST_VECTORS * size),
    ]
    ways: list[tuple[int, float]] = []
    for first, back in innermost_loops(code, following, vector).items():
        for last in back:
            found = shortest_way(code, following, first, last, counted)
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


def loads_in_flight(code: Sequence[Instruction]) -> int:
    """The most loads between two jumps before the first of their registers is named."""
    following = successors(code)
    # Where two paths join, nothing is known of what is in flight.
    entries = {j for i, ahead in enumerate(following) for j in ahead if j != i + 1}
    most = loads = 0
    pending: set[int] = set()
    for i, instruction in enumerate(code):
        if i in entries or instruction.registers & pending:
            loads, pending = 0, set()
        if instruction.loaded:
            loads, pending = loads + 1, pending | instruction.loaded
        if following[i] != [i + 1]:
            loads, pending = 0, set()
        most = max(most, loads)
    return most


def cost_of_sample(code: Sequence[Instruction], ranking: str) -> tuple[float, int, int]:
    """The instructions and both multiplications of a ReadCost, for the code of a classify_kernel.

    If there is no way with all loads, ballots and hashes, the instructions are infinite.
    """
    following = successors(code)
    needed = (
        SAMPLES_PER_THREAD * LOADS_PER_SAMPLE[ranking],
        SAMPLES_PER_THREAD * BALLOTS_PER_SAMPLE,
        SAMPLES_PER_THREAD * 2 * HASHES_OF_KEYS.get(ranking, 0),
    )
    counted: list[tuple[Callable[[Instruction], bool], int]] = [
        (lambda i: bool(i.loaded), needed[0]),
        (lambda i: i.opcode.startswith("VOTE"), needed[1]),
        (lambda i: HASH_MULTIPLIER in i.text, 4 * SAMPLES_PER_THREAD),
    ]
    fewest, multiplications = float("inf"), counted[2][1]
    for last, instruction in enumerate(code):
        if instruction.opcode != "EXIT":
            continue
        for passed, count in shortest_way(code, following, 0, last, counted).items():
            if passed[:2] == needed[:2]:
                multiplications = min(multiplications, passed[2])
                fewest = min(fewest, count if passed[2] >= needed[2] else float("inf"))
    in_code = sum(HASH_MULTIPLIER in instruction.text for instruction in code)
    return fewest / SAMPLES_PER_THREAD, multiplications, in_code - needed[2]


def read_costs(kernels: dict[str, list[Instruction]], names: dict[str, str]) -> list[ReadCost]:
    """The costs of the kernels that read what a selection ranks by; `names` are readable ones."""
    costs = []
    for mangled, code in kernels.items():
        if match := READING_KERNEL.search(names[mangled]):
            kernel, ranking = match[1], match[2]
            figures = cost_of_sample(code, ranking) if kernel == "classify_kernel" else ()
            costs.append(ReadCost(names[mangled], ranking, loads_in_flight(code), *figures))
    return sorted(costs, key=lambda cost: cost.kernel)


def fences(kernels: dict[str, list[Instruction]], names: dict[str, str]) -> dict[str, list[str]]:
    """The fences in the kernels that need none, by readable name."""
    return {
        names[mangled]: [i.opcode for i in code if i.opcode.startswith(FENCES)]
        for mangled, code in kernels.items()
        if LISTING_KERNEL.search(names[mangled])
    }


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
