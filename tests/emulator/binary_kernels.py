# SPDX-License-Identifier: Apache-2.0
"""The kernels of the binary cross-entropy on the emulator, as functions of tensors."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from kernels import INDEX_TYPES, SCALAR_TYPES, Kernels, raw
from structures import CrossEntropyOutput, CrossEntropyStep, ScoreUpdate
from torch import Tensor

from dynprune_cuda._ops.contract import Reduction, RowReduction, Score, StepColumn

LABEL_TYPES = {**SCALAR_TYPES, torch.bool: 4}


class BinaryInput(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("batch_size", ctypes.c_int64),
        ("num_labels", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("target", ctypes.c_void_p),
        ("target_type", ctypes.c_int32),
        ("target_stride", ctypes.c_int64),
        ("label_weight", ctypes.c_void_p),
        ("label_weight_stride", ctypes.c_int64),
        ("pos_weight", ctypes.c_void_p),
    )


class BinaryGradient(ctypes.Structure):
    _fields_ = (
        ("grad_loss", ctypes.c_void_p),
        ("grad_loss_stride", ctypes.c_int64),
        ("grad_logits", ctypes.c_void_p),
    )


class BinaryKernels:
    """The launches of a `Kernels`, with `padding` elements between rows of logits and targets."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.emulator = kernels.emulator

    def _spaced(self, tensor: Tensor, name: str, padding: int) -> ctypes.c_void_p:
        """Rows apart; the last one ends with its last element: what follows is out of bounds."""
        bits = raw(tensor)
        rows, length = bits.shape
        spaced = np.zeros((rows, length + padding), bits.dtype)
        spaced[:, :length] = bits
        flat = spaced.reshape(-1)[: max(0, rows * (length + padding) - padding)]
        return self.emulator.pointer(self.emulator.array(flat, name))

    def _input(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        padding: int,
    ) -> BinaryInput:
        rows, labels = logits.shape
        take = self.kernels._input
        return BinaryInput(
            logits=self._spaced(logits, "logits", padding),
            type=SCALAR_TYPES[logits.dtype],
            batch_size=rows,
            num_labels=labels,
            row_stride=labels + padding,
            target=self._spaced(target, "target", padding),
            target_type=LABEL_TYPES[target.dtype],
            target_stride=labels + padding,
            label_weight=None if weight is None else take(weight, "weight"),
            label_weight_stride=0 if weight is None or weight.dim() == 1 else labels,
            pos_weight=None if pos_weight is None else take(pos_weight, "pos_weight"),
        )

    def scored_binary_cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        grad_loss: Tensor | None = None,
        padding: int = 0,
    ) -> tuple[Tensor, ...]:
        """Returns loss, el2n, entropy, margin, correct, and with grad_loss the gradient."""
        rows, labels = logits.shape
        kind = np.dtype(np.float64 if logits.dtype == torch.float64 else np.float32)
        kernels, pointer = self.kernels, self.emulator.pointer
        with kernels._launch() as errors:
            call = self._input(logits, target, weight, pos_weight, padding)
            names = ("loss", "el2n", "entropy", "margin")
            columns = [
                self.emulator.array((rows,), name, kind, initialised=False) for name in names
            ]
            correct = self.emulator.array((rows,), "correct", np.bool_, initialised=False)
            output = CrossEntropyOutput(*map(pointer, (*columns, correct)), None)
            kernels._call(
                "scored_binary_cross_entropy", *map(ctypes.byref, (call, output)), pointer(errors)
            )
            results = [torch.from_numpy(x.copy()) for x in (*columns, correct)]
            if grad_loss is not None:
                bits = raw(logits).dtype
                grad = self.emulator.array((rows, labels), "grad", bits, initialised=False)
                gradient = BinaryGradient(
                    kernels._input(grad_loss, "grad_loss"), int(grad_loss.numel() > 1),
                    pointer(grad),
                )  # fmt: skip
                kernels._call(
                    "scored_binary_cross_entropy_backward",
                    *map(ctypes.byref, (call, gradient)),
                )
                results.append(torch.from_numpy(grad.copy()).view(logits.dtype))
            return tuple(results)

    def step(
        self,
        logits: Tensor,
        target: Tensor,
        sample_ids: Tensor,
        columns: dict[str, Tensor],
        *,
        alpha: float = 0.8,
        score: int = Score.LOSS,
        row_reduction: int = RowReduction.MEAN,
        reduction: int = Reduction.MEAN,
        sample_weight: Tensor | None = None,
        divisor: Tensor | None = None,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        grad_scale: Tensor | None = None,
        with_gradient: bool = True,
        padding: int = 0,
    ) -> tuple[Tensor, ...]:
        """Returns loss, scores [5, B], correct and gradient; updates the columns."""
        rows, labels = logits.shape
        kind = np.dtype(np.float64 if logits.dtype == torch.float64 else np.float32)
        kernels, emulator, pointer = self.kernels, self.emulator, self.emulator.pointer

        def optional(tensor: Tensor | None, name: str) -> ctypes.c_void_p | None:
            return None if tensor is None else kernels._input(tensor, name)

        with kernels._launch() as errors:
            call = self._input(logits, target, weight, pos_weight, padding)
            losses = rows if reduction == Reduction.NONE else 1
            loss = emulator.array((losses,), "loss", kind, initialised=False)
            scores = [
                emulator.array((rows,), f"scores, {column.name}", kind, initialised=False)
                for column in StepColumn
            ]
            correct = emulator.array((rows,), "correct", np.bool_, initialised=False)
            shape = (rows, labels) if with_gradient else (0,)
            grad = emulator.array(shape, "grad", raw(logits).dtype, initialised=False)
            output = CrossEntropyOutput(*map(pointer, scores[:4]), pointer(correct), None)
            step = CrossEntropyStep(
                sample_weight=optional(sample_weight, "sample_weight"),
                divisor=optional(divisor, "divisor"),
                grad_scale=optional(grad_scale, "grad_scale"),
                reduction=reduction,
                score=score,
                rows_per_id=1,
                loss=pointer(loss),
                row_weight=pointer(scores[StepColumn.ROW_WEIGHT]),
                grad_logits=pointer(grad) if with_gradient else None,
            )
            arrays = {name: emulator.array(raw(t), name) for name, t in columns.items()}
            update = ScoreUpdate(
                **{name: pointer(array) for name, array in arrays.items()},
                count_type=INDEX_TYPES[columns["count"].dtype],
                num_samples=columns["mean"].numel(),
                sample_ids=kernels._input(sample_ids, "sample_ids"),
                batch_size=rows,
                max_ids=rows,
                row_reduction=row_reduction,
                alpha=alpha,
                correct=pointer(correct) if "last_correct" in columns else None,
            )
            size = kernels.library.emulated_scored_binary_cross_entropy_step_workspace_bytes(
                ctypes.byref(call)
            )
            workspace = emulator.array((size,), "workspace", np.uint8, initialised=False)
            ticket = emulator.array((1,), "ticket", np.uint32)
            kernels._call(
                "scored_binary_cross_entropy_step",
                *map(ctypes.byref, (call, output, step, update)),
                *map(pointer, (workspace, ticket, errors)),
            )
            assert int(ticket[0]) == 0
            for name, array in arrays.items():
                columns[name].copy_(torch.from_numpy(array.copy()))
            gradient = torch.from_numpy(grad.copy()).view(logits.dtype)
            return (
                torch.from_numpy(loss.copy()),
                torch.from_numpy(np.stack(scores)),
                torch.from_numpy(correct.copy()),
                gradient,
            )
