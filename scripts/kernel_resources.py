# SPDX-License-Identifier: Apache-2.0
"""Compiles every CUDA kernel for every architecture; reports registers, shared memory and spills.

Needs no GPU and no torch. Fails on a compiler warning, on a register spill, and on machine code
that misses a limit below. Limits hold for hot loops of the fused steps, the read of a selection,
unneeded fences and the size of the module. If nvcc or a disassembler is missing, the program
installs it as a pip wheel into the running Python environment.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import machine_code
from cuda_toolkit import Toolkit, find
from machine_code import LoopCost, ReadCost

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "build" / "kernel_resources.md"
ARCHITECTURES = ("80", "86", "89", "90", "100", "110", "120")
NVCC_FLAGS = (
    *("-std=c++17", "-O3", "-Xfatbin=-compress-all", "-Xptxas=-v", "--Werror=all-warnings"),
    "-Xcompiler=-Wall,-Wextra,-Werror",
)
# nvcc with its parts and headers; torch brings none of them but the runtime.
TOOLKIT_WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
)
# What limits are read off.
CODE_ARCHITECTURE = "90"
LOOP_SOURCES = ("scored_cross_entropy_step", "soft_cross_entropy_step", "binary_cross_entropy")
# The steps' kernels by their targets: for each element type, team, and second element type.
LOOP_KERNELS = {"classes": 3 * 3 + 3 * 2, "probabilities": 3 * (2 + 2 + 1), "labels": 3 * 3}
# Instructions an element: while a row is read, for its gradient, and together. Those of classes are
# targets; the others are 5 % above what the kernels had when these limits were set.
LOOP_LIMITS: dict[str, dict[str, tuple[float, float, float]]] = {
    "classes": {
        "float": (13.0, 13.0, 26.0),
        "Half": (13.0, 11.0, 24.0),
        "BFloat16": (13.0, 11.0, 24.0),
    },
    "probabilities": {
        "float": (31.6, 20.2, 51.8),
        "Half": (28.0, 19.4, 47.4),
        "BFloat16": (29.3, 21.5, 50.9),
    },
    "labels": {"float": (62.7, 0, 62.7), "Half": (58.1, 0, 58.1), "BFloat16": (58.1, 0, 58.1)},
}
FEWEST_VECTORS = 4  # of 16 bytes, in flight while a row is read (kLoadsInFlight)
# The read of a selection: kernels of each ranking, with every element type, and their limits.
READ_SOURCES = ("top_k", "ucb", "weighted", "score_weight", "shard_keys")
READ_KERNELS = {
    "ScoreRanking": 4 + 4 + 3,
    "UcbRanking": 6 + 6 + 6,
    "Ucb1Ranking": 2 + 2 + 2,
    "WeightRanking": 4 + 4 + 3,
    "ScoreWeightRanking": 6 + 6 + 6,
}
FEWEST_LOADS = 12  # in flight
MOST_INSTRUCTIONS = {"ScoreRanking": 40}  # a sample
# Kernels that hand over single words between blocks.
LISTING_SOURCES = ("top_k", "ucb", "weighted", "score_weight", "select_uniform", "digit_search")
# Of a module for one architecture, without line info.
MOST_MODULE_BYTES = 7_000_000
# Its part beside the kernels' objects: a module for sm_90 had 5.03 MB, of which these had 2.15.
HOST_BYTES = 2_900_000


@dataclass(frozen=True)
class Resources:
    """What one kernel uses on one architecture, as ptxas says."""

    kernel: str
    arch: str
    registers: int
    shared_bytes: int
    spill_bytes: int  # stores and loads
    stack_bytes: int  # of a thread: arrays that are not in registers, and spills


def parse_ptxas(log: str) -> list[Resources]:
    """The figures that `nvcc -Xptxas=-v` printed, one entry per kernel and architecture."""
    found: list[Resources] = []
    kernel = arch = ""
    spills = stack = 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(sm_\w+)'", line):
            kernel, arch, spills, stack = match[1], match[2], 0, 0
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            # Of a device function that was not inlined, too: it counts for the kernel above it.
            stack += int(match[1])
            spills += int(match[2]) + int(match[3])
        elif (match := re.search(r"Used (\d+) registers", line)) and kernel:
            shared = re.search(r"(\d+) bytes smem", line)
            found.append(
                Resources(
                    kernel, arch, int(match[1]), int(shared[1]) if shared else 0, spills, stack
                )
            )
            kernel = ""
    return found


def compile_kernel(
    toolkit: Toolkit, source: Path, objects: Path, archs: tuple[str, ...]
) -> tuple[bool, str]:
    """Compiles one file for all architectures: whether nvcc was content, and its output."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    command = [
        str(toolkit.nvcc),
        *NVCC_FLAGS,
        *targets,
        f"-I{ROOT / 'csrc'}",
        f"-I{toolkit.include}",
    ]
    command += ["-c", str(source), "-o", str(objects / f"{source.stem}.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    return done.returncode == 0 and not re.search(r"\bwarning\b", output), output


def demangle(names: list[str]) -> dict[str, str]:
    """Readable kernel names without parameter lists; mangled where no tool can read them."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return {name: shorten(long) for name, long in zip(names, done.stdout.splitlines(), strict=True)}


def shorten(name: str) -> str:
    """`void dynprune::(anonymous namespace)::f<T>(T const*)` as `f<T>`."""
    for noise in ("(anonymous namespace)::", "dynprune::", "cuda::"):
        name = name.replace(noise, "")
    name = re.sub(r">\s+(?=>)", ">", name.removeprefix("void "))
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:position]
    return name


def table(rows: list[Resources]) -> str:
    """The figures as Markdown: a row per kernel, its registers in a column per architecture."""
    names = demangle(sorted({row.kernel for row in rows}))
    archs = sorted({row.arch for row in rows}, key=lambda arch: int(arch.removeprefix("sm_")))
    columns = ["registers of kernel", *archs, "static shared memory, bytes", "spills, bytes"]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for kernel, name in sorted(names.items(), key=lambda item: item[1]):
        builds = {row.arch: row for row in rows if row.kernel == kernel}
        registers = [str(builds[arch].registers) if arch in builds else "" for arch in archs]
        worst = (
            max(build.shared_bytes for build in builds.values()),
            max(b.spill_bytes for b in builds.values()),
        )
        lines.append(f"| {' | '.join([f'`{name}`', *registers, *map(str, worst)])} |")
    return "\n".join(lines) + "\n"


def loop_table(costs: list[LoopCost]) -> str:
    """The costs of the hot loops as Markdown."""
    columns = ("read", "gradient", "both", "limits", "16-byte loads in flight")
    lines = [f"| instructions an element, sm_90 | {' | '.join(columns)} |"]
    lines.append(f"|---|{'---:|' * len(columns)}")
    for c in costs:
        limits = ", ".join(f"{limit:g}" for limit in LOOP_LIMITS[c.targets][c.element])
        figures = f"{c.read:.1f} | {c.gradient:.1f} | {c.read + c.gradient:.1f}"
        vectors = "" if c.vectors is None else c.vectors
        lines.append(f"| `{c.kernel}` | {figures} | {limits} | {vectors} |")
    return "\n".join(lines) + "\n"


def loops_over_limit(costs: list[LoopCost]) -> list[str]:
    """What is wrong with the hot loops: a limit missed, a kernel lost, float16 above bfloat16."""
    wrong = []
    for targets, expected in LOOP_KERNELS.items():
        found = sum(c.targets == targets for c in costs)
        if found != expected:
            wrong.append(
                f"{found} kernels of steps on {targets}, not {expected}: have they other names?"
            )
    for c in costs:
        if c.vectors is not None and c.vectors < FEWEST_VECTORS:
            wrong.append(f"{c.kernel}: {c.vectors} vectors in flight; at least {FEWEST_VECTORS}")
        for phase, got, limit in zip(
            ("read", "gradient", "both"),
            (c.read, c.gradient, c.read + c.gradient),
            LOOP_LIMITS[c.targets][c.element],
            strict=True,
        ):
            if got > limit:
                wrong.append(f"{c.kernel}: {got:.2f} instructions an element, {phase}; {limit:g}")
    both = {c.kernel: c.read + c.gradient for c in costs if c.targets == "classes"}
    for kernel, cost in both.items():
        bfloat16 = both.get(kernel.replace("Half", "BFloat16"), float("inf"))
        if "Half" in kernel and cost > bfloat16:
            wrong.append(
                f"{kernel}: {cost:.2f} instructions an element, {bfloat16:.2f} of bfloat16"
            )
    return wrong


def read_table(costs: list[ReadCost]) -> str:
    """How selections read, as Markdown."""
    lines = ["| read of a selection, sm_90 | loads in flight | instructions a sample |"]
    lines.append("|---|---:|---:|")
    for c in costs:
        instructions = "" if c.instructions is None else f"{c.instructions:.1f}"
        lines.append(f"| `{c.kernel}` | {c.loads} | {instructions} |")
    return "\n".join(lines) + "\n"


def reads_over_limit(costs: list[ReadCost]) -> list[str]:
    """What is wrong with the reads of selections: a limit missed, a kernel lost, ties hashed."""
    wrong = []
    for ranking, expected in READ_KERNELS.items():
        found = sum(c.ranking == ranking for c in costs)
        if found != expected:
            wrong.append(
                f"{found} kernels read for {ranking}, not {expected}: have they other names?"
            )
    for c in costs:
        if c.loads < FEWEST_LOADS:
            wrong.append(f"{c.kernel}: {c.loads} loads in flight; at least {FEWEST_LOADS}")
        most = MOST_INSTRUCTIONS.get(c.ranking, float("inf"))
        if c.instructions is not None and not c.instructions <= most:
            wrong.append(f"{c.kernel}: {c.instructions:.1f} instructions a sample; {most:g}")
        ties = c.tie_multiplications or 0
        if c.multiplications or ties >= 2 * machine_code.SAMPLES_PER_THREAD:
            wrong.append(f"{c.kernel}: hashes ids that are at no end of the bracket")
    return wrong


def needless_fences(found: dict[str, list[str]]) -> list[str]:
    """What is wrong with the kernels that need no fence."""
    wrong = [f"{kernel}: {', '.join(fences)}" for kernel, fences in found.items() if fences]
    return wrong if found else ["no kernel lists ids: have they other names?"]


def module_too_large(object_bytes: int, archs: int) -> list[str]:
    """What is wrong with the size of the module for one architecture, the mean of these."""
    size = HOST_BYTES + object_bytes / archs
    if size <= MOST_MODULE_BYTES:
        return []
    return [f"a module for one architecture has {size / 1e6:.1f} MB; {MOST_MODULE_BYTES / 1e6:g}"]


def install(wheels: tuple[str, ...]) -> None:
    print("installing pip wheels:", ", ".join(wheels), flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", *wheels], check=True)


def disassembler_or_wheels(toolkit: Toolkit) -> Path:
    """The machine's cuobjdump, or that of its pip wheels."""
    found = machine_code.find_disassembler(toolkit.root)
    if found is None:
        install(machine_code.DISASSEMBLER_WHEELS)
        found = machine_code.find_disassembler(toolkit.root)
    if found is None:
        raise SystemExit("the pip wheels of cuobjdump and nvdisasm are installed, but not found")
    return found


def toolkit_or_wheels() -> Toolkit:
    """The machine's toolkit, or nvcc from its pip wheels."""
    toolkit, passed_over = find("13")
    if toolkit is None:
        print("no CUDA 13 toolkit here:", *passed_over, sep="\n  ")
        install(TOOLKIT_WHEELS)
        toolkit, passed_over = find("13")
    if toolkit is None:
        raise SystemExit(
            "the pip wheels of nvcc are installed, but make no toolkit:\n  "
            + "\n  ".join(passed_over)
        )
    return toolkit


def check_machine_code(cuobjdump: Path, objects: Path) -> tuple[str, list[str]]:
    """The tables of what the machine code says, and which limits it misses."""
    loops: list[LoopCost] = []
    reads: list[ReadCost] = []
    fences: dict[str, list[str]] = {}
    for source in sorted({*LOOP_SOURCES, *READ_SOURCES, *LISTING_SOURCES}):
        kernels = machine_code.disassemble(cuobjdump, objects / f"{source}.o", CODE_ARCHITECTURE)
        names = demangle(list(kernels))
        loops += machine_code.loop_costs(kernels, names)
        reads += machine_code.read_costs(kernels, names)
        fences |= machine_code.fences(kernels, names)
    tables = "\n" + loop_table(loops) + "\n" + read_table(reads)
    return tables, loops_over_limit(loops) + reads_over_limit(reads) + needless_fences(fences)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", action="append", help="only these, e.g. 90 (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="files compiled at once"
    )
    options = parser.parse_args()
    archs = tuple(options.arch or ARCHITECTURES)
    sources = sorted((ROOT / "csrc" / "kernels").rglob("*.cu"))
    if not sources:
        print("csrc/kernels holds no .cu file", file=sys.stderr)
        return 1
    toolkit = toolkit_or_wheels()
    print(f"CUDA {toolkit.version} from {toolkit.root}", flush=True)
    print(f"{len(sources)} files for sm_{', sm_'.join(archs)}", flush=True)
    objects = TABLE.parent / "kernels"
    objects.mkdir(parents=True, exist_ok=True)

    rows: list[Resources] = []
    failures: list[str] = []

    def compile_timed(source: Path) -> tuple[bool, str, float]:
        start = time.perf_counter()
        content, output = compile_kernel(toolkit, source, objects, archs)
        return content, output, time.perf_counter() - start

    with ThreadPoolExecutor(options.jobs) as pool:
        for source, (content, output, seconds) in zip(
            sources, pool.map(compile_timed, sources), strict=True
        ):
            figures = parse_ptxas(output)
            print(f"  {source.name}: {len(figures)} kernel builds in {seconds:.1f} s", flush=True)
            rows += figures
            if not content:
                failures.append(f"{source.name} does not compile without warnings:\n{output}")
    rows_by_name = demangle(sorted({row.kernel for row in rows}))
    failures += [
        f"{rows_by_name[r.kernel]} spills {r.spill_bytes} bytes on {r.arch}, and has a stack of "
        f"{r.stack_bytes}"
        for r in rows
        if r.spill_bytes or r.stack_bytes
    ]
    report = table(rows)
    if CODE_ARCHITECTURE in archs:
        tables, missed = check_machine_code(disassembler_or_wheels(toolkit), objects)
        report += tables
        failures += missed
    size = sum((objects / f"{source.stem}.o").stat().st_size for source in sources)
    failures += module_too_large(size, len(archs))
    report += f"\nobjects for one architecture: {size / len(archs) / 1e6:.2f} MB\n"
    TABLE.write_text(report)
    print(f"\n{report}\nwritten to {TABLE.relative_to(ROOT)}")
    print(
        "\n".join(failures)
        if failures
        else f"{len(rows)} kernel builds, no warning, no spill, no stack"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
