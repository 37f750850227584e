# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with a pruner; the real one, on a small model."""

import logging
import math
import re

import pytest
import torch
from paths import ROOT
from plain_loop import (
    BATCH,
    EPOCHS,
    KEEP,
    LABELS,
    POINTS,
    N,
    make_net,
    make_optimizer,
    make_pruner,
    plain_run,
)
from runs import assert_same_state
from torch import nn

from dynprune_cuda import Pruner

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from dynprune_cuda.integrations.transformers import (  # noqa: E402
    PrunedTrainer,
    PrunedTrainerMixin,
)

pytestmark = [
    pytest.mark.slow,  # trains with the Trainer
    pytest.mark.filterwarnings(
        "ignore:'pin_memory' argument is set as true but no accelerator is found"
    ),
]
DATA = [{"x": POINTS[i], "labels": int(LABELS[i]), "unused": i} for i in range(N)]


class Model(nn.Module):
    """Returns logits; writes down what it is called with."""

    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class CountingModel(Model):
    """One that takes the number of labels to divide by, as the models of Transformers do."""

    def forward(self, x, labels=None, num_items_in_batch=None, **_):
        outputs = super().forward(x, labels)
        if labels is not None and num_items_in_batch is not None:
            outputs["loss"] = outputs["loss"] * len(labels) / num_items_in_batch
        return outputs


class Recorder(transformers.TrainerCallback):
    """Writes down the optimiser's steps and the evaluations."""

    def __init__(self):
        self.steps, self.evaluated = [], []

    def on_step_end(self, args, state, control, **_):
        self.steps.append(state.epoch)

    def on_evaluate(self, args, state, control, **_):
        self.evaluated.append(state.epoch)


