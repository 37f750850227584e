# SPDX-License-Identifier: Apache-2.0
"""One score per sample, with where it comes from; on disk and back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import FLOATING, as_int, as_ints, as_path, check_vector
from dynprune_cuda._checks.checksum import checksum
from dynprune_cuda._checks.saved_state import StateReader
from dynprune_cuda._schedule.keep import resolve_keep
from dynprune_cuda._version import __version__
from dynprune_cuda.policies import StaticSubset

_FORMAT = 1  # grows with every change of what a file holds
_ENTRIES = ("format", "values", "method", "seeds", "epochs", "about", "versions")
_AGAIN = "compute the scores again, and save them"
_NO_SCORES = f"holds no static scores, or is damaged: give a file of StaticScores.save, or {_AGAIN}"


def _versions() -> dict[str, str]:
    return {"dynprune_cuda": __version__, "torch": str(torch.__version__)}


@dataclass(frozen=True, eq=False, repr=False)
class StaticScores:
    """One score per sample of a training set; bigger means more worth training on.

    Attributes:
        values: The scores, float32 [num_samples], on the CPU.
        method: What was measured: "el2n", "grand", "grand_last", "forgetting", "random", or a
            name of your own.
        seeds: The seeds of the models over which the scores are the mean.
        epochs: How long each of them was trained.
        about: What the scores belong to, in your own words, such as the data and the model.
        versions: Versions of this package and of torch that computed the scores.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: `values` is empty, not 1-D or not floating point.
    """

    values: Tensor
    method: str
    seeds: tuple[int, ...] = ()
    epochs: int = 0
    about: str = ""
    versions: dict[str, str] = field(default_factory=_versions)

    def __post_init__(self) -> None:
        """Checks the attributes, and brings the scores to the CPU."""
        check_vector("values", self.values, FLOATING)
        if len(self.values) == 0:
            raise ValueError("values must hold at least one score, got none")
        for name in ("method", "about"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str, got {getattr(self, name)!r}")
        object.__setattr__(self, "values", self.values.detach().to("cpu", torch.float32))
        object.__setattr__(self, "seeds", as_ints("seeds", self.seeds))
        object.__setattr__(self, "epochs", as_int("epochs", self.epochs, minimum=0))

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.values)

    def top(self, keep: float, *, seed: int = 0) -> Tensor:
        """Returns the ids of the samples with the greatest scores, ascending, int64, on the CPU.

        A smaller `keep` with the same seed gives a subset of these.

        Args:
            keep: A float in (0, 1] is a fraction, an int is a count, as in `Pruner`.
            seed: Decides between equal scores, at random.

        Raises:
            TypeError: `keep` is no number.
            ValueError: `keep` is out of range.
        """
        count = resolve_keep(keep, len(self))
        return functional.select_top_k(self.values, count, seed=seed, order="ascending")

    def subset(self, keep: float, *, seed: int = 0) -> StaticSubset:
        """Returns `top` as a policy.

        `Pruner(len(scores), policy=scores.subset(0.3), warmup_epochs=0)` trains on nothing else. A
        pruner of another number of samples refuses it.

        Args:
            keep: As of `top`.
            seed: As of `top`.
        """
        return StaticSubset(self.top(keep, seed=seed), len(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the scores to a file that `torch.load(weights_only=True)` can read.

        The file is there as a whole or not at all, whenever the process ends. It has a checksum of
        its contents, and `load` refuses a file whose contents have changed.

        Args:
            path: Path of the file; an older file is replaced.
        """
        path = as_path("path", path)
        state = {name: getattr(self, name) for name in _ENTRIES[1:]}
        state.update(format=_FORMAT, seeds=list(self.seeds))
        state["checksum"] = checksum(state)
        new = Path(f"{path}.{os.getpid()}.new")
        try:
            torch.save(state, new)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        num_samples: int | None = None,
        method: str | None = None,
        seeds: Iterable[int] | None = None,
        epochs: int | None = None,
        about: str | None = None,
    ) -> StaticScores:
        """Reads what `save` wrote, and refuses scores that are not those that are wanted.

        Args:
            path: The file.
            num_samples: Size of the training set that the scores must be of; None: any. So for
                the others, which are attributes.
            method: See the class.
            seeds: See the class.
            epochs: See the class.
            about: See the class.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file holds no static scores, is damaged, or holds others than wanted.
        """
        path = as_path("path", path)
        if num_samples is not None:
            num_samples = as_int("num_samples", num_samples, minimum=1)
        if epochs is not None:
            epochs = as_int("epochs", epochs, minimum=0)
        for name, text in (("method", method), ("about", about)):
            if not isinstance(text, str | None):
                raise TypeError(f"{name} must be a str, got {text!r}")
        wanted_seeds = None if seeds is None else as_ints("seeds", seeds)
        with open(path, "rb") as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # of a damaged file torch.load raises anything
                raise ValueError(f"{path} {_NO_SCORES}") from error
        if not isinstance(state, dict) or "values" not in state:
            raise ValueError(f"{path} {_NO_SCORES}")
        written = state.pop("checksum", None)  # version 0.1.0 wrote none
        StateReader(str(path), state).has(_ENTRIES)
        if state["format"] != _FORMAT:
            raise ValueError(
                f"{path} was written by another version of dynprune_cuda: its format is "
                f"{state['format']!r}, and here it is {_FORMAT!r}; {_AGAIN}"
            )
        try:
            found = None if written is None else checksum(state)
            own = {name: state[name] for name in _ENTRIES[1:]}
            scores = cls(**{**own, "seeds": tuple(own["seeds"])})
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}; {_AGAIN}") from None
        if found != written:
            raise ValueError(f"{path} is damaged: its contents do not match its checksum; {_AGAIN}")
        wanted: dict[str, Any] = {"method": method, "epochs": epochs, "about": about}
        wanted["seeds"] = wanted_seeds
        for name, value in wanted.items():
            if value is not None and getattr(scores, name) != value:
                raise ValueError(
                    f"{path} holds other scores: their {name} is {getattr(scores, name)!r}, and "
                    f"{value!r} is wanted; compute them again, or give another path"
                )
        if num_samples is not None and num_samples != len(scores):
            raise ValueError(
                f"{path} holds other scores: those of {len(scores)} samples, and the training set "
                f"has {num_samples}"
            )
        return scores

    def __repr__(self) -> str:
        """Tells where the scores come from."""
        return (
            f"StaticScores(<{len(self)} samples>, method={self.method!r}, "
            f"seeds={list(self.seeds)}, epochs={self.epochs}, about={self.about!r})"
        )
