# SPDX-License-Identifier: Apache-2.0
"""The Lightning callback, with the real Trainer."""

import logging

import pytest
import torch
from plain_loop import (
    BATCH,
    DATA,
    EPOCHS,
    KEEP,
    LABELS,
    POINTS,
    make_net,
    make_optimizer,
    make_pruner,
    plain_run,
)
from runs import assert_same_state
from torch.utils.data import DataLoader

from dynprune_cuda import DeviceLoader

L = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
from dynprune_cuda.integrations.lightning import PrunerCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


class Model(L.LightningModule):
    """Writes down what it trains on, and where it validates."""

    def __init__(self, pruner):
        super().__init__()
        self.pruner = pruner
        self.net = make_net()
        self.seen, self.numbers, self.validated, self.lengths = [], [], [], {}

    def training_step(self, batch, batch_idx):
        points, labels, ids = batch
        self.seen.append((self.current_epoch, ids.tolist()))
        self.numbers.append(batch_idx)
        self.lengths[self.current_epoch] = self.trainer.num_training_batches
        return self.pruner.cross_entropy(self.net(points), labels, ids)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validated.append((self.current_epoch, len(self.seen)))

    def configure_optimizers(self):
        return make_optimizer(self)


def make(**options):
    pruner = make_pruner(**options)
    return pruner, pruner.batch_sampler(BATCH), Model(pruner)


def expect(**options):
    """What a loop without a framework trains on, and its pruner."""
    pruner = make_pruner(**options)
    return plain_run(pruner)[0], pruner


def fit(model, sampler, *more, loader=None, epochs=EPOCHS, path=None, log_stats=False, **options):
    loader = DataLoader(DATA, batch_sampler=sampler) if loader is None else loader
    options = {"logger": False, "reload_dataloaders_every_n_epochs": 1, **options}
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[PrunerCallback(sampler, log_stats=log_stats), *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(more),
        **options,
    )
    trainer.fit(model, loader, DataLoader(POINTS[:4]), ckpt_path=path)
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        KEEP,
        {"keep": None, "policy": "infobatch", "epochs": EPOCHS},
    ],
)
def test_a_fit_is_the_plain_loop(options):
    """Epochs that grow are not cut, epochs that shrink are validated."""
    expected, plain = expect(**options)
    pruner, sampler, model = make(**options)
    fit(model, sampler)
    assert model.seen == expected
    assert_same_state(pruner, plain)
    steps = [len([step for step in expected if step[0] == epoch]) for epoch in range(EPOCHS)]
    assert len(set(steps)) > 1 and list(model.lengths.values()) == steps
    assert model.numbers == [number for length in steps for number in range(length)]
    ends = [sum(steps[: epoch + 1]) for epoch in range(EPOCHS)]
    assert sorted(set(model.validated)) == list(enumerate(ends))


@pytest.mark.slow
@pytest.mark.parametrize(
    "saving",
    [
        {"every_n_epochs": 1},
        {"save_on_train_epoch_end": False},
        {"every_n_train_steps": 1},
    ],
)
def test_a_run_resumed_from_any_checkpoint_goes_on_bit_for_bit(tmp_path, saving):
    expected, plain = expect()
    _, sampler, model = make()
    saver = callbacks.ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, **saving)
    fit(model, sampler, saver, epochs=EPOCHS - 1)  # its last epoch is not the last
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == (len(model.seen) if "every_n_train_steps" in saving else EPOCHS - 1)
    for path in paths:
        step = int(path.stem.split("step=")[1])
        pruner, sampler, model = make(seed=99)  # the saved seed wins
        fit(model, sampler, path=path)
        assert model.seen == expected[step:], path.name
        assert_same_state(pruner, plain)


def test_an_evaluation_from_a_checkpoint_leaves_the_pruner_alone(tmp_path):
    pruner, sampler, model = make()
    saver = callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    trainer = fit(model, sampler, saver)
    _, plain = expect()
    first = min(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trainer.validate(model, DataLoader(POINTS[:4]), ckpt_path=first, verbose=False)
    assert_same_state(pruner, plain)


def test_validation_inside_the_epoch_and_accumulation():
    expected, _ = expect()
    _, sampler, model = make()
    fit(model, sampler, val_check_interval=0.5, accumulate_grad_batches=2)
    assert [epoch for epoch, _ in model.seen] == [epoch for epoch, _ in expected]
    steps = len({step for step in model.validated})
    assert steps == sum(length // max(1, length // 2) for length in model.lengths.values())


def test_a_device_loader_is_recognised():
    pruner, sampler, model = make()
    fit(model, sampler, loader=DeviceLoader(POINTS, LABELS, sampler=sampler))
    expected, plain = expect()
    assert model.seen == expected
    assert_same_state(pruner, plain)


def test_statistics_reach_the_loggers(tmp_path):
    logger = pytest.importorskip("lightning.pytorch.loggers").CSVLogger(tmp_path)
    _, sampler, model = make()
    fit(model, sampler, log_stats=True, logger=logger, log_every_n_steps=1)
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("pruner/num_selected")
    assert [int(row.split(",")[column]) for row in rows[1:]] == [50, 20, 20, 20, 20]


def test_advice_is_logged_at_the_end(caplog):
    pruner, sampler, model = make(policy="ucb", keep=0.1)
    with caplog.at_level(logging.WARNING, "dynprune_cuda"):
        fit(model, sampler, epochs=2)
        assert caplog.messages == [pruner.advice()] and pruner.advice() is not None
        _, sampler, model = make(policy="full", keep=None)
        fit(model, sampler, epochs=1)
    assert len(caplog.messages) == 1  # of full data there is none


def test_what_does_not_fit_is_refused(tmp_path):
    pruner, sampler, model = make()
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs must be 1, got 0"):
        fit(model, sampler, reload_dataloaders_every_n_epochs=0)
    other = pruner.batch_sampler(BATCH)
    with pytest.raises(ValueError, match=r"must use the callback's sampler.*EpochBatchSampler"):
        fit(model, sampler, loader=DataLoader(DATA, batch_sampler=other))
    for wrong in (pruner, pruner.sampler(), None):
        with pytest.raises(TypeError, match="sampler must be what pruner"):
            PrunerCallback(wrong)
    saver = callbacks.ModelCheckpoint(tmp_path, "first")
    fit(model, sampler, saver, epochs=1)
    checkpoint = torch.load(tmp_path / "first.ckpt", weights_only=True)
    del checkpoint["dynprune_cuda"]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    with pytest.raises(ValueError, match="the checkpoint is of a run without PrunerCallback"):
        fit(model, sampler, path=tmp_path / "without.ckpt")
