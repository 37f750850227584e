# SPDX-License-Identifier: Apache-2.0
"""Kernels as nvcc compiles them, in place of the host compiler's, on an emulator.

nvcc writes PTX for a target; each kernel of it becomes a C++ function, its twin. An emulator that
has a kernel's twin runs that wherever the kernel is launched. Everything is kept by content below
build/emulator/ptx, each kernel on its own: two targets share what they have in common.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiling import (
    BUILD_DIR,
    COMMON_FLAGS,
    COMPILE_JOBS,
    CSRC,
    HERE,
    Mode,
    Object,
    digest,
    header_digest,
    link,
    make_object,
    replacing,
    run,
)
from emulator import Emulator
from kernel_resources import toolkit_or_wheels
from ptx.parser import Instruction, parse_kernel, split_kernels
from ptx.writer import write_kernel

TARGETS = ("80", "90")
SOURCES = tuple(sorted((CSRC / "kernels").rglob("*.cu")))
PTX_DIR = BUILD_DIR / "ptx"
NVCC_FLAGS = ("-std=c++17", "-O3", "--ptx")
# Of a kernel of 7600 lines: 1.1 s with -O0, 3.0 s with these, 9.0 s with -O1. At -O0 each register
# has a place on the stack, which is small.
OPTIMISATION = ["-Og", "-fno-var-tracking", "-Wno-unused"]
FLAGS: dict[Mode, list[str]] = {
    "fast": OPTIMISATION,
    "check": [*OPTIMISATION, "-DEMULATOR_RECORDING"],
}


@dataclasses.dataclass(frozen=True)
class Twin:
    """A kernel's PTX on its own, and where its translation is."""

    kernel: str  # the mangled name, as g++ has it
    text: str

    @functools.cached_property
    def digest(self) -> str:
        return digest([self.text])

    @property
    def function(self) -> str:
        return f"ptx_{self.digest}"

    @property
    def stem(self) -> str:
        """What reports call it: the kernel's own name, and a part of its digest."""
        names = re.findall(r"[a-z][a-z_]*_kernel", self.kernel)
        return f"{names[0] if names else 'kernel'}-{self.digest[:8]}"

    @property
    def empty(self) -> bool:
        body = parse_kernel(self.text).body
        return all(s.opcode == "ret" for s in body if isinstance(s, Instruction))

    def write(self) -> Path:
        """Writes the PTX and, unless this translator has done so, the C++; returns its path."""
        source = PTX_DIR / "kernels" / f"{self.stem}.cpp"
        written_by = source.with_suffix(".translator")
        if not written_by.exists() or written_by.read_text() != translator_digest():
            code = write_kernel(parse_kernel(self.text), self.function, f"{self.stem}.ptx")
            for path, text in (
                (source.with_suffix(".ptx"), self.text),
                (source, f'#include "ptx/simt_ptx.h"\n{code}'),
                (written_by, translator_digest()),
            ):
                with replacing(path) as output:
                    Path(output).write_text(text)
        return source


@functools.cache
def translator_digest() -> str:
    sources = (HERE / "ptx" / f"{name}.py" for name in ("parser", "opcodes", "access", "writer"))
    return digest(source.read_bytes() for source in sources)


# ---- from CUDA to PTX


def compile_to_ptx(source: Path, target: str, nvcc: Path, version: str) -> str:
    """What nvcc writes for compute_`target`."""
    flags = [*NVCC_FLAGS, f"-gencode=arch=compute_{target},code=compute_{target}", f"-I{CSRC}"]
    name = digest([version, *flags, str(source), source.read_bytes(), header_digest((CSRC,))])
    path = PTX_DIR / "modules" / f"{source.stem}-{target}-{name}.ptx"
    if not path.exists():
        with replacing(path) as output:
            run([str(nvcc), *flags, str(source), "-o", output])
    return path.read_text()


@functools.cache
def kernels_of(target: str, sources: tuple[Path, ...] = SOURCES) -> dict[str, Twin]:
    """Every kernel of the sources for compute_`target`, by its mangled name."""
    toolkit = toolkit_or_wheels()
    with ThreadPoolExecutor(COMPILE_JOBS) as pool:
        modules = list(
            pool.map(lambda s: compile_to_ptx(s, target, toolkit.nvcc, toolkit.version), sources)
        )
    twins: dict[str, Twin] = {}
    for module in modules:
        for name, text in split_kernels(module).items():
            # A template that two files use is the same in both.
            if name in twins and twins[name].text != text:
                raise ValueError(f"two kernels have the name {name}")
            twins[name] = Twin(name, text)
    return twins


# ---- from PTX to a library


def compile_twins(twins: Sequence[Twin], mode: Mode, emulated: Path) -> Path:
    """A library of the twins, next to the emulator's library `emulated`."""
    flags = [*COMMON_FLAGS, *FLAGS[mode], f"-I{HERE}", f"-I{CSRC}"]
    headers = header_digest((HERE, HERE / "ptx", CSRC / "device"))
    objects: list[Object] = [make_object(twin.write(), flags, headers) for twin in twins]
    return link(f"ptx-{mode}", objects, [str(emulated)])


def kernel_addresses(emulator: Emulator, names: Sequence[str]) -> dict[str, int]:
    """Where the emulator's library has these kernels, most of which are not exported.

    Raises:
        LookupError: if it has one of them not at all, or several of one name.
    """
    listed = subprocess.run(["nm", str(emulator.path)], capture_output=True, text=True, check=True)
    found: dict[str, set[int]] = {}
    for line in listed.stdout.splitlines():
        parts = line.split()
        if len(parts) == 3:
            found.setdefault(parts[2], set()).add(int(parts[0], 16))
    wrong = [name for name in names if len(found.get(name, ())) != 1]
    if wrong:
        raise LookupError(f"not once in {emulator.path}: {', '.join(wrong)}")
    loaded = ctypes.cast(emulator.library.emulator_launch, ctypes.c_void_p).value or 0
    base = loaded - min(found["emulator_launch"])
    return {name: base + min(found[name]) for name in names}


class Twins:
    """The twins of an emulator's kernels."""

    def __init__(self, emulator: Emulator, mode: Mode, twins: Mapping[str, Twin]) -> None:
        """Compiles the twins and puts them in place of their kernels."""
        self.emulator = emulator
        self.addresses = kernel_addresses(emulator, list(twins))
        # nvcc leaves nothing in a kernel for clusters where the target has none.
        self.working = [name for name, twin in twins.items() if not twin.empty]
        self.library = ctypes.CDLL(str(compile_twins(list(twins.values()), mode, emulator.path)))
        for twin in twins.values():
            self.set(twin, self.library)

    def set(self, twin: Twin, library: ctypes.CDLL) -> None:
        """Lets launches of the twin's kernel run it; the library must stay loaded."""
        sizes = [parameter.bytes for parameter in parse_kernel(twin.text).parameters]
        function = ctypes.cast(getattr(library, twin.function), ctypes.c_void_p)
        array = (ctypes.c_size_t * len(sizes))(*sizes)
        address = self.addresses[twin.kernel]
        self.emulator.library.emulator_set_twin(address, function, array, len(sizes))

    def remove(self) -> None:
        """Lets launches run what the host's compiler made of the kernels again."""
        for address in self.addresses.values():
            self.emulator.library.emulator_set_twin(address, None, None, 0)

    def threads(self) -> dict[str, int]:
        """How many threads have run each twin."""
        count = self.emulator.library.emulator_twin_threads
        return {name: int(count(address)) for name, address in self.addresses.items()}
