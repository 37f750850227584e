# SPDX-License-Identifier: Apache-2.0
"""Malformed calls of every public callable; what is judged right is in judge.py."""

import inspect
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from paths import ROOT

from tests.fuzz import case as cases
from tests.fuzz.objects import UNTOUCHED
from tests.fuzz.recipe import public_callables
from tests.fuzz.run import told
from tests.fuzz.worker import Plan, run_cases

CASES = 3000  # below 90 s of an idle core


def public_names():
    path = ROOT / "tests" / "project" / "test_public_names.py"
    spec = spec_from_file_location("public_names", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NAMES


def test_every_public_callable_has_a_recipe():
    """A new one needs a recipe in functions.py or objects.py, or a reason in UNTOUCHED."""
    found = public_callables(public_names())
    recipes = {recipe.name for recipe in cases.RECIPES}
    missing = []
    for name, function in found.items():
        takes_something = set(inspect.signature(function).parameters) - {"self", "cls"}
        is_touched = not any(re.fullmatch(names, name) for names in UNTOUCHED.values())
        if takes_something and is_touched and name not in recipes:
            missing.append(name)
    assert missing == []
    # By the way a call looks, not by a name.
    assert recipes - set(found) == {"batch_selection.BatchSelector.__call__"}


def test_recipes_give_every_parameter():
    found = public_callables(public_names())
    given = {}
    for recipe in cases.RECIPES:
        names = {name.lstrip("*") for name in recipe.arguments}
        given[recipe.name] = given.get(recipe.name, set()) | names
    for name in sorted(set(given) & set(found)):
        wanted = set(inspect.signature(found[name]).parameters) - {"self", "cls"}
        # Files keep what they were written with: `versions` is no argument of a user's.
        assert wanted - given[name] <= {"versions"}, name


def test_patterns_of_untouched_names_fit_some():
    found = public_callables(public_names())
    for reason, pattern in UNTOUCHED.items():
        assert any(re.fullmatch(pattern, name) for name in found), reason


def test_a_case_is_decided_by_seed_and_number():
    scripts = [cases.make_case(5, number).script() for number in range(60)]
    assert [cases.make_case(5, number).script() for number in range(60)] == scripts
    assert [cases.make_case(6, number).script() for number in range(60)] != scripts


@pytest.mark.slow
def test_malformed_calls_are_refused_or_right():
    # In a new process. Once a test has made a fake CUDA tensor, autograd's engine starts a thread
    # for its device. Then the engine refuses to run in forked processes.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        report = pool.submit(run_cases, Plan(seed=0), 0, CASES).result()
    assert not report.findings, "\n\n".join(map(told, report.findings))
    # The cases are what they should be: some are accepted, and few cannot be made.
    assert report.kinds["refused"] > 0.4 * CASES and report.kinds["accepted"] > 0.1 * CASES
    assert report.kinds.get("unbuildable", 0) < 0.06 * CASES
    assert report.kinds.get("no memory", 0) < 0.02 * CASES
