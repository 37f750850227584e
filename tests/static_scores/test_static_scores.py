# SPDX-License-Identifier: Apache-2.0
"""Static scores against slow references in float64, and their files."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import DeviceLoader, IndexedDataset, Pruner, StaticScores, static_scores
from dynprune_cuda.policies import StaticSubset
from dynprune_cuda.static_scores import (
    ForgettingCounter,
    el2n_scores,
    forgetting_scores,
    grand_scores,
    random_scores,
)

NUM, CLASSES = 23, 3


def make_net() -> nn.Module:
    """Convolution, normalisation, two linear layers, of which one is frozen: all cases at once."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    )
    net[4].weight.requires_grad_(False)
    return net


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM, 2, 4, 4, generator=generator)
    return TensorDataset(images, torch.randint(0, CLASSES, (NUM,), generator=generator))


def loader_of(data: TensorDataset, batch_size: int = 5, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(IndexedDataset(data), batch_size=batch_size, shuffle=shuffle)


def train_plainly(model: nn.Module, data: TensorDataset, epochs: int) -> None:
    """What the built-in training promises, written again; its order is that of the loader."""
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    for _ in range(epochs):
        for inputs, labels, _ in loader_of(data):
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()


def reference_models(data: TensorDataset, seeds: list[int], epochs: int) -> list[nn.Module]:
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = make_net()
        model.train()
        train_plainly(model, data, epochs)
        models.append(model.eval().double())
    return models


def exact(model: nn.Module, x: Tensor, label: Tensor, measure: str) -> float:
    """One sample's score in float64, by definition."""
    model.zero_grad()
    logits = model(x[None].double())
    if measure == "el2n":
        return (logits.softmax(1)[0] - F.one_hot(label, CLASSES)).norm().item()
    F.cross_entropy(logits, label[None]).backward()
    parameters = {"grand": model, "grand_last": model[-1]}[measure].parameters()
    grads = [p.grad.flatten() for p in parameters if p.requires_grad]
    return torch.cat(grads).norm().item()


MEASURES: dict[str, Any] = {
    "el2n": el2n_scores,
    "grand": grand_scores,
    "grand_last": lambda *args, **kwargs: grand_scores(*args, layers="last", **kwargs),
}


@pytest.mark.parametrize("epochs", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("measure", MEASURES)
def test_scores_are_the_mean_of_exact_ones(data: TensorDataset, measure: str, epochs: int) -> None:
    # 23 samples in batches of 5: a mean over the batch anywhere would lift the last, short one.
    scores = MEASURES[measure](make_net, loader_of(data), epochs=epochs, seeds=[3, 8])
    models = reference_models(data, [3, 8], epochs)
    expected = [
        sum(exact(model, *data[i], measure) for model in models) / len(models) for i in range(NUM)
    ]
    torch.testing.assert_close(scores.values, torch.tensor(expected), rtol=2e-5, atol=1e-6)
    assert (scores.method, scores.seeds, scores.epochs) == (measure, (3, 8), epochs)


@pytest.mark.parametrize("measure", MEASURES)
def test_batch_size_changes_nothing(data: TensorDataset, measure: str) -> None:
    one, other = (
        MEASURES[measure](make_net, loader_of(data, size, False), epochs=0, seeds=[1]).values
        for size in (1, 7)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_change_nothing(data: TensorDataset, chunk_size: int) -> None:
    whole = grand_scores(make_net, loader_of(data), epochs=1, seeds=[0]).values
    parts = grand_scores(make_net, loader_of(data), epochs=1, seeds=[0], chunk_size=chunk_size)
    torch.testing.assert_close(parts.values, whole)


def forgetting_by_hand(history: list[list[bool]]) -> list[float]:
    """Of one list of outcomes per sample."""
    result = []
    for outcomes in history:
        events = sum(a and not b for a, b in pairwise(outcomes))
        result.append(float(events) if any(outcomes) else float(max(map(len, history))))
    return result


def test_forgetting_counts_events(device: torch.device) -> None:
    history = [
        [False, False, False, False],  # never learned: highest
        [True, True, True, True],
        [False, True, False, True],
        [True, False, True, False],
        [True, True, True, False],
    ]
    counter = ForgettingCounter(len(history), device=device)
    labels = torch.zeros(len(history), dtype=torch.int64, device=device)
    ids = torch.arange(len(history), device=device)
    for visit in range(4):
        target = torch.tensor([1.0 if outcomes[visit] else -1.0 for outcomes in history])
        logits = torch.stack([target, torch.zeros(len(history))], 1).to(device).requires_grad_()
        loss = counter.cross_entropy(logits, labels, ids)
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    assert counter.values().tolist() == forgetting_by_hand(history) == [4, 0, 1, 2, 1]


def test_forgetting_scores_follow_the_training(data: TensorDataset) -> None:
    seeds, epochs = [0, 1], 6
    expected = torch.zeros(NUM)
    for seed in seeds:
        torch.manual_seed(seed)
        model, history = make_net(), [[] for _ in range(NUM)]
        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        for _ in range(epochs):
            for inputs, labels, ids in loader_of(data):
                logits = model(inputs)
                for i, row, label in zip(ids.tolist(), logits, labels, strict=True):
                    history[i].append(bool(row.argmax() == label))
                F.cross_entropy(logits, labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        expected += torch.tensor(forgetting_by_hand(history)) / len(seeds)
    scores = forgetting_scores(
        make_net,
        loader_of(data),
        epochs=epochs,
        seeds=seeds,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.3),
    )
    assert len(scores.values.unique()) > 3
    torch.testing.assert_close(scores.values, expected)


def test_training_of_ones_own(data: TensorDataset) -> None:
    calls = []

    def train(model: nn.Module, *, epochs: int, seed: int, loss: Any) -> None:
        assert model.training
        calls.append((epochs, seed))
        train_plainly(model, data, epochs)
        for inputs, labels, ids in loader_of(data):
            loss(model(inputs), labels, ids)

    builtin = el2n_scores(make_net, loader_of(data), epochs=2, seeds=[5])
    own = el2n_scores(make_net, loader_of(data, shuffle=False), epochs=2, seeds=[5], train=train)
    assert calls == [(2, 5)]
    # Passing over the data in training mode moved the running averages, and nothing else.
    assert not torch.equal(own.values, builtin.values)
    torch.testing.assert_close(own.values, builtin.values, atol=0.3, rtol=0)
    forgotten = forgetting_scores(make_net, loader_of(data), epochs=1, seeds=[5], train=train)
    assert set(forgotten.values.tolist()) <= {0.0, 1.0}  # one visit each: learned or not


def test_a_device_loader_serves(data: TensorDataset, device: torch.device) -> None:
    images, labels = (tensor.to(device) for tensor in data.tensors)
    loader = DeviceLoader(
        images, labels, pruner=Pruner(NUM, policy="full", device=device), batch_size=5
    )
    scores = grand_scores(lambda: make_net().to(device), loader, epochs=0, seeds=[2])
    torch.manual_seed(2)
    model = make_net().eval().double()
    expected = torch.tensor([exact(model, *data[i], "grand") for i in range(NUM)])
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-5)
    forgetting_scores(lambda: make_net().to(device), loader, epochs=1, seeds=[2])


def test_random_state_is_left_alone_and_decides_nothing(data: TensorDataset) -> None:
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results.append(el2n_scores(make_net, loader_of(data), epochs=1, seeds=[0]).values)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


def test_random_scores_give_nested_uniform_subsets() -> None:
    scores = random_scores(1000, seed=4)
    small, large = set(scores.top(0.1).tolist()), set(scores.top(0.5).tolist())
    assert small < large and (len(small), len(large)) == (100, 500)
    other = set(random_scores(1000, seed=5).top(0.1).tolist())
    assert len(small & other) < 30  # 10 are expected
    hits = sum(i < 500 for seed in range(20) for i in random_scores(1000, seed=seed).top(0.1))
    assert 850 < hits < 1150  # 1000 are expected, with a standard deviation of 21


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_a_subset_is_refused_by_a_pruner_of_another_size(sharding: str) -> None:
    subset = StaticScores(torch.rand(10), "mine").subset(0.5)
    assert subset.num_samples == 10 and "of 10>" in repr(subset)
    for size in (20, 11, 9, 5):
        with pytest.raises(ValueError, match=rf"num_samples must be 10.* got {size}"):
            Pruner(size, policy=subset, sharding=sharding)
    pruner = Pruner(10, policy=subset, warmup_epochs=0, sharding=sharding)
    pruner.set_epoch(0)
    assert torch.equal(pruner.selected, subset.ids)
    # The same ids are the same subset, whether their size is known or not.
    assert subset.fingerprint == StaticSubset(subset.ids).fingerprint
    Pruner(20, policy=StaticSubset(subset.ids))


def test_the_size_of_a_subset_is_checked() -> None:
    for size, error in ((9, ValueError), (0, ValueError), (10.0, TypeError), (True, TypeError)):
        with pytest.raises(error):
            StaticSubset([3, 9], size)
    assert StaticSubset([3, 9], 10).fixed_count(10) == 2


def test_top_takes_the_greatest_and_breaks_ties_at_random() -> None:
    scores = StaticScores(torch.tensor([1.0, 3, 2, 3, 0]), "own")
    assert scores.top(2).tolist() == [1, 3] and scores.top(0.6).tolist() == [1, 2, 3]
    assert {tuple(scores.top(1, seed=seed).tolist()) for seed in range(20)} == {(1,), (3,)}
    pruner = Pruner(len(scores), policy=scores.subset(0.6))
    pruner.set_epoch(1)
    assert pruner.selected.tolist() == [1, 2, 3]


def test_scores_survive_a_file(tmp_path: Path) -> None:
    scores = StaticScores(torch.rand(9).double(), "el2n", (1, 2), 10, "digits, a small net")
    scores.save(tmp_path / "scores.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.pt"]
    torch.load(tmp_path / "scores.pt", weights_only=True)
    wanted = {"method": "el2n", "seeds": [1, 2], "epochs": 10, "about": "digits, a small net"}
    again = StaticScores.load(tmp_path / "scores.pt", num_samples=9, **wanted)
    assert torch.equal(again.values, scores.values)
    for name in ("method", "seeds", "epochs", "about", "versions"):
        assert getattr(again, name) == getattr(scores, name)
    assert again.versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"num_samples": 8}, "those of 9 samples, and the training set has 8"),
        ({"method": "grand"}, "their method is 'el2n', and 'grand' is wanted"),
        ({"seeds": [1]}, r"their seeds is \(1, 2\), and \(1,\) is wanted"),
        ({"epochs": 3}, "their epochs is 10, and 3 is wanted"),
        ({"about": "letters"}, "their about is 'digits', and 'letters' is wanted"),
    ],
)
def test_scores_of_something_else_are_refused(
    tmp_path: Path, wanted: dict[str, Any], message: str
) -> None:
    path = tmp_path / "scores.pt"
    StaticScores(torch.rand(9), "el2n", (1, 2), 10, "digits").save(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} holds other scores: {message}"):
        StaticScores.load(path, **wanted)


