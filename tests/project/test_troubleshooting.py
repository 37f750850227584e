# SPDX-License-Identifier: Apache-2.0
"""The page on troubleshooting quotes messages that exist, and says what is true."""

import inspect
import re

import pytest
import torch
from paths import ROOT

from dynprune_cuda import Pruner, functional, policies
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
        for shown in (r"\[1\]", "'3:…'", "…", r"is\ 2$"):
            pattern = pattern.replace(shown, r"\{[^}]+\}")
        pattern = re.sub(r"is\\ 2$", r"is\\ \\{", pattern)
        assert re.search(pattern, source), quoted
        found += 1
    assert found >= 12


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