class Trainer(PrunedTrainer):
    """Writes down what it trains on."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.seen = []

    def compute_loss(self, model, inputs, *args, **more):
        if "sample_id" in inputs:
            self.seen.append((self.pruner.epoch, inputs["sample_id"].tolist()))
        return super().compute_loss(model, inputs, *args, **more)


def make(folder, model=None, pruner=None, kind=Trainer, **options):
    pruner = pruner or make_pruner()
    options = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        **options,
    }
    more = {name: options.pop(name) for name in ("log_stats",) if name in options}
    model = model or Model()
    return kind(
        model=model,
        args=transformers.TrainingArguments(str(folder), **options),
        train_dataset=DATA,
        eval_dataset=DATA[:9],
        pruner=pruner,
        callbacks=[Recorder()],
        optimizers=(make_optimizer(model), None),
        **more,
    )


def recorder(trainer):
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Recorder))


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", ["shrinks", "grows"])
def test_a_training_is_the_plain_loop(tmp_path, accumulate, exact, kind):
    options = KEEP if kind == "grows" else {}
    plain = make_pruner(**options)
    expected, net = plain_run(plain, accumulate, exact)
    model = CountingModel() if exact else Model()
    trainer = make(
        tmp_path,
        model,
        make_pruner(**options),
        gradient_accumulation_steps=accumulate,
        eval_strategy="epoch",
    )
    trainer.train()
    assert trainer.seen == expected
    # Sums divided here and means divided there differ by rounding.
    torch.testing.assert_close(model.net.weight, net.weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(trainer.pruner.table.mean, plain.table.mean, rtol=1e-4, atol=1e-6)
    assert torch.equal(trainer.pruner.table.count, plain.table.count)
    steps = [-(-plain.steps_per_epoch(BATCH, epoch=e) // accumulate) for e in range(EPOCHS)]
    assert trainer.state.max_steps == trainer.state.global_step == sum(steps)
    assert recorder(trainer).evaluated == [1.0, 2.0, 3.0, 4.0, 5.0]
    ends = [step for step in recorder(trainer).steps if step == int(step)]
    assert ends == [1.0, 2.0, 3.0, 4.0, 5.0]  # every epoch ends with an optimiser's step


def test_the_learning_rate_reaches_its_end(tmp_path):
    trainer = make(tmp_path, lr_scheduler_type="linear")
    trainer.train()
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_any_checkpoint_goes_on_bit_for_bit(tmp_path, accumulate):
    options = {
        "gradient_accumulation_steps": accumulate,
        "save_strategy": "steps",
        "lr_scheduler_type": "linear",
    }
    whole = make(tmp_path / "whole", save_steps=1, **options)
    whole.train()
    steps = whole.state.max_steps
    for step in range(1, steps, 3):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        pruner = make_pruner(seed=99)  # the saved seed wins
        trainer = make(tmp_path / "resumed", pruner=pruner, save_steps=1000, **options)
        trainer.train(resume_from_checkpoint=str(folder))
        done = len(whole.seen) - len(trainer.seen)
        assert done > 0 and trainer.seen == whole.seen[done:], step
        assert trainer.state.global_step == steps
        assert_same_state(trainer.pruner, whole.pruner)
        assert torch.equal(trainer.model.net.weight, whole.model.net.weight), step


def test_steps_may_be_given_instead_of_epochs(tmp_path):
    pruner = Pruner(N, policy="infobatch", epochs=9)
    with pytest.raises(ValueError, match="max_steps must be set"):
        make(tmp_path, pruner=pruner).train()
    trainer = make(tmp_path, pruner=pruner, max_steps=30)
    trainer.train()
    assert trainer.state.global_step == len(trainer.seen) == 30
    assert pruner.epoch > math.ceil(30 / 7) - 1  # pruned epochs have fewer than 7 steps


def test_a_part_of_an_epoch(tmp_path):
    trainer = make(tmp_path, num_train_epochs=1.5)
    trainer.train()
    assert trainer.state.global_step == 7 + 2  # 50 samples, then half of 20, in batches of 8


def test_evaluation_is_the_trainers_own(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    before = trainer.pruner.state_dict()
    metrics = trainer.evaluate()
    logits = trainer.model.net(POINTS[:9])
    loss = nn.functional.cross_entropy(logits, LABELS[:9])
    assert metrics["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)
    after = trainer.pruner.state_dict()
    assert torch.equal(before["table"]["count"], after["table"]["count"])


@pytest.mark.filterwarnings("ignore:a whole batch's loss tells little:RuntimeWarning")
def test_a_model_with_its_own_loss(tmp_path):
    class Regression(Model):
        def forward(self, x, labels=None):
            logits = self.net(x)[:, :1]
            return {"loss": ((logits[:, 0] - labels) ** 2).mean(), "logits": logits}

    trainer = make(tmp_path, Regression())
    trainer.train_dataset = [{"x": POINTS[i], "labels": float(LABELS[i])} for i in range(N)]
    trainer.train()
    assert int(trainer.pruner.table.count.min()) == 1 and len(trainer.seen) == 7 + 4 * 3
    weighs = make(tmp_path, Regression(), Pruner(N, policy="infobatch", epochs=9), max_steps=9)
    weighs.train_dataset = trainer.train_dataset
    with pytest.raises(ValueError, match="rescales the losses of single samples"):
        weighs.train()


def test_outputs_are_asked_for_only_where_they_are_wanted(tmp_path):
    """TRL's trainers compute the logits by a second forward pass if they are asked for."""
    asked = []

    class Usual(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            asked.append(return_outputs)
            loss = model.net(inputs["x"]).square().mean()
            return (loss, {}) if return_outputs else loss

    class Mixed(PrunedTrainerMixin, Usual):
        pass

    trainer = make(tmp_path, kind=Mixed)
    inputs = {"x": torch.ones(2, 4), "labels": torch.ones(2), "sample_id": torch.tensor([3, 5])}
    with pytest.warns(RuntimeWarning, match="a whole batch's loss"):
        loss = trainer.compute_loss(trainer.model, inputs)
    again, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert asked == [False, True] and outputs == {} and torch.equal(loss, again)
    assert trainer.pruner.table.count.nonzero().flatten().tolist() == [3, 5]


def test_the_pages_own_loss_of_single_samples(tmp_path):
    """The class that docs/guides/frameworks.md shows, run as it stands there."""
    page = (ROOT / "docs" / "guides" / "frameworks.md").read_text()
    (text,) = re.findall(r"```python\n(class Mine.*?)```", page, re.S)

    def my_losses(outputs, inputs):
        return nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")

    names = {"PrunedTrainer": Trainer, "my_losses": my_losses}
    exec(text, names)
    trainer = make(tmp_path, kind=names["Mine"])
    trainer.train()
    plain = make_pruner()
    _, net = plain_run(plain)
    torch.testing.assert_close(trainer.model.net.weight, net.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trainer.pruner.table.mean, plain.table.mean, rtol=1e-3, atol=1e-5)
    assert torch.equal(trainer.pruner.times_selected, plain.times_selected)
    assert trainer.evaluate()["eval_loss"] < 0.7


def test_statistics_are_logged(tmp_path):
    trainer = make(tmp_path, log_stats=True)
    trainer.train()
    name = "pruner/num_selected"
    assert [row[name] for row in trainer.state.log_history if name in row] == [50, 20, 20, 20, 20]


def test_advice_is_logged_at_the_end(tmp_path, caplog):
    pruner = make_pruner(policy="ucb", keep=0.1)
    with caplog.at_level(logging.WARNING, "dynprune_cuda"):
        make(tmp_path, pruner=pruner, num_train_epochs=2).train()
        assert caplog.messages == [pruner.advice()] and pruner.advice() is not None
        full = make_pruner(policy="full", keep=None)
        make(tmp_path, pruner=full, num_train_epochs=1).train()
    assert len(caplog.messages) == 1  # of full data there is none


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(TypeError, match="pruner must be a Pruner, got int"):
        make(tmp_path, pruner=3)
    with pytest.raises(ValueError, match="must have 49 samples, as the pruner, got 50"):
        make(tmp_path, pruner=Pruner(49, 0.5)).train()
    whole = make(tmp_path, save_strategy="steps", save_steps=3, max_steps=3)
    whole.train()
    (tmp_path / "checkpoint-3" / "pruner.pt").unlink()
    with pytest.raises(ValueError, match="resume_from_checkpoint must hold a pruner"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
