# SPDX-License-Identifier: Apache-2.0
"""Tests a wheel in environments with other releases of torch and Python.

    python scripts/matrix.py WHEEL                      # all cells; writes docs/versions.md's table
    python scripts/matrix.py WHEEL --cells 2.11 2.15    # these releases of torch, this Python
    python scripts/matrix.py WHEEL --cells 2.14/3.13 --keep

The wheel is that for the CPU, which `make wheel` builds with the torch of this Python. Each cell is
an environment in build/matrix: torch, the wheel and what a part of the tests needs, and no
compiler. It is deleted after its tests; --keep keeps it.

No cell has the CUDA libraries of its own torch, which are some GB: they are links to those that
this Python has. These tests load them and call none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "matrix"
REPORT = ROOT / "docs" / "versions.md"
RESULT = "## Result\n"  # the heading of the page's last section, which this script writes

TORCHES = ("2.11", "2.12", "2.13", "2.14", "2.15")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
COMMON_TORCH, COMMON_PYTHON = "2.14", "3.11"

# Registration and torch.compile with its eager backend, selection, scoring, the fused step,
# autograd, the score table, epochs, saved states, samplers. They need no framework.
TESTS = (
    "tests/functional/test_registration.py",
    "tests/functional/test_compilation.py",
    "tests/functional/test_malformed.py",
    "tests/functional/test_selection.py",
    "tests/functional/test_selection_errors.py",
    "tests/functional/test_scored_cross_entropy.py",
    "tests/functional/test_scored_cross_entropy_gradient.py",
    "tests/functional/test_scored_step.py",
    "tests/functional/test_soft_targets.py",
    "tests/functional/test_update_scores.py",
    "tests/scores/test_scores.py",
    "tests/epochs/test_pruner.py",
    "tests/epochs/test_state.py",
    "tests/epochs/test_resume.py",
    "tests/data/test_data.py",
)
# The half of the time: all sizes and options, whose results the compiled module alone decides.
LEFT_OUT = (
    "test_every_size_and_dtype",
    "test_loss_and_gradient_with_every_option_are_torch_s",
    "test_top_k_is_the_head_of_the_total_order",
    "test_epsilon_greedy_is_the_greedy_part_and_a_draw_from_the_rest",
)
TOOLS = ("numpy", "pytest>=8", "hypothesis")
# torch reads a variable of this library which only its own release has.
OWN_LIBRARY = "nvidia-nvshmem"
CUDA_PACKAGE = re.compile(r"(nvidia|cuda)-|triton")


class Cell(NamedTuple):
    """A release of torch and one of Python, as 2.14 and 3.11."""

    torch: str
    python: str


class Outcome(NamedTuple):
    """What came of a cell; `wrong` says why it has not passed."""

    cell: Cell
    torch: str = ""
    python: str = ""
    passed: int = 0
    wrong: str = ""


def all_cells() -> list[Cell]:
    """Every torch with one Python, then every Python with one torch."""
    cells = [Cell(torch, COMMON_PYTHON) for torch in TORCHES]
    return cells + [Cell(COMMON_TORCH, python) for python in PYTHONS if python != COMMON_PYTHON]


def parse_cell(text: str, python: str) -> Cell:
    """Reads 2.14/3.13, or 2.14 for the Python that is given."""
    match = re.fullmatch(r"(\d+\.\d+)(?:/(\d+\.\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a cell is TORCH or TORCH/PYTHON, as 2.14/3.13: {text!r}")
    return Cell(match[1], match[2] or python)


def split_requirements(requirements: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns what of torch's requirements a cell installs with, and what without dependencies."""
    plain, alone = [], []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        if requirement.startswith(OWN_LIBRARY):
            alone.append(requirement)
        elif not CUDA_PACKAGE.match(requirement):
            plain.append(requirement)
    return plain, alone


