# SPDX-License-Identifier: Apache-2.0
"""The fuzzer finds faults that are planted in functions and objects."""

import ctypes
import random
import signal
import time

import pytest
import torch

from tests.fuzz import judge
from tests.fuzz.case import RECIPES, Case, make_case
from tests.fuzz.exotic import F, floats, visited_pruner
from tests.fuzz.judge import fingerprint, run_case
from tests.fuzz.recipe import Recipe
from tests.fuzz.run import told
from tests.fuzz.tamper import tampered
from tests.fuzz.worker import Plan, run_cases

TOP_K = [recipe for recipe in RECIPES if recipe.name == "functional.selection.select_top_k"][:1]
UPDATE = [recipe for recipe in RECIPES if recipe.name == "functional.score_updates.update_scores_"][
    :1
]
NUMBERS = 40  # cases in which a planted fault must be found


def replaced(fault):
    """Puts `fault` in the place of what is called."""

    def mend(space):
        space["F"] = type("Faulty", (), {"__getattr__": lambda self, name: fault})()

    return mend


def changes_before_it_raises(mean, *rest, **options):
    if isinstance(mean, torch.Tensor) and mean.numel() and not mean.is_meta:
        mean.data.view(-1)[0] += 1
    raise ValueError("mean must be something else")


def is_off_by_one(scores, k, **options):
    ids = F.select_top_k(scores, k, **options)
    return ids.flip(0) if len(ids) > 1 else ids


def names_nothing(scores, k, **options):
    try:
        return F.select_top_k(scores, k, **options)
    except (TypeError, ValueError):
        raise ValueError("something is wrong") from None


def raises_another_kind(scores, k, **options):
    try:
        return F.select_top_k(scores, k, **options)
    except (TypeError, ValueError) as error:
        raise KeyError(str(error)) from None


def accepts_everything(scores, k, **options):
    try:
        return F.select_top_k(scores, k, **options)
    except (TypeError, ValueError):
        return torch.empty(0, dtype=torch.int64)


def writes_its_argument(scores, k, **options):
    ids = F.select_top_k(scores, k, **options)
    if type(scores) is torch.Tensor and not scores.is_meta and scores.numel():
        scores.data.view(-1)[0] = 7
    return ids


def draws_a_number(scores, k, **options):
    torch.rand(1)
    return F.select_top_k(scores, k, **options)


def segfaults(scores, k, **options):
    if isinstance(k, int) and k == 0:
        ctypes.string_at(0)
    return F.select_top_k(scores, k, **options)


def hangs(scores, k, **options):
    if isinstance(k, int) and k == 0:
        time.sleep(60)
    return F.select_top_k(scores, k, **options)


