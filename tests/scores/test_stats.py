# SPDX-License-Identifier: Apache-2.0
"""Statistics: right, fetched only when asked, logged to TensorBoard, and drawn."""

import math
import sys

import numpy as np
import pytest
import torch
from waiting import no_waiting

from dynprune_cuda import KeptHistory, Pruner, ScoreTable, functional, plot_kept

N = 50
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def rotating(table, k, *, seed):
    """Selects ids 0-9 always, 40-49 never, and of the others another ten each time."""
    start = 10 + 10 * rotating.calls
    rotating.calls = (rotating.calls + 1) % 3
    return torch.cat([torch.arange(10), torch.arange(start, start + 10)]).to(table.device)


@pytest.fixture
def pruner(device):
    rotating.calls = 0
    return Pruner(N, 20, rotating, period=2, device=device)


def test_selections_are_counted(pruner):
    expected = {
        0: (N, 1.0, 0, math.nan, N, 0, 0),
        1: (20, 0.4, 1, math.nan, 30, 0, 20),
        2: (20, 0.4, 1, math.nan, 30, 0, 20),
        3: (20, 0.4, 2, 0.5, 20, 20, 10),
        5: (20, 0.4, 3, 0.5, 10, 30, 10),
    }
    for epoch, numbers in expected.items():
        pruner.set_epoch(epoch)
        stats = pruner.stats()
        names = ["num_selected", "selected_fraction", "num_selections", "turnover"]
        names += ["never_selected", "sometimes_selected", "always_selected"]
        assert [stats[name] for name in names] == [pytest.approx(n, nan_ok=True) for n in numbers]
        assert (stats["epoch"], stats["phase"]) == (epoch, "pruned" if epoch else "warm-up")
        for name in ("num_selected", "never_selected", "epoch", "visited"):
            assert type(stats[name]) is int


@pytest.mark.parametrize("visited", [1, 2, 3, 7, 31, 32, 33, N])
def test_quantiles_are_those_of_numpy(device, visited):
    values = torch.randn(visited, generator=torch.Generator().manual_seed(visited))
    table = ScoreTable(N, device=device)
    ids = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:visited]
    table.update(ids.to(device), values.to(device))
    stats = table.stats()
    assert stats["visited"] == visited and stats["never_visited"] == N - visited
    for percent in (5, 25, 50, 75, 95):
        wanted = np.percentile(values.double().numpy(), percent)
        assert stats[f"score_p{percent:02}"] == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert stats["score_min"] == values.min() and stats["score_max"] == values.max()
    assert stats["score_mean"] == pytest.approx(float(values.double().mean()))


def test_quantiles_of_nothing_and_of_equal_scores(device):
    table = ScoreTable(N, device=device)
    stats = table.stats()
    assert all(math.isnan(stats[name]) for name in stats if name.startswith("score_"))
    table.update(torch.arange(N, device=device), torch.full((N,), 0.1, device=device))
    stats = table.stats()
    assert {stats[f"score_p{p:02}"] for p in (5, 25, 50, 75, 95)} == {float(torch.tensor(0.1))}
    table.update(torch.tensor([2, 4], device=device), torch.tensor([math.nan] * 2, device=device))
    stats = table.stats()
    assert (stats["non_finite_values"], stats["non_finite_samples"]) == (2, 2)
    assert stats["score_p50"] == float(torch.tensor(0.1))


