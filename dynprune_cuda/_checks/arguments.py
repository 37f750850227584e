# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: every error names the argument and the value."""

from __future__ import annotations

import hashlib
import math
import operator
import os
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNT_DTYPES = (torch.int32, torch.int64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_SAMPLES = 1 << 32
MAX_INT64 = (1 << 63) - 1

# What errors about the shape or the dtype of a loss's logits and targets end with.
WAY_OUT = (
    "for other losses, compute one value per sample: Pruner.observe or functional.update_scores_ "
    "records it, and Pruner.rescale multiplies it by a policy's factor before the mean"
)


def as_int(name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Returns `value` as a Python int; a bool is no number here, and neither is 3.0."""
    if isinstance(value, Tensor):
        _refuse_freed(name, value, "an int")
    is_bool = isinstance(value, bool | np.bool_)
    if is_bool or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # tensors without a value raise any of them
        shown = reprlib.repr(value)  # a whole tensor or data set says no more than its type
        raise TypeError(
            f"{name} must be an int, got {shown} of type {type(value).__name__}"
        ) from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {number}")
    return number


def as_float(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = math.inf,
    above_low: bool = False,
) -> float:
    """Returns `value` as a finite float in [low, high], or in (low, high] with `above_low`."""
    if isinstance(value, Tensor):
        _refuse_freed(name, value, "a number")
    plain = isinstance(value, int | float)  # torch 2.11 cannot ask a traced float for attributes
    if isinstance(value, bool | np.bool_ | str) or not (plain or hasattr(value, "__float__")):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {value!r}") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a single number, got {value!r}") from None
    # Comparisons only: torch.compile traces them for floats that change from call to call.
    inside = (low < number if above_low else low <= number) and number <= high
    if not (inside and -math.inf < number < math.inf):
        if low == -math.inf and high == math.inf:
            raise ValueError(f"{name} must be finite, got {value!r}")
        wanted = f"{'(' if above_low else '['}{low:g}, {high:g}{']' if high < math.inf else ')'}"
        raise ValueError(f"{name} must be in {wanted}, got {value!r}")
    return number


def as_bool(name: str, value: Any) -> bool:
    """Returns `value` if it is a bool: "no" and 0.3 would both count as true or false."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")
    return bool(value)


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r} of type {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def as_ints(name: str, value: Any) -> tuple[int, ...]:
    """Returns an iterable of ints as a tuple."""
    try:
        numbers = tuple(value) if not isinstance(value, str | bytes) else None
    except TypeError:
        numbers = None
    if numbers is None:
        raise TypeError(f"{name} must be ints, got {reprlib.repr(value)}")
    return tuple(as_int(name, number) for number in numbers)


def on_host(name: str, value: Any) -> Tensor:
    """Returns a sequence, an array or a tensor of ints as a tensor on the CPU.

    Waits for a GPU: ids and groups are given before training, not in a step.
    """
    try:
        tensor = torch.as_tensor(value).detach()
        check_values(name, tensor)
        return tensor.cpu()
    except (OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a 1-D sequence of ints: {error}") from None


def as_path(name: str, value: Any) -> str:
    """Returns a path as a str. Refuses an int, which `open` would take as a file descriptor."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or os.PathLike, got {type(value).__name__}")
    return os.fspath(value)


def check_type(name: str, value: Any, kind: type) -> None:
    """An object of a class, or of one that derives from it."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {reprlib.repr(value)}")


def as_device(name: str, value: Any) -> torch.device:
    """Returns the device of a tensor made on `value`; None is torch's default device."""
    return empty_on(name, value).device


def empty_on(name: str, value: Any) -> Tensor:
    """Returns an empty float32 tensor on `value`, if torch can make one there."""
    if torch.compiler.is_compiling():
        return torch.empty((0,), device=value)
    try:
        return torch.empty((0,), device=value)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        # torch names no argument, and raises another kind of error for each kind of device.
        reason = str(error).split("\n")[0].split(". ")[0]
        kind = ValueError if isinstance(value, torch.device | str | int) else TypeError
        message = f"{name} must be a device that this torch can use, got {value!r}: {reason}"
        raise kind(message) from error


# A length that check_vector takes from `like`; a number, because torch 2.11 traces no other marker.
_LIKE = -1


def check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], remedy: str = "") -> None:
    """A tensor of one of dtypes; an error about its dtype ends with `remedy`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must have dtype {allowed}, got {value.dtype}{_after(remedy)}")
    check_dense(name, value)


def _after(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


def check_dense(name: str, value: Any) -> None:
    """A tensor whose elements lie in memory of its own, at its strides."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        kind = str(value.layout).removeprefix("torch.")
        kind = "nested or quantized tensor" if value.layout == torch.strided else f"{kind} tensor"
        raise ValueError(f"{name} must be a dense tensor, got a {kind}")
    if is_freed(value):
        raise ValueError(
            f"{name} must hold {value.numel()} elements, got a tensor whose storage was freed"
        )


