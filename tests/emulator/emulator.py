# SPDX-License-Identifier: Apache-2.0
"""Builds kernels for the CPU emulator and runs them from Python.

# Mode "check": races, bounds, traffic.
library = build([CSRC / "kernels/selection/top_k.cu"])
with Emulator(library) as emulator:
    emulator.configure(seed=3, order=2, resident=4)
    scores = emulator.array(np.float32([3, 1, 2]), "scores")
    ids = emulator.array(2, "ids", np.int64, initialised=False)
    emulator.library.launch(emulator.pointer(scores), emulator.pointer(ids))
    emulator.check()  # raises with the report, if there is one
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
BUILD_DIR = ROOT / "build" / "emulator"
COMPILE_JOBS = 2

Mode = Literal["fast", "check", "asan"]
PathLike = str | Path
Array = npt.NDArray[Any]

RUNTIME_SOURCES = (
    *("report.cpp", "fiber.cpp", "scheduler.cpp", "collectives.cpp", "memory.cpp"),
    "special_functions.cpp",
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


class EmulatorError(RuntimeError):
    """What the emulator reported about the launches since the last check."""


# ---- build


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
        objects.append(_object(source, flags, _header_digest((HERE, CSRC, *includes))))

    link_extra = [
        f for f in extra_flags if f.startswith(("-l", "-L", "-Wl,", "-pthread", "-fopenmp"))
    ]
    link_flags = [*LINK_FLAGS[mode], *link_extra]
    name = f"{mode}-{_digest([str(o.path) for o in objects] + link_flags)}"
    library = BUILD_DIR / name / "libemulated.so"
    if not library.exists():
        with ThreadPoolExecutor(COMPILE_JOBS) as pool:
            list(pool.map(_Object.compile, objects))
        with _replacing(library) as output:
            inputs = [str(o.path) for o in objects]
            _run([*compiler(), "-shared", "-Wl,-Bsymbolic", *inputs, *link_flags, "-o", output])
    return library


@dataclasses.dataclass(frozen=True)
class _Object:
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
        with _replacing(self.path) as output:
            _run([*compiler(), *self.flags, "-x", "c++", "-c", str(self.source), "-o", output])


def _object(source: Path, flags: Sequence[str], headers: str) -> _Object:
    version = _compiler_version(tuple(compiler()))
    digest = _digest([version, headers, str(source), source.read_bytes(), *flags])
    return _Object(source, tuple(flags), digest)


def _runtime_objects(mode: Mode) -> list[_Object]:
    names = RUNTIME_SOURCES + (CHECKER_SOURCES if mode == "check" else ())
    flags = [*COMMON_FLAGS, *HOST_FLAGS[mode]]
    headers = _header_digest((HERE,))
    return [_object(HERE / name, flags, headers) for name in names]


def _with_instrumentation(source: PathLike | tuple[PathLike, bool]) -> tuple[Path, bool]:
    if isinstance(source, tuple):
        return Path(source[0]).resolve(), source[1]
    path = Path(source).resolve()
    return path, path.suffix != ".cpp"


def _digest(parts: Iterable[bytes | str]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]


def _header_digest(directories: Iterable[Path]) -> str:
    patterns = ("*.h", "*.cuh", "*.hpp")
    headers = {h for directory in directories for p in patterns for h in directory.rglob(p)}
    return _digest(part for h in sorted(headers) for part in (str(h), h.read_bytes()))


@functools.cache
def _compiler_version(command: tuple[str, ...]) -> str:
    return subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=True
    ).stdout


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[str]:
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


# ---- run


class _Config(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("resident_blocks", ctypes.c_int32),
        ("block_order", ctypes.c_int32),
        ("preempt", ctypes.c_int32),
        ("strict", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("first_block", ctypes.c_int32),
        ("max_cluster", ctypes.c_int32),
        ("granted_blocks", ctypes.c_int32),
        ("refuse_clusters", ctypes.c_int32),
        ("refuse_cooperative", ctypes.c_int32),
        ("exp2_ulps", ctypes.c_int32),
        ("exp2_mixed", ctypes.c_int32),
    )


STATISTICS = ("switches", "barriers", "warp_operations", "blocks", "launches", "grid_barriers")
TRAFFIC = (
    "bytes_read",
    "bytes_written",
    "sectors_read",
    "sectors_written",
    "unique_sectors_read",
    "unique_sectors_written",
    "requests",
    "atomics",
)


class Emulator:
    """An emulator library in this process. Two objects for one path share its state."""

    def __init__(self, path: PathLike) -> None:
        """Loads what build() returned; call the launchers of the sources through `library`."""
        self.library = ctypes.CDLL(str(path))
        self._allocations: set[int] = set()
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.library.emulator_allocate.restype = pointer
        self.library.emulator_allocate.argtypes = (size, ctypes.c_char_p, ctypes.c_int)
        self.library.emulator_free.argtypes = (pointer,)
        self.library.emulator_mark_initialised.argtypes = (pointer, ctypes.c_int)
        self.library.emulator_take_error.restype = ctypes.c_char_p
        self.configure()
        self.take_error()
        self.traffic()
        self.statistics()

    def __enter__(self) -> Emulator:
        """Frees all arrays at the end of the with statement."""
        return self

    def __exit__(self, *_: object) -> None:
        self.free_all()

    def configure(
        self,
        seed: int = 0,
        resident: int = 64,
        order: int = 0,
        preempt: int = 0,
        strict: bool = True,
        multiprocessors: int = 4,
        shared_bytes: int = 227 * 1024,
        first_block: int = 0,
        max_cluster: int = 8,
        granted_blocks: int = 0,
        refuse_clusters: bool = False,
        refuse_cooperative: bool = False,
        exp2_ulps: int = 0,
        exp2_mixed: bool = False,
    ) -> None:
        """Chooses the schedule of later launches.

        Args:
            seed: 0 runs threads round robin; any other number is a random, repeatable schedule.
            resident: how many blocks may be on the machine at once.
            order: in which order blocks start: 0 ascending, 1 descending, 2 random by seed.
            preempt: with a seed, the chance out of 256 of a switch after an atomic or fence, and
                out of 4096 before any other access (check mode).
            strict: report threads of a block that leave after different numbers of barriers.
            multiprocessors: what dynprune::multiprocessor_count() answers; a cooperative launch
                may have one block on each.
            shared_bytes: the shared memory that a block may have, static and dynamic; 48 KB are
                always granted, but shared_memory_limit() answers this.
            first_block: only blocks from this one on are run, in ascending order: the far end of a
                grid that would take hours.
            max_cluster: how many blocks a cluster may have; 0 is a device without clusters.
            granted_blocks: of a cooperative launch at most; 0 is one for each multiprocessor.
            refuse_clusters: launches of clusters fail, although the device has them.
            refuse_cooperative: cooperative launches fail, whatever the number of their blocks.
            exp2_ulps: how far off every exp2_approx() is, upwards or (negative) downwards; a GPU is
                documented to be at most 2 off.
            exp2_mixed: upwards for about half of the arguments.
        """
        fields = (
            seed,
            resident,
            order,
            preempt,
            strict,
            multiprocessors,
            shared_bytes,
            first_block,
            max_cluster,
            granted_blocks,
            refuse_clusters,
            refuse_cooperative,
            exp2_ulps,
            exp2_mixed,
        )
        config = _Config(*fields)
        self.library.emulator_configure(ctypes.byref(config))

    def array(
        self,
        source: npt.ArrayLike | tuple[int, ...],
        name: str = "array",
        dtype: npt.DTypeLike | None = None,
        *,
        initialised: bool = True,
    ) -> Array:
        """An array in device memory, outside of which a kernel must not reach.

        Args:
            source: a numpy array (or list) to copy, or a shape (int or tuple of ints).
            name: what reports call it.
            dtype: required with a shape; with an array, what to convert it to.
            initialised: False fills the memory with garbage that a kernel must not read before
                writing. With a shape, True means zeros.

        The array is invalid once freed.
        """
        if isinstance(source, (int, tuple)):
            if dtype is None:
                raise TypeError("array(shape) needs a dtype")
            contents: Array = np.zeros(1, dtype)[0]
            shape = source if isinstance(source, tuple) else (source,)
        else:
            contents = np.asarray(source, dtype)
            shape = contents.shape
        num_bytes = math.prod(shape) * contents.dtype.itemsize
        address = self.library.emulator_allocate(num_bytes, name.encode(), initialised)
        self._allocations.add(address)
        memory = (ctypes.c_uint8 * max(1, num_bytes)).from_address(address)
        raw: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)  # type: ignore[call-overload]
        result: Array = raw[:num_bytes].view(contents.dtype).reshape(shape)
        if initialised:
            result[...] = contents
        return result

    def mark_initialised(self, array: Array, initialised: bool = True) -> None:
        """Tells the checker that Python has written the array (or not: that it is garbage)."""
        self.library.emulator_mark_initialised(self.pointer(array), initialised)

    def pointer(self, array: Array | None) -> ctypes.c_void_p:
        """The address of the first element, as a launcher's argument; None is a null pointer."""
        return ctypes.c_void_p(None if array is None else array.__array_interface__["data"][0])

    def free(self, *arrays: Array) -> None:
        """Frees arrays: whole ones, as array() returned them."""
        for array in arrays:
            address = self.pointer(array).value
            if address not in self._allocations:
                raise ValueError("free: not an array of this emulator, or freed before")
            self._allocations.remove(address)
            self.library.emulator_free(address)

    def free_all(self) -> None:
        """Frees every array that is left."""
        while self._allocations:
            self.library.emulator_free(self._allocations.pop())

    def take_error(self) -> str:
        """The reports since the last call, or "". Allows launches again after a failed one."""
        report: bytes = self.library.emulator_take_error()
        return report.decode()

    def check(self) -> None:
        """Raises EmulatorError if there was a report since the last call."""
        report = self.take_error()
        if report:
            raise EmulatorError(report)

    def traffic(self) -> dict[str, int]:
        """Global memory traffic since the last call (check mode; zeros elsewhere).

        Bytes, 32-byte sectors that warps asked for, sectors counted once per launch, executions of
        an access by a warp, and atomics. A read-modify-write counts as one write.
        """
        return self._counters("emulator_traffic", TRAFFIC)

    def statistics(self) -> dict[str, int]:
        """Switches, barriers, warp operations, blocks, launches and barriers of whole grids since
        the last call."""
        return self._counters("emulator_statistics", STATISTICS)

    def _counters(self, function: str, names: tuple[str, ...]) -> dict[str, int]:
        values = (ctypes.c_uint64 * len(names))()
        getattr(self.library, function)(values)
        return dict(zip(names, (int(v) for v in values), strict=True))
