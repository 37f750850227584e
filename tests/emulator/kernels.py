# SPDX-License-Identifier: Apache-2.0
"""The project's kernels on the emulator, as functions of numpy arrays.

Every array that a kernel sees lies in checked device memory of exactly its size; outputs and
workspaces hold garbage at the start. Each call raises EmulatorError if the checker has anything to
report.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from compiling import HERE, Mode, build
from emulator import Array, Emulator
from ptx.twins import SOURCES, Twins, kernels_of
from structures import (
    CrossEntropyGradient,
    CrossEntropyInput,
    CrossEntropyOutput,
    CrossEntropyStep,
    IndexArray,
    RankingSpec,
    ScoreUpdate,
    SelectionArguments,
    SoftTarget,
)
from torch import Tensor

from dynprune_cuda import _C
from dynprune_cuda._ops.contract import Reduction, RowReduction, SavedColumn, Score, StepColumn

SCALAR_TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float64: 3,
}
INDEX_TYPES = {torch.int64: 0, torch.int32: 1, torch.uint8: 2}
SCORE, UCB_VARIANCE, UCB_STD, UCB1, WEIGHT, EXPLORE, SCORE_WEIGHT, SCORE_WEIGHT_SQRT = range(
    len(_C.RANKINGS.split())
)
NUM_DATA_ERRORS = 4

# Seed 0 runs threads in turn; the others are random, with preemption, in several block orders and
# grid sizes. One lets a single block be resident at a time. Powers of 2 are as wrong as a GPU's may
# be, in every way.
EXP2_ERRORS = {
    "above": {"exp2_ulps": 2},
    "below": {"exp2_ulps": -2},
    "mixed": {"exp2_ulps": 2, "exp2_mixed": 1},
}
ABOVE, BELOW, MIXED = EXP2_ERRORS.values()
SCHEDULES = [
    {"seed": 0, "resident": 64, "order": 0, "preempt": 0, "multiprocessors": 4, **ABOVE},
    {"seed": 1, "resident": 1, "order": 1, "preempt": 64, "multiprocessors": 1, **BELOW},
    {"seed": 2, "resident": 5, "order": 2, "preempt": 8, "multiprocessors": 2, **MIXED},
    {"seed": 3, "resident": 64, "order": 2, "preempt": 64, "multiprocessors": 7, **BELOW},
]


# With so little shared memory no selection fits on the chip: all go the way of large ones.
LITTLE_SHARED_BYTES = 12 * 1024


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What samples are ranked by, as the ops take it."""

    kind: int
    values: Tensor
    second: Tensor | None = None
    c: float = 0.0
    log_step: float = 0.0

    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of an op."""
        return self.values, self.second, self.kind, self.c, self.log_step


# None: as the host's compiler makes them. "80", "90": as nvcc does, for that target.
target: str | None = None
# Of nvcc's code, only the check build: tests of the fast build, which would be compiled again, are
# skipped.
check_only = False


def loaded() -> list[Emulator]:
    """The emulators that load() has returned so far."""
    return list(_loaded)


_loaded: list[Emulator] = []


# What the functions of the launchers take and return, where that is no int.
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...] | None]] = {
    "emulated_select_workspace_bytes": (ctypes.c_size_t, None),
    "emulated_select_uniform_workspace_bytes": (ctypes.c_size_t, None),
    "emulated_update_scores_workspace_bytes": (ctypes.c_size_t, (ctypes.c_int64,)),
    "emulated_shard_positions_workspace_bytes": (ctypes.c_size_t, (ctypes.c_int64,)),
    "emulated_scored_cross_entropy_step_workspace_bytes": (ctypes.c_size_t, None),
    "emulated_soft_cross_entropy_step_workspace_bytes": (ctypes.c_size_t, None),
    "emulated_scored_binary_cross_entropy_step_workspace_bytes": (ctypes.c_size_t, None),
    "permutation_at": (ctypes.c_uint64, (ctypes.c_uint64,) * 3),
    "permutation_position_of": (ctypes.c_uint64, (ctypes.c_uint64,) * 3),
    "tie_hash_of": (ctypes.c_uint32, (ctypes.c_uint64, ctypes.c_int64)),
    "exponential_of": (ctypes.c_float, (ctypes.c_uint32,)),
    "widen_half": (ctypes.c_float, (ctypes.c_uint16,)),
    "widen_bfloat16": (ctypes.c_float, (ctypes.c_uint16,)),
    "narrow_half": (ctypes.c_uint16, (ctypes.c_float,)),
    "narrow_bfloat16": (ctypes.c_uint16, (ctypes.c_float,)),
}


@functools.cache
def load(mode: Mode = "check") -> Emulator:
    """The emulator with the kernels of csrc/kernels; the fast build has those of selections only.

    The tests need the fast build for large selections, and the others take minutes to compile.
    """
    if check_only and mode != "check":
        pytest.skip(f"the {mode} build of nvcc's code: make test-ptx-full")
    sources, launchers = SOURCES, "*_launchers.cpp"
    if mode == "fast":
        sources = tuple(path for path in sources if path.parent.name in ("selection", "kernels"))
        launchers = "select_launchers.cpp"
    emulator = Emulator(build([*sources, *sorted(HERE.glob(launchers))], mode))
    _loaded.append(emulator)
    if target is not None:
        emulator.twins = Twins(emulator, mode, kernels_of(target, sources))
    for name, (result, arguments) in SIGNATURES.items():
        if mode == "fast" and not hasattr(emulator.library, name):
            continue
        function = getattr(emulator.library, name)
        function.restype = result
        function.argtypes = arguments
    return emulator


def raw(tensor: Tensor) -> Array:
    """A tensor's elements as numpy; 16-bit floats as their bits."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.contiguous().view(torch.int16).numpy()
    return tensor.detach().contiguous().numpy()


