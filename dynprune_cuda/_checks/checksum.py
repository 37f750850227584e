# SPDX-License-Identifier: Apache-2.0
"""A checksum of what a saved state holds: the same on every device, and for rows in pieces.

A tensor counts by the sum of its words, each times an odd number that its place decides, modulo
2^64. Such sums of pieces add up to that of the whole. They find accidents, not forgeries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_BLOCK = 1 << 18  # words; decides the checksum, and is what the caches of a CPU hold
_AS_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xB492B66FBE98F273)  # any odd numbers without pattern


def tensor_sum(tensor: Tensor, first: int = 0) -> Tensor:
    """Returns the sum of a tensor's words, 0-d int64 on its device, without waiting.

    The factor of a place is one of its place in a block times one of the block.

    Args:
        tensor: Any dtype but complex, any shape.
        first: How many elements of the whole come before this piece.
    """
    words = tensor.detach().contiguous().flatten()
    if words.dtype != torch.bool:
        words = words.view(_AS_INTS[words.element_size()])
    first *= words.numel() // max(tensor.numel(), 1)
    last = first + len(words)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    factors = _odd_numbers(min(_BLOCK, first % _BLOCK + len(words)), tensor.device)
    for block in range(first // _BLOCK, -(-last // _BLOCK)):
        start, end = max(block * _BLOCK, first), min((block + 1) * _BLOCK, last)
        piece = words[start - first : end - first].long()
        its_factors = factors[start - block * _BLOCK : end - block * _BLOCK]
        # A dot product stores no products, but CUDA has none of integers.
        inside = (piece * its_factors).sum() if piece.is_cuda else torch.dot(piece, its_factors)
        total += inside * _odd_number(block)
    return total


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """Returns the factors of the places in a block, int64."""
    numbers = torch.arange(1, count + 1, device=device)
    for multiplier in _MULTIPLIERS:
        numbers.mul_(_signed(multiplier))
        numbers.bitwise_xor_(numbers >> 29)
    return numbers.bitwise_or_(1)


def _odd_number(block: int) -> int:
    """Returns the factor of a block, in the range of int64."""
    number = block + 1
    for multiplier in _MULTIPLIERS:
        number = number * multiplier % 2**64
        number ^= number >> 31
    return _signed(number | 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def checksum(state: Mapping[str, Any], sums: Mapping[str, tuple[int, int]] | None = None) -> str:
    """Returns a checksum of numbers, strings, lists and tensors, by name. Waits for the device.

    Args:
        state: What to sum up; a mapping inside counts by its entries.
        sums: For tensors in pieces, by name: the number of elements of the whole, and the sum.
    """
    sums = {} if sums is None else sums
    entries = dict(_flat(state))
    whole = {
        name: tensor_sum(value)
        for name, value in entries.items()
        if isinstance(value, Tensor) and name not in sums
    }
    numbers = dict(zip(whole, _as_ints(list(whole.values())), strict=True))
    lines = []
    for name, value in sorted(entries.items()):
        if name in sums:
            lines.append(f"{name}: {value.dtype} {(sums[name][0],)} {sums[name][1]}")
        elif isinstance(value, Tensor):
            lines.append(f"{name}: {value.dtype} {tuple(value.shape)} {numbers[name]}")
        else:
            lines.append(f"{name}: {value!r}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _flat(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_ints(numbers: list[Tensor]) -> list[int]:
    """Returns 0-d tensors as ints. Waits once for a device, when a state is saved or loaded."""
    by_device: dict[torch.device, list[int]] = {}
    for place, number in enumerate(numbers):
        by_device.setdefault(number.device, []).append(place)
    found = [0] * len(numbers)
    for places in by_device.values():
        for place, number in zip(
            places, torch.stack([numbers[place] for place in places]).tolist(), strict=True
        ):
            found[place] = number
    return found