def are_ordinary(tensors: Sequence[Any]) -> bool:
    """Returns whether these are plain strided tensors that own values, and nothing is traced."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_meta:
            return False
        # 0 bytes if it was freed, or if it has no elements.
        if tensor.is_nested or tensor.is_neg() or not tensor.untyped_storage().nbytes():
            return False
    return True


def check_values(name: str, value: Tensor) -> None:
    """A dense tensor that has values: neither a fake one, nor one on the device meta."""
    check_dense(name, value)
    if value.is_meta or isinstance(value, FakeTensor):
        raise ValueError(f"{name} must have values, got a fake or meta tensor on {value.device}")


def _refuse_freed(name: str, value: Tensor, wanted: str) -> None:
    """Refuses what would be read, or shown in an error, where no memory is."""
    if value.layout == torch.strided and not value.is_nested and is_freed(value):
        raise TypeError(f"{name} must be {wanted}, got a tensor whose storage was freed")


def is_freed(tensor: Tensor) -> bool:
    """Returns whether the memory of a tensor is gone, as after `untyped_storage().resize_(0)`."""
    if torch.compiler.is_compiling():
        return False
    kind = type(tensor)
    if kind is not Tensor and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False  # such wrappers need not have a storage
    if torch._C._are_functorch_transforms_active():
        return False  # its tensors have none
    return tensor.untyped_storage().nbytes() == 0 and tensor.numel() > 0


GRADIENTS = ("Grad", "Jvp")
TRANSFORMS = (*GRADIENTS, "Vmap", "Functionalize")


def refuse_transforms(function: str, kinds: tuple[str, ...], instead: str = "") -> None:
    """Raises NotImplementedError inside `torch.func.grad`, `vmap` and the like.

    Args:
        function: What is called.
        kinds: The kinds of transforms in which it does not work.
        instead: torch's function for the same loss; "": its cross_entropy.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    active = [level.key().name for level in torch._C._functorch.get_interpreter_stack() or []]
    if not set(kinds).intersection(active):
        return
    raise NotImplementedError(
        f"{function} does not work inside transforms of torch.func, got {', '.join(active)}: use "
        f"torch.nn.functional.{instead or 'cross_entropy'} there, and record the losses outside by "
        "Pruner.observe"
    )


def check_vector(
    name: str,
    value: Any,
    dtypes: tuple[torch.dtype, ...],
    like: Tensor | None = None,
    length: int | None = _LIKE,
    like_name: str = "",
    remedy: str = "",
) -> None:
    """A 1-D tensor of one of dtypes; with `like`, on its device and of its length (None: any).

    Errors about its dtype or its shape end with `remedy`.
    """
    check_tensor(name, value, dtypes, remedy)
    if value.dim() != 1:
        raise ValueError(f"{name} must be 1-D, got shape {tuple(value.shape)}{_after(remedy)}")
    if like is None:
        check_num_samples(name, value.numel())
        return
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")
    wanted = like.shape[0] if length == _LIKE else length
    if wanted is not None and value.shape[0] != wanted:
        other = f", the length of {like_name}" if like_name else ""
        raise ValueError(
            f"{name} must have {wanted} elements{other}, got {value.shape[0]}{_after(remedy)}"
        )


def check_num_samples(name: str, num_samples: int) -> None:
    """A number of samples that the kernels can count."""
    if num_samples > MAX_SAMPLES:
        raise ValueError(f"{name}: at most 2^32 samples are supported, got {num_samples}")


def digest(tensor: Tensor) -> str:
    """Returns a short hash of what a CPU tensor holds."""
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()[:16]
