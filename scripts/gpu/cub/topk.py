# SPDX-License-Identifier: Apache-2.0
"""CUB's DeviceTopK for float32 CUDA tensors, a rival of bench_selection.

`make gpu-bundle` makes the package cub_topk of this file and the library that topk.cu becomes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

_cub_topk = ctypes.CDLL(str(Path(__file__).with_name("libcub_topk.so"))).cub_topk
_cub_topk.argtypes = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 2, ctypes.c_void_p]


def top_k(x: Tensor, k: int) -> Tensor:
    """The int64 ids of the k greatest of x, in any order."""
    assert x.is_cuda and x.dtype == torch.float32 and x.is_contiguous() and x.ndim == 1
    greatest = torch.empty(k, device=x.device)
    ids = torch.empty(k, dtype=torch.int64, device=x.device)
    num_bytes = ctypes.c_size_t(0)
    stream = torch.cuda.current_stream(x.device).cuda_stream

    def call(workspace: int | None) -> None:
        outputs = greatest.data_ptr(), ids.data_ptr()
        error = _cub_topk(
            workspace, ctypes.byref(num_bytes), x.data_ptr(), *outputs, len(x), k, stream
        )
        if error:
            raise RuntimeError(f"cub::DeviceTopK: CUDA error {error}")

    call(None)
    call(torch.empty(max(1, num_bytes.value), dtype=torch.uint8, device=x.device).data_ptr())
    return ids
