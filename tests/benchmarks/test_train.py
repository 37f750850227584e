# SPDX-License-Identifier: Apache-2.0
"""benchmarks/training/train.py from end to end, at sizes of seconds."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from PIL import Image

from benchmarks.common.records import Run
from benchmarks.training import train
from benchmarks.training.images import ImageTask, TensorImages
from benchmarks.training.methods import Rules
from benchmarks.training.plans import short_epochs
from benchmarks.training.source import Settings, Source
from benchmarks.training.train import CHOICES, train_one

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def stripes() -> ImageTask:
    """Noisy images, each with a bright row; its height is the class."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> TensorImages:
        labels = torch.arange(count) % 4
        pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        pixels[torch.arange(count), 0, 2 * labels] += 100
        return TensorImages(pixels, labels.tolist())

    return ImageTask("stripes", images(90), images(40), 4, (1, 8, 8), mean=(0.3,), std=(0.2,))


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "cnn",
        "epochs": 5,
        "batch_size": 16,
        "lr": 0.02,
        "weight_decay": 5e-4,
        "device": torch.device("cpu"),
    }
    return Settings(**(values | changes))


def train_stripes(stripes: ImageTask, name: str, seed: int = 0, **changes: Any) -> Run:
    return train_one(Source(stripes, settings(**changes)), name, keep=0.25, seed=seed)


@pytest.mark.parametrize("name", CHOICES)
def test_samples_follow_the_schedule_exactly(stripes: ImageTask, name: str) -> None:
    run = train_stripes(stripes, name, rules=Rules(warmup_epochs=2))
    samples = [epoch.samples for epoch in run.epochs]
    kept = 23  # floor(0.25 * 90 + 0.5)
    total = 2 * 90 + 3 * kept  # of a pruned run
    expected = {
        "full": [90] * 5,
        "full_short": [90, 90, total - 2 * 90],
        "static_random": [kept] * 10 + [19],  # 249 samples
        "infobatch": [90, 90, *samples[2:4], 90],  # anneals in the last eighth
    }.get(name, [90, 90, kept, kept, kept])
    assert samples == expected
    assert run.samples == sum(expected) == run.evaluations[-1].samples
    assert len(run.evaluations) == len(run.epochs)
    assert all(epoch.seconds > 0 and math.isfinite(epoch.train_loss) for epoch in run.epochs)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(249, [90, 90, 69]), (180, [90, 90]), (185, [90, 90, 16]), (30, [30]), (1, [16])],
)
def test_short_baseline_gets_no_fewer_samples(samples: int, expected: list[int]) -> None:
    assert short_epochs(samples, num_samples=90, batch_size=16) == expected


@pytest.mark.parametrize("name", ["full", "uniform", "epsilon_greedy", "ucb"])
def test_seed_reproduces_a_run(stripes: ImageTask, name: str) -> None:
    def numbers(seed: int) -> list[tuple[float, float]]:
        run = train_stripes(stripes, name, seed)
        losses = [epoch.train_loss for epoch in run.epochs]
        return list(zip(losses, [look.accuracy for look in run.evaluations], strict=True))

    first = numbers(seed=3)
    assert numbers(seed=3) == first
    assert numbers(seed=4) != first


def test_methods_differ_once_they_select(stripes: ImageTask) -> None:
    runs = [train_stripes(stripes, name) for name in ("uniform", "epsilon_greedy", "ucb")]
    losses = [[epoch.train_loss for epoch in run.epochs] for run in runs]
    # The warm-up epoch is the same one; uniform's loss is torch's own, and rounds differently.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[1][0] == losses[2][0]
    assert len({loss[1] for loss in losses}) == 3


def test_loader_processes_change_nothing(stripes: ImageTask) -> None:
    alone = train_stripes(stripes, "ucb", epochs=2)
    helped = train_stripes(stripes, "ucb", epochs=2, num_workers=1)
    assert [e.train_loss for e in helped.epochs] == [e.train_loss for e in alone.epochs]


