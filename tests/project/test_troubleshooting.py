# SPDX-License-Identifier: Apache-2.0
"""The page on troubleshooting quotes messages that exist, and says what is true."""

import ast
import inspect
import re

import pytest
import torch
from paths import ROOT

from dynprune_cuda import Pruner, advice, functional, policies
from dynprune_cuda._epochs import late, strays
from dynprune_cuda.scores import table

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r'"([^"]+)"', re.sub(r"`[^`]*`", "", PAGE))
OF_OTHERS = "The virtual environment was not created successfully"


def joined_source():
    """All messages of the package and of the build, with the pieces of each string joined."""
    files = [*(ROOT / "dynprune_cuda").rglob("*.py"), ROOT / "scripts" / "build_torch.py"]
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


def test_every_warning_is_quoted():
    texts = [
        advice.about_greedy(policies.UCB(), 0.1),
        advice.about_batch_values(0.1, "replicate"),
        strays.warning(3, 7),
        late.about_late_warmup(1, 1, policies.UCB()),
        late.about_no_scores(4, policies.UCB(), None),
        late.about_no_scores(4, policies.UCB(), 4),
    ]
    assert [text for text in texts if not quoted_in(text)] == []


def test_every_error_of_a_wrong_order_of_calls_is_quoted():
    """RuntimeErrors: of arguments, the message itself says what was expected."""
    found, missing = 0, []
    for file in (ROOT / "dynprune_cuda").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "RuntimeError":
                continue
            first = node.args[0]
            parts = first.values if isinstance(first, ast.JoinedStr) else [first]
            if any(isinstance(part, ast.Name | ast.Call) for part in parts):
                continue  # a text that is made elsewhere
            text = "".join(
                getattr(part, "value", "") if isinstance(part, ast.Constant) else "{}"
                for part in parts
            )
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
