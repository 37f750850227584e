# SPDX-License-Identifier: Apache-2.0
"""Runs kernels on the CPU emulator from Python.

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

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from compiling import PathLike

if TYPE_CHECKING:
    from ptx.twins import Twins

Array = npt.NDArray[Any]


class EmulatorError(RuntimeError):
    """What the emulator reported about the launches since the last check."""


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


STATISTICS = (
    *("switches", "barriers", "warp_operations", "blocks", "launches", "grid_barriers"),
    "driver_calls",
)
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
        self.path = Path(path)
        self.library = ctypes.CDLL(str(path))
        self._allocations: set[int] = set()
        self.schedule: tuple[object, ...] = ()  # what configure() got
        self.twins: Twins | None = None  # of kernels that were translated from PTX
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.library.emulator_allocate.restype = pointer
        self.library.emulator_allocate.argtypes = (size, ctypes.c_char_p, ctypes.c_int)
        self.library.emulator_free.argtypes = (pointer,)
        self.library.emulator_mark_initialised.argtypes = (pointer, ctypes.c_int)
        self.library.emulator_take_error.restype = ctypes.c_char_p
        self.library.emulator_host_threads.restype = ctypes.c_uint64
        self.library.emulator_twin_threads.restype = ctypes.c_uint64
        self.library.emulator_twin_threads.argtypes = (pointer,)
        self.library.emulator_set_twin.argtypes = (pointer, pointer, pointer, size)
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
        """Chooses the device and the schedule of later launches.

        Each pair of `multiprocessors` and `shared_bytes` is a device of its own.

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
        self.schedule = fields
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
        """What was counted since the last call.

        Switches, barriers, warp operations, blocks, launches, barriers of whole grids, and calls of
        the runtime API for attributes of devices and kernels.
        """
        return self._counters("emulator_statistics", STATISTICS)

    def _counters(self, function: str, names: tuple[str, ...]) -> dict[str, int]:
        values = (ctypes.c_uint64 * len(names))()
        getattr(self.library, function)(values)
        return dict(zip(names, (int(v) for v in values), strict=True))
