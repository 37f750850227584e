# SPDX-License-Identifier: Apache-2.0
"""How each public callable is called properly; the base of its malformed calls."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

SIZES = (0, 1, 2, 5, 31, 33, 64, 100)


@dataclass(frozen=True)
class Recipe:
    """A callable, and sources of proper arguments.

    `{n}`, `{k}`, `{b}`, `{c}` and `{s}` in sources are a number of samples, of selected ones, of
    rows, of classes, and a seed.

    Attributes:
        name: As `public_callables` tells it.
        call: Source of what is called.
        arguments: Sources by name, each a str, or a tuple of which one is drawn; those that begin
            with `*` are passed by place.
        setup: Source lines before, which may be malformed no more. What they make is watched.
        then: Source lines that must work with the `result` of an accepted call.
        writes: Names that a successful call may change.
        raises: Names of exceptions beside TypeError, ValueError and IndexError.
        aliases: Other words for arguments that an error may use, by argument.
        reference: `(before, after, result)` raises AssertionError if the result is wrong.
        least: The smallest `n`.
        calls: Functions of a user's, whose own errors pass through.
        late: Arguments whose values can be judged only where they are used: `then` may refuse them.
        partial: Arguments that are used one after the other: an error in one may come after some
            changes, which the documentation says.
        small: Ints that a caller may make so large that the call takes for ever.
        tampers: Whether the arguments are saved states, changed by `{seed}` and `{changes}`.
    """

    name: str
    call: str
    arguments: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    raises: tuple[str, ...] = ()
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reference: Callable[[dict[str, Any], dict[str, Any], Any], None] | None = None
    least: int = 0
    calls: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    tampers: bool = False

    def drawn(self, draw: random.Random) -> tuple[list[str], dict[str, str]]:
        """Returns the lines of the set-up and the sources of proper arguments."""
        n = draw.choice([size for size in SIZES if size >= self.least])
        rows = draw.choice(SIZES[:-1])
        sizes = {
            "n": n, "k": draw.randint(min(self.least, 1), n), "b": rows, "s": draw.randrange(1000),
            "c": draw.choice((1, 2, 3, 10)), "seed": draw.randrange(10**6),
            "changes": draw.choice((1, 1, 1, 2, 3, 5, 20)),
        }  # fmt: skip

        def fill(source: str) -> str:
            for name, number in sizes.items():
                source = source.replace(f"{{{name}}}", str(number))
            return source

        sources = {}
        for name, source in self.arguments.items():
            one = source if isinstance(source, str) else draw.choice(source)
            sources[name] = fill(one)
        return [fill(line) for line in self.setup], sources


def public_callables(names: dict[str, str]) -> dict[str, Callable[..., Any]]:
    """Returns functions, classes and their own public methods by name, each once.

    Args:
        names: Public names by module, as in tests/project/test_public_names.py.
    """
    found: dict[str, Callable[..., Any]] = {}
    seen: set[int] = set()
    for module, listed in names.items():
        place = importlib.import_module(module)
        for name in sorted({*listed.split(), *getattr(place, "__all__", ())}):
            thing = getattr(place, name)
            ours = getattr(thing, "__module__", "").startswith("dynprune_cuda")
            if not (ours and (inspect.isfunction(thing) or inspect.isclass(thing))):
                continue
            for title, function in _with_methods(thing):
                if id(function) not in seen:
                    seen.add(id(function))
                    found[title.removeprefix("dynprune_cuda.")] = function
    return found


def _with_methods(thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield _place(thing), thing
    if not inspect.isclass(thing):
        return
    for holder in thing.__mro__:
        if not holder.__module__.startswith("dynprune_cuda"):
            continue
        for name, raw in vars(holder).items():
            method = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
            if not name.startswith("_") and inspect.isfunction(method):
                yield f"{_place(holder)}.{name}", method


def _place(thing: Any) -> str:
    """The module and the name; the classes that make up the pruner count as it."""
    is_of_pruner = inspect.isclass(thing) and thing.__module__.startswith("dynprune_cuda.pruner.")
    return (
        "dynprune_cuda.pruner.Pruner"
        if is_of_pruner
        else f"{thing.__module__}.{thing.__qualname__}"
    )
