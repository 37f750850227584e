# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels and the emulator with the host's compiler; what is built is kept by content."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
BUILD_DIR = ROOT / "build" / "emulator"
COMPILE_JOBS = 2

Mode = Literal["fast", "check", "asan"]
PathLike = str | Path

RUNTIME_SOURCES = (
    *("report.cpp", "fiber.cpp", "scheduler.cpp", "collectives.cpp", "memory.cpp"),
    *("devices.cpp", "special_functions.cpp", "twins.cpp"),
)
CHECKER_SOURCES = ("checker.cpp", "memory_ranges.cpp", "traffic.cpp", "tsan_symbols.cpp")

# -fno-strict-aliasing: CUDA code reads packed values through vector pointers.
# -fno-gnu-unique: two libraries in one process must not share the statics of templates.
# DWARF 4: addr2line of binutils 2.40 misreads inlined functions in DWARF 5.
COMMON_FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-g1",
    "-gdwarf-4",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DDYNPRUNE_EMULATOR",
]
ASAN = "-fsanitize=address,undefined"
ASAN_FLAGS = ["-O1", "-fno-omit-frame-pointer", ASAN, "-fno-sanitize-recover=undefined"]
KERNEL_FLAGS: dict[Mode, list[str]] = {
    "fast": ["-O2"],
    "check": ["-O1", "-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"],
    "asan": ASAN_FLAGS,
}
# The runtime and CPU code: never instrumented for the checker.
HOST_FLAGS: dict[Mode, list[str]] = {
    "fast": ["-O2"],
    "check": ["-O2", "-DEMULATOR_CHECK"],
    "asan": ASAN_FLAGS,
}
LINK_FLAGS: dict[Mode, list[str]] = {"fast": [], "check": ["-ldl"], "asan": [ASAN]}


def compiler() -> list[str]:
    """The C++ compiler as a command: $CXX, or g++."""
    return os.environ.get("CXX", "g++").split()


def build(
    sources: Sequence[PathLike | tuple[PathLike, bool]],
    mode: Mode = "check",
    include_dirs: Sequence[PathLike] = (CSRC,),
    extra_flags: Sequence[str] = (),
) -> Path:
    """Compiles the emulator and the sources into one shared library, unless there is one already.

    A source is a path or a pair (path, instrumented). Only instrumented code is checked; by
    default that is everything but .cpp files. Flags apply to the sources, not to the emulator; -l,
    -L and -Wl, flags, -pthread and -fopenmp also to the link. Several processes may build the same
    library at once.
    """
    includes = [Path(directory).resolve() for directory in include_dirs]
    objects = _runtime_objects(mode)
    pairs = [_with_instrumentation(source) for source in sources]
    # Of an inline function compiled both ways the linker keeps the first copy: instrumented first.
    for source, instrumented in sorted(pairs, key=lambda pair: not pair[1]):
        flags = KERNEL_FLAGS[mode] if instrumented else HOST_FLAGS[mode]
        include_flags = [f"-I{directory}" for directory in (HERE, *includes)]
        flags = [*COMMON_FLAGS, *flags, *include_flags, *extra_flags]
        objects.append(make_object(source, flags, header_digest((HERE, CSRC, *includes))))

    link_extra = [
        f for f in extra_flags if f.startswith(("-l", "-L", "-Wl,", "-pthread", "-fopenmp"))
    ]
    return link(mode, objects, [*LINK_FLAGS[mode], *link_extra])


def link(prefix: str, objects: Sequence[Object], flags: Sequence[str]) -> Path:
    """Compiles the objects, two at a time, and links them into one shared library."""
    name = f"{prefix}-{digest([str(o.path) for o in objects] + list(flags))}"
    library = BUILD_DIR / name / "libemulated.so"
    if not library.exists():
        with ThreadPoolExecutor(COMPILE_JOBS) as pool:
            list(pool.map(Object.compile, objects))
        with replacing(library) as output:
            inputs = [str(o.path) for o in objects]
            run([*compiler(), "-shared", "-Wl,-Bsymbolic", *inputs, *flags, "-o", output])
    return library


@dataclasses.dataclass(frozen=True)
class Object:
    """One compilation, named by everything that its result depends on."""

    source: Path
    flags: tuple[str, ...]
    digest: str

    @property
    def path(self) -> Path:
        return BUILD_DIR / "objects" / f"{self.source.stem}-{self.digest}.o"

    def compile(self) -> None:
        if self.path.exists():
            return
        with replacing(self.path) as output:
            run([*compiler(), *self.flags, "-x", "c++", "-c", str(self.source), "-o", output])


def make_object(source: Path, flags: Sequence[str], headers: str) -> Object:
    version = _compiler_version(tuple(compiler()))
    name = digest([version, headers, str(source), source.read_bytes(), *flags])
    return Object(source, tuple(flags), name)


def _runtime_objects(mode: Mode) -> list[Object]:
    names = RUNTIME_SOURCES + (CHECKER_SOURCES if mode == "check" else ())
    flags = [*COMMON_FLAGS, *HOST_FLAGS[mode]]
    headers = header_digest((HERE,))
    return [make_object(HERE / name, flags, headers) for name in names]


def _with_instrumentation(source: PathLike | tuple[PathLike, bool]) -> tuple[Path, bool]:
    if isinstance(source, tuple):
        return Path(source[0]).resolve(), source[1]
    path = Path(source).resolve()
    return path, path.suffix != ".cpp"


def digest(parts: Iterable[bytes | str]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]


def header_digest(directories: Iterable[Path]) -> str:
    """Of the headers in the directories, and of csrc's in all below it."""
    patterns = ("*.h", "*.cuh", "*.hpp")
    headers = {
        header
        for directory in directories
        for pattern in patterns
        for header in (directory.rglob if directory == CSRC else directory.glob)(pattern)
    }
    return digest(part for h in sorted(headers) for part in (str(h), h.read_bytes()))


@functools.cache
def _compiler_version(command: tuple[str, ...]) -> str:
    return subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=True
    ).stdout


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A temporary name that becomes `path` at the end: nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        temporary = Path(directory) / path.name
        yield str(temporary)
        temporary.replace(path)


def asan_environment() -> dict[str, str] | None:
    """What a process needs to load an "asan" library; None if the compiler has no libasan."""
    command = [*compiler(), "-print-file-name=libasan.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        return None
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    undefined = "print_stacktrace=1"
    return {**os.environ, "LD_PRELOAD": path, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": undefined}
