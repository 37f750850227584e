# SPDX-License-Identifier: Apache-2.0
"""`make demo`, on tiny data."""

from pathlib import Path

import pytest
import torch
import torchvision
from idx_images import write_fashion

from benchmarks.equal_steps import data, demo

DEMO = (demo.CONFIGS / "demo.toml").read_text()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of seconds beside the committed ones, and no data outside `tmp_path`."""
    configs = tmp_path / "configs"
    configs.mkdir()
    for path in demo.CONFIGS.glob("*.toml"):
        (configs / path.name).write_text(path.read_text())
    small = DEMO
    for old, new in (
        ("conv3-16", "conv3-2"),
        ("image_size = 14", "image_size = 7"),
        ("samples = 20_000", "samples = 120"),
        ("validation = 5_000", "validation = 0"),
        ("budget = 10", "budget = 2"),
        ("samples = 4_000", "samples = 200"),
    ):
        assert old in small
        small = small.replace(old, new)
    (configs / "demo.toml").write_text(small)
    monkeypatch.setattr(demo, "CONFIGS", configs)
    monkeypatch.setattr(data, "FASHION_OF_DEBIAN", tmp_path / "debian")
    data._load.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("no network")


@pytest.mark.slow
def test_both_methods_take_as_many_steps(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fashion(tiny / "fashion_mnist")
    demo.main(["--data-root", str(tiny), "--out", str(tiny / "out"), "--seeds", "0", "1"])
    shown = capsys.readouterr().out
    assert shown.count("4 steps in") == 4, shown  # 120 samples, batches of 64, two epochs' worth
    assert "full data" in shown and "Pruner(n, keep=0.3)" in shown and "fashion, budget10" in shown
    written = (tiny / "out" / "demo.md").read_text()
    assert written in shown and (tiny / "out" / "demo.png").stat().st_size > 10_000


@pytest.mark.slow
def test_digits_stand_in(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", refuse)
    demo.main(["--data-root", str(tiny), "--out", str(tiny / "out"), "--seeds", "3"])
    shown = capsys.readouterr().out
    assert "no gain is to be expected" in shown and "digits, conv3-2" in shown
    assert "One seed tells nothing of the noise" in shown


def test_data_are_found_in_the_usual_places(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        data.fashion_folder(tiny)
    for folder in (tiny / "debian", tiny / "FashionMNIST" / "raw", tiny / "fashion_mnist"):
        write_fashion(folder)
        assert data.fashion_folder(tiny) == folder
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", refuse)
    assert demo.available(tiny) == "fashion"


def test_what_is_downloaded_is_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, *, download: bool) -> None:
        assert download
        write_fashion(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    assert demo.available(tiny) == "fashion"


def test_verdicts() -> None:
    assert demo.verdict((0.5, 0.1, 3)) == "Choosing gained more than the noise."
    assert demo.verdict((-0.5, 0.1, 3)) == "Choosing lost more than the noise."
    assert demo.verdict((0.2, 0.1, 3)) == "The difference is within the noise."
    assert "One seed" in demo.verdict((0.5, float("nan"), 1))


def test_committed_results_are_of_the_experiments_as_they_are() -> None:
    found = {name: (mean, number) for name, _, mean, _, number in demo.committed()}
    assert found["fashion, budget10"][1] >= 3 and found["fashion, budget10"][0] > 0
    assert "cifar10, budget20" in found
    assert found["words, budget10"][0] < 0  # where the default loses is shown, too
