# SPDX-License-Identifier: Apache-2.0
"""What the README says, runs: its Python examples, its commands, its links."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import nn
from torch.utils.data import TensorDataset

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def training_script() -> dict[str, Any]:
    """What the reader of the README has already: data, a model, an optimiser."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    return {
        "train_set": TensorDataset(torch.randn(200, 1, 4, 4), torch.arange(200) % 3),
        "device": "cpu",
        "epochs": 3,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_examples_run(example: str) -> None:
    namespace = training_script()
    exec(compile(example, "README.md", "exec"), namespace)
    if "pruner" in namespace:
        pruner = namespace["pruner"]
        assert pruner.num_selected == 60
        assert pruner.table.count.sum() == 200 + 60 + 60  # warm-up, then 30 % twice
    else:
        assert len(namespace["ids"]) == 300_000
        assert namespace["logits"].grad is not None


def test_both_examples_are_found() -> None:
    assert len(EXAMPLES) == 2


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|1 )make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def test_ci_runs_both_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^step make demo$", ci, re.MULTILINE)
    assert re.search(r"^step make test$", ci, re.MULTILINE)
