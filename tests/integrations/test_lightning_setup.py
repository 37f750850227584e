# SPDX-License-Identifier: Apache-2.0
"""What Lightning programs do around the callback: hyperparameters, schedules, DataModules."""

import pytest
import torch
from plain_loop import BATCH, DATA, EPOCHS, POINTS, make_net, make_optimizer, make_pruner, plain_run
from runs import assert_same_state
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

L = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
from dynprune_cuda.integrations.lightning import PrunerCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]
STEPS = [7, 3, 3, 3, 3]  # batches of the epochs of make_pruner()


class Model(L.LightningModule):
    """Keeps its pruner among its hyperparameters."""

    def __init__(self, pruner=None, width=4, schedule=None):
        super().__init__()
        self.save_hyperparameters(ignore=["schedule"])
        self.net, self.schedule, self.seen = make_net(), schedule, []

    @property
    def pruner(self):
        return self.hparams.pruner or self.trainer.datamodule.pruner

    def training_step(self, batch, batch_idx):
        points, labels, ids = batch
        self.seen.append((self.current_epoch, ids.tolist()))
        return self.pruner.cross_entropy(self.net(points), labels, ids)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        optimizer = make_optimizer(self)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(self.trainer, optimizer)}


class Data(L.LightningDataModule):
    """Builds its data, its pruner and its sampler in `setup`."""

    def __init__(self, seed=3, like=None):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.pruner = make_pruner(seed=self.hparams.seed)
        self.sampler = self.pruner.batch_sampler(BATCH)

    def train_dataloader(self):
        return DataLoader(DATA, batch_sampler=self.sampler)

    def val_dataloader(self):
        return DataLoader(POINTS[:4])


def trainer_of(callback, *more, epochs=EPOCHS, **options):
    options = {"logger": False, "reload_dataloaders_every_n_epochs": 1, **options}
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback, *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(more),
        **options,
    )


def fit(schedule=None, pruner=None, **options):
    pruner = pruner or make_pruner()
    sampler = pruner.batch_sampler(BATCH)
    model = Model(pruner, schedule=schedule)
    trainer = trainer_of(PrunerCallback(sampler), **options)
    trainer.fit(model, DataLoader(DATA, batch_sampler=sampler), DataLoader(POINTS[:4]))
    return model


def expected_run():
    pruner = make_pruner()
    return plain_run(pruner)[0], pruner


def test_hyperparameters_with_a_pruner_resume(tmp_path):
    expected, plain = expected_run()
    first = make_pruner()
    sampler = first.batch_sampler(BATCH)
    saver = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    model = Model(first, width=6)
    trainer = trainer_of(PrunerCallback(sampler), saver, epochs=3)
    trainer.fit(model, DataLoader(DATA, batch_sampler=sampler), DataLoader(POINTS[:4]))
    assert model.hparams.pruner is first  # it stays where the model looks for it
    path = tmp_path / "epoch=1.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"] == {"width": 6}
    second = make_pruner(seed=99)
    sampler = second.batch_sampler(BATCH)
    model = Model(second, width=6)
    loaders = DataLoader(DATA, batch_sampler=sampler), DataLoader(POINTS[:4])
    trainer_of(PrunerCallback(sampler)).fit(model, *loaders, ckpt_path=path)
    assert model.seen == expected[sum(STEPS[:2]) :]
    assert_same_state(second, plain)
    loaded = Model.load_from_checkpoint(path, pruner=second)
    assert loaded.hparams.width == 6 and loaded.hparams.pruner is second


def test_a_datamodule_that_builds_its_data_in_setup(tmp_path):
    expected, plain = expected_run()
    saver = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    data = Data(like=make_pruner().sampler())
    callback = PrunerCallback(lambda trainer: trainer.datamodule.sampler)
    model = Model()
    trainer_of(callback, saver).fit(model, datamodule=data)
    assert model.seen == expected and callback.pruner is data.pruner
    assert_same_state(data.pruner, plain)
    path = tmp_path / "epoch=1.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["datamodule_hyper_parameters"] == {"seed": 3}
    data, model = Data(seed=99), Model()
    trainer_of(callback).fit(model, datamodule=data, ckpt_path=path)
    assert model.seen == expected[sum(STEPS[:2]) :] and callback.pruner is data.pruner
    assert_same_state(data.pruner, plain)
    with pytest.raises(TypeError, match="sampler must be what pruner"):
        trainer_of(PrunerCallback(lambda trainer: None)).fit(Model(), datamodule=Data())