@pytest.mark.needs_cuda
def test_trains_on_a_gpu(stripes: ImageTask) -> None:
    run = train_stripes(stripes, "ucb", epochs=12, device=torch.device("cuda"))
    assert run.samples == 90 + 11 * 23
    assert run.accuracy > 0.8


def test_command_line_on_digits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.training.train", "--limit", "500", "--epochs", "4"]
    command += [
        "--batch-size",
        "32",
        "--keep",
        "0.5",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "new" / "demo"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    document = json.loads((tmp_path / "new" / "demo" / "results.json").read_text())
    runs = {run["method"]: run["epochs"] for run in document["runs"]}
    pruned = [500, 250, 250, 250]
    assert {name: [epoch["samples"] for epoch in epochs] for name, epochs in runs.items()} == {
        "full": [500] * 4,
        "full_short": [500, 500, 250],
        "uniform": pruned,
        "epsilon_greedy": pruned,
        "ucb": pruned,
    }
    for run in document["runs"]:
        assert run["evaluations"][-1]["accuracy"] > 0.75, run["method"]  # chance is 0.1
    assert document["setting"]["flags"]["seeds"] == [0]
    assert document["setting"]["machine"]["torch"] == torch.__version__

    table = done.stdout.partition("method ")[2]
    for label in ("full data ", "full data, 2.5 epochs", "uniform random", "epsilon-greedy", "UCB"):
        assert f"\n{label}" in table
    assert "1.0x" in table and "evaluation excluded" in table
    assert "UCB, seed 0: epoch 4/4, 250 samples" in done.stdout  # a line per epoch, and no bar
    assert done.stderr == ""
    with Image.open(tmp_path / "new" / "demo" / "accuracy.png") as figure:
        assert figure.size == (1350, 750)


def test_command_line_on_a_folder_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            size = (20 + i, 16)
            Image.new("RGB", size, colour).save(tmp_path / "images" / name / f"{i}.png")
    command = ["--dataset", str(tmp_path / "images"), "--image-size", "16", "--device", "cpu"]
    command += ["--methods", "full", "ucb", "--epochs", "4", "--batch-size", "8", "--lr", "0.05"]
    train.main([*command, "--seeds", "1", "2", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "results.json").read_text())
    assert [(run["method"], run["seed"]) for run in document["runs"]] == [
        ("full", 1),
        ("ucb", 1),
        ("full", 2),
        ("ucb", 2),
    ]
    assert [epoch["samples"] for epoch in document["runs"][1]["epochs"]] == [32, 10, 10, 10]
    assert all(run["evaluations"][-1]["accuracy"] == 1.0 for run in document["runs"])
    assert "resnet8, 4 epochs; pruned runs keep 30 % after 1 full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar10"], "--dataset cifar10 needs --data-root"),
        (["--dataset", "nowhere"], "--dataset must be mnist5k, cifar10, cifar100, or an existing"),
        (["--keep", "0"], r"--keep: must be in \(0, 1\], got 0"),
        (["--epochs", "0"], "must be at least 1, got 0"),
        (["--methods", "best"], "invalid choice: 'best'"),
    ],
)
def test_bad_arguments_end_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    text = capsys.readouterr().err if stopped.value.code == 2 else str(stopped.value.code)
    assert re.search(message, text)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "vgg1",
            "model must be cnn, resnet8, resnet9, resnet10 or a torchvision classifier, got 'vgg1'",
        ),
        ("resnet18", "model resnet18 takes images with 3 channels, these have 1"),
    ],
)
def test_bad_model(model: str, message: str, stripes: ImageTask) -> None:
    with pytest.raises(ValueError, match=message):
        train.build_model(model, shape=stripes.shape, num_classes=4)


@pytest.mark.parametrize("model", ["cnn", "resnet8", "resnet9", "resnet10", "resnet18"])
def test_models_classify_small_images(model: str) -> None:
    built = train.build_model(model, shape=(3, 32, 32), num_classes=7).eval()
    with torch.inference_mode():
        assert built(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    at_most = {
        "cnn": 40_000,
        "resnet8": 90_000,
        "resnet9": 7_000_000,
        "resnet10": 320_000,
        "resnet18": 12_000_000,
    }
    assert 20_000 < parameters < at_most[model]
