# SPDX-License-Identifier: Apache-2.0
"""What the README says, runs: its change of a script, its commands, its links. And it is short."""

from __future__ import annotations

import re

import ci
import pages
import try_install
from paths import ROOT

README = (ROOT / "README.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)


def test_it_has_at_most_1000_words() -> None:
    assert len(README.split()) <= 1000


def script_after(diff: str) -> str:
    """The script that a diff leads to."""
    lines = [line for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(line[2:] for line in lines)


def script_before(diff: str) -> str:
    """The script that a diff begins with."""
    lines = [line for line in diff.splitlines() if not line.startswith("+")]
    return "\n".join(line[2:] for line in lines)


def test_the_changed_script_runs() -> None:
    (diff,) = DIFFS
    namespace = pages.training_script()
    exec(compile(script_after(diff), "README.md", "exec"), namespace)
    pruner = namespace["pruner"]
    assert pruner.num_selected == 60
    assert pruner.table.count.sum() == 200 + 60 + 60  # warm-up, then 30 % twice


def test_the_script_before_the_change_runs_too() -> None:
    (diff,) = DIFFS
    namespace = pages.training_script()
    exec(compile(script_before(diff), "README.md", "exec"), namespace)
    assert "pruner" not in namespace


def test_three_lines_change_beside_imports_and_the_pruner() -> None:
    (diff,) = DIFFS
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    setup = [line for line in added if line.startswith(("from ", "pruner = "))]
    # The loop's head unpacks the ids.
    assert len([line for line in added if line not in setup and "for " not in line]) == 3


def test_every_block_is_run_somewhere() -> None:
    """The diff above, the commands for installing by `make wheel`, those of make by CI's jobs."""
    fences = re.findall(r"^```(\w+)$", README, re.MULTILINE)
    assert fences == ["sh", "diff", "sh"], "a new block needs a test that runs it"
    installing, making = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert try_install.commands(README) == installing
    assert "pip install" in installing and "build_info()" in installing
    assert all(line.startswith("make ") for line in making.splitlines())
    assert "try_install(" in (ROOT / "scripts" / "dist.py").read_text()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10
    for target in links:
        if not target.startswith("https://"):
            page, _, place = target.partition("#")
            assert (ROOT / page).is_file(), target
            if place:
                headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
                assert place in [h.lower().replace(" ", "-") for h in headings], target


def test_ci_runs_both_commands() -> None:
    """`make test` in parts, of which tests/project/test_ci.py has the proof."""
    targets = {job.make[0] for job in ci.JOBS if not job.by_request}
    assert {"demo", "test-fast", "test-slow", "test-distributed", "test-emulator"} <= targets


def test_its_policies_are_all_of_them() -> None:
    from dynprune_cuda import policies

    table = re.findall(r'^\| `"(\w+)"`', README, re.MULTILINE)
    assert sorted(table) == sorted(set(policies.names()) - {"static"})