def test_files_that_hold_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.pt"
    with pytest.raises(FileNotFoundError):
        StaticScores.load(path)
    for content in (b"", b"text", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no static scores"):
            StaticScores.load(path)
    torch.save({"weights": torch.rand(3)}, path)
    with pytest.raises(ValueError, match="holds no static scores"):
        StaticScores.load(path)
    StaticScores(torch.rand(9), "el2n").save(path)
    state = torch.load(path, weights_only=True)
    for change, message in (
        ({"format": 2}, "another version"),
        ({"extra": 1}, "unknown"),
        ({"method": 3}, "is damaged: method must be a str, got 3"),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(ValueError, match=message):
            StaticScores.load(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seeds": []}, ValueError, "seeds must hold at least one"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"train": 3}, TypeError, "train must be a function, got 3"),
        ({"layers": "first"}, ValueError, "layers must be one of 'all', 'last', got 'first'"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"train": print, "optimizer": print}, ValueError, "optimizer must be left out"),
    ],
)
def test_bad_arguments(
    data: TensorDataset, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        grand_scores(make_net, loader_of(data), **arguments)


def test_bad_models_and_loaders(data: TensorDataset) -> None:
    options: dict[str, Any] = {"epochs": 0, "seeds": [0]}
    with pytest.raises(TypeError, match="make_model must be a function"):
        el2n_scores(make_net(), loader_of(data), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a model with parameters"):
        el2n_scores(nn.Flatten, loader_of(data), **options)
    with pytest.raises(ValueError, match=r"must yield \(inputs, labels, ids\).* of length 2"):
        el2n_scores(make_net, DataLoader(data, batch_size=4), **options)
    with pytest.raises(ValueError, match="at least one batch"):
        el2n_scores(make_net, [], **options)
    with pytest.raises(ValueError, match=r"output is that of its last nn.Linear"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES), nn.Softplus())
        grand_scores(lambda: net, loader_of(data), layers="last", **options)
    with pytest.raises(ValueError, match=r"ends in nn.Linear, this one has none"):
        net = nn.Sequential(nn.Conv2d(2, CLASSES, 4), nn.Flatten())
        grand_scores(lambda: net, loader_of(data), layers="last", **options)
    with pytest.raises(ValueError, match="train must compute its losses by loss"):
        forgetting_scores(make_net, loader_of(data), train=lambda *a, **k: None)
    with pytest.raises(TypeError, match="DataLoader or a DeviceLoader, got list"):
        forgetting_scores(make_net, [], epochs=1)


def pruned_loaders(data: TensorDataset, keep: float) -> list[Any]:
    images, labels = data.tensors
    pruners = [Pruner(NUM, keep, "uniform", warmup_epochs=0) for _ in range(2)]
    dataset = IndexedDataset(data)
    return [
        DataLoader(dataset, batch_sampler=pruners[0].batch_sampler(5)),
        DeviceLoader(images, labels, pruner=pruners[1], batch_size=5),
    ]


def test_a_loader_that_cannot_hold_every_sample_is_refused_before_any_work(
    data: TensorDataset,
) -> None:
    def no_model() -> nn.Module:
        raise AssertionError("a model was made")

    drops = DataLoader(IndexedDataset(data), batch_size=5, drop_last=True)
    for loader, number in ((pruned_loaders(data, 0.5)[0], 3), (drops, 4)):
        message = f"exactly once in a pass: its {number} batches of 5 cannot hold the 23 samples"
        for measure in MEASURES.values():
            with pytest.raises(ValueError, match=f"loader must .* {message}"):
                measure(no_model, loader, epochs=3, seeds=[0])
    with pytest.raises(ValueError, match="its 3 batches of 5 cannot hold the 23 samples"):
        el2n_scores(no_model, pruned_loaders(data, 0.5)[1], epochs=3, seeds=[0])


def test_a_loader_that_misses_a_sample_is_refused_after_its_first_pass(data: TensorDataset) -> None:
    passes: list[int] = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            logits: Tensor = self.net(x)
            return logits

    message = "loader must yield every sample .*: of 22 ids, .* 22 differ, .* has 23 samples"
    for loader in pruned_loaders(data, 22):
        for epochs in (0, 3):
            passes.clear()
            with pytest.raises(ValueError, match=message):
                el2n_scores(Counted, loader, epochs=epochs, seeds=[0, 1])
            assert sum(passes) == 22
    twice = [*loader_of(data), next(iter(loader_of(data)))]  # of unknown size
    with pytest.raises(ValueError, match="of 28 ids, from 0 to 22, 23 differ"):
        el2n_scores(make_net, twice, epochs=1, seeds=[0])


def test_samples_that_were_never_visited_have_no_forgetting_score(data: TensorDataset) -> None:
    counter = ForgettingCounter(3)
    logits = torch.zeros(2, 2, requires_grad=True)
    counter.cross_entropy(logits, torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="1 of 3 were not, such as 1"):
        counter.values()
    for loader in pruned_loaders(data, 0.5):
        with pytest.raises(
            ValueError, match=r"loader must give every sample: .* 11 of 23 were not"
        ):
            forgetting_scores(make_net, loader, epochs=2, seeds=[0])
    part = list(loader_of(data))[:2]

    def train(model: nn.Module, *, epochs: int, seed: int, loss: Any) -> None:
        for inputs, labels, ids in part:
            loss(model(inputs), labels, ids)

    with pytest.raises(ValueError, match=r"train, with the loader .* 13 of 23 were not"):
        forgetting_scores(make_net, loader_of(data), epochs=1, seeds=[0], train=train)


def test_progress(data: TensorDataset, capsys: pytest.CaptureFixture[str]) -> None:
    el2n_scores(make_net, loader_of(data), epochs=1, seeds=[0, 1], progress=True)
    assert re.search(r"static scores: 20 batches", capsys.readouterr().err)
    assert "tqdm" in sys.modules


def test_public_names() -> None:
    assert static_scores.StaticScores is StaticScores
