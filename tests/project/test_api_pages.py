# SPDX-License-Identifier: Apache-2.0
"""The API reference has every public name, and docstrings document every parameter."""

import ast
import functools
import importlib
import inspect
import re
import runpy

import pytest
from paths import ROOT

NAMES = runpy.run_path(str(ROOT / "tests/project/test_public_names.py"))["NAMES"]
API = ROOT / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. (currentmodule|autoclass|autofunction|data):: ([\w.]+)$", re.M)
ENTRY = re.compile(r" {4}((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:(?: |$)")
INTEGRATIONS = {
    "accelerate": ["prepare_loader"],
    "lightning": ["PrunerCallback"],
    "timm": ["PrunedLoader", "prune_task"],
    "transformers": ["PrunedTrainer", "PrunedTrainerMixin"],
}


FOLDER = ROOT / "dynprune_cuda" / "integrations"


def documented_objects():
    """(module, name) of every entry of the reference."""
    found = []
    for page in sorted(API.glob("*.md")):
        module = None
        for kind, name in DIRECTIVE.findall(page.read_text()):
            if kind == "currentmodule":
                module = name
            else:
                found.append((module, name))
    return found


@functools.cache
def entries():
    names = documented_objects()
    return names, [
        getattr(importlib.import_module(module), name)
        for module, name in names
        if not module.startswith("dynprune_cuda.integrations.")
    ]


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_has_an_entry(module):
    names, objects = entries()
    for name in NAMES[module].split():
        thing = getattr(importlib.import_module(module), name)
        if inspect.ismodule(thing):  # its names have entries
            assert thing.__name__ in NAMES
        elif name == "__version__":
            assert f"dynprune_cuda.{name}" in (API / "pruner.md").read_text()
        else:
            assert (module, name) in names or any(thing is one for one in objects), name


def test_no_object_has_two_entries():
    names, objects = entries()
    assert len(set(names)) == len(names) > 70
    assert len({id(one) for one in objects}) == len(objects)


@pytest.mark.parametrize("framework", INTEGRATIONS)
def test_every_integration_has_an_entry(framework):
    names, _ = entries()
    for name in INTEGRATIONS[framework]:
        assert (f"dynprune_cuda.integrations.{framework}", name) in names
    module = FOLDER / f"{framework}.py"
    public = [
        ast.literal_eval(node.value)  # without importing the framework, which takes seconds
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    assert [sorted(names) for names in public] == [INTEGRATIONS[framework]]


def documented(docstring):
    """The parameters that a Google docstring documents."""
    names, section = set(), ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line and not line.startswith(" "):
            section = line
        elif section in ("Args:", "Attributes:") and (entry := ENTRY.match(line)):
            names |= {name.strip(" *") for name in entry[1].split(",")}
    return names


def parameters(function):
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a class without its own
        return set()
    return set(signature.parameters) - {"self", "cls"}


def callables_of(cls):
    """The public methods that a class has of this package, and their docstrings."""
    own = [base for base in cls.__mro__ if base.__module__.startswith(("dynprune_cuda", __name__))]
    for name in {name for base in own for name in vars(base) if not name.startswith("_")}:
        members = [vars(base)[name] for base in own if name in vars(base)]
        function = getattr(members[0], "__func__", members[0])
        if inspect.isfunction(function):
            yield name, function, [getattr(one, "__doc__", None) for one in members]


def undocumented(thing):
    """`name: parameters` of whatever lacks documentation in a public class or function."""
    if not inspect.isclass(thing):
        wrong = {thing.__name__: parameters(thing) - documented(thing.__doc__)}
    else:
        init = vars(thing).get("__init__")
        here = documented(thing.__doc__) | documented(getattr(init, "__doc__", None))
        wrong = {thing.__name__: parameters(thing) - here}
        for name, function, docstrings in callables_of(thing):
            known = set().union(*map(documented, docstrings))
            wrong[f"{thing.__name__}.{name}"] = parameters(function) - known
    return [f"{name}: {', '.join(sorted(missing))}" for name, missing in wrong.items() if missing]


def test_every_parameter_is_documented():
    _, objects = entries()
    assert len(objects) > 70
    wrong = [
        text
        for one in objects
        if inspect.isclass(one) or inspect.isfunction(one)
        for text in undocumented(one)
    ]
    assert wrong == []


def arguments(function):
    """The parameters of a function's source."""
    every = function.args
    variadic = [one for one in (every.vararg, every.kwarg) if one is not None]
    names = [one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs, *variadic)]
    return set(names) - {"self", "cls"}


def undocumented_in_source(node, members):
    """As `undocumented`, of a source: importing the frameworks takes seconds."""
    if isinstance(node, ast.FunctionDef):
        wrong = {node.name: arguments(node) - documented(ast.get_docstring(node))}
    else:
        methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        here, wrong = documented(ast.get_docstring(node)), {}
        if init := methods.get("__init__"):
            wrong[node.name] = arguments(init) - here - documented(ast.get_docstring(init))
        for name in members:
            known = documented(ast.get_docstring(methods[name]))
            wrong[f"{node.name}.{name}"] = arguments(methods[name]) - known
    return [f"{name}: {', '.join(sorted(missing))}" for name, missing in wrong.items() if missing]


def sources_of_integrations():
    """The classes and functions of the folder, by name."""
    return {
        node.name: node
        for file in FOLDER.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def test_every_parameter_of_the_integrations_is_documented():
    sources, wrong, checked = sources_of_integrations(), [], 0
    page = (API / "integrations.md").read_text()
    entry = r"^\.\. auto(?:class|function):: (\w+)$(?:\n   :members: ([\w, ]+)$)?"
    for name, members in re.findall(entry, page, re.M):
        names = [member.strip() for member in members.split(",") if member]
        wrong += undocumented_in_source(sources[name], names)
        checked += 1
    assert checked == len([name for names in INTEGRATIONS.values() for name in names])
    assert wrong == []


def test_a_missing_parameter_of_a_source_is_found():
    source = '''
class Thing:
    """A thing.

    Attributes:
        a: Here.
    """

    def __init__(self, a, *, b, **c):
        pass

    def method(self, d):
        """Does more."""


def function(known, *missing):
    """Does something.

    Args:
        known: Is here.
    """
'''
    thing, function = ast.parse(source).body
    assert undocumented_in_source(thing, ["method"]) == ["Thing: b, c", "Thing.method: d"]
    assert undocumented_in_source(function, []) == ["function: missing"]


def test_a_missing_parameter_is_found():
    def function(known, missing):
        """Does something.

        Args:
            known: Is here.
        """

    class Thing:
        """A thing.

        Attributes:
            a: Here.
        """

        def __init__(self, a, b):
            pass

        def method(self, c):
            """Does more."""

    assert undocumented(function) == ["function: missing"]
    assert undocumented(Thing) == ["Thing: b", "Thing.method: c"]
