# SPDX-License-Identifier: Apache-2.0
"""Saved states of which some leaves were changed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STRANGE = (None, True, -1, 0, 2**31, 2**63 - 1, 2**64, 1.5, float("nan"), "x", b"x", (), [], {})


def tampered(state: Mapping[str, Any], seed: int, changes: int) -> dict[str, Any]:
    """Returns a copy of a state of which so many leaves, drawn by the seed, are different."""
    draw = random.Random(seed)
    copied = _copy(state)
    for _ in range(changes):
        place = copied
        name = draw.choice(sorted(place, key=str))
        while isinstance(place[name], dict) and place[name] and draw.random() < 0.95:
            place = place[name]
            name = draw.choice(sorted(place, key=str))
        way = draw.random()
        if way < 0.04 and len(place) > 1:
            del place[name]
        elif way < 0.08:
            place[draw.choice(("more", 3, ""))] = place[name]
        else:
            place[name] = _changed(place[name], draw)
    return copied


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(part) for name, part in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def _changed(value: Any, draw: random.Random) -> Any:
    if draw.random() < 0.15:
        return draw.choice(STRANGE)
    if isinstance(value, Tensor):
        is_plain = value.layout == torch.strided and not value.is_meta
        if not is_plain or (value.numel() and not value.untyped_storage().nbytes()):
            return draw.choice(STRANGE)  # it was changed before
        return _changed_tensor(value, draw)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, -value - 1, value ^ 1 << draw.randrange(62), 2**63, 2**70))
    if isinstance(value, float):
        return draw.choice((-value, value / 2, value + 1, float("inf"), float("nan")))
    if isinstance(value, str):
        place = draw.randrange(len(value) + 1)
        return draw.choice(
            (value[:place], value[:place] + "0" + value[place + 1 :], "2", value * 2)
        )
    if isinstance(value, list | tuple):
        return type(value)([*value, draw.choice(STRANGE)])
    return draw.choice(STRANGE)


def _changed_tensor(tensor: Tensor, draw: random.Random) -> Any:
    dtypes = (torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8, torch.complex64)
    way = draw.random()
    if way < 0.6 and tensor.numel():
        return _with_other_bits(tensor, draw)
    forms = (
        lambda: tensor.to(draw.choice(dtypes)),
        lambda: tensor.flatten()[: tensor.numel() // 2],
        lambda: tensor[None],
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: tensor.tolist(),
        lambda: tensor.numpy(),
        lambda: torch.cat([tensor.flatten(), tensor.flatten()]),
        lambda: _freed(tensor),
        lambda: tensor.expand(3, *tensor.shape),
    )
    return draw.choice(forms)()


def _with_other_bits(tensor: Tensor, draw: random.Random) -> Tensor:
    changed = tensor.clone().contiguous()
    flat = changed.view(-1)
    place = draw.randrange(flat.numel())
    if flat.dtype == torch.bool:
        flat[place] = not flat[place]
    elif draw.random() < 0.5:
        words = flat.view(torch.uint8)
        words[draw.randrange(len(words))] ^= 1 << draw.randrange(8)
    elif flat.dtype.is_complex:
        flat[place] = 1j
    elif flat.dtype.is_floating_point:
        flat[place] = draw.choice((float("nan"), float("inf"), -1.0, 3e38))
    else:
        flat[place] = draw.choice(
            (-1, -2, torch.iinfo(flat.dtype).max, torch.iinfo(flat.dtype).min)
        )
    return changed


def _freed(tensor: Tensor) -> Tensor:
    gone = tensor.clone()
    gone.untyped_storage().resize_(0)
    return gone
