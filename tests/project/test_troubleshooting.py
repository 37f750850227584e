# SPDX-License-Identifier: Apache-2.0
"""The page on troubleshooting quotes messages that exist, and says what is true."""

import ast
import inspect
import re

import pytest
import torch
from paths import ROOT

from dynprune_cuda import Pruner, functional, policies
from dynprune_cuda.scores import table

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r'"([^"]+)"', re.sub(r"`[^`]*`", "", PAGE))
BUILD = ("build_torch", "cuda_toolkit")
OF_OTHERS = "The virtual environment was not created successfully"


def joined_source():
    """All messages of package, operators and build, with the pieces of each string joined."""
    of_operators = [ROOT / "csrc" / "bindings" / "common.cpp"]
    of_build = [ROOT / "setup.py", *(ROOT / "scripts" / f"{n}.py" for n in BUILD)]
    files = [*(ROOT / "dynprune_cuda").rglob("*.py"), *of_operators, *of_build]
    text = "\n".join(file.read_text() for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_quoted_messages_exist():
    source, found = joined_source(), 0
    for quoted in QUOTED:
        if quoted.startswith(OF_OTHERS):
            continue
        pattern = re.escape(quoted.replace("\n", " "))
        for shown in ("'3:…'", "…", r"is\ 2$"):
            pattern = pattern.replace(shown, r"\{[^}]+\}")
        pattern = re.sub(r"is\\ 2$", r"is\\ \\{", pattern)
        assert re.search(pattern, source), quoted
        found += 1
    assert found >= 12


def quoted_in(message):
    """Whether the page quotes a part of a message, whose variables are "{}"."""
    for quoted in QUOTED:
        pattern = ".+".join(map(re.escape, " ".join(quoted.split()).split("…")))
        if re.search(pattern, message):
            return True
    return False


def text_of(node, constants):
    """The text of a string in the source, with "{}" for what it fills in; None if it is none."""
    if isinstance(node, ast.Name):
        node = constants.get(node.id, node)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            getattr(part, "value", "{}") if isinstance(part, ast.Constant) else "{}"
            for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def constants_in(body):
    """The names that assignments in a body give a string."""
    return {
        node.targets[0].id: node.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def warnings_in(source):
    """The texts of `warnings.warn`, and of functions that return a warning: `about_...`.

    A warning whose text is made elsewhere must be called `message`.
    """
    tree = ast.parse(source)
    constants = constants_in(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
            text = text_of(node.args[0], constants)
            assert text or ast.unparse(node.args[0]) == "message", ast.unparse(node)
            if text:
                yield text
        elif isinstance(node, ast.FunctionDef) and re.match("_?about_", node.name):
            known = {**constants, **constants_in(node.body)}
            values = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
            values = [one for one in values if ast.unparse(one) != "None"]
            texts = [text_of(value, known) for value in values]
            assert all(texts), f"{node.name} must return texts"
            yield from texts


def test_every_warning_is_quoted():
    files = sorted((ROOT / "dynprune_cuda").rglob("*.py"))
    texts = [text for file in files for text in warnings_in(file.read_text())]
    assert len(texts) >= 9
    assert [text for text in texts if not quoted_in(text)] == []


def test_warnings_are_found():
    source = """
TEXT = "one"
def _about_it(x):
    if x:
        return None
    text = f"two {x}"
    return text
def run(message):
    warnings.warn(TEXT, UserWarning)
    warnings.warn(message)
    warnings.warn("three" " four")
"""
    assert sorted(warnings_in(source)) == ["one", "three four", "two {}"]
    with pytest.raises(AssertionError):
        list(warnings_in("warnings.warn(made())"))


def test_every_error_of_a_wrong_order_of_calls_is_quoted():
    """RuntimeErrors: of arguments, the message itself says what was expected."""
    found, missing = 0, []
    for file in (ROOT / "dynprune_cuda").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "RuntimeError":
                continue
            text = text_of(node.args[0], {})
            if text is None:
                continue  # made elsewhere
            found += 1
            if not quoted_in(text) and "a bug, please report" not in text:
                missing.append(f"{file.name}: {text}")
    assert found >= 12 and missing == []


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), -float("inf")])
def test_ignored_rows_have_gradient_zero_whatever_their_logits(logit, device):
    logits, target = torch.randn(3, 4), torch.tensor([0, -100, 2], device=device)
    logits[1, 2] = logit
    theirs, mine, step = (logits.clone().to(device).requires_grad_() for _ in range(3))
    torch.nn.functional.cross_entropy(theirs, target).backward()
    functional.scored_cross_entropy(mine, target, reduction="mean").loss.backward()
    pruner = Pruner(3, 0.9, device=device)
    pruner.cross_entropy(step, target, torch.arange(3)).backward()
    for gradient in (mine.grad, step.grad):
        assert (gradient[1] == 0).all()
        torch.testing.assert_close(gradient[::2], theirs.grad[::2])
    assert pruner.table.count.tolist() == [1, 0, 1]


def test_help_of_a_policy_lists_the_columns():
    text = inspect.getdoc(policies.Policy)
    for column in {**table.COLUMNS, **table.FORGETTING}:
        assert f"`{column}`" in text