def count_tests(report: Path) -> tuple[int, str]:
    """Returns how many tests of a JUnit report passed, and which failed."""
    passed, failed = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {part.tag for part in case}
        if kinds & {"failure", "error"}:
            failed.append(case.get("name", ""))
        elif "skipped" not in kinds:
            passed += 1
    shown = ", ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
    return passed, f"{len(failed)} failed: {shown}" if failed else ""


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = ["| torch | Python | tests passed | result |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        torch, python = outcome.torch or outcome.cell.torch, outcome.python or outcome.cell.python
        passed, result = outcome.passed or "–", outcome.wrong or "passed"
        lines.append(f"| {torch} | {python} | {passed} | {result} |")
    return "\n".join(lines)


def replace_result(document: str, new: str) -> str:
    """Puts a result in the place of what the document has below its last heading."""
    before, heading, _ = document.partition(RESULT)
    if not heading:
        raise ValueError(f"the document must have the line {RESULT.strip()!r}")
    return f"{before}{heading}\n{new}\n"


class StepError(Exception):
    """A step of a cell failed; the message is its last line."""


def run(command: Sequence[str | Path], env: dict[str, str], cwd: Path = ROOT) -> str:
    """Runs a command, in the source tree by default, and returns what it prints."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        errors = [line for line in lines if line.startswith("ERROR: ")]
        raise StepError((errors or lines or ["no output"])[-1].removeprefix("ERROR: "))
    return done.stdout


def environment() -> dict[str, str]:
    """The environment of all commands: an installed module is tested, not that of this tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def without_compilers(folder: Path) -> dict[str, str]:
    """An environment of a machine that has nothing but the virtual environment in this folder."""
    return {**environment(), "PATH": str(folder / "bin")}


def find_python(version: str) -> Path:
    """An interpreter: this one, one that pyenv has, or one on the path."""
    if version == "{}.{}".format(*sys.version_info):
        return Path(sys.executable)
    # Before the path: there pyenv has commands of versions that it does not let run.
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in sorted(root.glob(f"versions/{version}.*/bin/python")):
        return python
    if found := shutil.which(f"python{version}"):
        return Path(found)
    raise StepError(f"there is no Python {version} on this machine")


def install(cell: Cell, folder: Path, wheel: Path, tools: Sequence[str] = TOOLS) -> None:
    """Makes the environment of a cell."""
    run(["sh", ROOT / "scripts" / "make_venv.sh", find_python(cell.python), folder], environment())
    env = environment()
    own = tuple(map(int, importlib.metadata.version("torch").split("+")[0].split(".")[:2]))
    if tuple(map(int, cell.torch.split("."))) > own:
        # Constraints of the machine may hold torch at an older release.
        env["PIP_CONSTRAINT"] = os.devnull

    def pip(*what: str | Path) -> None:
        # --no-compile: most modules of torch are never imported here.
        command = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile")
        run([*command, *what], env)

    pip("--no-deps", f"torch=={cell.torch}.*", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(packages)])
    plain, alone = split_requirements(torch.requires or [])
    if alone:
        pip("--no-deps", *alone)
        shared = Path(sysconfig.get_path("purelib")) / "nvidia"
        for library in shared.iterdir() if shared.is_dir() else ():
            if library.is_dir() and not (packages / "nvidia" / library.name).exists():
                (packages / "nvidia" / library.name).symlink_to(library)
    pip(*plain, *tools)


def run_tests(cell: Cell, folder: Path) -> Outcome:
    """Runs the tests in the environment of a cell."""
    python, env = folder / "bin" / "python", without_compilers(folder)
    script = (
        "import json, os, platform; os.chdir('/'); import dynprune_cuda as d;"
        "print(json.dumps([d.__file__, platform.python_version(), d.build_info()]))"
    )
    place, version, info = json.loads(run([python, "-c", script], env))
    if not Path(place).is_relative_to(folder) or info["cuda"]:
        raise StepError(f"the module is not the one that was built here: {place}, {info}")
    report = folder / "report.xml"
    # The script, not the module of pytest: it leaves this tree's own package off the path.
    command = [folder / "bin" / "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-k", f"not ({' or '.join(LEFT_OUT)})"]
    command += ["-o", "pythonpath=scripts tests/support tests/emulator", f"--junitxml={report}"]
    done = subprocess.run(
        [*map(str, command), *TESTS], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if not report.is_file():
        raise StepError(f"pytest ended with {done.returncode}: {done.stdout[-300:]}")
    passed, wrong = count_tests(report)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        wrong = wrong or f"pytest ended with {done.returncode}"
    return Outcome(cell, info["torch"], version, passed, wrong)


def try_cell(cell: Cell, wheel: Path, keep: bool) -> Outcome:
    """Installs and tests a cell; what goes wrong is in the outcome."""
    folder = WORK / f"torch{cell.torch}-python{cell.python}"
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    try:
        install(cell, folder, wheel)
        ready = time.monotonic()
        outcome = run_tests(cell, folder)
    except StepError as error:
        outcome, ready = Outcome(cell, wrong=f"not run: {error}"), time.monotonic()
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"torch {outcome.torch or cell.torch}, Python {outcome.python or cell.python}: "
        f"{outcome.passed} tests passed; {outcome.wrong or 'all well'} "
        f"(installed in {ready - begin:.0f} s, tested in {time.monotonic() - ready:.0f} s)",
        flush=True,
    )
    return outcome


def main() -> None:
    here = "{}.{}".format(*sys.version_info)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="for the CPU, of `make wheel`")
    parser.add_argument("--cells", nargs="*", default=[], help="TORCH or TORCH/PYTHON; none: all")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    options = parser.parse_args()
    try:
        cells = [parse_cell(text, here) for text in options.cells]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    wheel = options.wheel.resolve()
    if not wheel.is_file():
        parser.error(f"there is no {wheel}: make wheel")
    outcomes = [try_cell(cell, wheel, options.keep) for cell in cells or all_cells()]
    if not cells:
        torch = importlib.metadata.version("torch")
        built = f"Built with torch {torch} and Python {here}: `{wheel.name}`."
        document = replace_result(
            REPORT.read_text(encoding="utf-8"), f"{built}\n\n{table(outcomes)}"
        )
        REPORT.write_text(document, encoding="utf-8")
    if any(outcome.wrong for outcome in outcomes):
        raise SystemExit("not every cell has passed")


if __name__ == "__main__":
    main()
