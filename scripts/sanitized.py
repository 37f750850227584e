# SPDX-License-Identifier: Apache-2.0
"""Builds the CPU operators with sanitizers, and runs the fuzzer and the tests of operators on them.

    python scripts/sanitized.py [address] [undefined] [--cases 2000]

Each module is in build/<sanitizer>/dynprune_cuda, beside links to the Python files of the package,
and never in the package itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = {
    "address": "-fsanitize=address -fno-omit-frame-pointer",
    # The class checks need the run-time types of torch, which are hidden.
    "undefined": "-fsanitize=undefined,float-cast-overflow -fno-sanitize=vptr "
    "-fno-sanitize-recover=all",
}
LIBRARIES = {"address": "libasan.so", "undefined": "libubsan.so"}
OPTIONS = {
    # Python and torch leave memory behind when they end; too large a request is an error of torch.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=3000",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
TESTS = (
    "tests/functional/test_selection.py",
    "tests/functional/test_selection_bounds.py",
    "tests/functional/test_selection_errors.py",
    "tests/functional/test_scored_cross_entropy.py",
    "tests/functional/test_scored_cross_entropy_gradient.py",
    "tests/functional/test_scored_step.py",
    "tests/functional/test_binary_cross_entropy.py",
    "tests/functional/test_binary_step.py",
    "tests/functional/test_soft_targets.py",
    "tests/functional/test_scoring_sizes.py",
    "tests/functional/test_update_scores.py",
)
PYTHONPATH = (".", "scripts", "tests/support", "tests/emulator")  # as pyproject.toml has it


def build(kind: str) -> Path:
    """Returns the folder with the package of a sanitizer, whose module is up to date."""
    place = ROOT / "build" / kind
    package = place / "dynprune_cuda"
    package.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "dynprune_cuda").iterdir():
        link = package / path.name
        if not path.name.startswith(("_C.", "__pycache__")) and not link.exists():
            link.symlink_to(path)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(place)]
    command += ["--build-temp", str(place / "temp")]
    environment = {
        **os.environ,
        "DYNPRUNE_CUDA": "0",
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} {FLAGS[kind]}",
        "LDFLAGS": FLAGS[kind],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # of ninja
    }
    log = place / "build.log"
    with log.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"{log.read_text()[-4000:]}\nthe build failed, see {log}")
    return place


def runtime(kind: str) -> str:
    """Returns the libraries that must be there before Python is: the sanitizer's, and C++'s.

    The sanitizer looks for the function that throws C++ exceptions when the process starts.
    """
    paths = []
    for name in (LIBRARIES[kind], "libstdc++.so"):
        asked = ["gcc", f"-print-file-name={name}"]
        path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if "/" not in path:
            raise SystemExit(f"gcc has no {name}: install its sanitizer library")
        paths.append(path)
    return " ".join(paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(FLAGS))
    parser.add_argument("--cases", type=int, default=2000)
    options = parser.parse_args()
    failed = []
    for kind in options.kinds:
        start = time.monotonic()
        place = build(kind)
        built = time.monotonic()
        environment = {
            **os.environ,
            **OPTIONS,
            "LD_PRELOAD": runtime(kind),
            "PYTHONPATH": os.pathsep.join((str(place), str(ROOT))),
            "OMP_NUM_THREADS": "1",
        }
        fuzz = [sys.executable, "-m", "tests.fuzz.run", "--only", "functional."]
        fuzz += ["--unlimited"] if kind == "address" else []  # which takes addresses without end
        fuzz += ["--cases", str(options.cases), "--case-seconds", "120"]
        path = " ".join((str(place), *PYTHONPATH))
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "-o", f"pythonpath={path}", *TESTS]
        # From another folder: Python looks into the current one first.
        for name, command, folder in (("fuzz", fuzz, place), ("tests", tests, ROOT)):
            began = time.monotonic()
            status = subprocess.run(command, cwd=folder, env=environment).returncode
            print(f"{kind}: {name} ended with {status} after {time.monotonic() - began:.0f} s")
            failed += [f"{kind} {name}"] if status else []
        print(f"{kind}: {built - start:.0f} s to build, {time.monotonic() - start:.0f} s in all")
    if failed:
        print("failed:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
