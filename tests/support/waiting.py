# SPDX-License-Identifier: Apache-2.0
"""Checks that operations do not wait for a GPU.

`with no_waiting(): ...` needs no GPU; it knows operations by name.
`with no_cuda_waiting(): ...` asks torch, and so sees what no name tells.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Their results or shapes depend on values, which the host can only know once the device is done.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "equal",
}


class no_waiting(TorchDispatchMode):
    """Raises at the first operation that would wait if its tensors were on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index_put")) and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for argument in args[1:2]
            if isinstance(argument, list | tuple)
            for index in argument
        )
        if name in WAITING or by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def no_cuda_waiting() -> AbstractContextManager[None]:
    """Makes torch raise where the host waits for the GPU, and restores the mode in any case."""
    # Here, because tests of a wheel have no benchmarks on their path.
    from benchmarks.common.sync_debug import sync_debug_mode

    return sync_debug_mode("error")
