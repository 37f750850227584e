# SPDX-License-Identifier: Apache-2.0
"""The C++ structures of the kernels' arguments, as the launchers take them."""

from __future__ import annotations

import ctypes


class RankingSpec(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("count_type", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("c", ctypes.c_float),
        ("log_step", ctypes.c_float),
    )


class SelectionArguments(ctypes.Structure):
    _fields_ = (
        ("num_samples", ctypes.c_int64),
        ("num_greedy", ctypes.c_int64),
        ("num_random", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("seed_pointer", ctypes.c_void_p),
        ("ascending", ctypes.c_int32),
        ("ids", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )


class IndexArray(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("type", ctypes.c_int32))


class CrossEntropyInput(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("batch_size", ctypes.c_int64),
        ("num_classes", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("group_rows", ctypes.c_int64),
        ("group_stride", ctypes.c_int64),
        ("class_stride", ctypes.c_int64),
        ("target", IndexArray),
        ("class_weight", ctypes.c_void_p),
        ("label_smoothing", ctypes.c_double),
        ("ignore_index", ctypes.c_int64),
        ("second_target", IndexArray),
        ("lam", ctypes.c_void_p),
        ("lam_stride", ctypes.c_int64),
    )


class SoftTarget(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("row_stride", ctypes.c_int64),
    )


class CrossEntropyOutput(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("loss", "el2n", "entropy", "margin", "correct", "saved")
    )


class CrossEntropyGradient(ctypes.Structure):
    _fields_ = (
        ("grad_loss", ctypes.c_void_p),
        ("grad_loss_stride", ctypes.c_int64),
        ("saved", ctypes.c_void_p),
        ("grad_logits", ctypes.c_void_p),
    )


class CrossEntropyStep(ctypes.Structure):
    _fields_ = (
        ("sample_weight", ctypes.c_void_p),
        ("token_weight", ctypes.c_void_p),
        ("divisor", ctypes.c_void_p),
        ("grad_scale", ctypes.c_void_p),
        ("reduction", ctypes.c_int32),
        ("score", ctypes.c_int32),
        ("rows_per_id", ctypes.c_int64),
        ("loss", ctypes.c_void_p),
        ("row_weight", ctypes.c_void_p),
        ("grad_logits", ctypes.c_void_p),
    )


class ScoreUpdate(ctypes.Structure):
    _fields_ = (
        ("mean", ctypes.c_void_p),
        ("variance", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("count_type", ctypes.c_int32),
        ("non_finite_count", ctypes.c_void_p),
        ("last_non_finite", ctypes.c_void_p),
        ("num_samples", ctypes.c_int64),
        ("sample_ids", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("batch_size", ctypes.c_int64),
        ("max_ids", ctypes.c_int64),
        ("row_reduction", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("first_visit", ctypes.c_int32),
        ("correct", ctypes.c_void_p),
        ("last_correct", ctypes.c_void_p),
        ("forget_count", ctypes.c_void_p),
    )