@pytest.mark.parametrize(
    ("fault", "recipes", "kinds"),
    [
        (
            changes_before_it_raises,
            UPDATE,
            {"changed after an error", "refused what is right"},
        ),
        (is_off_by_one, TOP_K, {"wrong result"}),
        (names_nothing, TOP_K, {"unnamed error"}),
        (raises_another_kind, TOP_K, {"undocumented error"}),
        (accepts_everything, TOP_K, {"wrong result", "accepted what cannot be read"}),
        (writes_its_argument, TOP_K, {"changed an argument"}),
        (draws_a_number, TOP_K, {"changed surroundings", "changed after an error"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_faults_are_found(fault, recipes, kinds):
    found = set()
    for number in range(NUMBERS):
        case = make_case(1, number, recipes)
        assert run_case(case).is_right
        found.add(run_case(case, replaced(fault)).kind)
    assert found & kinds
    assert found <= kinds | {"accepted", "refused", "unbuildable"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "seconds"), [(segfaults, "crash", 60), (hangs, "hang", 3)]
)
def test_processes_that_end_are_reported_and_the_rest_runs(fault, kind, seconds):
    report = run_cases(Plan(1, TOP_K, replaced(fault), case_seconds=seconds), 0, 30)
    assert sum(report.kinds.values()) == 30
    assert report.kinds[kind] == len(report.findings) > 0
    assert {finding.outcome.kind for finding in report.findings} == {kind}
    if kind == "crash":
        message = report.findings[0].outcome.message
        assert message.startswith(f"exit status {-signal.SIGSEGV}\n")


@pytest.mark.slow
def test_a_report_has_a_script_that_runs_and_few_malformed_arguments(capsys):
    report = run_cases(Plan(1, TOP_K, replaced(names_nothing)), 0, 30)
    assert report.findings
    for finding in report.findings:
        assert len(finding.case.malformed) == 1
        text = told(finding)
        assert f"--seed 1 --first {finding.number} --cases 1" in text
        script = text[text.index("from tests.fuzz") :]
        with pytest.raises((TypeError, ValueError)):  # of the sound function
            exec(script, {})


def test_an_accepted_object_must_work():
    recipe = Recipe("x", "make", {"size": "3"}, then=("result.append(1)",))
    outcome = run_case(Case(recipe, ("make = tuple",), {"size": "[1]"}, {}), None)
    assert outcome.kind == "undocumented error" or not outcome.is_right
    recipe = Recipe("x", "make", {"iterable": "[3]"}, then=("result.append(1)",))
    case = Case(recipe, ("make = lambda iterable: tuple(iterable)",), {"iterable": "[1]"}, {})
    assert run_case(case).kind == "failed later"


def test_a_fingerprint_sees_every_change():
    pruner = visited_pruner(33)
    before = fingerprint(pruner)
    assert fingerprint(pruner) == before
    column = pruner.table.mean
    kept = column[5].item()
    column[5] = -kept - 1
    assert fingerprint(pruner) != before
    column[5] = kept
    assert fingerprint(pruner) == before
    pruner.set_epoch(9)
    assert fingerprint(pruner) != before


@pytest.mark.parametrize("value", [float("nan"), -0.0])
def test_fingerprints_compare_bits(value):
    first, second = torch.zeros(3), torch.zeros(3)
    second[1] = value
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(second) == fingerprint(second.clone())


def test_tampered_states_are_other_states_and_leave_the_saved_one():
    state = visited_pruner(33).state_dict()
    before = fingerprint(state)
    others = [fingerprint(tampered(state, seed, 1)) for seed in range(100)]
    assert fingerprint(state) == before
    assert sum(other != before for other in others) > 90
    assert fingerprint(tampered(state, 7, 20)) == fingerprint(tampered(state, 7, 20))


@pytest.mark.slow
def test_references_disagree_with_wrong_results():
    """Each reference, once with the result and once with another one."""
    draw = random.Random(0)
    seen = {}
    for number in range(2 * len(RECIPES)):
        case = make_case(2, number)
        case = Case(case.recipe, case.setup, case.proper, {})
        if case.recipe.reference is None or case.recipe.tampers or seen.get(case.recipe.name):
            continue
        result = {}

        def spoiled(before, after, found, recipe=case.recipe, result=result):
            recipe.reference(before, after, found)
            wrong = wrong_result(found, after, recipe, draw)
            if wrong is None:
                return
            try:
                recipe.reference(before, *wrong)
            except Exception:
                result["seen"] = True
            else:
                result["missed"] = True

        watched = Recipe(**{**vars(case.recipe), "reference": spoiled})
        outcome = run_case(Case(watched, case.setup, case.proper, {}))
        assert outcome.kind == "accepted", (outcome, case.script())
        assert "missed" not in result, case.script()
        seen[case.recipe.name] = "seen" in result
    assert sum(seen.values()) > 20, seen


def wrong_result(found, after, recipe, draw):
    """What a reference must refuse: another result, or another table."""
    if found is None:
        if "mean" in recipe.arguments:
            mean = after["mean"].clone()
            mean[draw.randrange(len(mean))] += 100
            return {**after, "mean": mean}, None
        return None
    parts = list(found) if isinstance(found, tuple) else [found]
    first = parts[0]
    if not isinstance(first, torch.Tensor) or not first.numel():
        return None
    parts[0] = ~first if first.dtype == torch.bool else first.detach() + 100
    if isinstance(found, tuple):
        made = type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)
        return after, made
    return after, parts[0]


def test_floats_are_of_few_digits():
    assert len(floats(100).unique()) < 60  # some are equal


def test_judge_knows_the_words_of_a_full_memory():
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        assert any(words in str(error) for words in judge.OUT_OF_MEMORY)
