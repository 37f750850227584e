# SPDX-License-Identifier: Apache-2.0
"""Every file in examples/ runs, learns something, and is short."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# What each example needs besides torch: modules that are imported.
NEEDS = {
    **{name: [name] for name in ("lightning", "transformers", "accelerate", "ray")},
    **{name: [name] for name in ("webdataset", "datasets", "litdata", "grain")},
    "mosaicml": ["streaming"],
    "trl": ["trl", "datasets"],
    "segmentation": ["torchvision"],
    "mixup": ["timm"],
}


def name_of(path):
    return path.stem.removeprefix("train_").removesuffix("_train")


def test_there_is_one_per_framework():
    names = {name_of(path) for path in EXAMPLES}
    assert names == {
        "pytorch",
        "ddp",
        "lightning",
        "transformers",
        "accelerate",
        "ray",
        "selective",
        "webdataset",
        "datasets",
        "mosaicml",
        "litdata",
        "grain",
        "language_model",
        "trl",
        "segmentation",
        "mixup",
    }


def missing(path):
    """A package that an example needs and that is not here, None if it can run."""
    needed = NEEDS.get(name_of(path), [])
    return next((name for name in needed if find_spec(name) is None), None)


def run(path, folder):
    command = [sys.executable]
    if path.stem == "train_ddp":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    # Ray neither reports its use nor keeps a token in the home directory.
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        [*command, str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each example printed; two run at a time."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("examples")
    paths = [path for path in EXAMPLES if not missing(path)]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(run, paths, [folder / path.stem for path in paths])
        return dict(zip(paths, done, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_learns(path, results):
    lines = path.read_text().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    if framework := missing(path):
        pytest.skip(f"needs {framework}")
    done = results[path]
    assert done.returncode == 0, done.stderr
    accuracies = [float(x) for x in re.findall(r"accuracy (\d+\.\d)%", done.stdout)]
    accuracies += [100 * float(x) for x in re.findall(r"'eval_accuracy': (\d\.\d+)", done.stdout)]
    assert accuracies and accuracies[-1] > 80, done.stdout
