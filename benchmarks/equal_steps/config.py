# SPDX-License-Identifier: Apache-2.0
"""Reads the TOML file of an experiment: settings, methods, and which runs to make of them."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.equal_steps import tried
from dynprune_cuda import BatchSelector, Pruner, policies
from dynprune_cuda.functional import tilted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Cell", "Difference", "Experiment", "Goal", "Method", "Setting", "read_experiment"]

# Setting, method, mean difference in points of accuracy, standard error, number of seeds.
Difference = tuple[str, str, float, float, int]


# Settings of a method that its key leaves out where they are not used: keys stay as they were.
ADDED_LATER = "rescore", "kept", "in_batch", "lr_by_tilt", "shuffled_groups"


@dataclass(frozen=True)
class Setting:
    """Data, network and budget; all methods of a setting take equally many steps."""

    data: str  # "cifar10", "digits", "fashion" or "words"
    model: str
    budget: float  # epochs of full data that a run costs
    samples: int = 0  # training samples, drawn by the seed; 0: all
    validation: int = 0  # samples that are set aside to choose methods by
    image_size: int = 0  # height and width; 0: as they are
    label_noise: float = 0.0  # share of training labels that are replaced by another one
    imbalance: float = 1.0  # samples of the most frequent class over those of the rarest
    augment: bool = True
    batch_size: int = 64
    lr: float = 0.2
    weight_decay: float = 5e-4
    precision: str = "bfloat16"


@dataclass(frozen=True)
class Method:
    """How the samples are chosen.

    Attributes:
        label: Its name in tables.
        policy: A registered name, a class of `dynprune_cuda.policies` or of `tried`, or "": the
            default.
        options: Arguments of the class.
        pruner: Arguments of `Pruner`.
        groups: Whether the pruner gets the labels as groups.
        shuffled_groups: Whether it gets them in a random order: groups of the same sizes that mean
            nothing.
        rescore: Whether each epoch ends with a forward pass over the samples that it left out.
        steps: Steps, as a multiple of the setting's.
        kept: For policies that act by the length of the run: the share that a pruned epoch trains
            on, estimated where the policy decides it. None: the pruner is not told the length.
        in_batch: Arguments of `BatchSelector`, with a share as `keep`. Then each step trains on
            as many samples as others do, chosen from a batch that is 1 / keep times as large. The
            forward pass that scores it is made in training mode.
        lr_by_tilt: The learning rate is multiplied by 1 + lr_by_tilt * the tilt of `Adaptive`.

    Raises:
        ValueError: `kept` is not in (0, 1], `in_batch` has no share as `keep`, or there are two
            kinds of groups.
    """

    label: str
    policy: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)
    groups: bool = False
    shuffled_groups: bool = False
    rescore: bool = False
    steps: float = 1.0
    kept: float | None = None
    in_batch: dict[str, Any] = field(default_factory=dict)
    lr_by_tilt: float = 0.0

    def __post_init__(self) -> None:
        if self.kept is not None and not 0 < self.kept <= 1:
            raise ValueError(f"kept must be in (0, 1], got {self.kept}")
        if self.groups and self.shuffled_groups:
            raise ValueError("groups and shuffled_groups exclude each other")
        share = self.in_batch.get("keep")
        if self.in_batch and not (isinstance(share, float) and 0 < share <= 1):
            raise ValueError(f"in_batch must have a share as keep, got {self.in_batch}")
        if self.lr_by_tilt and self.policy not in ("", "adaptive", "Adaptive", "ByRoot"):
            raise ValueError(f"lr_by_tilt needs Adaptive or ByRoot, got {self.policy!r}")

    def make(self, num_samples: int, labels: Any, seed: int, device: Any, budget: float) -> Pruner:
        """The pruner of a run.

        Args:
            num_samples: Size of the training set.
            labels: Their labels.
            seed: Of the run.
            device: Of the model.
            budget: Of the setting, in epochs of full data.
        """
        chosen = self._options()
        if self.kept is not None:
            chosen["epochs"] = self._epochs(self.kept, self.steps * budget)
        if self.groups:
            chosen["groups"] = labels
        if self.shuffled_groups:
            order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
            chosen["groups"] = torch.as_tensor(labels).cpu()[order]
        return Pruner(num_samples, seed=seed, device=device, **chosen)

    def selector(self, seed: int, device: Any) -> BatchSelector | None:
        """What chooses the rows of a step; None: a step trains on all of its batch.

        Args:
            seed: Of the run.
            device: Of the model.
        """
        return BatchSelector(**self.in_batch, seed=seed, device=device) if self.in_batch else None

    def _options(self) -> dict[str, Any]:
        """What a pruner is made with, whatever the samples."""
        chosen = dict(self.pruner)
        if self.policy in policies.names():
            chosen["policy"] = self.policy
        elif self.policy:
            place = tried if self.policy in tried.__all__ else policies
            chosen["policy"] = getattr(place, self.policy)(**self.options)
        return chosen

    def _epochs(self, kept: float, budget: float) -> int:
        """How many epochs of the pruner cost most nearly as much as `budget` of full data."""

        def cost(epochs: int) -> float:
            plan = Pruner(1, **{**self._options(), "epochs": epochs}).schedule
            pruned = sum(plan.phase(epoch) == "pruned" for epoch in range(epochs))
            return epochs - pruned + kept * pruned

        return min(range(1, 2 + math.ceil(budget / kept)), key=lambda n: abs(cost(n) - budget))


@dataclass(frozen=True)
class Cell:
    """One run."""

    setting: str
    method: str
    seed: int


@dataclass(frozen=True)
class Goal:
    """What a method was to reach; the report says whether it did.

    Attributes:
        text: What it is.
        method: Of `Experiment.methods`.
        settings: In each of which it must hold.
        least: Points of test accuracy above the baseline. None: not below it by more than one
            standard error.
        times: Instead, as how many times as many steps the baseline must need for the same
            accuracy; for settings of `Experiment.steps`.

    Raises:
        ValueError: There are `least` and `times`.
    """

    text: str
    method: str
    settings: list[str]
    least: float | None = None
    times: float | None = None

    def __post_init__(self) -> None:
        if self.least is not None and self.times is not None:
            raise ValueError("least and times exclude each other")


@dataclass(frozen=True)
class Steps:
    """Settings that differ in their budget only: what does the baseline cost for an accuracy?"""

    settings: list[str] = field(default_factory=list)
    method: str = ""


@dataclass(frozen=True)
class Experiment:
    """All of a file.

    Attributes:
        title: Of the report.
        baseline: The method that others are compared with.
        settings: By name.
        methods: By name.
        cells: The runs, in the order in which they are made.
        goals: What was to be shown.
        steps: By which settings the report interpolates the cost of an accuracy.
        fresh_from: Something was chosen on the test accuracy of the seeds below it; 0: nothing.
    """

    title: str
    baseline: str
    settings: dict[str, Setting]
    methods: dict[str, Method]
    cells: tuple[Cell, ...]
    goals: tuple[Goal, ...] = ()
    steps: Steps = Steps()
    fresh_from: int = 0

    def key(self, cell: Cell) -> str:
        """A hash of everything that determines a run; a result counts if its key agrees."""
        with warnings.catch_warnings():  # the run itself says it
            warnings.simplefilter("ignore", UserWarning)
            budget = self.settings[cell.setting].budget
            pruner = self.methods[cell.method].make(1000, [0] * 1000, 0, "cpu", budget)
        method = asdict(self.methods[cell.method])
        del method["label"]
        for name in ADDED_LATER:
            if not method[name]:
                del method[name]
        parts = {
            "setting": asdict(self.settings[cell.setting]),
            "method": method,
            "made": repr(pruner),
            "seed": cell.seed,
        }
        if isinstance(pruner.policy, policies.Adaptive):
            parts["tilt"] = [tilted.MEMORISED, tilted.LEARNED, tilted.LEARNING, tilted.UNLEARNED]
        if "Adaptive(" in repr(pruner):  # version 0.2.0 drew by the roots of the losses
            parts["draws"] = "harder half, every second start first"
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_experiment(path: Path) -> Experiment:
    """Reads an experiment.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no TOML, or an entry is missing, unknown or of a wrong type.
    """
    try:
        document = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    common = document.pop("common", {})
    settings = {
        name: _filled(Setting, {**common, **table}, f"{path}: settings.{name}")
        for name, table in document.pop("settings", {}).items()
    }
    methods = {
        name: _filled(Method, table, f"{path}: methods.{name}")
        for name, table in document.pop("methods", {}).items()
    }
    cells: list[Cell] = []
    for entry in document.pop("runs", []):
        if set(entry) != {"settings", "methods", "seeds"}:
            raise ValueError(f"{path}: runs needs settings, methods and seeds, got {entry}")
        for name, known in (("settings", settings), ("methods", methods)):
            for item in entry[name]:
                if item not in known:
                    raise ValueError(f"{path}: runs.{name} must be of {list(known)}, got {item!r}")
        cells += [
            Cell(setting, method, seed)
            for seed in entry["seeds"]
            for setting in entry["settings"]
            for method in entry["methods"]
        ]
    goals = tuple(
        _filled(Goal, table, f"{path}: goals[{number}]")
        for number, table in enumerate(document.pop("goals", []))
    )
    steps = _filled(Steps, document.pop("steps", {}), f"{path}: steps")
    for where, settings_of, method in (
        *(("goals", goal.settings, goal.method) for goal in goals),
        ("steps", steps.settings, steps.method),
    ):
        strange = [*(set(settings_of) - set(settings)), *({method} - {*methods, ""})]
        if strange:
            raise ValueError(f"{path}: {where} names the unknown {', '.join(sorted(strange))}")
    for goal in goals:
        without = sorted(set(goal.settings) - set(steps.settings))
        if goal.times is not None and without:
            raise ValueError(f"{path}: goals with times need steps of {', '.join(without)}")
    title, baseline = document.pop("title", ""), document.pop("baseline", "full")
    fresh_from = document.pop("fresh_from", 0)
    if type(fresh_from) is not int or fresh_from < 0:
        raise ValueError(f"{path}: fresh_from must be an int from 0, got {fresh_from!r}")
    if document:
        raise ValueError(f"{path}: unknown {', '.join(document)}")
    if not cells:
        raise ValueError(f"{path}: runs is missing")
    runs = tuple(dict.fromkeys(cells))
    return Experiment(title, baseline, settings, methods, runs, goals, steps, fresh_from)


TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "dict": (dict,),
    "list": (list,),
    "float | None": (int, float, type(None)),
}


def _filled(kind: Any, table: dict[str, Any], where: str) -> Any:
    """A dataclass with the values of a table; errors name the entry."""
    if strange := sorted(set(table) - {entry.name for entry in fields(kind)}):
        raise ValueError(f"{where}: unknown {', '.join(strange)}")
    try:
        made = kind(**table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    for entry in fields(kind):
        value, wanted = getattr(made, entry.name), str(entry.type)
        right = TYPES[wanted.partition("[")[0]]
        if not isinstance(value, right) or (isinstance(value, bool) and wanted != "bool"):
            raise ValueError(f"{where}: {entry.name} must be {wanted}, got {value!r}")
    return made