def cosine(total):
    """The lambda of Transformers: a partial function with the total among its keywords."""
    from functools import partial

    def at(step, num_training_steps):
        return 1 - step / num_training_steps

    return partial(at, num_training_steps=total)


SCHEDULES = {
    "one cycle": lambda optimizer, total: lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=total
    ),
    "cosine": lr_scheduler.CosineAnnealingLR,
    "sequence": lambda optimizer, total: lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.ConstantLR(optimizer, total_iters=2),
            lr_scheduler.CosineAnnealingLR(optimizer, total),
        ],
        [2],
    ),
    "partial": lambda optimizer, total: lr_scheduler.LambdaLR(optimizer, cosine(total)),
    "closure": lambda optimizer, total: lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / total),
}


def by(name, total_of, interval="step"):
    def schedule(trainer, optimizer):
        return {"scheduler": SCHEDULES[name](optimizer, total_of(trainer)), "interval": interval}

    return schedule


def follower(trainer):
    return next(one for one in trainer.callbacks if isinstance(one, PrunerCallback))


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step.. was not necessary")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_by_estimated_stepping_batches_is_refused_before_the_first_step(name):
    pruner = make_pruner()
    with pytest.raises(
        ValueError, match=r"must not be made with 35 steps.*stepping_batches\(trainer\), 19 here"
    ):
        fit(by(name, lambda trainer: trainer.estimated_stepping_batches), pruner)
    assert not pruner.table.count.any()
    right = fit(by(name, lambda trainer: follower(trainer).stepping_batches(trainer)))
    assert len(right.seen) == sum(STEPS) == 19


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"accumulate_grad_batches": 2}, 4 + 4 * 2),
        ({"limit_train_batches": 5}, 5 + 4 * 3),
        ({"limit_train_batches": 0.5}, 3 + 4 * 1),
        ({"max_steps": 9}, 9),
        ({"max_steps": 9, "epochs": -1}, 9),
        ({"max_steps": 100}, 19),
    ],
)
def test_stepping_batches_are_the_optimizers_steps(options, total):
    found = []

    def schedule(trainer, optimizer):
        found.append(follower(trainer).stepping_batches(trainer))
        return {"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, 50), "interval": "step"}

    model = fit(schedule, **options)
    assert found == [total] and model.trainer.global_step == total


def test_without_an_end_or_a_known_length_there_is_no_total():
    def schedule(trainer, optimizer):
        with pytest.raises(ValueError, match=r'"interval": "epoch"'):
            follower(trainer).stepping_batches(trainer)
        total = trainer.estimated_stepping_batches
        return {"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, total), "interval": "step"}

    pruner = make_pruner(keep=None, policy="infobatch", epochs=EPOCHS)
    with pytest.raises(ValueError, match=r'with 35 steps.*differ in length; give it "interval"'):
        fit(schedule, pruner)
    callback = PrunerCallback(make_pruner().batch_sampler(BATCH))
    with pytest.raises(ValueError, match="max_epochs or max_steps must be set"):
        callback.stepping_batches(trainer_of(callback, epochs=-1))


def test_a_schedule_of_epochs_or_of_equal_epochs_is_accepted():
    fit(by("cosine", lambda trainer: 35, "epoch"))
    pruner = make_pruner(warmup_epochs=0)
    model = fit(by("one cycle", lambda trainer: trainer.estimated_stepping_batches), pruner)
    assert len(model.seen) == 15


def test_validation_after_more_batches_than_an_epoch_has_is_refused_at_setup():
    pruner = make_pruner()
    with pytest.raises(ValueError, match="at most 3, the batches of epoch 1, got 5: use a float"):
        fit(pruner=pruner, val_check_interval=5)
    assert not pruner.table.count.any()
    for options in (
        {"val_check_interval": 3},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
        {"val_check_interval": 0.5},
        {"val_check_interval": 5, "limit_val_batches": 0},
        {"val_check_interval": 5, "max_steps": 6},  # the shorter epochs never come
    ):
        fit(**options)
