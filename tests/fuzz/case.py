# SPDX-License-Identifier: Apache-2.0
"""Cases: which call is made with which arguments, decided by the seed and the number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from tests.fuzz import exotic, functions, objects
from tests.fuzz.malformed import kind_of, malformed
from tests.fuzz.recipe import Recipe

# What computes comes up more often than what is made once.
RECIPES = [*functions.RECIPES, *objects.RECIPES, *functions.RECIPES, *functions.SCORING * 2]
# How many arguments are malformed; without any, the call must be accepted.
HOW_MANY = (0, 1, 1, 1, 1, 1, 1, 2, 2, 3)


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        recipe: What is called.
        setup: Source lines before.
        proper: Sources of the arguments as the recipe has them, by name.
        malformed: Sources of those that take their place.
    """

    recipe: Recipe
    setup: tuple[str, ...]
    proper: dict[str, str]
    malformed: dict[str, str]

    @property
    def arguments(self) -> dict[str, str]:
        return {**self.proper, **self.malformed}

    def without(self, name: str) -> Case:
        """The same with the proper value of an argument."""
        rest = {other: source for other, source in self.malformed.items() if other != name}
        return replace(self, malformed=rest)

    def assignments(self) -> dict[str, str]:
        """Lines that make the arguments, by the name of what they make."""
        return {variable(name): source for name, source in self.arguments.items()}

    def call(self) -> str:
        """The call, an expression."""
        passed = [
            f"*{variable(name)}" if name.startswith("**") else variable(name)
            if name.startswith("*") else f"{name}={variable(name)}"
            for name in self.arguments
        ]  # fmt: skip
        return f"{self.recipe.call}({', '.join(passed)})"

    def script(self) -> str:
        """A program that makes the call, to be run in the project's folder."""
        made = [f"{name} = {source}" for name, source in self.assignments().items()]
        lines = ["from tests.fuzz.exotic import *", *self.setup, *made]
        return "\n".join([*lines, f"result = {self.call()}", *self.recipe.then])


def variable(name: str) -> str:
    """The variable that holds an argument."""
    return {"*tensors": "tensors"}.get(name, name)


def make_case(seed: int, number: int, recipes: list[Recipe] | None = None) -> Case:
    """Returns the case of a number; recipes take turns."""
    recipes = RECIPES if recipes is None else recipes
    draw = random.Random(f"{seed} {number}")
    recipe = recipes[number % len(recipes)]
    setup, proper = recipe.drawn(draw)
    if recipe.tampers:
        return Case(recipe, tuple(setup), proper, {})
    how_many = min(draw.choice(HOW_MANY), len(proper))
    places = draw.sample(list(proper), how_many)
    space: dict[str, Any] = dict(vars(exotic))
    for line in setup:
        exec(line, space)
    wrong, tensors = {}, []
    for name, source in proper.items():
        kind = "small" if name in recipe.small else kind_of(eval(source, space))
        if name in places:
            wrong[name] = malformed(draw, f"({source})", kind, tensors)
        if kind == "tensor":
            tensors.append(name)
    return Case(recipe, tuple(setup), proper, wrong)
