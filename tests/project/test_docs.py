# SPDX-License-Identifier: Apache-2.0
"""The documentation: its Python runs, its reference is complete, its files and commands exist.

`make docs` builds the site with warnings as errors, which checks all links between pages.
"""

import ast
import importlib.util
import re
from urllib.parse import urlsplit

import draw_figures
import pages
import pytest
from paths import ROOT

from dynprune_cuda.policies import registry

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OWN_TEST = {"guides/frameworks.md"}  # test_frameworks_docs.py
PATH = re.compile(r"`((?:benchmarks|scripts|tests|examples|csrc)/[\w./]*\w\.\w+)`")
WITH_CODE = [page for page in PAGES if pages.python_blocks(page)]


def name_of(page):
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_every_block_is_python(page):
    for block in pages.python_blocks(page):
        if name_of(page) not in OWN_TEST:
            ast.parse(block.code, f"{name_of(page)}:{block.line}")


def runnable():
    """The pages whose code runs; one trains models for static scores."""
    for page in WITH_CODE:
        name = name_of(page)
        if name not in OWN_TEST:
            slow = name == "benchmarks/reproduce.md"
            yield pytest.param(page, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("page", [*runnable()])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some save files
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # one adds a name
    names = pages.training_script() if page.stem == "quickstart" else pages.guide_script()
    is_run = any(block.is_run for block in pages.python_blocks(page))
    assert is_run or page.stem in ("sharding", "distributed", "compile"), "no block is run"
    pages.run(page, names)


def test_quickstart_trains_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = pages.training_script()
    pages.run(DOCS / "quickstart.md", names)
    assert names["pruner"].num_selected == 60
    assert names["pruner"].table.count.sum() == 200 + 60 + 60  # warm-up, then 30 % twice
    assert len(names["ids"]) == 300_000
    assert names["logits"].grad is not None


def test_a_reason_is_given_for_code_that_is_not_run():
    comments = [line for page in PAGES for line in page.read_text().splitlines() if "<!--" in line]
    assert comments
    assert all(re.fullmatch(r"<!-- not run: .{10,} -->", line) for line in comments)


def test_external_links_are_well_formed():
    for page in [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\((\w+:[^)\s]*)\)", page.read_text()):
            parts = urlsplit(link)
            assert parts.scheme == "https", f"{page}: {link}"
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{page}: {link}"


def test_links_of_other_pages_lead_somewhere():
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"):
        for link in re.findall(r"\]\(([^):\s]+)\)", page.read_text()):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page}: {link}"


def test_every_committed_result_has_a_page():
    text = "".join(page.read_text() for page in (DOCS / "benchmarks").glob("*.md"))
    results = sorted((ROOT / "benchmarks" / "results").iterdir())
    assert len(results) >= 7
    for result in results:
        assert f"benchmarks/results/{result.name}" in text, result.name
        assert f"`{result.name}`" in (DOCS / "benchmarks" / "index.md").read_text(), result.name


def test_every_committed_result_has_a_command():
    """Its row in benchmarks/README.md names a program; its page shows the program's command."""
    index = (DOCS / "benchmarks" / "index.md").read_text()
    rows = re.findall(
        r"^\| [^|]+ \| `([\w.]+)[^|]*\|.*\|([^|]*)\|$",
        (ROOT / "benchmarks" / "README.md").read_text(),
        re.MULTILINE,
    )
    by_result = {}
    for program, links in rows:
        for name in re.findall(r"\]\(results/([\w.]+)", links if "beside" not in links else ""):
            assert by_result.setdefault(name, program) == program, name
    results = sorted(path.name for path in (ROOT / "benchmarks" / "results").iterdir())
    assert sorted(by_result) == results
    for name, program in by_result.items():
        (page,) = re.findall(rf"\]\((\w+\.md)[^|]*\) \|[^|]*`{re.escape(name)}`", index)
        commands = re.findall(r"```sh\n(.*?)```", (DOCS / "benchmarks" / page).read_text(), re.S)
        assert any(f"-m benchmarks.{program} " in command for command in commands), name


def test_every_program_and_target_that_a_page_names_exists():
    texts = {name_of(page): page.read_text() for page in PAGES}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    programs = set()
    for name, text in texts.items():
        for program in re.findall(r"-m (benchmarks[.\w]+)", text):
            assert importlib.util.find_spec(program), f"{name}: {program}"
            programs.add(program)
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets, name
        for path in re.findall(
            r"`((?:benchmarks|scripts|tests|examples|csrc)/[\w./]*\w\.\w+)`", text
        ):
            assert (ROOT / path).exists(), f"{name}: {path}"
    assert len(programs) >= 8


@pytest.mark.parametrize("name", draw_figures.FIGURES)
def test_the_committed_figures_are_those_of_the_program(name):
    path = draw_figures.IMAGES / f"{name}.svg"
    assert path.read_text() == draw_figures.FIGURES[name](), "run scripts/draw_figures.py"
    assert any(f"images/{name}.svg" in page.read_text() for page in PAGES)
