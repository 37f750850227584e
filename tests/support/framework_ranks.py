# SPDX-License-Identifier: Apache-2.0
"""What two processes do in `test_framework_ranks.py`: `torchrun --nproc-per-node 2 ... folder`."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import lightning as L
import token_training
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune_cuda import IndexedDataset, Pruner
from dynprune_cuda.integrations.accelerate import prepare_loader
from dynprune_cuda.integrations.lightning import PrunerCallback
from dynprune_cuda.integrations.transformers import PrunedTrainer

N, BATCH, EPOCHS = 61, 4, 4
POINTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
LABELS = (POINTS.sum(1) > 0).long()
DATA = IndexedDataset(TensorDataset(POINTS, LABELS))


def make_pruner():
    return Pruner(N, 0.4, "ucb", period=1, seed=3)


def result(pruner, seen, model):
    """What is compared; the last `set_epoch` shares the scores of the last epoch."""
    chosen = pruner.times_selected.clone()
    pruner.set_epoch(EPOCHS)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return seen, chosen, pruner.state_dict()["table"], weights


def with_accelerate():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    pruner = make_pruner()
    plain = DataLoader(DATA, batch_sampler=pruner.batch_sampler(BATCH))
    twice = accelerator.prepare(plain)
    loader = prepare_loader(accelerator, plain)
    assert accelerator.prepare(loader) is loader
    seen, model, _ = accelerated(accelerator, pruner, loader)
    # What the helper is for: shared out again, a rank sees half of its share.
    short = [len(list(twice)), len(list(loader))]
    done = result(pruner, seen, model)  # which begins another epoch
    stream = DataLoader(pruner.filter(range(N)), BATCH)
    loaders = prepare_loader(accelerator, stream), accelerator.prepare(stream)
    read = [[i for _, ids in one for i in ids.tolist()] for one in loaders]
    return done, short, read, pruner.selected.tolist()


def accelerated(accelerator, pruner, loader):
    """Trains a model that begins the same each time; returns the batches, model and optimiser."""
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    seen, steps = [], []
    for epoch in range(EPOCHS):
        pruner.set_epoch(epoch)
        assert len(loader) == pruner.steps_per_epoch(BATCH)
        for x, y, ids in loader:
            seen.append((epoch, ids.tolist()))
            with accelerator.accumulate(model):
                accelerator.backward(pruner.cross_entropy(model(x), y, ids))
                optimizer.step()
                optimizer.zero_grad()
            steps.append((epoch, accelerator.sync_gradients))
    assert all(
        [synced for number, synced in steps if number == epoch][-1] for epoch in range(EPOCHS)
    )
    return seen, model, optimizer


def with_fsdp(folder):
    """FSDP2 on CPUs, which Accelerate's plugin leaves to GPUs: there it would wrap in DDP."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    pruner = make_pruner()
    loader = DataLoader(DATA, batch_sampler=pruner.batch_sampler(BATCH))
    loader = prepare_loader(accelerator, loader)
    accelerator.register_for_checkpointing(pruner)
    seen, model, _ = accelerated(accelerator, pruner, loader)
    parts = [len(parameter.to_local()) for parameter in model.parameters()]
    found = result(pruner, seen, Whole(model))
    accelerator.save_state(str(folder / "fsdp"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    other = make_pruner()
    accelerator._custom_objects[:] = [other]
    accelerator.load_state(str(folder / "fsdp"))
    again = result(other, seen, Whole(model))
    return found, (parts, again)


class Whole:
    """A sharded model whose parameters are gathered."""

    def __init__(self, model):
        self.model = model

    def parameters(self):
        return [parameter.full_tensor() for parameter in self.model.parameters()]


class Module(L.LightningModule):
    def __init__(self, pruner):
        super().__init__()
        self.pruner, self.net, self.seen = pruner, nn.Linear(4, 2), []

    def training_step(self, batch, batch_idx):
        points, labels, ids = batch
        self.seen.append((self.current_epoch, ids.tolist()))
        return self.pruner.cross_entropy(self.net(points), labels, ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def with_lightning(folder):
    def trainer(**options):
        return L.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            callbacks=[PrunerCallback(sampler)],
            reload_dataloaders_every_n_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    pruner = make_pruner()
    sampler = pruner.batch_sampler(BATCH)
    loader = DataLoader(DATA, batch_sampler=sampler)
    model = Module(pruner)
    try:
        trainer().fit(model, loader)
        refused = ""
    except TypeError as error:
        refused = str(error)
    trainer(use_distributed_sampler=False).fit(model, loader)
    return result(pruner, model.seen, model), refused


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x, labels=None):
        return {"logits": self.net(x)}


class Recording(PrunedTrainer):
    def compute_loss(self, model, inputs, *args, **more):
        self.seen.append((self.pruner.epoch, inputs["sample_id"].tolist()))
        return super().compute_loss(model, inputs, *args, **more)


def with_transformers(folder):
    args = transformers.TrainingArguments(
        str(folder / "hf"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        optim="sgd",
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        seed=0,
    )
    data = [{"x": POINTS[i], "labels": int(LABELS[i])} for i in range(N)]
    pruner, model = make_pruner(), Classifier()
    trainer = Recording(model, args, train_dataset=data, pruner=pruner)
    trainer.seen = []
    trainer.train()
    assert trainer.state.global_step == pruner.total_steps(EPOCHS, BATCH)
    return result(pruner, trainer.seen, model), None


def with_tokens(folder):
    """A model with labels, whose loss is divided by the items of all processes."""
    return {n: token_training.train(folder / f"tokens{n}", 2, n) for n in (1, 2)}


def with_timm():
    """Returns the ids of each epoch, of this rank, and what its pruner knows at the end."""
    from timm.data import create_loader
    from timm.task import ClassificationTask
    from timm_parts import Images, Tiny

    from dynprune_cuda.integrations.timm import PrunedLoader, prune_task

    options = {
        "is_training": True,
        "no_aug": True,
        "persistent_workers": False,
        "distributed": True,
    }
    device = torch.device("cpu")
    data = Images()
    loader = create_loader(data, (3, 8, 8), BATCH, num_workers=0, device=device, **options)
    pruner = Pruner(len(data), 0.6)
    loader = PrunedLoader(loader, pruner, accumulate=1)
    task = ClassificationTask(Tiny(), nn.CrossEntropyLoss(), verbose=False)
    prune_task(task, loader)
    task.prepare_distributed(find_unused_parameters=True)  # a second head
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    seen = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch, None)
        for images, labels in loader:
            task(images, labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        seen.append([i for batch in pruner.batch_sampler(BATCH, drop_last=True) for i in batch])
    pruner.set_epoch(EPOCHS)
    return seen, pruner.state_dict()["table"], [one.detach() for one in task.parameters()]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    found = {
        "accelerate": with_accelerate(),
        "lightning": with_lightning(folder),
        "transformers": with_transformers(folder),
        "tokens": with_tokens(folder),
        "timm": with_timm() if importlib.util.find_spec("timm") else None,
        "fsdp": with_fsdp(folder),  # last: it changes what Accelerate takes the processes for
    }
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # On a busy machine a thread that a framework left running aborts the interpreter's exit.
    sys.stdout.flush()
    os._exit(0)
