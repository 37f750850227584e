# SPDX-License-Identifier: Apache-2.0
"""Reads off the machine code what the kernels' speed depends on.

The hot loops of the fused steps: instructions an element, and 16-byte loads in flight. A loop has
rare parts: a new greatest logit, the target's class. The count is that of the shortest way round
which handles the most elements, one exponential for each, with the most vector accesses. A skipped
instruction counts too: it takes an issue slot.

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
from itertools import product
from pathlib import Path

# Newer disassemblers read older objects; these wheels begin at 13.2.
DISASSEMBLER_WHEELS = ("nvidia-cuda-cuobjdump==13.2.78", "nvidia-cuda-nvdisasm==13.2.78")
ELEMENTS_PER_VECTOR = {"float": 4, "Half": 8, "BFloat16": 8}
MOST_VECTORS = 4  # of one way round a loop
# The kernels of the fused steps, by what their targets are, and the types of their logits.
STEP_KERNELS = {
    "classes": re.compile(
        r"^(?:wide_step_kernel<SlicedRow<(\w+), \w+>>|step_kernel<StagedTeamRow<(\w+), \d+>>)$"
    ),
    "probabilities": re.compile(r"^soft_step_kernel<SoftTeamRow<(\w+), \w+, \d+>>$"),
    "labels": re.compile(r"^binary_step_kernel<(\w+), \d+>$"),
}
# While a row is read, its vectors go to shared memory, too. One loop over labels does everything.
READ = ("STS.128", ("STS.128", "LDG.E.128"))
WRITE = ("STG.E.128", ("STG.E.128",))
MOST_ACCESSES = 16  # of 16 bytes, of one way round a loop
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
    """What an element costs in the hot loops of a step's kernel, where it is read and written."""

    targets: str  # of STEP_KERNELS
    kernel: str
    element: str
    read: float
    gradient: float  # 0 with labels: one loop does both
    vectors: int | None = None  # in flight while a row is read; of classes only


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


def cost_of_loop(
    code: Sequence[Instruction], access: tuple[str, tuple[str, ...]], size: int
) -> float:
    """Instructions an element in the cheapest loop with that vector access and exponentials.

    access: READ or WRITE; size: elements of a vector.
    """
    vector, accesses = access
    following = successors(code)
    counted: list[tuple[Callable[[Instruction], bool], int]] = [
        (lambda i: i.opcode == "MUFU.EX2", MOST_VECTORS * size),
        (lambda i: i.opcode.startswith(accesses), MOST_ACCESSES),
    ]
    ways: list[tuple[tuple[int, int], int]] = []
    for first, back in innermost_loops(code, following, vector).items():
        for last in back:
            found = shortest_way(code, following, first, last, counted)
            ways += [
                ((exponentials // size, vectors), count)
                for (exponentials, vectors), count in found.items()
                if exponentials >= size and vectors > 0
            ]
    # With fewer elements, the way is that of a row's end.
    most = max((handled for handled, _ in ways), default=(1, 0))
    fewest = min((count for handled, count in ways if handled == most), default=float("inf"))
    return fewest / (most[0] * size)


def vectors_in_flight(code: Sequence[Instruction]) -> int:
    """16-byte loads at once in the loops that read rows, in that with the fewest."""
    following = successors(code)
    loops = [
        loads_in_flight(code, (first, max(back)), words=4)
        for first, back in innermost_loops(code, following, READ[0]).items()
    ]
    return min(filter(None, loops), default=0)  # other loops store, and load no vector


def loop_costs(kernels: dict[str, list[Instruction]], names: dict[str, str]) -> list[LoopCost]:
    """The costs of the steps' kernels; `names` are readable ones."""
    costs = []
    for (mangled, code), (targets, pattern) in product(kernels.items(), STEP_KERNELS.items()):
        match = pattern.search(names[mangled])
        if match is None or (element := match[match.lastindex or 1]) not in ELEMENTS_PER_VECTOR:
            continue
        size, vectors = ELEMENTS_PER_VECTOR[element], None
        if targets == "labels":
            read, gradient = cost_of_loop(code, WRITE, size), 0.0
        else:
            read, gradient = (cost_of_loop(code, access, size) for access in (READ, WRITE))
        if targets == "classes":
            vectors = vectors_in_flight(code)
        costs.append(LoopCost(targets, names[mangled], element, read, gradient, vectors))
    return sorted(costs, key=lambda cost: cost.kernel)


def loads_in_flight(
    code: Sequence[Instruction], part: tuple[int, int] | None = None, words: int = 1
) -> int:
    """The most loads between two jumps before the first of their registers is named.

    Args:
        code: Of a kernel.
        part: The places of the first and the last instruction that count; all by default.
        words: Of 4 bytes, that a load has at least.
    """
    following = successors(code)
    # Where two paths join, nothing is known of what is in flight.
    entries = {j for i, ahead in enumerate(following) for j in ahead if j != i + 1}
    most = loads = 0
    pending: set[int] = set()
    begin, end = part or (0, len(code) - 1)
    for i, instruction in list(enumerate(code))[begin : end + 1]:
        if i in entries or instruction.registers & pending:
            loads, pending = 0, set()
        if len(instruction.loaded) >= words:
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