def by_row(gradient: Array, rows: int, classes: int, group_rows: int, in_columns: bool) -> Tensor:
    """A gradient as the kernels lay it out, as [rows, classes]."""
    copy = gradient.copy()
    if in_columns and rows:
        copy = copy.reshape(-1, classes, group_rows or rows).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(copy).reshape(gradient.shape))


class Kernels:
    """Launches kernels on one emulator and collects what they recorded of data errors."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.library = emulator.library
        self.errors = np.zeros((NUM_DATA_ERRORS, 2), np.int64)

    def _input(self, tensor: Tensor, name: str) -> ctypes.c_void_p:
        return self.emulator.pointer(self.emulator.array(raw(tensor), name))

    def _call(self, op: str, *arguments: Any) -> None:
        """Calls a launcher; raises what the emulator reports, or the launcher's own error."""
        error = getattr(self.library, f"emulated_{op}")(*arguments)
        self.emulator.check()
        assert error == 0, f"{op} returned error {error}"

    @contextlib.contextmanager
    def _launch(self) -> Iterator[Array]:
        """Keeps the error records, which it yields, and frees this launch's arrays."""
        errors = self.emulator.array((NUM_DATA_ERRORS, 2), "errors", np.int64)
        try:
            yield errors
            self.errors = errors.copy()
        finally:
            self.emulator.free_all()

    def take_errors(self, records: Array) -> tuple[Array, Array]:
        """What the op takes of these records, and the records it leaves."""
        with self._launch():
            errors = self.emulator.array(records, "errors")
            taken = self.emulator.array(records.shape, "taken", np.int64, initialised=False)
            self._call("take_errors", self.emulator.pointer(errors), self.emulator.pointer(taken))
            return taken.copy(), errors.copy()

    def spec(self, ranking: Ranking) -> RankingSpec:
        """The ranking with its tensors in device memory, until the launch ends."""
        by_count = ranking.kind == UCB1 and ranking.second is not None
        return RankingSpec(
            kind=ranking.kind,
            type=SCALAR_TYPES[ranking.values.dtype],
            count_type=INDEX_TYPES[ranking.second.dtype] if by_count else 0,
            values=self._input(ranking.values, "values"),
            second=None if ranking.second is None else self._input(ranking.second, "second"),
            c=ranking.c,
            log_step=ranking.log_step,
        )

    def select(
        self,
        ranking: Ranking | None,
        *,
        num_samples: int,
        k: int,
        num_random: int = 0,
        seed: int = 0,
        order: str = "random",
        seed_in_memory: bool = False,
    ) -> Tensor:
        """Runs a selection: by a ranking, or uniformly without one."""
        with self._launch() as errors:
            ids = self.emulator.array((k,), "ids", np.int64, initialised=False)
            arguments = SelectionArguments(
                num_samples=num_samples,
                num_greedy=k - num_random,
                num_random=num_random,
                seed=0 if seed_in_memory else seed % 2**64,
                ascending=order == "ascending",
                ids=self.emulator.pointer(ids),
            )
            if seed_in_memory:
                cell = self.emulator.array(np.array([seed], np.int64), "seed")
                arguments.seed_pointer = self.emulator.pointer(cell)
            if ranking is None:
                size = self.library.emulated_select_uniform_workspace_bytes(ctypes.byref(arguments))
            else:
                size = self.workspace_bytes(arguments, ranking.values.dtype)
            workspace = self.emulator.array((size,), "workspace", np.uint8, initialised=False)
            arguments.workspace = self.emulator.pointer(workspace)
            if ranking is None:
                self._call("select_uniform", ctypes.byref(arguments))
            else:
                spec, records = self.spec(ranking), self.emulator.pointer(errors)
                self._call("select", ctypes.byref(arguments), ctypes.byref(spec), records)
            return torch.from_numpy(ids.copy())

    def workspace_bytes(self, arguments: SelectionArguments, dtype: torch.dtype) -> int:
        """What a selection by scores of this type wants as its workspace."""
        bytes_of = self.library.emulated_select_workspace_bytes
        return int(bytes_of(ctypes.byref(arguments), SCALAR_TYPES[dtype]))

    def _cross_entropy_input(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        padding: int = 0,
        target_b: Tensor | None = None,
        lam: Tensor | None = None,
        group_rows: int = 0,
        columns: bool = False,
    ) -> CrossEntropyInput:
        """`padding` elements lie between rows, or between the classes of groups in columns."""
        rows, classes = logits.shape
        bits = raw(logits)
        per_group = group_rows or rows
        grouped = bits.reshape(-1, per_group, classes) if rows else bits.reshape(1, 0, classes)
        if columns:
            grouped = grouped.transpose(0, 2, 1)
        groups, lines, length = grouped.shape
        gap = 1 if group_rows and not columns else 0  # a line between groups, as behind a slice
        filler = np.nan if bits.dtype.kind == "f" else 0x7FC0
        spaced = np.full((groups, lines + gap, length + padding), filler).astype(bits.dtype)
        spaced[:, :lines, :length] = grouped
        # The last line ends with its last element: reading what follows is out of bounds.
        flat = spaced.reshape(-1)
        flat = flat[: flat.size - gap * (length + padding) - padding if rows else 0]
        call = CrossEntropyInput(
            logits=self.emulator.pointer(self.emulator.array(flat, "logits")),
            type=SCALAR_TYPES[logits.dtype],
            batch_size=rows,
            num_classes=classes,
            row_stride=1 if columns else classes + padding,
            group_rows=per_group,
            group_stride=(lines + gap) * (length + padding),
            class_stride=length + padding if columns else 1,
            class_weight=None if weight is None else self._input(weight, "weight"),
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
        if not target.is_floating_point():
            call.target = IndexArray(self._input(target, "target"), INDEX_TYPES[target.dtype])
        if target_b is not None and lam is not None:
            second = self._input(target_b, "second_target")
            call.second_target = IndexArray(second, INDEX_TYPES[target_b.dtype])
            call.lam = self._input(lam, "lam")
            call.lam_stride = 0 if lam.numel() == 1 else 1
        return call

    def _soft_target(self, target: Tensor, padding: int) -> tuple[str, tuple[SoftTarget, ...]]:
        """The kind of the ops for a target, and what they take of probabilities."""
        if not target.is_floating_point():
            return "scored", ()
        bits, (rows, classes) = raw(target), target.shape
        spaced = np.full((rows, classes + padding), 0x7FC0).astype(bits.dtype)
        spaced[:, :classes] = bits
        flat = spaced.reshape(-1)[: max(0, spaced.size - padding)]
        data = self.emulator.pointer(self.emulator.array(flat, "target"))
        return "soft", (SoftTarget(data, SCALAR_TYPES[target.dtype], classes + padding),)

    def scored_cross_entropy_step_(
        self,
        logits: Tensor,
        target: Tensor,
        sample_ids: Tensor,
        columns: dict[str, Tensor],
        *,
        alpha: float = 0.8,
        published: bool = False,
        score: int = Score.LOSS,
        row_reduction: int = RowReduction.MEAN,
        reduction: int = Reduction.MEAN,
        sample_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        padding: int = 0,
        target_b: Tensor | None = None,
        lam: Tensor | None = None,
        grad_scale: Tensor | None = None,
        grad_loss: Tensor | None = None,
        with_gradient: bool = True,
        token_weight: Tensor | None = None,
        divisor: Tensor | None = None,
        group_rows: int = 0,
        in_columns: bool = False,
    ) -> tuple[Tensor, ...]:
        """Returns loss, scores [5, B], correct and gradient; updates the columns.

        With grad_loss, the gradient is multiplied with it by launch_scale_gradient. A floating
        point target holds probabilities.
        """
        rows, classes = logits.shape
        kind = np.dtype(np.float64 if logits.dtype == torch.float64 else np.float32)
        with self._launch() as errors:
            emulator, pointer = self.emulator, self.emulator.pointer
            call = self._cross_entropy_input(
                logits,
                target,
                weight,
                ignore_index,
                label_smoothing,
                padding,
                target_b,
                lam,
                group_rows,
                in_columns,
            )
            kind_of_op, soft = self._soft_target(target, padding)
            losses = rows if reduction == Reduction.NONE else 1
            loss = emulator.array((losses,), "loss", kind, initialised=False)
            scores = [
                emulator.array((rows,), f"scores, {column.name}", kind, initialised=False)
                for column in StepColumn
            ]
            correct = emulator.array((rows,), "correct", np.bool_, initialised=False)
            grad_shape = (rows, classes) if with_gradient else (0,)
            grad = emulator.array(grad_shape, "grad", raw(logits).dtype, initialised=False)
            output = CrossEntropyOutput(
                loss=pointer(scores[StepColumn.LOSS]),
                el2n=pointer(scores[StepColumn.EL2N]),
                entropy=pointer(scores[StepColumn.ENTROPY]),
                margin=pointer(scores[StepColumn.MARGIN]),
                correct=pointer(correct),
                saved=None,
            )
            step = CrossEntropyStep(
                sample_weight=None
                if sample_weight is None
                else self._input(sample_weight, "sample_weight"),
                token_weight=None
                if token_weight is None
                else self._input(token_weight, "token_weight"),
                divisor=None if divisor is None else self._input(divisor, "divisor"),
                grad_scale=None if grad_scale is None else self._input(grad_scale, "grad_scale"),
                reduction=reduction,
                score=score,
                rows_per_id=rows // max(1, sample_ids.numel()),
                loss=pointer(loss),
                row_weight=pointer(scores[StepColumn.ROW_WEIGHT]),
                grad_logits=pointer(grad) if with_gradient else None,
            )
            arrays = {name: emulator.array(raw(t), name) for name, t in columns.items()}
            update = ScoreUpdate(
                **{name: pointer(array) for name, array in arrays.items()},
                count_type=INDEX_TYPES[columns["count"].dtype],
                num_samples=columns["mean"].numel(),
                sample_ids=self._input(sample_ids, "sample_ids"),
                batch_size=rows,
                max_ids=sample_ids.numel(),
                row_reduction=row_reduction,
                alpha=alpha,
                first_visit=int(published),
                correct=pointer(correct) if "last_correct" in columns else None,
            )
            name = f"{kind_of_op}_cross_entropy_step"
            size = getattr(self.library, f"emulated_{name}_workspace_bytes")(
                ctypes.byref(call), ctypes.c_int64(sample_ids.numel())
            )
            workspace = emulator.array((size,), "workspace", np.uint8, initialised=False)
            ticket = emulator.array((1,), "ticket", np.uint32)
            self._call(
                name,
                *map(ctypes.byref, (call, *soft, output, step, update)),
                pointer(workspace),
                pointer(ticket),
                pointer(errors),
            )
            assert int(ticket[0]) == 0
            if grad_loss is not None:
                self._call(
                    "scale_gradient",
                    pointer(grad),
                    SCALAR_TYPES[logits.dtype],
                    ctypes.c_int64(rows),
                    ctypes.c_int64(classes),
                    self._input(grad_loss, "grad_loss"),
                    ctypes.c_int64(0 if grad_loss.numel() == 1 else 1),
                    step.grad_scale and ctypes.c_void_p(step.grad_scale),
                )
            for name, array in arrays.items():
                columns[name].copy_(torch.from_numpy(array.copy()))
            gradient = by_row(grad, rows, classes, group_rows, in_columns).view(logits.dtype)
            return (
                torch.from_numpy(loss.copy()),
                torch.from_numpy(np.stack(scores)),
                torch.from_numpy(correct.copy()),
                gradient,
            )

    def scored_cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        grad_loss: Tensor | None = None,
        padding: int = 0,
        target_b: Tensor | None = None,
        lam: Tensor | None = None,
        group_rows: int = 0,
        in_columns: bool = False,
        in_place: bool = False,
    ) -> tuple[Tensor, ...]:
        """Forward and, with grad_loss [B] or [1] (shared by all rows), backward.

        Returns loss, el2n, entropy, margin, correct and the gradient of the logits, which replaces
        them if `in_place`. `padding` elements lie between rows.
        """
        rows, classes = logits.shape
        kind = np.dtype(np.float64 if logits.dtype == torch.float64 else np.float32)
        with self._launch() as errors:
            emulator, bits = self.emulator, raw(logits)
            call = self._cross_entropy_input(
                logits,
                target,
                weight,
                ignore_index,
                label_smoothing,
                padding,
                target_b,
                lam,
                group_rows,
                in_columns,
            )
            kind_of_op, soft = self._soft_target(target, padding)
            names = ("loss", "el2n", "entropy", "margin")
            outputs = {n: emulator.array((rows,), n, kind, initialised=False) for n in names}
            outputs["correct"] = emulator.array((rows,), "correct", np.bool_, initialised=False)
            saved = emulator.array((rows, len(SavedColumn)), "saved", kind, initialised=False)
            pointers = {name: emulator.pointer(array) for name, array in outputs.items()}
            output = CrossEntropyOutput(**pointers, saved=emulator.pointer(saved))
            records = () if soft else (emulator.pointer(errors),)
            self._call(
                f"{kind_of_op}_cross_entropy",
                *map(ctypes.byref, (call, *soft, output)),
                *records,
            )
            results = [torch.from_numpy(array.copy()) for array in outputs.values()]
            if grad_loss is not None:
                if in_place:
                    memory = (ctypes.c_char * bits.nbytes).from_address(call.logits)
                    grad = np.frombuffer(memory, bits.dtype).reshape(rows, classes)
                else:
                    grad = emulator.array(bits.shape, "grad_logits", bits.dtype, initialised=False)
                gradient = CrossEntropyGradient(
                    grad_loss=self._input(grad_loss, "grad_loss"),
                    grad_loss_stride=0 if grad_loss.numel() == 1 else 1,
                    saved=emulator.pointer(saved),
                    grad_logits=call.logits if in_place else emulator.pointer(grad),
                )
                self._call(
                    f"{kind_of_op}_cross_entropy_backward",
                    *map(ctypes.byref, (call, *soft, gradient)),
                )
                gradient_by_row = by_row(grad, rows, classes, group_rows, in_columns)
                results.append(gradient_by_row.view(logits.dtype))
            return tuple(results)

    def update_scores_(
        self,
        columns: dict[str, Tensor],
        sample_ids: Tensor,
        values: Tensor,
        alpha: float,
        published: bool = False,
        row_reduction: int = RowReduction.MEAN,
        correct: Tensor | None = None,
    ) -> None:
        """Updates the columns (those of `ScoreUpdate` by name) in place."""
        with self._launch() as errors:
            arrays = {name: self.emulator.array(raw(t), name) for name, t in columns.items()}
            update = ScoreUpdate(
                **{name: self.emulator.pointer(array) for name, array in arrays.items()},
                count_type=INDEX_TYPES[columns["count"].dtype],
                num_samples=columns["mean"].numel(),
                sample_ids=self._input(sample_ids, "sample_ids"),
                values=self._input(values, "values"),
                batch_size=sample_ids.numel(),
                max_ids=sample_ids.numel(),
                row_reduction=row_reduction,
                alpha=alpha,
                first_visit=int(published),
                correct=None if correct is None else self._input(correct, "correct"),
            )
            size = self.library.emulated_update_scores_workspace_bytes(sample_ids.numel())
            workspace = self.emulator.array((size,), "workspace", np.uint8, initialised=False)
            self._call(
                "update_scores",
                ctypes.byref(update),
                self.emulator.pointer(workspace),
                self.emulator.pointer(errors),
            )
            for name, array in arrays.items():
                columns[name].copy_(torch.from_numpy(array.copy()))


def on_schedule(**schedule: int) -> Kernels:
    """The project's kernels at a schedule."""
    emulator = load("check")
    emulator.take_error()
    if target == "80":
        schedule["max_cluster"] = 0  # no such device has clusters
    emulator.configure(**schedule)
    return Kernels(emulator)
