# SPDX-License-Identifier: Apache-2.0
"""The training loop that the comparisons share: plans, learning rate, clock, checkpoints."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.common.records import TRAINING_PARTS, Run
from benchmarks.training.clock import Clock
from benchmarks.training.images import ImageTask, TensorImages
from benchmarks.training.learning_rate import PEAK, one_cycle
from benchmarks.training.methods import METHODS, Rules
from benchmarks.training.plans import Plan, make_plan, planned_samples
from benchmarks.training.source import Settings, Source
from benchmarks.training.trainer import Trainer, evenly
from dynprune_cuda.static_scores import random_scores

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NUM, EPOCHS, BATCH = 60, 5, 8


@pytest.fixture(scope="module")
def task() -> ImageTask:
    """Noise, to be cropped and flipped, with a mark that tells the class."""
    generator = torch.Generator().manual_seed(1)

    def images(count: int) -> TensorImages:
        labels = torch.arange(count) % 3
        pixels = torch.randint(0, 150, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        pixels[torch.arange(count), labels] += 100
        return TensorImages(pixels, labels.tolist())

    mean, std = (0.4,) * 3, (0.2,) * 3
    return ImageTask("marks", images(NUM), images(30), 3, (3, 8, 8), mean, std, 1, True)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "resnet8",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "device": torch.device("cpu"),
        "rules": Rules(period=1),
        "resident": True,
        "evaluations": 3,
    }
    return Settings(**(values | changes))


def plan_of(name: str, chosen: Settings, seed: int = 0) -> Plan:
    method = METHODS[name]
    return make_plan(
        name,
        NUM,
        chosen,
        keep=0.3 if method.takes_keep else None,
        seed=seed,
        static_ids=random_scores(NUM).top(0.3) if method.kind == "static" else None,
    )


def trainer_of(task: ImageTask, name: str, seed: int = 0, **changes: Any) -> Trainer:
    chosen = settings(**changes)
    plan = plan_of(name, chosen, seed)
    return Trainer(Source(task, chosen), plan, Run(name, plan.label, seed))


def what_happened(run: Run) -> list[Any]:
    """All but the seconds."""
    return [
        [(epoch.samples, epoch.train_loss) for epoch in run.epochs],
        [(look.samples, look.accuracy) for look in run.evaluations],
    ]


def infobatch_stand_in() -> types.ModuleType:
    """A module with the interface of the released InfoBatch, and a rule of its own."""

    class InfoBatch:
        def __init__(self, dataset: Any, num_epochs: int) -> None:
            self.scores, self.weights = torch.ones(len(dataset)), torch.ones(len(dataset))

        def set_active_indices(self, ids: torch.Tensor) -> None:
            self.ids = ids

        def update(self, values: torch.Tensor) -> torch.Tensor:
            self.scores[self.ids] = values.detach().clone()
            return (values * self.weights[self.ids]).mean()

        def prune(self) -> list[int]:
            prunes.append(len(self.scores))
            self.weights[:] = 2.0
            return self.scores.argsort(descending=True)[: len(self.scores) // 2].tolist()

        def reset_weights(self) -> None:
            self.weights[:] = 1.0

    prunes: list[int] = []
    module = types.ModuleType("infobatch")
    module.prunes = prunes  # type: ignore[attr-defined]
    module.InfoBatch = InfoBatch  # type: ignore[attr-defined]
    return module


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "infobatch_published":
        monkeypatch.setitem(sys.modules, "infobatch", infobatch_stand_in())
    name: str = request.param
    return name


# Plans


def test_every_method_gets_the_samples_of_its_plan(task: ImageTask, method: str) -> None:
    run = trainer_of(task, method).train()
    pruned = planned_samples(NUM, EPOCHS, Rules(), 0.3)
    assert pruned == NUM + 4 * 18
    if METHODS[method].kind == "full":
        assert run.samples == EPOCHS * NUM
    elif METHODS[method].kind == "static":
        assert [epoch.samples for epoch in run.epochs] == [18] * 7 + [8]
        # Of the last epoch 6 are left: a batch is the least.
    elif method.startswith("infobatch"):
        assert pruned / 2 < run.samples < EPOCHS * NUM and run.epochs[0].samples == NUM
    else:
        assert run.samples == pruned
    assert len(run.evaluations) == 3
    assert run.evaluations[-1].samples == run.samples
    assert run.evaluations[-1].seconds == pytest.approx(run.train_seconds)


def test_a_stop_and_a_new_process_change_nothing(
    task: ImageTask, method: str, tmp_path: Path
) -> None:
    whole = trainer_of(task, method).train()
    first = trainer_of(task, method)
    first.train(epochs=2)
    first.save(tmp_path / "checkpoint")
    torch.manual_seed(99)  # of whatever came between
    second = trainer_of(task, method)
    second.load(tmp_path / "checkpoint")
    resumed = second.train()
    assert what_happened(resumed) == what_happened(whole)
    assert (resumed.resumed, whole.resumed) == (1, 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("resident", [True, False])
def test_a_seed_reproduces_a_run(task: ImageTask, precision: str, resident: bool) -> None:
    options: dict[str, Any] = {"precision": precision, "resident": resident}
    one, same, other = (
        what_happened(trainer_of(task, "ucb", seed, **options).train()) for seed in (3, 3, 4)
    )
    assert one == same != other


def test_loaders_agree(task: ImageTask) -> None:
    plain = replace(task, crop_padding=0)  # a DataLoader draws a number per epoch for itself
    runs = [trainer_of(plain, "ucb", resident=resident).train() for resident in (True, False)]
    assert what_happened(runs[0]) == what_happened(runs[1])


@pytest.mark.parametrize(("keep", "epochs"), [(0.35, [21] * 6 + [18]), (0.4, [24] * 6 + [12])])
def test_a_static_subset_ends_with_a_random_part_of_it(
    task: ImageTask, keep: float, epochs: list[int]
) -> None:
    rules, scores = Rules(), random_scores(NUM)
    chosen, subset = settings(rules=rules), scores.top(keep)
    plan = make_plan("static_random", NUM, chosen, keep=keep, seed=0, static_ids=subset)
    assert sum(epochs) == planned_samples(NUM, EPOCHS, rules, keep) and plan.epochs == len(epochs)
    assert plan.total_steps is not None
    assert plan.total_steps(BATCH) == sum(-(-count // BATCH) for count in epochs)
    for epoch, count in enumerate(epochs):
        plan.pruner.set_epoch(epoch)
        ids = set(plan.pruner.selected.tolist())
        assert len(ids) == count and ids <= set(subset.tolist())
    others = make_plan("static_random", NUM, chosen, keep=keep, seed=1, static_ids=subset)
    others.pruner.set_epoch(len(epochs) - 1)
    assert set(others.pruner.selected.tolist()) != ids


def test_the_published_infobatch_anneals_as_ours_does(monkeypatch: pytest.MonkeyPatch) -> None:
    module = infobatch_stand_in()
    monkeypatch.setitem(sys.modules, "infobatch", module)
    chosen = settings(epochs=9)
    own, published = (plan_of(name, chosen) for name in ("infobatch", "infobatch_published"))
    assert published.pruner.schedule.anneal_epochs == own.pruner.schedule.anneal_epochs == 2
    policy: Any = published.pruner.policy
    for epoch in range(9):
        published.pruner.set_epoch(epoch)
        published.loss(torch.zeros(NUM, 3), torch.zeros(NUM, dtype=torch.int64), torch.arange(NUM))
        pruned = 1 <= epoch < 7
        assert len(published.pruner.selected) == (NUM // 2 if pruned else NUM)
        assert (policy.published.weights == (2.0 if pruned else 1.0)).all()
    assert len(module.prunes) == 6


def test_host_methods_choose_what_the_package_chooses(task: ImageTask) -> None:
    """Up to rounding: the losses of the last epoch are those of the same samples."""
    for name in ("ucb", "epsilon_greedy"):
        rules = Rules(period=1, epsilon=0.0, first_visit="published")
        own, host = (
            trainer_of(task, variant, rules=rules).train() for variant in (name, f"{name}_host")
        )
        losses = [[epoch.train_loss for epoch in run.epochs] for run in (own, host)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_host_epsilon_greedy_explores(task: ImageTask) -> None:
    chosen = settings(rules=Rules(epsilon=0.5))
    policy: Any = plan_of("epsilon_greedy_host", chosen).pruner.policy
    ids = torch.arange(NUM)
    logits = torch.zeros(NUM, 2)
    logits[:, 0] = -ids.float() / 10  # the loss of sample i grows with i
    policy.loss(logits, torch.zeros(NUM, dtype=torch.int64), ids)
    chosen_ids = [policy.select(None, 20, seed=seed).tolist() for seed in (0, 1)]
    for ids_of_seed in chosen_ids:
        assert len(set(ids_of_seed)) == 20 and set(range(50, 60)) <= set(ids_of_seed)
    assert chosen_ids[0] != chosen_ids[1]


def test_infobatch_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "infobatch", None)
    before = torch.utils.data.dataloader._BaseDataLoaderIter.__next__
    with pytest.raises(ImportError, match="needs the released code of InfoBatch"):
        plan_of("infobatch_published", settings())
    assert torch.utils.data.dataloader._BaseDataLoaderIter.__next__ is before


# The loop


@pytest.mark.parametrize("total", [50, 400])
def test_one_cycle_has_the_shape_of_torch(total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, total_steps=total, pct_start=PEAK
    )
    for step in range(total):
        group = optimizer.param_groups[0]
        lr, momentum = one_cycle(step / (total - 1))
        # Torch's peak is one step before its share of the steps.
        assert 0.5 * lr == pytest.approx(group["lr"], abs=4 / total)
        assert momentum == pytest.approx(group["momentum"], abs=0.8 / total)
        optimizer.step()
        if step < total - 1:
            schedule.step()
    assert one_cycle(PEAK) == (1.0, 0.85)


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(3, 9, {3, 6, 9}), (4, 10, {3, 5, 8, 10}), (5, 5, {1, 2, 3, 4, 5}), (1, 7, {7})],
)
def test_evaluations_are_evenly_spread(count: int, total: int, expected: set[int]) -> None:
    assert evenly(count, total) == expected


def test_clock_gives_every_part_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.training.clock.time.perf_counter", lambda: now)
    clock = Clock(torch.device("cpu"))
    for later, part in ((1.0, None), (3.0, "a"), (6.0, "b"), (7.0, "a"), (11.0, None), (12.5, "c")):
        now = later
        clock.lap(part) if part else clock.start()
    assert clock.read() == {"a": 3.0, "b": 3.0, "c": 1.5}
    assert clock.read() == {}
    now = 20.0
    clock.lap("a")
    assert clock.read() == {"a": 7.5}


def test_all_parts_are_measured(task: ImageTask) -> None:
    run = trainer_of(task, "ucb").train()
    for name in (*TRAINING_PARTS, "evaluation"):
        assert run.part(name) > 0
    assert run.train_seconds == pytest.approx(sum(run.part(name) for name in TRAINING_PARTS))
    seconds = [look.seconds for look in run.evaluations]
    assert seconds == sorted(seconds)


def test_image_folders_do_not_fit_on_the_device(task: ImageTask) -> None:
    folder = replace(task, train=torch.utils.data.Subset(task.train, [0, 1]))
    with pytest.raises(ValueError, match="resident data must fit into memory"):
        Source(folder, settings())


@pytest.mark.needs_cuda
def test_runs_on_a_gpu(task: ImageTask, method: str, tmp_path: Path) -> None:
    device = torch.device("cuda")
    trainer = trainer_of(task, method, device=device, precision="bfloat16")
    trainer.train(epochs=2)
    trainer.save(tmp_path / "checkpoint")
    trainer = trainer_of(task, method, device=device, precision="bfloat16")
    trainer.load(tmp_path / "checkpoint")
    run = trainer.train()
    assert len(run.evaluations) == 3
    assert all(run.part(name) > 0 for name in (*TRAINING_PARTS, "evaluation"))
