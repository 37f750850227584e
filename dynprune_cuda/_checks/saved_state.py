# SPDX-License-Identifier: Apache-2.0
"""Saved states: what they hold, and the checks that refuse a wrong or damaged one as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda._checks.arguments import MAX_INT64, as_int, check_values

# Behind the checksum, which has 32 digits.
_FIRST_EPOCH = "[1-9][0-9]{0,18}"
OTHER_COPY = "load another copy or an earlier checkpoint"  # what to do about damage


class StateReader:
    """Reads the entries of a saved state; every error names the entry and says what is wrong."""

    def __init__(self, name: str, state: Any) -> None:
        """Checks that `state`, called `name` in errors, is a mapping, and its tensors are whole."""
        if not isinstance(state, Mapping):
            raise TypeError(f"{name} must be a mapping, got {type(state).__name__}")
        _check_tensors(name, state)
        self.name, self.state = name, state

    def has(self, entries: Iterable[str]) -> None:
        """Checks that exactly these entries are there."""
        wanted, got = set(entries), set(self.state)
        if wanted != got:
            missing, strange = sorted(wanted - got), sorted(map(str, got - wanted))
            raise ValueError(
                f"{self.name} is damaged: it lacks {missing} and has unknown {strange}; "
                f"{OTHER_COPY}"
            )

    def same(self, entry: str, mine: Any) -> None:
        """Checks that an entry, if it is there, is what this object was made with."""
        theirs = self.state.get(entry, mine)
        if type(theirs) is not type(mine) or theirs != mine:
            raise ValueError(
                f"{self.name} is of another run: its {entry} is {theirs!r}, and here it is {mine!r}"
            )

    def sealed(self, versions: tuple[int, ...], newest: int) -> str | None:
        """Returns the checksum in `version`, None of a state from before there was one.

        Args:
            versions: Versions without a checksum.
            newest: The version with one.
        """
        version = self.state.get("version")
        if type(version) is int and version in versions:
            return None
        found = re.fullmatch(rf"{newest}:([0-9a-f]{{32}})(:{_FIRST_EPOCH})?", str(version))
        if found is None or not isinstance(version, str):
            raise ValueError(
                f"{self.name} is of another run: its version is {version!r}, and here it is "
                f"{newest} with a checksum"
            )
        return found[1]

    def first_epoch(self) -> int:
        """Returns the epoch that `version` names behind the checksum; 0 if it names none."""
        found = re.search(f":({_FIRST_EPOCH})$", str(self.state["version"]))
        first = 0 if found is None else int(found[1])
        return as_int(f"{self.name}['version']", first, minimum=0, maximum=MAX_INT64)

    def intact(self, written: str | None, found: str) -> None:
        """Checks that a state holds what was saved."""
        if written is not None and written != found:
            raise ValueError(
                f"{self.name} is damaged: its contents do not match its checksum; {OTHER_COPY}"
            )

    def integer(self, entry: str, minimum: int, maximum: int | None = None) -> int:
        """Returns an int."""
        name = f"{self.name}[{entry!r}]"
        return as_int(name, self.state[entry], minimum=minimum, maximum=maximum)

    def tensor(
        self, entry: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
    ) -> Tensor:
        """Returns a copy of a tensor, on `device`."""
        value = self.state[entry]
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{self.name}[{entry!r}] must be a tensor, got {kind}")
        if value.dtype != dtype or tuple(value.shape) != shape:
            raise ValueError(
                f"{self.name}[{entry!r}] is damaged: it must be {dtype} of shape {shape}, got "
                f"{value.dtype} of shape {tuple(value.shape)}; {OTHER_COPY}"
            )
        return value.detach().to(device, copy=True)

    def sound(self, entry: str, holds: Tensor | bool, what: str) -> None:
        """Checks what the contents must fulfil. Waits for the device."""
        if not bool(holds):
            raise ValueError(f"{self.name}[{entry!r}] is damaged: {what}; {OTHER_COPY}")


def _check_tensors(name: str, state: Mapping[Any, Any]) -> None:
    """Checks that every tensor in a state has values that can be read."""
    for entry, value in state.items():
        label = f"{name}[{entry!r}]"
        if isinstance(value, Mapping):
            _check_tensors(label, value)
        elif isinstance(value, Tensor):
            check_values(label, value)