@pytest.mark.parametrize("size", [1, 2, 3, 17, N])
@pytest.mark.parametrize("visits", [1, 2, 40])
def test_the_gini_coefficient_is_the_mean_difference_of_two_counts(device, size, visits):
    table = ScoreTable(size, device=device)
    assert math.isnan(table.stats()["visits_gini"])
    generator = torch.Generator().manual_seed(visits)
    for _ in range(visits):
        ids = torch.randperm(size, generator=generator)[: max(1, size // 3)]
        table.update(ids.to(device), torch.ones(len(ids), device=device))
    counts = [int(count) for count in table.count]
    differences = sum(abs(a - b) for a in counts for b in counts)
    expected = differences / (2 * size * sum(counts))
    found = table.stats()["visits_gini"]
    assert type(found) is float and found == pytest.approx(expected, abs=1e-12)


def test_the_gini_coefficient_of_equal_and_of_single_visits(device):
    table = ScoreTable(N, device=device)
    table.update(torch.tensor([3], device=device), torch.ones(1, device=device))
    assert table.stats()["visits_gini"] == pytest.approx(1 - 1 / N)
    table.count.fill_(7)
    assert table.stats()["visits_gini"] == 0.0


def test_the_share_of_correct_samples(device):
    pruner = Pruner(N, 20, track_forgetting=True, device=device)
    assert math.isnan(pruner.stats()["share_correct"])
    ids = torch.arange(10, device=device)
    values = torch.ones(10, device=device)
    values[9] = math.nan  # a visit all the same
    pruner.observe(ids, values, ids < 4)
    stats = pruner.stats()
    assert stats["share_correct"] == 0.4 and type(stats["share_correct"]) is float
    pruner.observe(ids[:5], values[:5])  # does not tell
    pruner.observe(ids[:2], values[:2], ids[:2] > 5)
    assert pruner.stats()["share_correct"] == 0.2
    assert "share_below_ln2" not in pruner.stats()


def test_the_share_of_losses_below_ln2_is_at_most_the_accuracy(device):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(N, 4, generator=generator)
    target = torch.randint(4, (N,), generator=generator)
    pruner = Pruner(2 * N, 20, device=device)
    assert math.isnan(pruner.stats()["share_below_ln2"])
    pruner.cross_entropy(logits.to(device), target.to(device), torch.arange(N, device=device))
    chances = torch.softmax(logits.double(), 1)[torch.arange(N), target]
    accuracy = float((logits.argmax(1) == target).double().mean())
    found = pruner.stats()["share_below_ln2"]
    assert type(found) is float and found == float((chances > 0.5).double().mean())
    assert 0 < found < accuracy
    assert "share_below_ln2" not in Pruner(N, 20, score="el2n", device=device).stats()
    assert "share_correct" not in pruner.stats()


def test_stats_wait_only_when_a_number_is_read(pruner):
    pruner.set_epoch(3)
    ids = torch.arange(N, device=pruner.device)
    pruner.observe(ids, ids.float())
    with no_waiting():
        stats = pruner.stats()
        tensors = dict(stats.tensors)
        assert len(stats) > 20 and stats["num_selected"] == 20  # known to the host
    assert {tensor.device for tensor in tensors.values()} == {pruner.device}
    with pytest.raises(AssertionError, match="waits"), no_waiting():
        _ = stats["visited"], tensors["visited"].item()
    pruner.observe(ids, ids.float() + 100)  # the numbers are those of then
    assert stats["score_max"] == N - 1 and float(tensors["score_max"]) == N - 1
    assert pruner.stats()["score_max"] > N
    assert dict(stats)["score_p50"] == stats["score_p50"] and "Stats({'epoch': 3" in repr(stats)
    with pytest.raises(KeyError):
        _ = stats["no_such_name"]


def test_an_error_of_the_device_is_raised_with_the_first_number(pruner, monkeypatch):
    def failing(device):
        raise IndexError("1 sample ids were out of range")

    monkeypatch.setattr(functional, "check_errors", failing)
    stats = pruner.stats()
    with pytest.raises(IndexError, match="out of range"):
        _ = stats["visited"]


def test_every_finite_number_is_logged(pruner):
    class Writer:
        def __init__(self):
            self.rows = {}

        def add_scalar(self, tag, scalar_value, global_step=None):
            self.rows[tag] = (scalar_value, global_step)

    pruner.set_epoch(1)
    writer = Writer()
    pruner.stats().log(writer)
    assert writer.rows["pruner/selected_fraction"] == (0.4, 1)
    assert "pruner/turnover" not in writer.rows and "pruner/phase" not in writer.rows  # NaN, str
    pruner.set_epoch(3)
    pruner.stats().log(writer, step=77, prefix="x/")
    assert writer.rows["x/turnover"] == (0.5, 77)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(pruner, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        for epoch in (0, 1, 3):
            pruner.set_epoch(epoch)
            pruner.stats().log(writer)
    events = reading.EventAccumulator(str(tmp_path))
    events.Reload()
    rows = events.Scalars("pruner/num_selected")
    assert [(row.step, row.value) for row in rows] == [(0, N), (1, 20), (3, 20)]
    assert [row.step for row in events.Scalars("pruner/turnover")] == [3]


def test_scalars_are_the_finite_numbers(pruner):
    pruner.set_epoch(1)
    stats = pruner.stats()
    scalars = stats.scalars("train/")
    assert scalars["train/num_selected"] == 20 and scalars["train/never_selected"] == N - 20
    # The first selection has no turnover yet; the epoch is the axis, and the phase a word.
    assert {"train/" + name for name in stats} - scalars.keys() >= {
        "train/turnover",
        "train/epoch",
        "train/phase",
    }
    assert all(math.isfinite(value) for value in scalars.values())


def record(pruner, epochs, **options):
    history, selected = KeptHistory(pruner, **options), []
    for epoch in epochs:
        pruner.set_epoch(epoch)
        with no_waiting():
            history.record()
        history.record()
        selected.append(set(pruner.selected.tolist()))
    return history, selected


def test_the_history_holds_what_was_selected(pruner):
    history, selected = record(pruner, [0, 1, 3, 5, 6])
    epochs, kept = history.table()
    assert epochs == [0, 1, 3, 5, 6] and kept.shape == (N, 5) and kept.dtype == torch.bool
    assert [set(column.nonzero().flatten().tolist()) for column in kept.T] == selected


def test_a_large_training_set_is_followed_in_part(device):
    rotating.calls = 0
    pruner = Pruner(N, 20, rotating, period=2, device=device)
    history, selected = record(pruner, [1, 3], max_samples=17)
    ids = history.sample_ids.tolist()
    assert len(ids) == len(set(ids)) == 17 and ids == sorted(ids) and ids[-1] < N
    for column, chosen in zip(history.table()[1].T, selected, strict=True):
        assert {i for i, kept in zip(ids, column.tolist(), strict=True) if kept} == chosen & set(
            ids
        )


def test_the_picture_shows_the_history_with_the_most_kept_on_top(pruner, tmp_path):
    history, _ = record(pruner, [0, 1, 3, 5])
    axes = plot_kept(history)
    (image,) = axes.images
    drawn = np.asarray(image.get_array())
    kept = history.table()[1].numpy()
    assert drawn.shape == (N, 4)
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, kept.tolist()))
    per_sample = drawn.sum(1).tolist()
    assert per_sample == sorted(per_sample, reverse=True) and per_sample[0] == 4
    assert "50 of 50 samples" in axes.get_ylabel() and axes.get_xlabel() == "epoch"
    axes.figure.savefig(tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 1000
    own = matplotlib.figure.Figure().subplots()
    assert plot_kept(history, ax=own) is own and len(own.images) == 1
    matplotlib.pyplot.close("all")


def test_no_history_and_no_matplotlib_are_said(pruner, monkeypatch):
    history = KeptHistory(pruner)
    with pytest.raises(ValueError, match=r"call history.record\(\)"):
        plot_kept(history)
    with pytest.raises(ValueError, match="max_samples must be at least 1, got 0"):
        KeptHistory(pruner, max_samples=0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_kept(history)


@pytest.mark.parametrize("epochs", [[], [1, 3]])
def test_a_history_can_be_saved_and_goes_on(pruner, device, epochs, tmp_path):
    history, selected = record(pruner, epochs)
    torch.save(history.state_dict(), tmp_path / "history.pt")
    other = KeptHistory(pruner)
    other.load_state_dict(torch.load(tmp_path / "history.pt", weights_only=True))
    pruner.set_epoch(5)
    other.record()
    found, kept = other.table()
    assert found == [*epochs, 5]
    selected.append(set(pruner.selected.tolist()))
    assert [set(column.nonzero().flatten().tolist()) for column in kept.T] == selected
    state = other.state_dict()
    damages = {"kept": state["kept"][:, 1:], "epochs": ["1"], "sample_ids": state["kept"][:, 0]}
    for name, damage in damages.items():
        with pytest.raises((TypeError, ValueError), match=name):
            other.load_state_dict({**state, name: damage})
    with pytest.raises(ValueError, match=r"shape|follows other samples"):
        KeptHistory(pruner, max_samples=9).load_state_dict(state)
    assert other.table()[0] == found and torch.equal(other.table()[1], kept)


def test_statistics_survive_a_resume(device):
    rotating.calls = 0
    pruner = Pruner(N, 20, rotating, period=2, device=device)
    for epoch in (1, 3, 5):
        pruner.set_epoch(epoch)
    other = Pruner(N, 20, rotating, period=2, device=device)
    other.load_state_dict(pruner.state_dict())
    assert dict(other.stats()) == {
        name: pytest.approx(value, nan_ok=True) if isinstance(value, float) else value
        for name, value in pruner.stats().items()
    }
