# SPDX-License-Identifier: Apache-2.0
"""Reads and checks the TOML file that describes a sweep."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.training.methods import METHODS, Rules
from benchmarks.training.source import PRECISIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Cell", "SweepConfig", "read_config"]

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Data:
    """`dataset` and `root` as in training.image_datasets.load_dataset."""

    dataset: str
    root: str = ""
    download: bool = False
    limit: int = 0  # first training samples; 0: all
    image_size: int = 64


@dataclass(frozen=True)
class Training:
    """See training.source.Settings."""

    model: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 5e-4
    evaluations: int = 10
    device: str = "auto"
    threads: int = 0  # of the CPU; 0: torch's own choice
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    resident: bool = True
    num_workers: int = 0
    checkpoint_seconds: float = 20.0  # between checkpoints, at least


@dataclass(frozen=True)
class Static:
    """How the scores of static subsets are computed, separately for each seed of a training."""

    models: int = 3  # whose mean EL2N and GraNd are
    epochs: int = 4  # of each of these models: the first epochs of a full run
    forgetting_models: int = 1
    forgetting_epochs: int = 8
    chunk_size: int = 0  # of exact GraNd; 0: as many as fit


@dataclass(frozen=True)
class Sweep:
    """Every method with every keep and every seed."""

    methods: tuple[str, ...]
    keeps: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Overhead:
    """Runs to be timed only, beside those of the sweep."""

    methods: tuple[str, ...] = ()
    keeps: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    keep: float | None
    seed: int

    @property
    def name(self) -> str:
        keep = "" if self.keep is None else f"-keep{self.keep:g}"
        return f"{self.method}{keep}-seed{self.seed}"


@dataclass(frozen=True)
class SweepConfig:
    data: Data
    training: Training
    sweep: Sweep
    pruning: Rules = field(default_factory=Rules)
    static: Static = field(default_factory=Static)
    overhead: Overhead = field(default_factory=Overhead)

    def cells(self) -> list[Cell]:
        """All runs, seed by seed: the table of one seed is complete as early as possible."""
        cells = [
            Cell(method, keep, seed)
            for part in (self.sweep, self.overhead)
            for seed in part.seeds
            for method in part.methods
            for keep in (part.keeps if METHODS[method].takes_keep else (None,))
        ]
        return list(dict.fromkeys(cells))

    def fingerprint(self, device: str, *, threads: int, data: tuple[str, int, int]) -> str:
        """A hash of everything that determines a result; runs of one table must share it.

        Args:
            device: "cpu" or "cuda".
            threads: Of torch; on a CPU they determine the order of sums.
            data: Name of the data, number of training samples, number of test samples.
        """
        parts = asdict(self)
        for name in ("sweep", "overhead"):
            del parts[name]
        for name in ("root", "download"):
            del parts["data"][name]
        for name in ("checkpoint_seconds", "threads", "num_workers"):
            del parts["training"][name]
        parts["training"]["device"] = device
        parts["training"]["threads"] = threads if device == "cpu" else None
        parts["found"] = list(data)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_config(path: Path, changes: Sequence[str] = ()) -> SweepConfig:
    """Reads a sweep.

    Args:
        path: The TOML file.
        changes: Entries to replace, as "training.epochs=2" with a TOML value.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no TOML, or an entry is missing, unknown, of a wrong type or out of range.
    """
    tables = _parse(path.read_text(), str(path))
    for change in changes:
        name, equals, _ = change.partition("=")
        if not equals or name.count(".") != 1:
            raise ValueError(f"a change must look like training.epochs=2, got {change!r}")
        (table, entry), *_ = _parse(change, change).items()
        tables.setdefault(table, {}).update(entry)
    config: SweepConfig = _fill(SweepConfig, tables, str(path), "")
    _check(config, str(path))
    return config


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is no TOML: {error}") from None


def _fill(kind: Any, table: Mapping[str, Any], file: str, prefix: str) -> Any:
    """A dataclass with the values of a table; every error names the entry."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if strange := sorted(set(table) - set(fields)):
        raise ValueError(f"{file}: unknown {', '.join(prefix + name for name in strange)}")
    values: dict[str, Any] = {}
    for name, entry in fields.items():
        if name in table:
            values[name] = _value(str(entry.type), table[name], file, prefix + name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise ValueError(f"{file}: {prefix + name} is missing")
    return kind(**values)


_TABLES = {kind.__name__: kind for kind in (Data, Training, Sweep, Rules, Static, Overhead)}
_SCALARS = {"str": str, "bool": bool, "int": int, "float": float}


def _value(kind: str, value: Any, file: str, name: str) -> Any:
    if kind in _TABLES:
        if not isinstance(value, dict):
            raise ValueError(f"{file}: {name} must be a table, got {value!r}")
        return _fill(_TABLES[kind], value, file, name + ".")
    if kind.startswith("tuple["):
        if not isinstance(value, list):
            raise ValueError(f"{file}: {name} must be a list, got {value!r}")
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(inner, item, file, name) for item in value)
    wanted = _SCALARS[kind]
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ValueError(f"{file}: {name} must be {kind}, got {value!r}")
    return value


def _check(config: SweepConfig, file: str) -> None:
    training, static = config.training, config.static
    for name, value, least in (
        ("training.epochs", training.epochs, 1),
        ("training.batch_size", training.batch_size, 1),
        ("training.evaluations", training.evaluations, 1),
        ("static.models", static.models, 1),
        ("static.epochs", static.epochs, 0),
        ("static.forgetting_models", static.forgetting_models, 1),
        ("static.forgetting_epochs", static.forgetting_epochs, 1),
        ("pruning.period", config.pruning.period, 1),
        ("pruning.warmup_epochs", config.pruning.warmup_epochs, 0),
    ):
        if value < least:
            raise ValueError(f"{file}: {name} must be at least {least}, got {value}")
    if training.evaluations > training.epochs:
        raise ValueError(
            f"{file}: training.evaluations must be at most training.epochs={training.epochs}, got "
            f"{training.evaluations}"
        )
    if max(static.epochs, static.forgetting_epochs) > training.epochs:
        raise ValueError(
            f"{file}: static.epochs and static.forgetting_epochs must be at most "
            f"training.epochs={training.epochs}: they are the first epochs of a full run"
        )
    if training.precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"{file}: training.precision must be {known}, got {training.precision!r}")
    if training.device not in DEVICES:
        known = ", ".join(DEVICES)
        raise ValueError(f"{file}: training.device must be {known}, got {training.device!r}")
    for part_name, part in (("sweep", config.sweep), ("overhead", config.overhead)):
        for method in part.methods:
            if method not in METHODS:
                known = ", ".join(METHODS)
                raise ValueError(f"{file}: {part_name}.methods must be of {known}, got {method!r}")
        for keep in part.keeps:
            if not 0 < keep <= 1:
                raise ValueError(f"{file}: {part_name}.keeps must be in (0, 1], got {keep}")
